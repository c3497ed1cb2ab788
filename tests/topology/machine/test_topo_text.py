"""Tables of ``nvidia-smi topo -m`` in the shapes that drivers print and people paste."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tplab.topology import Link, Machine
from tplab.topology.machine.presets import DGX1_NVLINKS
from tplab.topology.machine.topo_text import parse_topo

LEGEND = """
Legend:

  X    = Self
  SYS  = Connection traversing PCIe as well as the SMP interconnect between NUMA nodes (e.g., QPI/UPI)
  NODE = Connection traversing PCIe as well as the interconnect between PCIe Host Bridges within a NUMA node
  PHB  = Connection traversing PCIe as well as a PCIe Host Bridge (typically the CPU)
  PXB  = Connection traversing multiple PCIe bridges (without traversing the PCIe Host Bridge)
  PIX  = Connection traversing at most a single PCIe bridge
  NV#  = Connection traversing a bonded set of # NVLinks
"""


def table(cells, nics=(), *, affinity=True, numa_id=True, sep="\t", escape=False, legend=True, names=()):
    """``cells``: rows over GPUs then NICs (NIC rows too); the text a driver prints."""
    gpus = len(cells) - len(nics)
    devices = [f"GPU{i}" for i in range(gpus)] + list(nics)
    head = [*devices]
    if affinity:
        head += ["CPU Affinity", "NUMA Affinity"] + ["GPU NUMA ID"] * numa_id
    if escape:
        head = [f"\x1b[4m{title}" for title in head]
        head[-1] += "\x1b[0m"
    lines = [sep + sep.join(head)]
    for i, row in enumerate(cells):
        extra = []
        if affinity and i < gpus:
            half = int(i >= (gpus + 1) // 2)
            extra = [("0-47,96-143", "48-95,144-191")[half], f"{half}"] + ["\tN/A" if sep == "\t" else "N/A"] * numa_id
        lines.append(sep.join([devices[i], *(" X " if cell == "X" else cell for cell in row), *extra]))
    text = "\n".join(lines) + "\n"
    if names:
        text += "\nNIC Legend:\n\n" + "".join(f"  NIC{i}: {name}\n" for i, name in enumerate(names))
    return text + (LEGEND if legend else "")


def square(n, word):
    """n GPUs; ``word(i, j)`` between two."""
    return [["X" if i == j else word(i, j) for j in range(n)] for i in range(n)]


def with_nics(cells, nics):
    """A card on the switch of each second GPU, and cells of the cards' own rows."""
    n = len(cells)

    def word(i, k):
        return "PIX" if i // 2 == k else "NODE" if (i < n // 2) == (2 * k < n) else "SYS"

    top = [[*row, *(word(i, k) for k in range(nics))] for i, row in enumerate(cells)]
    return top + [[word(i, k) for i in range(n)] + ["X" if k == m else "SYS" for m in range(nics)] for k in range(nics)]


@pytest.mark.parametrize(
    ("gpu", "bond", "speed"),
    [("a100", "NV12", 300), ("h100", "NV18", 450), ("h200", "NV18", 450), ("b200", "NV18", 900)],
)
def test_nvswitch(gpu, bond, speed):
    cells = with_nics(square(8, lambda i, j: bond), 4)
    text = table(cells, [f"NIC{i}" for i in range(4)], names=["mlx5_0", "mlx5_3", "mlx5_4", "mlx5_bond_0"])
    machine = Machine.from_topo(text, gpu=gpu)
    assert machine.num_gpus == 8
    assert {machine.link(i, j).kind for i in range(8) for j in range(8) if i != j} == {"nvswitch"}
    assert machine.link(0, 7).bandwidth_GBps == speed
    assert machine.link(0, 7).label == bond
    assert machine.nics == ("mlx5_0", "mlx5_3", "mlx5_4", "mlx5_bond_0")
    assert machine.source == "nvidia-smi topo"


def test_same_machine_as_the_preset():
    """The text and the preset of one machine give the same links."""
    machine = Machine.from_topo(table(square(8, lambda i, j: "NV18")), gpu="h200")
    assert machine.links == Machine.preset("h200").links


def test_four_gpus_joined_directly_are_not_switched():
    """Four links to each of three peers are the twelve that an A100 has."""
    machine = Machine.from_topo(table(square(4, lambda i, j: "NV4")), gpu="a100")
    assert machine.link(0, 3).kind == "nvlink"
    assert machine.link(0, 3).bandwidth_GBps == 100


