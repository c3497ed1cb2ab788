"""Claims that are counted or measured on ranks: ``submit_claim(cluster, "S9")``.

What runs is in the rooms below (a module for each question); here is only which claim asks which question, and what its
answer says of it. Times are those of the ranks at hand: a finding's badge says which, and a claim about GPUs on NVLink
is not refuted by a laptop.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tplab.checks import ArgumentError, check_one_of
from tplab.lab.claims.findings import Case, Finding, between, chosen, equal, said
from tplab.lab.claims.ledger import Claim, claims
from tplab.models.spec import ModelConfig
from tplab.shown import counted

if TYPE_CHECKING:
    import pandas as pd

    from tplab.cluster import Cluster
    from tplab.cluster.run import DerivedRun

MIB = 1 << 20
_C12_MICRO_BATCHES = (4, 6, 16)
_MODEL = ModelConfig(
    model_type="llama",
    vocab_size=1003,
    hidden_size=256,
    intermediate_size=768,
    num_layers=4,
    num_heads=8,
    num_kv_heads=2,
    head_dim=32,
    max_positions=64,
)
"""The model whose steps are counted: 4 layers, so up to 4 stages."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Live:
    """How one claim is tried on ranks."""

    what: str
    """What runs, in a few words."""
    kind: str
    """``counted`` or ``measured``."""
    ranks: tuple[int, ...]
    """Numbers of ranks that can answer, rising; the most that the cluster has are taken. The last one stands for all
    above it where ``or_more``."""
    submit: "Callable[..., DerivedRun[Any]]"
    """``submit(cluster, **callbacks)`` starts the run."""
    read: Callable[[Any, Claim, str], Finding]
    """``read(result, claim, badge)``: what the result says of the claim."""
    or_more: bool = False
    """Whether more ranks than the last of ``ranks`` can answer, too."""


def submit_claim(cluster: "Cluster", claim: str, **callbacks: Any) -> "DerivedRun[Finding]":
    """Start to count or measure a claim on ``cluster``; a future of the finding, with ``stop``.

    Raises ``ArgumentError`` for a claim that nothing can be run for, with those for which something can, and for a
    cluster of too few ranks.
    """
    known = claims()
    check_one_of("claim", claim, known)
    if claim not in LIVE:
        raise ArgumentError("claim", claim, f"must be one that ranks can try: {', '.join(LIVE)}")
    live = LIVE[claim]
    suited = _suited(cluster, claim, live)
    run = live.submit(suited, **callbacks)
    return run.map(lambda value: live.read(value, known[claim], suited.provenance.badge))


def _suited(cluster: "Cluster", claim: str, live: Live) -> "Cluster":
    n = cluster.num_ranks
    fitting = [each for each in live.ranks if each <= n]
    if not fitting:
        raise ArgumentError(
            "cluster",
            f"{n} ranks",
            f"must have at least {live.ranks[0]} ranks for {claim}: Cluster({live.ranks[0]}), or "
            f"Pool(num_ranks={live.ranks[0]}) in a notebook",
        )
    taken = n if live.or_more and n > live.ranks[-1] else fitting[-1]
    return cluster if taken == n else cluster.resized(taken)


def _submit_blocks(cluster: "Cluster", **callbacks: Any) -> "DerivedRun[pd.DataFrame]":
    from tplab.layers.block_kinds import submit_block_kinds

    return submit_block_kinds(cluster, **callbacks)


def _read_blocks(frame: "pd.DataFrame", claim: Claim, badge: str) -> Finding:
    cases = []
    for block, rows in frame.groupby("block", sort=False):
        sums = int(rows.loc[rows["kind"] == "all-reduce", "calls"].sum())
        cases.append(equal(f"{block}: all-reduces", 2, sums, "", claim.tolerance))
    parallel = frame[frame["block"] == "sequence parallel"]
    payload = parallel["payload_bytes"].iloc[0]
    wire, ring = (parallel[column].sum() / payload for column in ("wire_bytes", "ring_bytes"))
    exact = frame["error"].max() < 1e-4
    return Finding(
        cases=cases,
        facts={
            "sequence parallel": f"{int(parallel['calls'].sum())} calls; as rings a rank sends {ring:g} S for them, as "
            f"for 2 all-reduces, and {wire:g} S with this backend",
            "results": f"{'equal' if exact else 'not equal'} to the unsharded blocks",
        },
        badge=badge,
    )


