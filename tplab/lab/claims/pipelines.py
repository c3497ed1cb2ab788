"""Recipes for claims about pipelines: C10 to C15, C19, S5, S6, X1 (see docs/article.md).

Letters: p ranks, m micro-batches, v chunks per rank, k micro-batches in flight. A bubble is idle time over total,
unless it is said to be over work.
"""

from tplab.lab.claims.findings import Case, Finding, at_least, at_most, between, chosen, equal, said
from tplab.lab.recorded import recorded
from tplab.layers.cost import pipelined_us
from tplab.pipeline.article import PipelineConfig
from tplab.pipeline.build import build_schedule
from tplab.pipeline.communication import add_communication
from tplab.pipeline.costs import Costs
from tplab.pipeline.formulas import (
    best_num_micro_batches,
    claimed_gpipe_bubble,
    decode_in_flight_needed,
    decode_round_s,
    peak_activations,
    prefill_makespan_s,
)
from tplab.pipeline.mistakes import interleaved_in_name_only, one_micro_batch_too_many
from tplab.pipeline.schedule import Op, Schedule
from tplab.pipeline.simulation import simulate
from tplab.pipeline.validation import peak_held


def _bubble(name: str, p: int, m: int, v: int = 1, backward: float = 2.0) -> float:
    """In percent, simulated, with backwards so many forwards long."""
    costs = Costs(input_grad_s=backward / 2, weight_grad_s=backward / 2)
    return 100 * simulate(build_schedule(name, p, m, v), costs).idle_over_total


def one_f_one_b(tolerance: float) -> Finding:
    """C10: the formula beside the simulation, for several sizes and lengths of a backward."""
    sizes = ((2, 4, 2.0), (4, 8, 0.5), (4, 8, 2.0), (4, 8, 3.0), (8, 32, 2.0))
    return Finding(
        cases=[
            equal(
                f"p = {p}, m = {m}, a backward takes {backward:g} forwards",
                100 * (p - 1) / (p - 1 + m),
                _bubble("1f1b", p, m, backward=backward),
                "%",
                tolerance,
            )
            for p, m, backward in sizes
        ],
        facts={"bubble": said(_bubble("1f1b", 4, 8), "%")},
    )


def gpipe(tolerance: float) -> Finding:
    """C11: GPipe's bubble as claimed and as simulated, and what 1F1B makes of it."""
    formula = [
        equal(
            f"GPipe, p = {p}, m = {m}",
            100 * claimed_gpipe_bubble(p, m),
            _bubble("gpipe", p, m),
            "%",
            tolerance,
            "formula",
        )
        for p, m in ((4, 4), (4, 8), (8, 32))
    ]
    ratio = _bubble("1f1b", 4, 8) / _bubble("gpipe", 4, 8)
    halved = equal("1F1B's bubble over GPipe's, p = 4, m = 8", 0.5, ratio, "", tolerance, "1F1B halves it")
    peaks = [int(peak_activations(name, 4, 8)) for name in ("gpipe", "1f1b")]
    return Finding(
        cases=[*formula, halved],
        facts={
            "claimed": said(100 * claimed_gpipe_bubble(4, 8), "%"),
            "right": said(_bubble("gpipe", 4, 8), "%"),
            "interleaved": said(_bubble("interleaved", 4, 8, 2), "%"),
            "gpipe_peak": str(peaks[0]),
            "peak": str(peaks[1]),
        },
    )


def four_stages(tolerance: float) -> Finding:
    """C12: 1F1B on 4 stages, by the number of micro-batches."""
    bubbles = {m: _bubble("1f1b", 4, m) for m in range(1, 65)}
    runs = recorded("4xH200-2026-11-26", "pipeline")
    run = runs[runs["schedule"] == "1f1b"]
    inside = [m for m, bubble in bubbles.items() if 30 <= bubble <= 40]
    return Finding(
        cases=[between(f"m = {m}", 30, 40, bubbles[m], "%", tolerance) for m in (4, 5, 6, 7, 8, 16)],
        facts={
            "first": str(inside[0]),
            "last": str(inside[-1]),
            "four": said(bubbles[4], "%"),
            "eight": said(bubbles[8], "%"),
            "sixteen": said(bubbles[16], "%"),
            "run": said(100 * float(run["idle_over_total"].iloc[0]), "%"),
            "micro_batches": str(int(run["micro_batches"].iloc[0])),
        },
    )