def test_pairwise_bridges():
    cells = square(4, lambda i, j: "NV12" if i // 2 == j // 2 else "NODE" if i + j == 3 else "SYS")
    machine = Machine.from_topo(table(cells, numa_id=False), gpu="a100-pcie")
    assert machine.link(0, 1).is_nvlink
    assert machine.link(2, 3).is_nvlink
    assert machine.link(0, 2).kind == "sys"
    assert machine.link(1, 2).kind == "node"
    assert machine.link(0, 1).bandwidth_GBps > 5 * machine.link(1, 2).bandwidth_GBps
    assert machine.link(1, 2).bandwidth_GBps > machine.link(0, 2).bandwidth_GBps


def test_dgx1():
    """Pairs with one link, with two, and with none."""
    cells = square(8, lambda i, j: f"NV{DGX1_NVLINKS[i][j]}" if DGX1_NVLINKS[i][j] else "SYS")
    machine = Machine.from_topo(table(with_nics(cells, 4), ["mlx5_0", "mlx5_2", "mlx5_1", "mlx5_3"]), gpu="v100-32gb")
    assert machine.links == Machine.preset("dgx-1").links
    for i in range(8):
        assert (
            sum(machine.link(i, j).bandwidth_GBps / 25 for j in range(8) if j != i and machine.link(i, j).is_nvlink)
            == 6
        )


def test_all_pcie():
    """Words from near to far are never faster further out, nor sooner there."""
    words = {(0, 1): "PIX", (0, 2): "PXB", (0, 3): "PHB", (0, 4): "NODE", (0, 5): "SYS"}
    cells = square(6, lambda i, j: words.get((min(i, j), max(i, j)), "SYS"))
    machine = Machine.from_topo(table(cells), gpu="l40s")
    row = [machine.link(0, j) for j in range(1, 6)]
    assert [link.kind for link in row] == ["pix", "pxb", "phb", "node", "sys"]
    assert [link.bandwidth_GBps for link in row] == sorted((link.bandwidth_GBps for link in row), reverse=True)
    assert [link.latency_us for link in row] == sorted(link.latency_us for link in row)


def test_without_peer_to_peer_pcie_is_slower():
    cells = square(2, lambda i, j: "PHB")
    plain = Machine.from_topo(table(cells), gpu="l40s").link(0, 1)
    geforce = Machine.from_topo(table(cells), gpu="rtx-4090").link(0, 1)
    assert geforce.bandwidth_GBps == plain.bandwidth_GBps / 2


def test_old_word_for_sys():
    assert Machine.from_topo(table(square(2, lambda i, j: "SOC")), gpu="v100-16gb").link(0, 1).kind == "sys"


@pytest.mark.parametrize("numa_id", [True, False])
def test_one_gpu(numa_id):
    machine = Machine.from_topo(table([["X"]], numa_id=numa_id), gpu="l4")
    assert machine.num_gpus == 1
    assert machine.slowest_link([0]) is None


def test_one_gpu_without_anything_else():
    assert parse_topo("\tGPU0\nGPU0\t X \n").gpus == ("GPU0",)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 8),
    nics=st.integers(0, 3),
    sep=st.sampled_from(["\t", "    ", " ", " \t"]),
    escape=st.booleans(),
    affinity=st.booleans(),
    numa_id=st.booleans(),
    around=st.sampled_from([("", ""), ("$ nvidia-smi topo -m\n", "\n$ "), ("```\n", "```\n"), ("> # links\n\n", "")]),
    newline=st.sampled_from(["\n", "\r\n"]),
    seed=st.randoms(use_true_random=False),
)
def test_any_dressing_reads_the_same(n, nics, sep, escape, affinity, numa_id, around, newline, seed):
    """Tabs or blanks, underlined header, affinity columns, prompts around it: the words come out as they went in."""
    words = {}

    def word(i, j):
        return words.setdefault(
            (min(i, j), max(i, j)), seed.choice(["NV1", "NV12", "PIX", "PXB", "PHB", "NODE", "SYS"])
        )

    cells = square(n, word)
    text = table(
        with_nics(cells, nics),
        [f"NIC{i}" for i in range(nics)],
        sep=sep,
        escape=escape,
        affinity=affinity,
        numa_id=numa_id,
    )
    read = parse_topo((around[0] + text + around[1]).replace("\n", newline))
    assert read.gpus == tuple(f"GPU{i}" for i in range(n))
    assert read.cells == tuple(map(tuple, cells))
    assert read.nics == tuple(f"NIC{i}" for i in range(nics))
    assert read.nic_cells == tuple(tuple(row[n:]) for row in with_nics(cells, nics)[:n])
    if affinity:
        assert read.numa == tuple(str(int(i >= (n + 1) // 2)) for i in range(n))


def test_escape_sequences_whose_escape_was_lost():
    """Some terminals and web pages drop the escape character and keep the rest."""
    text = table(square(2, lambda i, j: "NV4"), escape=True).replace("\x1b", "")
    assert "[4mGPU0" in text
    assert parse_topo(text).cells == (("X", "NV4"), ("NV4", "X"))


def test_quoted_in_a_mail_and_rows_of_cards_left_out():
    whole = table(with_nics(square(2, lambda i, j: "PHB"), 2), ["mlx5_0", "mlx5_1"])
    text = "\n".join("> " + line for line in whole.splitlines() if not line.startswith("mlx5"))
    read = parse_topo(text)
    assert read.cells == (("X", "PHB"), ("PHB", "X"))
    assert read.nics == ("mlx5_0", "mlx5_1")


def test_words_that_ran_together():
    """A terminal wrapped the lines at 80 columns, and they were joined without a blank."""
    cells = with_nics(square(8, lambda i, j: "NV18"), 4)
    nics = [f"NIC{i}" for i in range(4)]
    whole = table(cells, nics, sep="    ", affinity=False, legend=False)
    text = whole.replace("NIC1    NIC2", "NIC1NIC2").replace("NV18    NV18    SYS", "NV18    NV18SYS")
    text = text.replace("SYS    SYS", "SYSSYS")
    assert "SYSSYS" in text
    assert parse_topo(text) == parse_topo(whole)


def test_two_tables_in_one_text():
    """The first counts, whether or not its rows of cards are there."""
    first = table(with_nics(square(2, lambda i, j: "PHB"), 1), ["NIC0"], legend=False)
    second = table(with_nics(square(2, lambda i, j: "SYS"), 1), ["NIC0"], legend=False)
    short = "\n".join(first.splitlines()[:-1]) + "\n"
    for text in (first + second, short + second, short + "\nhost2:\n" + second):
        assert parse_topo(text).cells == (("X", "PHB"), ("PHB", "X"))


def test_affinity_with_blank_cells():
    """A container that hides the affinity leaves the cells empty."""
    text = (
        "\tGPU0\tGPU1\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\nGPU0\t X \tSYS\t\t\t\tN/A\nGPU1\tSYS\t X \t\t\t\tN/A\n"
    )
    assert parse_topo(text).numa == (None, None)


def test_nodes_share_the_cards():
    text = table(with_nics(square(8, lambda i, j: "NV18"), 4), [f"NIC{i}" for i in range(4)])
    machine = Machine.from_topo(text, gpu="h100", nodes=2)
    assert machine.num_gpus == 16
    assert machine.link(0, 8).kind == "network"
    assert machine.link(0, 8).bandwidth_GBps == 4 * 50 / 8
    assert machine.link(8, 15).kind == "nvswitch"
    slow = Link(kind="network", bandwidth_GBps=3, latency_us=20)
    assert Machine.from_topo(text, gpu="h100", nodes=2, network=slow).link(7, 8) == slow


def test_cards_for_storage_do_not_count():
    """Cards that no GPU reaches through switches alone."""
    cells = [
        ["X", "NV18", "PIX", "SYS"],
        ["NV18", "X", "NODE", "SYS"],
        ["PIX", "NODE", "X", "SYS"],
        ["SYS"] * 3 + ["X"],
    ]
    machine = Machine.from_topo(table(cells, ["NIC0", "NIC1"]), gpu="h100", nodes=2)
    assert machine.link(0, 2).bandwidth_GBps == 25


def test_no_table():
    with pytest.raises(ValueError, match="no line of the text is the header"):
        Machine.from_topo("Failed to initialize NVML: Driver/library version mismatch", gpu="h100")
    with pytest.raises(ValueError, match="no line of the text is the header"):
        parse_topo("")


@settings(max_examples=80, deadline=None)
@given(data=st.data(), nics=st.sampled_from([0, 2]))
def test_cut_anywhere(data, nics):
    """Cut inside the rows of GPUs: an error that names the last line there is. Cut after them: nothing is lost."""
    cells = square(4, lambda i, j: "NV12" if i // 2 == j // 2 else "SYS")
    whole = table(with_nics(cells, nics), [f"NIC{i}" for i in range(nics)], legend=False)
    lines = whole.splitlines()
    end_of_gpus = len("\n".join(lines[:4])) + len("\nGPU3\tSYS\tSYS\tNV12\t X" + " " * (nics > 0) + "\tSYS" * nics)
    cut = data.draw(st.integers(len(lines[0]) + 1, len(whole)))
    text = whole[:cut]
    last = len(text.splitlines())
    if cut < end_of_gpus:
        with pytest.raises(ValueError, match=r"line \d+") as caught:
            parse_topo(text)
        number = int(re.search(r"line (\d+)", str(caught.value))[1])
        assert last - 1 <= number <= last
        return
    if re.match(r"NIC\d", text.splitlines()[-1]) and text.splitlines()[-1].split() != lines[last - 1].split():
        return  # a card's row cut short may be an error or not: no link of a GPU is lost
    assert parse_topo(text).cells == tuple(map(tuple, cells))


def test_cut_short_says_so():
    text = table(square(8, lambda i, j: "NV18"))
    with pytest.raises(ValueError, match=r"line 6: the table ends here, without rows for GPU5, GPU6, GPU7"):
        parse_topo("\n".join(text.splitlines()[:6]))
    with pytest.raises(ValueError, match=r"line 5: row GPU3 has 2 of 8 links: is it cut off\?"):
        parse_topo("\n".join(text.splitlines()[:4]) + "\nGPU3\tNV18\tNV18")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("GPU1\tNV18", "GPU1\tQPI", r"line 3: row GPU1, column GPU0: 'QPI' is no link"),
        ("GPU1\tNV18", "GPU1\tSYS", r"line 2 says NV18 between GPU0 and GPU1, line 3 says SYS"),
        ("GPU1\tNV18\t X ", "GPU1\t X \tNV18", r"line 3: row GPU1, column GPU0 says X: columns are shifted"),
        ("GPU1\tNV18", "GPU0\tNV18", r"line 3: a second row for GPU0 \(the first is line 2\)"),
        ("\tGPU0\tGPU1", "\tGPU0\tGPU0", r"line 1: the header lists GPU0 twice"),
    ],
)
def test_damaged(old, new, message):
    text = table(square(2, lambda i, j: "NV18"))
    assert old in text
    with pytest.raises(ValueError, match=message):
        parse_topo(text.replace(old, new, 1))


def test_wrong_gpu():
    text = table(square(8, lambda i, j: "NV18"))
    with pytest.raises(ValueError, match=r"GPU0 and GPU1 are joined by NV18, and a100 has 12 NVLinks"):
        Machine.from_topo(text, gpu="a100")
    with pytest.raises(ValueError, match=r"l40s has no NVLink"):
        Machine.from_topo(text, gpu="l40s")
    with pytest.raises(ValueError, match=r"no GPU preset is called 'h10': did you mean .*h100"):
        Machine.from_topo(text, gpu="h10")


@pytest.mark.parametrize(
    ("n", "word", "gpu"),
    [
        (8, lambda i, j: "NV18", "h100"),
        (8, lambda i, j: "NV12", "a100-40gb"),
        (8, lambda i, j: "NV8", "a800"),
        (2, lambda i, j: "NV2", "rtx-2080-ti"),
        (4, lambda i, j: "NV4", "a100-40gb"),
        (4, lambda i, j: "NV12" if i // 2 == j // 2 else "SYS", "a100-pcie-40gb"),
        (4, lambda i, j: "NV4" if i // 2 == j // 2 else "NODE", "rtx-3090"),
        (8, lambda i, j: f"NV{DGX1_NVLINKS[i][j]}" if DGX1_NVLINKS[i][j] else "SYS", "v100-16gb"),
        (8, lambda i, j: "NV6", "v100-32gb"),
        (8, lambda i, j: "PXB", "l4"),
        (1, lambda i, j: "", "l4"),
    ],
)
def test_gpu_guessed_by_its_nvlinks(n, word, gpu):
    text = table(square(n, word))
    machine = Machine.from_topo(text)
    assert machine.gpu.name == gpu
    assert machine.links == Machine.from_topo(text, gpu=gpu).links
    assert f"the text does not say: taken as {gpu}" in machine.notes[0]


def test_nodes_without_cards():
    with pytest.raises(ValueError, match="lists no network card"):
        Machine.from_topo(table(square(2, lambda i, j: "NV18")), gpu="h100", nodes=2)