def _submit_messages(cluster: "Cluster", **callbacks: Any) -> "DerivedRun[pd.DataFrame]":
    from tplab.collectives.phase_messages import submit_phase_messages

    return submit_phase_messages(cluster, **callbacks)


def _read_all_reduce(frame: "pd.DataFrame", claim: Claim, badge: str) -> Finding:
    from tplab.collectives.phase_messages import ALL_REDUCE, DECODE, PREFILL

    us = _times(frame, ALL_REDUCE)
    cases = []
    for phase, nbytes in (("decode, 16 KiB", DECODE), ("prefill, 32 MiB", PREFILL)):
        cases.append(between(f"{phase}: one all-reduce", 50, 100, us[nbytes], "µs", claim.tolerance, "one"))
        cases.append(between(f"{phase}: 160 of them", 8, 16, 0.16 * us[nbytes], "ms", claim.tolerance, "80 layers"))
    return Finding(cases=cases, badge=badge)


def _read_bound(frame: "pd.DataFrame", claim: Claim, badge: str) -> Finding:
    from tplab.collectives.phase_messages import ALL_REDUCE, DECODE, EMPTY, HOP, PREFILL

    cases = []
    for what, part, bound in ((ALL_REDUCE, "TP", "latency"), (HOP, "PP", "bandwidth")):
        us = _times(frame, what)
        for phase, nbytes in (("decode, 16 KiB", DECODE), ("prefill, 32 MiB", PREFILL)):
            found = "latency" if us[nbytes] < 2 * us[EMPTY] else "bandwidth"
            times = f"{said(us[nbytes], 'µs')} against {said(us[EMPTY], 'µs')} for 1 KiB"
            cases.append(chosen(f"{part}, {phase}: {what} takes {times}", bound, found, part))
    return Finding(cases=cases, badge=badge)


def _submit_bubbles(cluster: "Cluster", **callbacks: Any) -> "DerivedRun[list[tuple[int, float, str]]]":
    from tplab.pipeline.build import build_schedule
    from tplab.pipeline.cases import case_traces, submit_cases
    from tplab.pipeline.costs import Costs
    from tplab.pipeline.job import RunPlan

    costs = Costs(forward_s=0.01, input_grad_s=0.01, weight_grad_s=0.01)
    plans = [RunPlan(schedule=build_schedule("1f1b", 4, m), stage=costs, warm_ups=1) for m in _C12_MICRO_BATCHES]

    def read(run: Any) -> list[tuple[int, float, str]]:
        run.result()
        traces = [each[0] for each in case_traces(plans, run.reports, cluster.provenance)]
        return [(m, 100 * one.idle_over_total, one.badge) for m, one in zip(_C12_MICRO_BATCHES, traces, strict=True)]

    return submit_cases(cluster, plans, **callbacks).map(read)


def _read_bubbles(bubbles: Sequence[tuple[int, float, str]], claim: Claim, badge: str) -> Finding:
    cases = [between(f"m = {m}", 30, 40, bubble, "%", claim.tolerance) for m, bubble, _ in bubbles]
    return Finding(cases=cases, badge=bubbles[0][2])


def _submit_overlap(cluster: "Cluster", **callbacks: Any) -> "DerivedRun[pd.DataFrame]":
    from tplab.pipeline.hop_overlap import submit_hop_overlap

    return submit_hop_overlap(cluster, **callbacks)


def _read_overlap(frame: "pd.DataFrame", claim: Claim, badge: str) -> Finding:
    hop, total = ({name: row[name] for name in frame} for row in frame.sort_values("what").to_dict("records")[::-1])
    hidden = [float(row["hidden_pct"]) for row in (total, hop)]
    call, alone, summed, compute = (
        said(float(us) / 1e3, "ms") for us in (hop["call_us"], hop["alone_us"], total["alone_us"], hop["compute_us"])
    )
    case = Case(
        part="",
        what=f"hidden behind {compute} of computation: an all-reduce in one piece, a send",
        claimed="more with TP",
        right=f"TP {hidden[0]:.0f} %, PP {hidden[1]:.0f} %",
        agrees=hidden[0] > hidden[1],
    )
    return Finding(
        cases=(case,),
        facts={
            "send": f"the call returns after {call}, the message takes {alone}",
            "all-reduce": f"{summed}, all of it before the matmul that needs it",
        },
        badge=str(hop["badge"]),
    )


def _submit_steps(cluster: "Cluster", **callbacks: Any) -> "DerivedRun[list[pd.DataFrame]]":
    from tplab.models.counting import submit_count_generation

    n = cluster.num_ranks
    return submit_count_generation(cluster, _MODEL, [1, 2, 3, 4, 5], [(n, 1), (1, n)], **callbacks)


