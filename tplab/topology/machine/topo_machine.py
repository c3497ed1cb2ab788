"""A machine from what ``nvidia-smi topo -m`` says of its links and a report of its GPUs."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from tplab.checks import ArgumentError
from tplab.shown import listed
from tplab.topology.machine.gpu_names import gpu_preset
from tplab.topology.machine.machine import GUESSED, Gpu, Link, Machine
from tplab.topology.machine.named_gpus import gpus_of_table, smallest
from tplab.topology.machine.other_tools import other_tool
from tplab.topology.machine.presets import NIC_GBPS, name_of, network, nvlink, pcie_link
from tplab.topology.machine.topo_lines import plain_lines
from tplab.topology.machine.topo_text import TopoTable, parse_topo

_EXPORT_NVLINKS = 8
_PCIE = {"PIX": "pix", "PXB": "pxb", "PHB": "phb", "NODE": "node", "SYS": "sys", "SOC": "sys"}
_SOURCE = "nvidia-smi topo"


def machine_from_topo(
    text: str, *, gpu: Gpu | str | None = None, nodes: int = 1, network: Link | None = None
) -> Machine:
    """See :meth:`Machine.from_topo`."""
    spec = None if gpu is None else gpu_preset(gpu)
    table = parse_topo(text)
    named = gpus_of_table(plain_lines(text), [int(name[3:]) for name in table.gpus], spec)
    bonded = any(word.startswith("NV") for row in table.cells for word in row)
    if not bonded and not named.names and (other := other_tool(text, alike=True)):
        raise ValueError(other)
    table = table.without(named.left_out)
    if not table.gpus:
        raise ValueError("the table has no GPU but those that only drive a display")
    if named.gpus:
        try:
            machine = machine_from_table(table, named.gpus, nodes=nodes, between=network, source=_SOURCE)
        except ValueError:
            if spec is not None or not named.in_words or not bonded:
                raise
        else:
            return replace(machine, notes=(*named.notes, *machine.notes))
    guess, why = guess_gpu(table)
    machine = machine_from_table(table, [gpu_preset(guess)], nodes=nodes, between=network, source=_SOURCE)
    note = (
        f"{GUESSED}: taken as {guess}, {why}, and everything here hangs on it; give the gpu if they are others (--gpu)"
    )
    left_out = named.notes if named.left_out else ()
    return replace(machine, notes=(note, *left_out, *machine.notes))


def guess_gpu(table: TopoTable) -> tuple[str, str]:
    """The smallest usual GPU with such NVLinks, and why: H100, H200 and B200 all have 18, A100 of 40 and 80 GB 12."""
    counts = [int(word[2:]) for row in table.cells for word in row if word.startswith("NV")]
    if not counts:
        return "l4", "as the smallest usual one without any NVLink"
    most = max(counts)
    total = max(sum(int(word[2:]) for word in row if word.startswith("NV")) for row in table.cells)
    if most > 12:
        return "h100", f"as the smallest usual one with {most} NVLinks to a pair"
    if most == _EXPORT_NVLINKS:
        return "a800", f"by the {most} NVLinks of a pair, which A800 and H800 are cut to"
    if most > 6:
        paired = total == most and len(table.gpus) > 2
        return ("a100-pcie-40gb" if paired else "a100-40gb"), f"as the smallest usual one with {most} NVLinks to a pair"
    if most == 4 and total == 4:
        return "rtx-3090", "as the smallest usual one with bridges of 4 NVLinks"
    if total == 2:
        return "rtx-2080-ti", "by 2 NVLinks to its peers together"
    if total == 12:
        return "a100-40gb", "as the smallest usual one with 12 NVLinks to its peers together"
    if total > 6:  # through switches, which only DGX-2 has for them
        return "v100-32gb", f"by {most} NVLinks to every peer"
    return "v100-16gb", f"as the smallest usual one with at most {most} NVLinks to a pair"


def machine_from_table(
    table: TopoTable, gpus: Sequence[Gpu], *, nodes: int = 1, between: Link | None = None, source: str
) -> Machine:
    """The machine with that table's links. Raises ``ValueError`` where a GPU cannot have so many NVLinks, or for
    several nodes without any network card.

    Args:
        table: what was read.
        gpus: kind of each GPU, or one for all. Of several kinds every GPU counts as the smallest, at the rates of the
            slowest; links are their own.
        nodes: copies of the node.
        between: link between nodes; by default from the table's network cards.
        source: origin of the table.
    """
    count = len(table.gpus)
    each = list(gpus) * (count if len(gpus) == 1 else 1)
    gpu = _least(each)
    notes = [*table.notes, f"links read from {source}, their speeds from the specifications of {gpu.name}"]
    kinds = Counter(one.name for one in each)
    if len(kinds) > 1:
        mixed = listed(f"{number} x {name}" for name, number in kinds.items())
        rates = "" if gpu in each else ", at the slowest one's memory bandwidth and rates"
        notes.insert(0, f"GPUs of several kinds ({mixed}): each counts as {gpu.name}, the smallest of them{rates}")
    switched = len(kinds) == 1 and _is_switched(table.cells, gpu)
    links = tuple(
        tuple(None if i == j else _link(table, i, j, (each[i], each[j]), switched) for j in range(count))
        for i in range(count)
    )
    notes += _notes_of_peers(table, gpu)
    if nodes > 1 and between is None:
        cards = table.near_nics or table.nics
        if not cards:
            raise ArgumentError(
                "nodes",
                nodes,
                "must be 1 where the text lists no network card: give the network, or take the preset of a machine",
            )
        between = network(len(cards), count)
        notes.append(
            f"network taken as {len(cards)} cards ({', '.join(cards)}) of {NIC_GBPS * 8:g} Gb/s for {count} GPUs"
        )
    return Machine(
        name=name_of(gpu, count, nodes),
        gpu=gpu,
        gpus_per_node=count,
        nodes=nodes,
        links=links,
        network=between,
        nics=table.nics,
        source=source,
        notes=tuple(notes),
    )


def _least(gpus: Sequence[Gpu]) -> Gpu:
    """The one of least memory, no faster in anything than the slowest: ranks of a group wait for each other."""
    figures: dict[str, float | None] = {}
    for key in ("hbm_GBps", "bf16_TFLOPS", "fp8_TFLOPS", "int8_TOPS", "fp4_TFLOPS", "kept_share"):
        each = [getattr(gpu, key) for gpu in gpus]
        figures[key] = None if None in each else min(each)
    return replace(smallest(gpus), **figures)  # type: ignore[arg-type]  # None only where a spec sheet has it


def _is_switched(cells: Sequence[Sequence[str]], gpu: Gpu) -> bool:
    """Whether NVLinks must go through a switch: every GPU has more of them to its peers than it has at all."""
    bonds = [sum(int(word[2:]) for word in row if word.startswith("NV")) for row in cells]
    whole = all(word.startswith("NV") or word == "X" for row in cells for word in row)
    return whole and len(cells) > 1 and gpu.num_nvlinks > 0 and min(bonds) > gpu.num_nvlinks


def _link(table: TopoTable, i: int, j: int, pair: tuple[Gpu, Gpu], switched: bool) -> Link:
    word, peer = table.cells[i][j], _peer(table, i, j)
    gpu = min(pair, key=lambda one: (one.num_nvlinks if word.startswith("NV") else one.pcie_GBps, one.pcie_p2p))
    if word.startswith("NV"):
        count = int(word[2:])
        if gpu.num_nvlinks and count > gpu.num_nvlinks:
            raise ValueError(
                f"{table.gpus[i]} and {table.gpus[j]} are joined by {word}, and {gpu.name} has {gpu.num_nvlinks} "
                f"NVLinks: is it another GPU?"
            )
        if peer in ("", "OK"):
            return nvlink(gpu, count, switched=switched)
        link = pcie_link("sys", replace(gpu, pcie_p2p=False))  # by which way of PCIe, the table does not say
        return replace(link, label=word)
    direct = gpu.pcie_p2p and all(one.pcie_p2p for one in pair)
    return pcie_link(_PCIE[word], replace(gpu, pcie_p2p=peer == "OK" if peer else direct))


def _peer(table: TopoTable, i: int, j: int) -> str:
    return table.peers[i][j] if table.peers else ""


def _notes_of_peers(table: TopoTable, gpu: Gpu) -> list[str]:
    """What the tables of ``-p2p`` changed."""
    pairs = [(i, j) for i in range(len(table.gpus)) for j in range(i)]
    barred = [
        f"{table.gpus[j]}-{table.gpus[i]} ({_peer(table, i, j)})"
        for i, j in pairs
        if _peer(table, i, j) not in ("", "OK")
    ]
    able = [f"{table.gpus[j]}-{table.gpus[i]}" for i, j in pairs if _peer(table, i, j) == "OK" and not gpu.pcie_p2p]
    notes = []
    if barred:
        notes.append(f"the -p2p table bars direct access of {listed(barred)}: their links go through host memory")
    if able and any(not table.cells[i][j].startswith("NV") for i, j in pairs if _peer(table, i, j) == "OK"):
        notes.append(f"the -p2p table allows direct access of {listed(able)}, which {gpu.name} usually does not have")
    return notes