def inference(tolerance: float) -> Finding:
    """C13: 1F1B without its backwards is any other order; what decides instead."""

    def forwards(schedule: Schedule) -> list[list[tuple[int, int]]]:
        return [[(a.stage, a.micro_batch) for a in row if a and a.op is Op.F] for row in schedule.ranks]

    orders = {name: forwards(build_schedule(name, 4, 8)) for name in ("1f1b", "gpipe", "forward-only")}
    backwards = sum(action.op is not Op.F for _, _, action in build_schedule("forward-only", 4, 8).actions())
    same = orders["1f1b"] == orders["gpipe"] == orders["forward-only"]
    stages = [20.0, 20.0, 20.0, 40.0]
    uneven = Costs(forward_s=tuple(stages), hop_s=2.0)
    prefill = simulate(build_schedule("forward-only", 4, 8), uneven).makespan_s
    return Finding(
        cases=(
            at_least("backwards in a prefill of 8 micro-batches on 4 stages", 1, backwards, ""),
            chosen("order of forwards in 1F1B and in GPipe", "differ", "are the same" if same else "differ"),
        ),
        facts={
            "formula": said(prefill_makespan_s(stages, 8, 2.0), "ms"),
            "simulated": said(prefill, "ms"),
            "needed": str(decode_in_flight_needed([20.0] * 4, 2.0)),
        },
    )


def more_micro_batches(tolerance: float) -> Finding:
    """C14: bubble and time of forwards whose work of 1 s is cut in m pieces of 10 ms overhead each, on 4 stages."""

    runs = {m: simulate(build_schedule("forward-only", 4, m), Costs(forward_s=1 / m + 0.01)) for m in range(1, 65)}
    best = min(runs, key=lambda m: runs[m].makespan_s)
    bubble = {m: 100 * run.idle_over_total for m, run in runs.items()}
    work = {m: float(run.work_s[0]) for m, run in runs.items()}
    cases = [
        at_most(f"bubble at m = {2 * m}, below that at m = {m}", bubble[m], bubble[2 * m], "%", "smaller bubble")
        for m in (4, 8, 16, 32)
    ]
    cases += [
        at_least(f"time a stage computes at m = {2 * m}, above that at m = {m}", work[m], work[2 * m], "s", "more time")
        for m in (4, 8, 16, 32)
    ]
    return Finding(
        cases=cases,
        facts={
            "best": str(best),
            "formula": str(best_num_micro_batches(4, 1.0, 0.01, 64)),
            "least": f"{runs[best].makespan_s:.2f} s",
            "one": f"{runs[1].makespan_s:.2f} s",
            "most": f"{runs[64].makespan_s:.2f} s",
        },
    )


