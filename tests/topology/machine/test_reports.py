"""Tables of links inside reports: what stands before each line, what a terminal broke, which GPUs the report names."""

import random
import time
from pathlib import Path

import pytest

from tplab.topology import Machine
from tplab.topology.machine.spec_sheets import GPUS
from tplab.topology.machine.topo_text import parse_topo

LEGEND = "\nLegend:\n\n  X    = Self\n  SYS  = Connection traversing PCIe as well as the SMP interconnect\n"


def square(n: int, word) -> list[list[str]]:
    return [["X" if i == j else word(i, j) for j in range(n)] for i in range(n)]


def with_nics(cells: list[list[str]], nics: int) -> list[list[str]]:
    """A card on the switch of each second GPU."""
    words = [["PIX" if i // 2 == k else "SYS" for k in range(nics)] for i in range(len(cells))]
    below = [[row[k] for row in words] + ["X" if k == m else "NODE" for m in range(nics)] for k in range(nics)]
    return [*([*row, *more] for row, more in zip(cells, words, strict=True)), *below]


def table(cells, nics=(), *, names=(), escape=False, numa_id=True, legend=True, sep="\t") -> str:
    """What ``nvidia-smi topo -m`` prints for rows over GPUs and cards."""
    gpus = len(cells) - len(nics)
    devices = [*(f"GPU{i}" for i in range(gpus)), *nics]
    head = [*devices, "CPU Affinity", "NUMA Affinity", *["GPU NUMA ID"] * numa_id]
    lines = [sep + sep.join(f"\x1b[4m{title}" if escape else title for title in head) + "\x1b[0m" * escape]
    for i, row in enumerate(cells):
        more = ["0-47,96-143", "0", *["\tN/A" if sep == "\t" else "N/A"] * numa_id] if i < gpus else []
        lines.append(sep.join([devices[i], *(" X " if cell == "X" else cell for cell in row), *more]))
    legend_of_cards = "\nNIC Legend:\n\n" + "".join(f"  NIC{i}: {name}\n" for i, name in enumerate(names))
    return "\n".join(lines) + "\n" + (legend_of_cards if names else "") + (LEGEND if legend else "")


BOX = with_nics(square(8, lambda i, j: "NV18" if i // 4 == j // 4 else "SYS"), 4)
NICS = [f"NIC{i}" for i in range(4)]
NAMES = ["mlx5_0", "mlx5_1", "mlx5_bond_0", "mlx5_3"]
REPORT = table(BOX, NICS, names=NAMES, escape=True)
PAIR = table(square(2, lambda i, j: "PHB"), legend=False)
HOST = {"NS", "CNS", "GNS", "TNS", "DR", "U"}


def p2p(n: int, word, letter: str = "r") -> str:
    """What ``nvidia-smi topo -p2p`` prints for n GPUs."""
    rows = ["".join(f"\t{'X' if i == j else word(i, j)}" for j in range(n)) for i in range(n)]
    head = f"$ nvidia-smi topo -p2p {letter}\n" if letter else ""
    body = "".join(f" GPU{i}{row}\t\n" for i, row in enumerate(rows))
    return (
        f"{head} \t{'	'.join(f'GPU{i}' for i in range(n))}\t\n{body}\nLegend:\n\n  X    = Self\n  OK   = Status Ok\n"
    )


def tried(read, text: str):
    """What ``read`` gives, or the ``ValueError`` that it raises."""
    try:
        return read(text)
    except ValueError as error:
        return error


PREFIXES = {
    "quoted": lambda i: "> ",
    "quoted twice": lambda i: "> > ",
    "compose": lambda i: "vllm-1  | ",
    "kubernetes": lambda i: f"2026-01-02T03:04:{i % 60:02d}.{i * 7919 % 10**9:09d}Z stdout F ",
    "a process of an engine": lambda i: "(EngineCore pid=1234) ",
    "a rank": lambda i: "[0]: ",
    "mpirun": lambda i: "[1,0]<stdout>:",
    "a level and a module": lambda i: f"INFO 01-02 03:04:{i % 60:02d} [env.py:7] ",
    "numbers of lines": lambda i: f"{i + 1:>4}  ",
    "grep": lambda i: f"report.txt:{i + 1}:",
    "pdsh": lambda i: "node01: ",
    "slurm": lambda i: " 0: ",
}


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("sep", ["\t", "    "])
def test_the_same_before_each_line(prefix: str, sep: str) -> None:
    text = table(BOX, NICS, names=NAMES, escape=True, sep=sep)
    made = "\n".join(PREFIXES[prefix](i) + line for i, line in enumerate(text.splitlines()))
    assert parse_topo(made) == parse_topo(text)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("\t", " \N{NO-BREAK SPACE} "),
        ("GPU", "\N{ZERO WIDTH SPACE}GPU"),
        ("-", "\N{EN DASH}"),
        ("\n", "\r\n"),
        ("\n", "\r"),
        ("\n", "\n\n"),
        (" X ", " **X** "),
        ("NV18", "\x1b[1;32mNV18\x1b[0m"),
    ],
)
def test_as_pages_and_terminals_dress_it(old: str, new: str) -> None:
    assert parse_topo(REPORT.replace(old, new)).cells == parse_topo(REPORT).cells
    assert parse_topo(REPORT.replace(old, new)).nics == parse_topo(REPORT).nics


def test_as_a_table_of_markdown_and_as_a_string_of_a_program() -> None:
    lines = [[cell.strip() for cell in line.split("\t")] for line in PAIR.splitlines()]
    marked = "\n".join(f"| {' | '.join(cells)} |" for cells in [lines[0], ["---"] * 6, *lines[1:]])
    for text in (marked, repr(PAIR), f'{{"topology": {REPORT[:0]}"{PAIR}"}}'.replace("\n", "\\n").replace("\t", "\\t")):
        assert parse_topo(text).cells == (("X", "PHB"), ("PHB", "X"))


def test_ranks_that_print_the_same_table_at_once() -> None:
    lines = [f"[rank{rank}]: {line}" for line in REPORT.splitlines() for rank in range(2)]
    assert parse_topo("\n".join(lines)).cells == parse_topo(REPORT).cells
    other = table(with_nics(square(8, lambda i, j: "SYS"), 4), NICS, names=NAMES).splitlines()
    mixed = [
        f"[{rank}]: {line}" for two in zip(REPORT.splitlines(), other, strict=False) for rank, line in enumerate(two)
    ]
    with pytest.raises(ValueError, match="a second row for GPU"):
        parse_topo("\n".join(mixed))


def test_bytes_of_another_encoding() -> None:
    assert parse_topo(REPORT.replace("\t", "\xa0 ").encode("latin-1").decode("utf-8", "replace")) == parse_topo(REPORT)


@pytest.mark.parametrize("sep", [",", ";"])
def test_out_of_a_spreadsheet(sep: str) -> None:
    cells = square(2, lambda i, j: "NV4")
    made = f"{sep}GPU0{sep}GPU1{sep}CPU Affinity\n" + "".join(
        f'GPU{i}{sep}{sep.join(row)}{sep}"0-23,48-71"\n' for i, row in enumerate(cells)
    )
    for text in (made, made.replace('"', "")):
        assert parse_topo(text).cells == tuple(map(tuple, cells))


def test_the_command_on_the_line_of_the_header() -> None:
    assert parse_topo("$ nvidia-smi topo -m " + PAIR).cells == (("X", "PHB"), ("PHB", "X"))


@pytest.mark.parametrize("width", [40, 56, 72, 80, 100, 119, 120, 132])
@pytest.mark.parametrize("stripped", [False, True])
def test_lines_that_a_terminal_broke(width: int, stripped: bool) -> None:
    """Joined, or refused by line; never a part of the columns."""
    whole = table(BOX, NICS, names=NAMES, legend=False).expandtabs(8)
    pieces = [line[i : i + width] for line in whole.splitlines() for i in range(0, max(1, len(line)), width)]
    text = "\n".join(piece.rstrip() if stripped else piece for piece in pieces)
    read, known = tried(parse_topo, text), parse_topo(whole)
    if isinstance(read, ValueError):
        assert "line " in str(read)
        assert stripped or width % 8
    else:
        assert (read.cells, read.nics, read.nic_cells) == (known.cells, known.nics, known.nic_cells)


def test_a_header_without_its_second_line_is_refused() -> None:
    lines = table(BOX, NICS, legend=False).splitlines()
    lines[0] = "\t".join(lines[0].split("\t")[:9])
    with pytest.raises(ValueError, match=r"line 2: row GPU0 has more links than the header on line 1 has columns"):
        parse_topo("\n".join(lines))
    broken = [lines[0], *(part for line in lines[1:] for part in (line[:50], line[50:]))]
    with pytest.raises(ValueError, match=r"line \d+: "):
        parse_topo("\n".join(broken))


def test_sixteen_gpus_of_an_old_box() -> None:
    cells = square(16, lambda i, j: "NV6")
    text = table(with_nics(cells, 2), ["mlx5_0", "mlx5_1"], numa_id=False, legend=False).expandtabs(8)
    wrapped = "\n".join(line[i : i + 80] for line in text.splitlines() for i in range(0, len(line), 80))
    for each in (text, wrapped):
        assert parse_topo(each).cells == tuple(map(tuple, cells))
        assert Machine.from_topo(each).gpu.name == "v100-32gb"


def test_the_first_of_several_tables_counts_and_it_is_said() -> None:
    other = table(square(2, lambda i, j: "SYS"), legend=False)
    notes = Machine.from_topo(f"node1:\n{PAIR}\nnode2:\n{other}", gpu="l4").notes
    assert "the text has 2 tables, 1 unlike the first, which counts" in notes
    assert not any("tables" in note for note in Machine.from_topo(f"{PAIR}\n{PAIR}", gpu="l4").notes)


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("word", sorted(HOST))
def test_pairs_without_direct_access_go_through_the_host(word: str, before: bool) -> None:
    links = table(square(4, lambda i, j: "PIX"))
    peers = p2p(4, lambda i, j: word if {i, j} == {0, 1} else "OK")
    machine = Machine.from_topo(peers + links if before else links + "\n" + peers, gpu="l40s")
    assert machine.link(0, 1).bandwidth_GBps == machine.link(2, 3).bandwidth_GBps / 2
    assert machine.link(0, 1).latency_us > machine.link(2, 3).latency_us
    assert f"bars direct access of GPU0-GPU1 ({word})" in machine.notes[-1]


def test_nvlinks_that_peers_may_not_use() -> None:
    links = table(square(2, lambda i, j: "NV4"))
    machine = Machine.from_topo(links + p2p(2, lambda i, j: "CNS"), gpu="rtx-a6000")
    assert not machine.link(0, 1).is_nvlink
    for letter in "np":  # without NVLink, and without PCIe, peers of the other still reach each other
        told = p2p(2, lambda i, j: "NS", letter)
        assert Machine.from_topo(links + told, gpu="rtx-a6000").link(0, 1).is_nvlink
    assert Machine.from_topo(PAIR + p2p(2, lambda i, j: "NS", "a"), gpu="l4") == Machine.from_topo(PAIR, gpu="l4")


def test_cards_that_a_driver_lets_reach_each_other() -> None:
    plain, able = (Machine.from_topo(PAIR + more, gpu="rtx-4090") for more in ("", p2p(2, lambda i, j: "OK")))
    assert able.link(0, 1).bandwidth_GBps == 2 * plain.link(0, 1).bandwidth_GBps
    assert "allows direct access of GPU0-GPU1, which rtx-4090 usually does not have" in able.notes[-1]


def test_a_table_of_peers_that_a_terminal_broke_or_that_is_cut_off() -> None:
    links = table(square(16, lambda i, j: "SYS"))
    peers = p2p(16, lambda i, j: "OK" if i // 8 == j // 8 else "CNS").expandtabs(8)
    known = parse_topo(links + peers).peers
    assert known[0][1:9] == ("OK",) * 7 + ("CNS",)
    for rest in ("", " "):
        lines = (line[i : i + 80] for line in peers.splitlines() for i in range(0, max(1, len(line)), 80))
        assert parse_topo(links + "\n".join(line.rstrip() + rest for line in lines)).peers == known
    cut = "\n".join(line[:60] if "OK" in line else line for line in peers.splitlines())
    with pytest.raises(ValueError, match=r"topo -p2p: row GPU0 has 7 of 16: is it cut off\?"):
        parse_topo(links + cut)


def test_lines_broken_behind_a_prefix() -> None:
    """A viewer of logs writes the prefix once per line, and breaks what is longer."""
    whole = table(BOX, NICS, names=NAMES, legend=False).expandtabs(8)
    lines = ("2026-01-02T03:04:05Z  " + line for line in whole.splitlines())
    pieces = [line[i : i + 86] for line in lines for i in range(0, len(line), 86)]
    assert parse_topo("\n".join(pieces)).nic_cells == parse_topo(whole).nic_cells


@pytest.mark.parametrize("before", ["", "pod-0 | "])
@pytest.mark.parametrize("card", ["mlx5_2", "mlx5_bond_0"])
def test_lines_that_are_broken_anywhere(before: str, card: str) -> None:
    """Within words of the header and within the last link of a row, too; or just between two columns."""
    titles = "\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID"
    text = f"""\tGPU0\tGPU1\tNIC0\tNIC1\t{card}{titles}
GPU0\t X \tNV18\tPIX\tSYS\tNODE\t0-47,96-143\t0\t\tN/A
GPU1\tNV18\t X \tSYS\tPIX\tNODE\t48-95,144-191\t1\t\tN/A
NIC0\tPIX\tSYS\t X \tSYS\tSYS
NIC1\tSYS\tPIX\tSYS\t X \tSYS
{card}\tNODE\tNODE\tSYS\tSYS\t X
"""
    whole = parse_topo(text)
    for width in range(24, 130):
        lines = [line[i : i + width] for line in text.expandtabs(8).splitlines() for i in range(0, len(line), width)]
        table = parse_topo("\n".join(before + line for line in lines))
        assert (table.cells, table.nic_cells, table.nics) == (whole.cells, whole.nic_cells, whole.nics), width


@pytest.mark.parametrize(
    "said",
    ["['NVIDIA L40S', 'NVIDIA L40S']\n", "_CudaDeviceProperties(name='NVIDIA L40S', major=8, minor=9)\n",
     '{"gpus": [{"name": "NVIDIA L40S"}]}\n'],
)  # fmt: skip
def test_a_name_in_quotes(said: str) -> None:
    assert Machine.from_topo(said + PAIR).gpu.name == "l40s"


def test_what_is_no_text() -> None:
    with pytest.raises(ValueError, match="text must be what `nvidia-smi topo -m` prints, as a str"):
        Machine.from_topo(Path("topo.txt"))  # type: ignore[arg-type]


def test_the_table_of_peers_alone() -> None:
    with pytest.raises(ValueError, match=r"topo -p2p alone: add what `nvidia-smi topo -m` prints$"):
        parse_topo(listed("NVIDIA L4") + p2p(2, lambda i, j: "OK"))


def smi(name: str, mib: int, count: int = 2) -> str:
    """The table of ``nvidia-smi``, as drivers since 470 print it."""
    rows = "".join(
        f"|   {i}  {name:<28} On  | 00000000:{i + 7:02X}:00.0 Off |                    0 |\n"
        f"| N/A   34C    P0    61W / 400W |      0MiB / {mib}MiB |      0%      Default |\n"
        f"|                               |                      |             Disabled |\n"
        for i in range(count)
    )
    head = "| NVIDIA-SMI 550.54.15     Driver Version: 550.54.15     CUDA Version: 12.4     |\n"
    return f"{head}| GPU  Name        Persistence-M| Bus-Id        Disp.A | Volatile Uncorr. ECC |\n{rows}"


def listed(name: str, count: int = 2) -> str:
    return "".join(f"GPU {i}: {name}\n" for i in range(count))


@pytest.mark.parametrize(
    ("report", "gpu"),
    [
        ("GPU models and configuration: \n" + listed("NVIDIA L4"), "l4"),
        ("GPU models and configuration: GPU 0: NVIDIA GeForce RTX 3090", "rtx-3090"),
        (listed("NVIDIA L40S (UUID: GPU-11111111-2222-3333-4444-555555555555)"), "l40s"),
        ("CUDA available: True\nGPU 0,1: NVIDIA RTX A6000\nGPU 0,1 Compute Capability: 8.6\n", "rtx-a6000"),
        ("- **GPU 0:** NVIDIA GeForce RTX 3090 | 24576 MiB | driver 595.58.03\n", "rtx-3090"),
        (smi("NVIDIA A10", 23028), "a10"),
        (smi("NVIDIA A100-PCI...", 40960), "a100-pcie-40gb"),
        (smi("NVIDIA A100 80G...", 81920), "a100"),
        (smi("GeForce RTX 208...", 11019), "rtx-2080-ti"),
        (smi("NVIDIA GeForce ...", 24576), "rtx-3090"),
        (smi("NVIDIA H20", 143771), "h20-3e"),
        ("name, memory.total [MiB]\n" + "NVIDIA A100-SXM4-40GB, 40960 MiB\n" * 2, "a100-40gb"),
        ("index, name, memory.total [MiB]\n0, NVIDIA A40, 46068 MiB\n1, NVIDIA A40, 46068 MiB\n", "a40"),
        ("    Product Name     : NVIDIA A30\n    FB Memory Usage\n        Total    : 24576 MiB\n", "a30"),
        ("<gpu><product_name>NVIDIA A10</product_name>\n<product_name>NVIDIA A10</product_name>\n", "a10"),
        ("$ nvidia-smi --query-gpu=name --format=csv,noheader\nNVIDIA T4\nNVIDIA T4\n", "t4"),
        ("- GPU type: NVIDIA A10G\n", "a10g"),
        ("My dual RTX 4090s under load\n", "rtx-4090"),
        ("GPU: NVIDIA L20 x 2\n", "l20"),
        ("# bench: 2x RTX 5090, PCIe 5\n", "rtx-5090"),
        ("ggml_cuda_init:\n  Device 0: Tesla V100-PCIE-16GB, compute capability 7.0", "v100-pcie-16gb"),
        ("#  Rank  0 Group  0 Pid 9 on   box device  0 [0000:07:00] NVIDIA H100 PCIe", "h100-pcie"),
    ],
)  # fmt: skip
def test_the_gpu_that_the_report_names(report: str, gpu: str) -> None:
    for text in (f"{report}\n\n{PAIR}", f"{PAIR}\n{report}"):
        machine = Machine.from_topo(text)
        assert (machine.gpu.name, machine.num_gpus, machine.doubt) == (gpu, 2, "")
        assert machine.notes[0].startswith("the text names the GPUs: ")
        assert machine.links == Machine.from_topo(PAIR, gpu=gpu).links
    prefixed = "\n".join("vllm-1  | " + line for line in f"{report}\n{PAIR}".splitlines())
    assert Machine.from_topo(prefixed).gpu.name == gpu


def test_what_is_given_goes_before_what_the_report_names() -> None:
    machine = Machine.from_topo(listed("NVIDIA L4") + PAIR, gpu="a10")
    assert machine.gpu.name == "a10"
    assert "the text names other GPUs than were given: NVIDIA L4 as a10" in machine.notes


@pytest.mark.parametrize(
    ("report", "message"),
    [
        (listed("NVIDIA A100-SXM-64GB"), "names 'NVIDIA A100-SXM-64GB', of which there is no spec sheet: give the gpu"),
        (listed("NVIDIA H100 80GB HBM3") + "  MIG 3g.40gb     Device  0: (UUID: MIG-1)\n", r"slices of GPUs \(MIG\)"),
        (smi("NVIDIA A100-SXM4-40GB", 40960).replace("Disabled", " Enabled"), r"slices of GPUs \(MIG\)"),
        (listed("GRID A100D-80C"), "names 'GRID A100D-80C'"),
        (listed("Tesla K80"), "names 'Tesla K80'"),
    ],
)
def test_gpus_that_no_spec_sheet_is_of(report: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Machine.from_topo(report + PAIR)
    assert Machine.from_topo(report + PAIR, gpu="l4").gpu.name == "l4"


def test_gpus_of_two_kinds_count_as_the_smaller() -> None:
    names = "GPU 0: NVIDIA A100-SXM4-80GB\nGPU 1: NVIDIA A100-SXM4-80GB\nGPU 2: NVIDIA L40S\n"
    machine = Machine.from_topo(names + table(square(3, lambda i, j: "NV12" if i + j == 1 else "SYS")))
    assert machine.gpu.name == "l40s"
    assert machine.link(0, 1).is_nvlink
    assert any("GPUs of several kinds (2 x a100, 1 x l40s): each counts as l40s" in note for note in machine.notes)


def test_gpus_of_two_kinds_are_as_slow_as_the_slower() -> None:
    names = "GPU 0: NVIDIA A100-SXM4-40GB\nGPU 1: NVIDIA RTX A6000\n"
    machine = Machine.from_topo(names + PAIR)
    assert (machine.gpu.name, machine.gpu.memory_GB) == ("a100-40gb", GPUS["a100-40gb"].memory_GB)
    assert (machine.gpu.hbm_GBps, machine.gpu.bf16_TFLOPS) == (768, 154.8)  # of an A6000, with more memory
    assert "the smallest of them, at the slowest one's memory bandwidth and rates" in " ".join(machine.notes)


def test_a_card_that_only_drives_a_display_is_left_out() -> None:
    names = listed("NVIDIA A100-SXM4-40GB", 2) + "GPU 2: NVIDIA DGX Display\nGPU 3: NVIDIA A100-SXM4-40GB\n"
    text = names + table(square(4, lambda i, j: "SYS" if 2 in (i, j) else "NV4"))
    for gpu in (None, "a100"):
        machine = Machine.from_topo(text, gpu=gpu)
        assert machine.num_gpus == 3
        assert {link.kind for row in machine.links for link in row if link} == {"nvlink"}
        assert "GPU2 is left out: it only drives a display" in machine.notes


def test_lists_longer_and_shorter_than_the_table() -> None:
    assert "it names 8, and its table has 2: those" in " ".join(Machine.from_topo(listed("NVIDIA L4", 8) + PAIR).notes)
    text = "GPU 0: NVIDIA L4\n" + PAIR
    assert "it names 1 of 2: the others are taken as the same" in Machine.from_topo(text).notes


def test_two_lists_in_one_report_are_said() -> None:
    machine = Machine.from_topo(f"host a\n{listed('NVIDIA L40S')}host b\n{listed('NVIDIA L4')}{PAIR}")
    assert machine.gpu.name == "l40s"
    assert "it also names NVIDIA L4 under the same numbers: what it names first counts" in machine.notes
    names = listed("NVIDIA L40S") + smi("NVIDIA L40S", 46068)
    assert not any("also names" in note for note in Machine.from_topo(names + PAIR).notes)


def test_the_smaller_of_two_that_have_the_same_memory_is_the_slower() -> None:
    names = "GPU 0: NVIDIA GeForce RTX 4090\nGPU 1: NVIDIA GeForce RTX 3090\n"
    assert Machine.from_topo(names + PAIR).gpu.name == "rtx-3090"


def test_words_that_cannot_be_are_not_taken() -> None:
    """A sentence about other machines does not name the GPUs of a table that theirs could not have."""
    text = "faster than my 2x RTX 5090\n" + table(square(2, lambda i, j: "NV18"))
    assert Machine.from_topo(text).gpu.name == "h100"
    assert Machine.from_topo("2x RTX 5090 against 2x RTX 3090\n" + PAIR).doubt
    assert Machine.from_topo("beside 4x RTX 5090\n" + PAIR).doubt


OTHERS = {
    "rocm-smi": "=== ROCm System Management Interface ===\n== Weight between two GPUs ==\n"
    "       GPU0         GPU1\nGPU0   0            15\nGPU1   15           0\n",
    "amd-smi": "ACCESS TABLE:\n              0000:05:00.0 0000:26:00.0\n0000:05:00.0 ENABLED ENABLED\n",
    "Ascend": "\t   NPU0\t   NPU1\tCPU Affinity\nNPU0\t    X\t   HCCS\t0-23\nNPU1\t HCCS\t    X\t0-23\n",
    "MetaX": "mx-smi  version: 2.1\n\tGPU0\tGPU1\tNode Affinity\nGPU0\tX\tMX\t0\nGPU1\tMX\tX\t0\n",
    "Moore Threads": "MTHREADS Topology: \n\tGPU0\tGPU1\nGPU0\tX\tNODE\nGPU1\tNODE\tX\n",
    "Cambricon": "cnmon topo -m\n      MLU0 MLU1\nMLU0  X    PIX\nMLU1  PIX  X\n",
    "Iluvatar": "ixsmi topo -m\n\tGPU0\tGPU1\nGPU0\tX\tPHB\nGPU1\tPHB\tX\n",
    "Hygon": "hy-smi --showtopo\n=== System Management Interface ===\n       HCU0   HCU1\nHCU0   0      40\n",
    "Intel": "         GPU 0/0  GPU 1/0\nGPU 0/0  S        XL16\nGPU 1/0  XL16     S\n",
    "Gaudi": "hl-smi topo -c\n",
}


@pytest.mark.parametrize("maker", OTHERS)
def test_other_tools_are_named_with_the_way_out(maker: str) -> None:
    with pytest.raises(ValueError, match=rf"not what `nvidia-smi topo -m` prints, but .*{maker}.*(preset|figures)"):
        Machine.from_topo(OTHERS[maker])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("PS C:\\me> nvidia-smi topo -m\nInvalid combination of input arguments.", "on Windows nvidia-smi prints"),
        ("GPU Topology:\nCould not collect", "nvidia-smi printed no table"),
        ("bash: nvidia-smi: command not found", "nvidia-smi printed no table"),
        ("<system version=\"1\"><cpu><gpu dev=\"0\"/></cpu></system>", "NCCL's file of the topology"),
        (listed("NVIDIA L4", 4), "it names 4 x NVIDIA L4: paste what `nvidia-smi topo -m` prints"),
        ("GPU0 and GPU1 are joined by a bridge\nGPU0 X says nothing", "no line of the text is the header"),
    ],
)  # fmt: skip
def test_texts_without_a_table(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Machine.from_topo(text)


@pytest.mark.parametrize(
    "text",
    [
        "".join(f"GPU: NVIDIA H100 v{i} foo\n" for i in range(4000)),
        "".join(f"NVIDIA H100 v{i}\n" for i in range(4000)),
        "GPU " + ",".join(map(str, range(50_000))) + ": NVIDIA L4\n",
        "GPU 0: NVIDIA " + "a " * 200_000 + "\n",
        "2x " * 100_000 + "\n",
        "SYS" * 200_000 + "\n",
    ],
    ids=["said", "alone", "numbers", "name", "counts", "cells"],
)
def test_long_reports_are_answered_soon(text: str) -> None:
    began = time.process_time()
    tried(Machine.from_topo, text + PAIR)
    assert time.process_time() - began < 2


def test_any_text_is_read_or_refused_soon() -> None:
    """Pieces of reports in any order: an answer or a ``ValueError``."""
    rng = random.Random(4)
    pieces = [*(line + "\n" for line in REPORT.splitlines()), *OTHERS.values(), PAIR, LEGEND]
    pieces += [smi("NVIDIA L4", 23034), listed("NVIDIA B200"), p2p(2, lambda i, j: "NS"), "> ", "vllm-1 | ", "2x "]
    pieces += ["GPU 0: ", "\\tGPU0", "\x1b[4m", "...", "GPU0"]
    for _ in range(300):
        text = "".join(rng.choice(pieces) for _ in range(rng.randint(1, 12)))
        made = tried(Machine.from_topo, text)
        assert len(str(made)) < 1000 if isinstance(made, ValueError) else made.num_gpus in (2, 8), text
