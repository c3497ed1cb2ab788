"""Recipes for claims about bytes and calls: C4 to C8, C20, X2, S9 (see docs/article.md).

Letters: b batch, s sequence, h hidden size, L layers, p stages, n ranks of a TP group, S bytes of the full tensor.
"""

from tplab.collectives.volumes import pp_forward_bytes, sent_bytes, tp_forward_bytes, tp_over_pp
from tplab.lab.claims.findings import Finding, at_least, equal, said
from tplab.layers.cost import block_collectives, wire_bytes
from tplab.pipeline.build import build_schedule
from tplab.pipeline.communication import add_communication

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
_PREFILL = {"batch": 1, "seq": 2048, "hidden": 8192}
_DECODE = _PREFILL | {"seq": 1}


def _ring(nbytes: float, n: int) -> float:
    return sent_bytes("all-reduce", "ring", round(nbytes), n).sent_mean


def all_reduces_per_layer(tolerance: float) -> Finding:
    """C4: collectives of a block, by how it is built; and what sequence parallelism sends at n = 4."""
    plain, split = (
        block_collectives(tokens=2048, hidden=8192, itemsize=2, n=4, strategy=strategy)
        for strategy in ("blocking", "sequence parallel")
    )
    side_by_side = tp_forward_bytes(**_PREFILL, num_layers=1, all_reduces_per_layer=1) // plain[0].payload_bytes
    payload = plain[0].payload_bytes
    ring, gloo = (wire_bytes("reduce-scatter", payload, 4, backend) / payload for backend in ("ring", "gloo"))
    num = {kind: sum(each.num_calls for each in split if each.kind == kind) for kind in ("all-reduce", "all-gather")}
    return Finding(
        cases=(
            equal("attention, then MLP", 2, sum(each.num_calls for each in plain), "all-reduces", tolerance),
            equal("attention and MLP side by side (parallel residual)", 2, side_by_side, "all-reduces", tolerance),
            equal("sequence parallel", 2, num["all-reduce"], "all-reduces", tolerance),
        ),
        facts={
            "parallel": f"{side_by_side}",
            "gathers": f"{num['all-gather']}",
            "ring": f"{ring:g} S",
            "gloo": f"{gloo:g} S",
        },
    )


def tp_layer(tolerance: float) -> Finding:
    """C5: payload of a layer, and what a rank of 8 sends for it."""
    claimed = 2 * 1 * 2048 * 8192 * 2
    payload = tp_forward_bytes(**_PREFILL, num_layers=1)
    ring = _ring(payload, 8)
    return Finding(
        cases=(
            equal("payload of a layer's two all-reduces", claimed / MIB, payload / MIB, "MiB", tolerance),
            equal("sent by each of 8 ranks, as rings", claimed / MIB, ring / MIB, "MiB", tolerance),
        ),
        facts={"payload": said(payload / MIB, "MiB"), "ring": said(ring / MIB, "MiB")},
    )


def tp_model(tolerance: float) -> Finding:
    """C6: payload over 80 layers, what a rank of 8 sends, and a decode step."""
    payload = tp_forward_bytes(**_PREFILL, num_layers=80)
    step = tp_forward_bytes(**_DECODE, num_layers=80)
    ring = _ring(payload, 8)
    return Finding(
        cases=(
            equal("payload of 80 layers, prefill of 2,048 tokens", 5.12, payload / 1e9, "GB", tolerance),
            equal("the same in binary units", 5.12, payload / GIB, "GiB", tolerance),
            equal("sent by each of 8 ranks, as rings", 5.12, ring / 1e9, "GB", tolerance),
            equal("payload of a decode step, one sequence", 5.12, step / 1e9, "GB", tolerance),
        ),
        facts={
            "binary": f"{payload / GIB:.2f} GiB",
            "decimal": f"{payload / 1e9:.2f} GB",
            "ring": f"{ring / 1e9:.1f} GB",
            "step": said(step / MIB, "MiB"),
            "messages": "160",
            "message": said(step / 160 / KIB, "KiB"),
        },
    )


