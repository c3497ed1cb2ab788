"""Simulation: the table of the issue, a second simulation over random tables and costs, bounds, and what costs mean."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tplab.pipeline import (
    SCHEDULES,
    Action,
    Costs,
    Op,
    Schedule,
    add_communication,
    build_schedule,
    drop_communication,
    simulate,
    validate,
)
from tplab.pipeline.build import TRAINING
from tplab.pipeline.progress import run_by_rank, run_in_waves
from tplab.pipeline.table import NONE, arrows_of, table_of

times = st.integers(0, 12).map(lambda n: n / 4)  # exact in binary: both simulations must agree to the last bit


@st.composite
def schedules(draw: st.DrawFn, names: tuple[str, ...] = SCHEDULES, with_communication: bool = True) -> Schedule:
    name, p = draw(st.sampled_from(names)), draw(st.integers(1, 5))
    m = p * draw(st.integers(1, 3)) if name == "interleaved" else draw(st.integers(1, 9))
    v = draw(st.integers(1, 3)) if name == "interleaved" else 1
    more: dict[str, int] = {}
    if name in ("decode-ring", "prefill-decode"):
        more["num_in_flight"] = draw(st.integers(1, 6))
    if name == "prefill-decode":
        more["num_prefill_chunks"] = draw(st.integers(1, 3))
    schedule = build_schedule(name, p, m, v, **more)
    return add_communication(schedule) if with_communication and draw(st.booleans()) else schedule


@pytest.mark.parametrize(
    ("name", "v", "makespan", "idle_over_total", "idle_over_work", "peaks"),
    [
        ("gpipe", 1, 33, 9 / 33, 9 / 24, (8, 8, 8, 8)),
        ("1f1b", 1, 33, 9 / 33, 9 / 24, (4, 3, 2, 1)),
        ("interleaved", 2, 28.5, 4.5 / 28.5, 4.5 / 24, (5.5, 4.5, 3.5, 2.5)),
        ("interleaved", 4, 26.25, 2.25 / 26.25, 2.25 / 24, (4.75, 4.25, 3.75, 3.25)),
        ("zb-h1", 1, 27, 3 / 27, 3 / 24, (4, 4, 4, 4)),
    ],
)
@pytest.mark.parametrize("written", [False, True], ids=["computations", "with communication"])
def test_the_table(
    name: str,
    v: int,
    makespan: float,
    idle_over_total: float,
    idle_over_work: float,
    peaks: tuple[float, ...],
    written: bool,
) -> None:
    schedule = build_schedule(name, 4, 8, v)
    trace = simulate(add_communication(schedule) if written else schedule)
    assert trace.makespan_s == pytest.approx(makespan)
    assert trace.work_s == pytest.approx([24] * 4)
    assert trace.idle_over_total == pytest.approx(idle_over_total)
    assert trace.idle_over_work == pytest.approx(idle_over_work)
    assert trace.peak_activations_per_rank == pytest.approx(peaks)
    assert not trace.measured
    assert trace.badge == "MODEL"


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_equals_a_simulation_by_events(data: Any, run_events: Callable[..., Any]) -> None:
    schedule = data.draw(schedules())
    stages, m, p = schedule.total_stages, schedule.num_micro_batches, schedule.num_stages
    grids = {
        name: np.array(data.draw(st.lists(times, min_size=stages * m, max_size=stages * m))).reshape(stages, m)
        for name in ("F", "I", "W")
    }
    hop = np.array(data.draw(st.lists(times, min_size=p * p, max_size=p * p))).reshape(p, p)
    nbytes, token_bytes = data.draw(st.integers(0, 4)), data.draw(st.integers(0, 2))
    overlap = data.draw(st.booleans())
    trace = simulate(
        schedule,
        Costs(
            forward_s=grids["F"],
            input_grad_s=grids["I"],
            weight_grad_s=lambda stage, i: float(grids["W"][stage, i]),
            hop_s=hop,
            bandwidth_Bps=2.0,
            message_bytes=nbytes,
            token_bytes=token_bytes,
            overlap=overlap,
        ),
    )

    def seconds(a: Action) -> float:
        parts = {"F": "F", "B": "IW", "I": "I", "W": "W"}[a.op.value]
        return float(sum(grids[part][a.stage, a.micro_batch] for part in parts))

    def wire_s(a: Action) -> float:
        back = a.op in (Op.F, Op.SEND_F) and a.stage == stages - 1
        return (token_bytes if back else nbytes) / 2

    want = run_events(
        schedule,
        seconds=seconds,
        wire_s=wire_s,
        hop_s=lambda source, target: float(hop[source, target]),
        overlap=overlap,
        rendezvous=not overlap and schedule.has_communication,
    )
    got = {Action(s.stage, s.op, s.micro_batch): (s.start_s, s.end_s) for s in trace.spans if s.op.is_compute}
    assert got == want


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_few_and_many_ranks_have_the_same_loop(data: Any) -> None:
    """The loop by rank and the one in waves: the same to the last bit, also where ranks are stuck."""
    schedule = data.draw(schedules())
    table = table_of(schedule)
    arrows = arrows_of(schedule, table, rendezvous=data.draw(st.booleans()))
    n = len(arrows.link)
    if data.draw(st.booleans()):
        arrows.waits_for[data.draw(st.integers(0, n - 1))] = data.draw(st.integers(0, n - 1))
    length = {"min_size": n, "max_size": n}
    duration, wire, latency = (np.array(data.draw(st.lists(st.floats(0, 3), **length))) for _ in range(3))  # type: ignore[arg-type]
    wire[arrows.link == NONE], latency[arrows.link == NONE] = 0.0, 0.0
    overlap = data.draw(st.booleans())
    one, other = (run(arrows, duration, wire, latency, overlap=overlap) for run in (run_by_rank, run_in_waves))
    assert one.reached == other.reached
    done = one.arrived_s >= 0
    for name in ("start_s", "end_s", "arrived_s"):
        assert (getattr(one, name)[done] == getattr(other, name)[done]).all()
    sends = done & (arrows.link != NONE)
    assert (one.sent_s[sends] == other.sent_s[sends]).all()


@settings(deadline=None)
@given(data=st.data())
def test_never_under_the_critical_path(data: Any) -> None:
    """Neither under what any rank has to do, nor under any chain of things that need one another."""
    schedule = data.draw(schedules(with_communication=False))
    stages = schedule.total_stages
    forward, grad, weight = (np.array(data.draw(st.lists(times, min_size=stages, max_size=stages))) for _ in "FIW")
    hop = data.draw(times)
    trace = simulate(schedule, Costs(forward_s=forward, input_grad_s=grad, weight_grad_s=weight, hop_s=hop))
    assert trace.makespan_s >= trace.work_s.max() - 1e-9
    crossings = stages - 1 if schedule.num_stages > 1 else 0
    ops = {str(a.op) for _, _, a in schedule.actions()}
    way = forward.sum() + crossings * hop
    if "B" in ops:
        # The last stage's backward first, back to stage 0; W is in every B.
        way += (grad + weight).sum() + crossings * hop
    elif "I" in ops:
        way += grad.sum() + weight[0] + crossings * hop
    steps = 1
    if schedule.has_back_edge:
        # As often round the ring as the longest chain of tokens, with a hop back each time.
        chain = [1] * schedule.num_micro_batches
        for i, micro_batch in enumerate(schedule.micro_batches):
            if micro_batch.token_from is not None:
                chain[i] = chain[micro_batch.token_from] + 1
        steps = max(chain)
        way = steps * way + (steps - 1) * (hop if schedule.num_stages > 1 else 0)
    assert trace.makespan_s >= way - 1e-9


@settings(deadline=None)
@given(schedule=schedules(with_communication=False), hop=times)
def test_writing_down_the_communication_changes_no_time(schedule: Schedule, hop: float) -> None:
    costs = Costs(hop_s=hop, bandwidth_Bps=1.0, message_bytes=0.5)
    bare, written = (simulate(s, costs).frame() for s in (schedule, add_communication(schedule)))
    keys = ["rank", "op", "stage", "micro_batch", "start_ms", "end_ms"]
    bare, written = (f[keys].sort_values(keys).reset_index(drop=True) for f in (bare, written))
    assert bare.equals(written)
    assert drop_communication(add_communication(schedule)) == schedule


def test_more_of_anything_takes_no_less() -> None:
    schedule = build_schedule("1f1b", 4, 8)
    base = {"hop_s": 0.1, "message_bytes": 1.0, "bandwidth_Bps": 10.0}
    before = simulate(schedule, Costs(**base)).makespan_s
    slower = {"hop_s": 0.3}, {"message_bytes": 4.0}, {"bandwidth_Bps": 5.0}, {"forward_s": 1.1}, {"overlap": False}
    for change in slower:
        assert simulate(schedule, Costs(**{**base, **change})).makespan_s > before  # type: ignore[arg-type]


def test_messages_of_a_link_follow_one_another() -> None:
    """Four messages of 2 s on a link, made 1 s apart: the last arrives after 1 + 4·2, and half a second of latency."""
    trace = simulate(
        build_schedule("forward-only", 2, 4),
        Costs(message_bytes=2.0, bandwidth_Bps=1.0, hop_s=0.5),
    )
    sends = [s for s in trace.spans if s.op is Op.SEND_F]
    assert [(s.start_s, s.end_s) for s in sends] == [(1, 3.5), (3, 5.5), (5, 7.5), (7, 9.5)]
    assert trace.makespan_s == 10.5


@pytest.mark.parametrize("written", [False, True], ids=["computations", "with communication"])
@pytest.mark.parametrize(("name", "v"), [("1f1b", 1), ("interleaved", 2), ("zb-h1", 1)])
def test_a_gradient_is_as_large_as_what_was_sent_forward(name: str, v: int, written: bool) -> None:
    schedule = build_schedule(name, 3, 3, v)
    nbytes = np.arange(1.0, 1 + 9 * v).reshape(3 * v, 3)
    trace = simulate(
        add_communication(schedule) if written else schedule, Costs(message_bytes=nbytes, bandwidth_Bps=1.0)
    )
    took = {(s.stage, s.op, s.micro_batch): s.end_s - s.start_s for s in trace.spans if not s.op.is_compute}
    for stage in range(3 * v - 1):
        for i in range(3):
            assert took[stage, Op.SEND_F, i] == pytest.approx(nbytes[stage, i])
            assert took[stage + 1, Op.SEND_B, i] == pytest.approx(nbytes[stage, i])
    assert len(took) == 2 * 3 * (3 * v - 1)


def test_both_directions_do_not_share_a_link() -> None:
    """The output of 0F1 is on the wire from 6 to 11, the gradient of 1B0 from 9 to 14."""
    schedule = Schedule.from_text("0F0,0F1,0B0,0F2,0B1,0B2\n1F0,1B0,1F1,1B1,1F2,1B2\n")
    costs = Costs(message_bytes=5.0, bandwidth_Bps=1.0)
    spans = {
        (s.op, s.micro_batch): (s.start_s, s.end_s) for s in simulate(schedule, costs).spans if not s.op.is_compute
    }
    assert spans[Op.SEND_F, 0] == (1, 6)
    assert spans[Op.SEND_F, 1] == (6, 11)
    assert spans[Op.SEND_B, 0] == (9, 14), "on the wire together with 0F1's output, and not behind it"


def test_a_v_shape_turns_without_a_hop() -> None:
    """Stages 1 and 2 are on one rank: four hops there and back where four loops of stages take six."""
    bent = Schedule.from_text("0F0,3F0,3B0,0B0\n1F0,2F0,2B0,1B0\n")
    loop = Schedule.from_text("0F0,2F0,2B0,0B0\n1F0,3F0,3B0,1B0\n")
    for schedule, hops in ((bent, 4), (loop, 6)):
        for table in (schedule, add_communication(schedule)):
            validate(table)
            assert simulate(table, Costs(hop_s=1.0)).makespan_s == 4 * (0.5 + 1.0) + hops


def test_without_overlap_the_sender_waits() -> None:
    costs = Costs(hop_s=0.5, overlap=False)
    trace = simulate(build_schedule("forward-only", 2, 3), costs)
    assert [s.start_s for s in trace.spans if s.rank == 0 and s.op is Op.F] == [0, 1.5, 3.0]
    assert trace.work_s.tolist() == [3, 3]  # waiting is not work


def test_a_number_is_one_ranks_share_and_a_list_is_by_stage() -> None:
    schedule = build_schedule("interleaved", 2, 2, 2)
    assert simulate(schedule, Costs(forward_s=2.0, input_grad_s=2.0, weight_grad_s=2.0)).work_s.tolist() == [12, 12]
    by_stage = Costs(forward_s=[2.0] * 4, input_grad_s=[2.0] * 4, weight_grad_s=[2.0] * 4)
    assert simulate(schedule, by_stage).work_s.tolist() == [24, 24]
    uneven = Costs(forward_s=[1, 0, 0, 5], input_grad_s=0.0, weight_grad_s=0.0)
    assert simulate(schedule, uneven).work_s.tolist() == [2, 10]


def test_costs_by_micro_batch() -> None:
    """A chunk of a prompt takes longer the more chunks are before it."""
    schedule = build_schedule("chunked-prefill", 3, 4)
    trace = simulate(schedule, Costs(forward_s=lambda stage, i: 1.0 + i))
    assert trace.work_s.tolist() == [10, 10, 10]
    assert trace.makespan_s == 10 + 2 * 4  # the last, longest chunk goes through the other two stages


def test_uneven_stages_in_one_call() -> None:
    costs = Costs.of_stages([1.0, 3.0], backward=1.5, hop_s=0.25)
    assert simulate(build_schedule("1f1b", 2, 2), costs).work_s.tolist() == [5.0, 15.0]
    assert costs.hop_s == 0.25


def test_activation_bytes() -> None:
    schedule = build_schedule("1f1b", 4, 8)
    trace = simulate(schedule, Costs(activation_bytes=[10, 20, 30, 40]))
    assert [trace.peak_activations(rank, in_bytes=True) for rank in range(4)] == [40, 60, 60, 40]
    interleaved = build_schedule("interleaved", 4, 8, 2)
    assert simulate(interleaved, Costs(activation_bytes=10.0)).peak_activations(0, in_bytes=True) == 55


@pytest.mark.parametrize("name", TRAINING)
@pytest.mark.parametrize(("p", "m"), [(1, 1), (1, 4), (2, 2)])
def test_degenerate_sizes(name: str, p: int, m: int) -> None:
    trace = simulate(build_schedule(name, p, m), Costs(hop_s=1.0))
    if p == 1:
        assert trace.makespan_s == 3 * m
        assert trace.idle_over_total == 0
        assert trace.is_compute.all(), "one rank sends nothing"
    else:
        assert trace.makespan_s > 3 * m


@pytest.mark.parametrize(
    ("costs", "message"),
    [
        ({"forward_s": -1.0}, "forward_s must be finite and not negative, got -1"),
        ({"weight_grad_s": float("nan")}, "weight_grad_s must be finite and not negative, got nan"),
        ({"input_grad_s": [1.0, 2.0]}, r"input_grad_s must be a number, one per stage \(4\).*got shape \(2, 1\)"),
        ({"forward_s": np.ones((4, 3))}, r"forward_s must be .*\(4, 8\) table"),
        ({"forward_s": np.ones((4, 8, 2))}, "forward_s must be"),
        ({"forward_s": [[1.0], [1.0, 2.0]]}, "forward_s must be made of numbers"),
        ({"forward_s": lambda stage, i: None}, "forward_s must be made of numbers|forward_s must be finite"),
        ({"hop_s": [[0.0]]}, r"hop_s must be a number or a \(4, 4\) table from rank to rank; got \(1, 1\)"),
        ({"bandwidth_Bps": 0.0}, "bandwidth_Bps must be above 0, got 0"),
        ({"hop_s": -0.1}, "hop_s must be finite and not negative, got -0.1"),
        ({"activation_bytes": lambda stage, i: float(i)}, "activation_bytes must be a number or one per stage"),
    ],
)
def test_costs_that_cannot_be(costs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        simulate(build_schedule("1f1b", 4, 8), Costs(**costs))


def test_a_table_that_cannot_run_is_refused_and_shown() -> None:
    with pytest.raises(ValueError, match=r"circular wait: (.|\n)*\[1F1\]"):
        simulate(Schedule.from_text("0F0,0B0,0F1,0B1\n1F1,1F0,1B0,1B1\n"))