def _read_steps(frames: "list[pd.DataFrame]", claim: Claim, badge: str) -> Finding:
    tp, pp = frames
    n, cases = int(tp["num_ranks"].iloc[0]), []
    for phase in ("prefill", "decode"):
        # One of them is the embedding's, whose rows are cut over the ranks.
        per_layer = (_calls(tp, phase, "all-reduce", 0) - 1) / _MODEL.num_layers
        what = "decode step" if phase == "decode" else "prefill of 5 tokens"
        cases.append(equal(f"TP {n}, {what}: all-reduces per layer", 2, per_layer, "", claim.tolerance, "TP"))
    for rank in range(n - 1):
        hidden = _calls(pp, "decode", "hidden states sent", rank)
        what = f"PP {n}, decode step: messages from stage {rank} to {rank + 1}"
        cases.append(equal(what, 1, hidden, "", claim.tolerance, "PP"))
    sums, gathers = (_calls(tp, "decode", kind, 0) for kind in ("all-reduce", "all-gather"))
    back = _calls(pp, "decode", "tokens sent", n - 1)
    return Finding(
        cases=cases,
        facts={
            "in all": f"{sums} all-reduces and {gathers} all-gather a step for {_MODEL.num_layers} layers: one "
            "all-reduce is for the embedding, the gather for the choice of the token",
            "back": f"{counted(back, 'message')} a step to tell the other stages the new token",
        },
        badge=badge,
    )


def _calls(frame: "pd.DataFrame", phase: str, call: str, rank: int) -> int:
    rows = frame[(frame["phase"] == phase) & (frame["call"] == call) & (frame["rank"] == rank)]
    return int(rows["calls"].sum())


def _submit_rings(cluster: "Cluster", **callbacks: Any) -> "DerivedRun[pd.DataFrame]":
    from tplab.collectives.counting import submit_count_sent_bytes

    return submit_count_sent_bytes(cluster, ("ring", "whole-tensor"), **callbacks)


def _read_rings(frame: "pd.DataFrame", claim: Claim, badge: str) -> Finding:
    sent = frame.groupby("algorithm")["counted_bytes"].mean()
    n, ratio = int(frame["num_ranks"].iloc[0]), sent["whole-tensor"] / sent["ring"]
    case = equal(
        f"sent by each of {n} ranks for S = 1 MiB",
        sent["whole-tensor"] / MIB,
        sent["ring"] / MIB,
        "MiB",
        claim.tolerance,
    )
    return Finding(cases=(case,), facts={"ratio": f"{ratio:.3g} times the bytes of a ring"}, badge=badge)


def _times(frame: "pd.DataFrame", what: str) -> dict[int, float]:
    rows = frame[frame["what"] == what]
    return dict(zip(rows["bytes"].astype(int), rows["p50_us"].astype(float), strict=True))


LIVE = {
    "S9": Live(
        what="a small model generates with TP and with PP; calls are counted",
        kind="counted",
        ranks=(2, 4),
        submit=_submit_steps,
        read=_read_steps,
    ),
    "C4": Live(
        what="three kinds of block; collectives are counted",
        kind="counted",
        ranks=(2, 4, 8),
        submit=_submit_blocks,
        read=_read_blocks,
    ),
    "C9": Live(
        what="all-reduces of 16 KiB and 32 MiB",
        kind="measured",
        ranks=(2,),
        submit=_submit_messages,
        read=_read_all_reduce,
        or_more=True,
    ),
    "C12": Live(
        what="1F1B on 4 ranks that wait their times",
        kind="measured",
        ranks=(4,),
        submit=_submit_bubbles,
        read=_read_bubbles,
    ),
    "C15": Live(
        what="a send and an all-reduce beside a computation",
        kind="measured",
        ranks=(2,),
        submit=_submit_overlap,
        read=_read_overlap,
    ),
    "C21": Live(
        what="all-reduces and messages of 1 KiB, 16 KiB and 32 MiB",
        kind="measured",
        ranks=(2,),
        submit=_submit_messages,
        read=_read_bound,
        or_more=True,
    ),
    "X2": Live(
        what="both all-reduces; bytes are counted",
        kind="counted",
        ranks=(2,),
        submit=_submit_rings,
        read=_read_rings,
        or_more=True,
    ),
}
"""The claims that ranks can try."""
