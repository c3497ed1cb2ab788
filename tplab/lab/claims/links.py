"""Recipes for claims about links and layouts: C16 to C18, C22, S7, S8 (see docs/article.md).

They ask the advisor, so their numbers move when its constants do; the sentences in the ledger quote none of them that
could.
"""

from dataclasses import replace

from tplab.lab.claims.findings import Finding, at_least, chosen, equal
from tplab.models.spec import ModelSpec
from tplab.topology.advisor.advice import advise
from tplab.topology.advisor.article import CommunicationTopology
from tplab.topology.advisor.prediction import predict
from tplab.topology.advisor.workload import EnginePolicy, Workload
from tplab.topology.machine.machine import Link, Machine
from tplab.topology.machine.placement import place
from tplab.topology.machine.spec_sheets import GPUS

_MODEL = "llama-3.1-70b"
_BRIDGED = """
        GPU0    GPU1    GPU2    GPU3
GPU0     X      SYS     NV12    SYS
GPU1    SYS      X      SYS     NV12
GPU2    NV12    SYS      X      SYS
GPU3    SYS     NV12    SYS      X
"""
_ONE_CARD = Link(kind="network", bandwidth_GBps=1.5, latency_us=30.0, label="one 100 Gb/s card for 8 GPUs")


def _load(concurrency: int) -> Workload:
    engine = EnginePolicy(name="vllm")
    return Workload(input_length=1024, output_length=256, concurrency=concurrency, engine=engine)


def tp_needs_nvlink(tolerance: float) -> Finding:
    """C16: the best degree of TP with NVLink and without, by load."""
    model = ModelSpec.from_config(_MODEL)

    def degree(machine: Machine, concurrency: int) -> int:
        return advise(model, machine, _load(concurrency)).best.layout.tp

    nvlink, pcie = Machine.preset("a100"), Machine.preset("a100-pcie")
    alone, loaded = degree(pcie, 1), degree(pcie, 64)
    with_nvlink = degree(nvlink, 1)
    return Finding(
        cases=(
            chosen("8 x A100 on NVLink, one request", "TP 8", f"TP {with_nvlink}"),
            chosen("8 x A100 on PCIe, 64 in flight", "TP below 8", _below_eight(loaded)),
            chosen("8 x A100 on PCIe, one request", "TP below 8", _below_eight(alone)),
        ),
    )


def _below_eight(tp: int) -> str:
    return "TP below 8" if tp < 8 else f"TP {tp}"


def placement_matters(tolerance: float) -> Finding:
    """C17: TP 2 on the two pairs of a machine whose bridges join 0-2 and 1-3 alone."""
    bridged = Machine.from_topo(_BRIDGED, gpu="a100-pcie")
    chosen_pair = place(bridged, 2, 1).groups[0][0]
    model = ModelSpec.from_config("llama-3.1-8b")
    rates = [
        predict(model, Machine.uniform(bridged.gpu, 2, link), _load(64), 2, 1).output_tokens_per_s
        for link in (bridged.link(0, 1), bridged.link(*chosen_pair))
    ]
    pair = "-".join(map(str, chosen_pair))
    return Finding(
        cases=(
            at_least(f"tokens/s on GPUs {pair}, which a bridge joins, over those on 0-1", 1.1, rates[1] / rates[0], ""),
        ),
    )


def rule_of_thumb(tolerance: float) -> Finding:
    """C18: TP against PP on 8 H100 by load; and 405B over two nodes, by the network between them."""
    model, node = ModelSpec.from_config(_MODEL), Machine.preset("h100")

    def faster(concurrency: int) -> str:
        tp, pp = (predict(model, node, _load(concurrency), *layout) for layout in ((8, 1), (1, 8)))
        return "TP" if tp.output_tokens_per_s > pp.output_tokens_per_s else "PP"

    large, nodes = ModelSpec.from_config("llama-3.1-405b"), Machine.preset("h100", nodes=2)
    fast, slow = (
        advise(large, replace(nodes, network=network), _load(16)).best.layout.pp
        for network in (nodes.network, _ONE_CARD)
    )
    return Finding(
        cases=(
            chosen("8 x H100, one request: TP 8 or PP 8", "TP", faster(1), "single requests"),
            chosen("8 x H100, 64 in flight: TP 8 or PP 8, tokens/s", "PP", faster(64), "several nodes"),
            chosen("8 x H100, 4,096 in flight: TP 8 or PP 8, tokens/s", "PP", faster(4096), "several nodes"),
            chosen("405B on 2 x 8 H100, one slow card for a node", "stages", _cut(slow), "several nodes"),
            chosen("405B on 2 x 8 H100, a fast card for each GPU", "stages", _cut(fast), "several nodes"),
        ),
    )


def _cut(pp: int) -> str:
    return "stages" if pp > 1 else "no stages"


def faster_kind(tolerance: float) -> Finding:
    """C22: bandwidths by kind of link, in one direction, for one GPU."""
    nvlink = Machine.preset("h100").link(0, 1).bandwidth_GBps
    between = Machine.preset("h100", nodes=2).network
    assert between is not None, "between nodes"
    network = between.bandwidth_GBps
    gen4, gen5 = GPUS["a100-pcie"].pcie_GBps, GPUS["h100-pcie"].pcie_GBps
    return Finding(
        cases=(
            at_least("NVLink (H100) over PCIe 5.0", 1, nvlink / gen5, "times"),
            at_least("PCIe 5.0 over InfiniBand with a 400 Gb/s card for each GPU", 1, gen5 / network, "times"),
            at_least("PCIe 4.0 over the same InfiniBand", 1, gen4 / network, "times"),
        ),
        facts={"network": f"{network:g} GB/s", "four": f"{gen4:g}", "five": f"{gen5:g} GB/s"},
    )


def four_numbers(tolerance: float) -> Finding:
    """S7: GPUs for one copy by the article's ``int(x) + 1`` and by the right function, on cards of 80 GB."""
    cases = []
    for gpus, size in ((8, 56), (8, 112), (8, 140), (16, 810)):
        made = CommunicationTopology.recommend_parallel_strategy(gpus, 80, size)
        right = made["tp_degree"] * made["pp_degree"]
        cases.append(
            equal(f"{size} GB of weights on {gpus} GPUs: GPUs per copy", int(size / 56) + 1, right, "", tolerance)
        )
    return Finding(cases=cases, facts={"exact": cases[0].claimed})


def hybrid(tolerance: float) -> Finding:
    """S8: how 405B is cut over two nodes, by the network between them."""
    model, nodes = ModelSpec.from_config("llama-3.1-405b"), Machine.preset("h100", nodes=2)
    cases = []
    for network, what in ((_ONE_CARD, "one slow card for a node"), (nodes.network, "a fast card for each GPU")):
        layout = advise(model, replace(nodes, network=network), _load(16)).best.layout
        cases.append(chosen(f"405B on 2 x 8 H100, {what}", "TP 8 × PP 2", f"TP {layout.tp} × PP {layout.pp}"))
    return Finding(cases=cases)