def overlap(tolerance: float) -> Finding:
    """C15: hidden share of TP's all-reduces and of PP's messages, where each has its best chance and its worst."""
    compute, comm, hop = 30.0, 24.0, 2.0  # ms: a matmul, the all-reduce of its result, a message between stages
    one_token = 0.1  # ms: the matmul of a decode step

    def of_sums(matmul: float, chunks: int) -> float:
        taken = pipelined_us([matmul / chunks] * chunks, [comm / chunks] * chunks)
        return 100 * (1 - (taken - matmul) / comm)

    def of_hops(k: int) -> float:
        round_ms = decode_round_s([compute] * 4, k, hop)
        return 100 * (1 - (round_ms - max(k, 4) * compute) / (4 * hop))

    needed = decode_in_flight_needed([compute] * 4, hop)
    shares = (
        (f"prefill in one piece, {needed} micro-batches in flight", of_sums(compute, 1), of_hops(needed)),
        (f"prefill in 4 chunks of tokens, {needed} micro-batches in flight", of_sums(compute, 4), of_hops(needed)),
        (f"decode, {needed} micro-batches in flight", of_sums(one_token, 1), of_hops(needed)),
        ("decode, one request", of_sums(one_token, 1), of_hops(1)),
    )
    cases = [
        Case(
            part="",
            what=f"hidden share of the communication: {what}",
            claimed="more with TP",
            right=f"TP {said(tp, '%')}, PP {said(pp, '%')}",
            agrees=tp > pp,
        )
        for what, tp, pp in shares
    ]
    return Finding(cases=cases, facts={"chunked": said(shares[1][1], "%"), "needed": str(needed)})


def interleaved(tolerance: float) -> Finding:
    """C19: bubble and messages of interleaved 1F1B beside those of plain 1F1B."""
    one, two = (add_communication(build_schedule(name, 4, 8, v)) for name, v in (("1f1b", 1), ("interleaved", 2)))
    sends = [sum(action.op.is_send for _, _, action in table.actions()) for table in (one, two)]
    plain, cut = _bubble("1f1b", 4, 8), _bubble("interleaved", 4, 8, 2)
    return Finding(
        cases=(
            at_most("bubble at p = 4, m = 8, v = 2, below 1F1B's", plain, cut, "%", "less bubble"),
            at_most("messages, below 1F1B's", sends[0], sends[1], "", "less communication"),
        ),
        facts={"ratio": f"{sends[1] / sends[0]:.2f}", "bubble": said(cut, "%"), "plain": said(plain, "%")},
    )


def config_words(tolerance: float) -> Finding:
    """S5: each of the three names gives a schedule that is another one than plain 1F1B."""
    built = {
        name: PipelineConfig(num_stages=4, num_micro_batches=8, pipeline_schedule=name).build()
        for name in ("1f1b", "gpipe", "interleaved")
    }
    distinct = len({schedule.ranks for schedule in built.values()})
    return Finding(cases=(equal("different tables under the three names", 3, distinct, "", tolerance),))


def scheduler(tolerance: float) -> Finding:
    """S6: the article's 1F1B and interleaved beside the right ones, p = 4, m = 8."""
    wrong, right = one_micro_batch_too_many(4, 8), build_schedule("1f1b", 4, 8)
    held, least = peak_held(wrong), peak_held(right)
    cases = [
        equal(f"micro-batches held by rank {rank}, 1F1B", held[rank], least[rank], "", tolerance, "1F1B")
        for rank in range(4)
    ]
    in_name = 100 * simulate(interleaved_in_name_only(4, 8)).idle_over_total
    cases.append(
        equal("bubble of interleaved", in_name, _bubble("interleaved", 4, 8, 2), "%", tolerance, "interleaved")
    )
    return Finding(
        cases=cases,
        facts={
            "held": ", ".join(f"{each:g}" for each in held),
            "least": ", ".join(f"{each:g}" for each in least),
        },
    )


def few_micro_batches(tolerance: float) -> Finding:
    """X1: interleaved bubble over work at p = 8 with fewer micro-batches than stages, plotted and at least."""
    cases, numbers = [], {}
    for m, v in ((1, 2), (2, 2), (4, 2), (4, 4)):
        plotted, least = numbers[m, v] = 100 * (8 - 1) / (v * m), 100 * (8 / m - 1)
        cases.append(
            Case(
                part="",
                what=f"p = 8, m = {m}, v = {v}: idle over work",
                claimed=said(plotted, "%"),
                right=f"at least {said(least, '%')}",
                agrees=plotted >= least * (1 - tolerance),
            )
        )
    plotted, least = numbers[4, 2]
    return Finding(cases=cases, facts={"plotted": said(plotted, "%"), "least": said(least, "%")})