def pp_boundaries(tolerance: float) -> Finding:
    """C7: what 4 stages pass on, with the hidden state alone, and with the residual apart from it."""
    one = pp_forward_bytes(**_PREFILL, num_stages=2)
    alone = pp_forward_bytes(**_PREFILL, num_stages=4)
    apart = pp_forward_bytes(**_PREFILL, num_stages=4, tensors_per_boundary=2)
    claimed = 4 * one
    return Finding(
        cases=(
            equal("4 stages, hidden state", claimed / MIB, alone / MIB, "MiB", tolerance),
            equal("4 stages, hidden state and residual apart", claimed / MIB, apart / MIB, "MiB", tolerance),
        ),
        facts={
            "message": said(one / MIB, "MiB"),
            "boundaries": f"{alone // one}",
            "alone": said(alone / MIB, "MiB"),
            "apart": said(apart / MIB, "MiB"),
        },
    )


def growth(tolerance: float) -> Finding:
    """C8: by how much the bytes grow where one of b, h, L and p - 1 doubles."""

    def factors(**change: int) -> tuple[float, float]:
        sizes = {**_PREFILL, "layers": 80, "stages": 5}
        changed = sizes | change
        tp = [tp_forward_bytes(x["batch"], x["seq"], x["hidden"], x["layers"]) for x in (sizes, changed)]
        pp = [pp_forward_bytes(x["batch"], x["seq"], x["hidden"], x["stages"]) for x in (sizes, changed)]
        return tp[1] / tp[0], pp[1] / pp[0]

    (tp_b, pp_b), (tp_h, pp_h) = factors(batch=2), factors(hidden=2 * 8192)
    (tp_l, pp_l), (tp_p, pp_p) = factors(layers=160), factors(stages=9)
    return Finding(
        cases=(
            equal("PP's bytes, batch doubled", 2, pp_b, "times", tolerance),
            equal("TP's bytes, hidden size doubled", 2, tp_h, "times", tolerance),
            equal("TP's bytes, batch doubled", 1, tp_b, "times", tolerance),
            equal("PP's bytes, hidden size doubled", 1, pp_h, "times", tolerance),
        ),
        facts={
            "layers": f"TP x {tp_l:g}, PP x {pp_l:g}",
            "boundaries": f"TP x {tp_p:g}, PP x {pp_p:g}",
        },
    )


def tp_against_pp(tolerance: float) -> Finding:
    """C20: payload of TP over payload of PP, for the two numbers of layers that the article has."""
    text, diagram = tp_over_pp(80, 4), tp_over_pp(64, 4)
    traffic = 8 * _ring(tp_forward_bytes(**_PREFILL, num_layers=80), 8) / pp_forward_bytes(**_PREFILL, num_stages=4)
    return Finding(
        cases=(
            at_least("80 layers (the text), 4 stages: payload of TP over PP's", 10, text, "times"),
            at_least("64 layers (the diagram), 4 stages", 10, diagram, "times"),
        ),
        facts={"text": f"{text:.1f}", "diagram": f"{diagram:.1f}", "traffic": f"{traffic:.0f}"},
    )


def whole_tensor_ring(tolerance: float) -> Finding:
    """X2: an all-reduce that passes the whole tensor on in each of a ring's 2(n - 1) steps."""
    cases, facts = [], {}
    for n in (4, 8):
        whole, ring = 2 * (n - 1) * MIB, _ring(MIB, n)
        cases.append(equal(f"sent by each of {n} ranks for S = 1 MiB", whole / MIB, ring / MIB, "MiB", tolerance))
        facts[("four", "eight")[n == 8]] = f"{whole / ring:g}"
    return Finding(cases=cases, facts=facts)


def per_layer_and_boundary(tolerance: float) -> Finding:
    """S9: calls of a pass by the formulas; ``measure_claim(cluster, "S9")`` counts them in a run."""
    block = block_collectives(tokens=1, hidden=8192, itemsize=2, n=4)
    table = add_communication(build_schedule("forward-only", 4, 1))
    sends = sum(action.op.is_send for _, _, action in table.actions())
    return Finding(
        cases=(
            equal("TP: all-reduces per layer and step", 2, sum(each.num_calls for each in block), "", tolerance, "TP"),
            equal("PP: messages per boundary and step", 1, sends / (4 - 1), "", tolerance, "PP"),
        ),
        facts={"sums": f"{2 * 80 + 1}"},
    )
