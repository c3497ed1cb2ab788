"""Validation: planted faults, those torch lets pass named, and over random damage: accepted exactly if it runs."""

import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tplab.pipeline import (
    SCHEDULES,
    Action,
    Costs,
    Op,
    Schedule,
    ScheduleError,
    add_communication,
    build_schedule,
    grid_text,
    simulate,
    validate,
)
from tplab.pipeline.mistakes import interleaved_in_name_only, one_micro_batch_too_many
from tplab.pipeline.validation import faults, peak_held

Rows = list[list[Action | None]]


def _at(rows: Rows, text: str) -> tuple[int, int]:
    action = Action.parse(text)
    return next((r, row.index(action)) for r, row in enumerate(rows) if action in row)


def _replaced(old: str, new: str) -> Callable[[Rows], None]:
    def edit(rows: Rows) -> None:
        rank, step = _at(rows, old)
        rows[rank][step] = Action.parse(new)

    return edit


def _doubled(text: str) -> Callable[[Rows], None]:
    return lambda rows: rows[_at(rows, text)[0]].append(Action.parse(text))


def _removed(*texts: str) -> Callable[[Rows], None]:
    def edit(rows: Rows) -> None:
        for text in texts:
            rank, step = _at(rows, text)
            del rows[rank][step]

    return edit


def _moved(text: str, before: str) -> Callable[[Rows], None]:
    def edit(rows: Rows) -> None:
        rank, step = _at(rows, text)
        action = rows[rank].pop(step)
        rows[rank].insert(rows[rank].index(Action.parse(before)), action)

    return edit


def _moved_to_rank(text: str, to: int) -> Callable[[Rows], None]:
    def edit(rows: Rows) -> None:
        rank, step = _at(rows, text)
        rows[to].append(rows[rank].pop(step))

    return edit


def _all(*edits: Callable[[Rows], None]) -> Callable[[Rows], None]:
    def edit(rows: Rows) -> None:
        for one in edits:
            one(rows)

    return edit


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A table made wrong in one way."""

    fault: str
    edit: Callable[[Rows], None]
    kind: str
    """``Fault.kind`` that must be found."""
    marked: str
    """Cell that must be in brackets."""
    schedule: str = "1f1b"
    written: bool = False
    """With communication."""
    torch_misses: bool
    """None of torch's checks that apply to such a table raises."""
    cap: tuple[float, ...] | None = None


PLANTED = (
    # What torch lets pass.
    Planted(fault="duplicate F", edit=_doubled("1F2"), kind="duplicate", marked="[1F2]", torch_misses=True),
    Planted(fault="duplicate B", edit=_doubled("1B2"), kind="duplicate", marked="[1B2]", torch_misses=True),
    Planted(
        fault="micro-batch id out of range",
        edit=_all(*(_replaced(f"{s}{op}3", f"{s}{op}9") for s in range(3) for op in "FB")),
        kind="out of range",
        marked="[0F9]",
        torch_misses=True,
    ),
    Planted(
        fault="order mismatch on a link",
        edit=_moved("1RECV_F2", before="1RECV_F1"),
        kind="order on a link",
        marked="[1RECV_F2]",
        written=True,
        torch_misses=True,
    ),
    Planted(
        fault="blocking-send deadlock",  # each sends to the other before it posts its own receive
        edit=_moved("1RECV_F2", before="1F2"),
        kind="deadlock of blocking sends",
        marked="[1SEND_B0]",
        written=True,
        torch_misses=True,
    ),
    Planted(
        fault="SEND without RECV",
        edit=lambda rows: rows[2].append(Action(2, Op.SEND_F, 0)),
        kind="needless message",
        marked="[2SEND_F0]",
        written=True,
        torch_misses=True,
    ),
    Planted(
        fault="message received twice",
        edit=_doubled("1RECV_F1"),
        kind="duplicate",
        marked="[1RECV_F1]",
        written=True,
        torch_misses=True,
    ),
    Planted(
        fault="message sent twice",
        edit=_doubled("0SEND_F1"),
        kind="duplicate",
        marked="[0SEND_F1]",
        written=True,
        torch_misses=True,
    ),
    Planted(
        fault="memory over the cap",
        edit=lambda rows: None,
        kind="memory",
        marked="[0F2]",
        torch_misses=True,
        cap=(2, 2, 1),
    ),
    Planted(
        fault="chunk of a prompt before its prefix",
        edit=_all(*(_moved(f"{s}F2", before=f"{s}F1") for s in range(3))),
        kind="order",
        marked="[0F2]",
        schedule="chunked-prefill",
        torch_misses=True,
    ),
    Planted(
        fault="decoding step before its token",
        edit=_all(*(_moved(f"{s}F3", before=f"{s}F0") for s in range(3))),
        kind="order",
        marked="[0F3]",
        schedule="decode-ring",
        torch_misses=True,
    ),
    Planted(
        fault="whole and split backward",
        edit=_all(_replaced("1I2", "1B2"), _replaced("1W2", "1I2"), _doubled("1I2")),
        kind="two backwards",
        marked="[1B2]",
        schedule="zb-h1",
        torch_misses=False,
    ),
    # What torch catches too.
    Planted(fault="missing F", edit=_removed("1F2"), kind="missing", marked="[1F2?]", torch_misses=False),
    Planted(fault="missing B", edit=_removed("2B1"), kind="missing", marked="[2B1?]", torch_misses=False),
    Planted(fault="B before its F", edit=_moved("1B1", before="1F1"), kind="order", marked="[1B1]", torch_misses=False),
    Planted(
        fault="W before its I",
        edit=_moved("0W1", before="0I1"),
        kind="order",
        marked="[0W1]",
        schedule="zb-h1",
        torch_misses=False,
    ),
    Planted(
        fault="missing W", edit=_removed("0W1"), kind="missing", marked="[0W1?]", schedule="zb-h1", torch_misses=False
    ),
    Planted(
        fault="action on the wrong rank",
        edit=_moved_to_rank("1F3", 2),
        kind="wrong rank",
        marked="[1F3]",
        torch_misses=False,
    ),
    Planted(
        fault="circular wait",
        edit=_all(_moved("0B0", before="0F1"), _moved("1F1", before="1B0"), _moved("2F1", before="2B0")),
        kind="circular wait",
        marked="[0B0]",
        torch_misses=False,
    ),
    Planted(
        fault="message sent and not received",
        edit=_removed("1RECV_F3"),
        kind="send without receive",
        marked="[0SEND_F3]",
        written=True,
        torch_misses=False,
    ),
    Planted(
        fault="RECV without SEND",
        edit=_removed("0SEND_F3"),
        kind="receive without send",
        marked="[1RECV_F3]",
        written=True,
        torch_misses=False,
    ),
    Planted(
        fault="message forgotten",
        edit=_removed("0SEND_F3", "1RECV_F3"),
        kind="message missing",
        marked="[0SEND_F3?]",
        written=True,
        torch_misses=False,
    ),
    Planted(
        fault="SEND before what it sends",
        edit=_moved("0SEND_F1", before="0F1"),
        kind="order",
        marked="[0SEND_F1]",
        written=True,
        torch_misses=False,
    ),
    Planted(
        fault="RECV after the computation that needs it",
        edit=_moved("1F1", before="1RECV_F1"),
        kind="order",
        marked="[1F1]",
        written=True,
        torch_misses=False,
    ),
)


def plant(planted: Planted) -> Schedule:
    schedule = build_schedule(planted.schedule, 3, 4)
    if planted.written:
        schedule = add_communication(schedule)
    rows: Rows = [list(row) for row in schedule.ranks]
    planted.edit(rows)
    return replace(schedule, ranks=tuple(tuple(row) for row in rows))


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.fault)
def test_planted_faults_are_caught(planted: Planted) -> None:
    schedule = plant(planted)
    with pytest.raises(ScheduleError) as caught:
        validate(schedule, max_activations=planted.cap)
    assert planted.kind in {fault.kind for fault in caught.value.faults}, caught.value
    assert planted.marked in str(caught.value)


def torch_objects_to(schedule: Schedule) -> bool:
    """Whether any of torch's checks that apply raises: the count, the insertion of messages, the dry run."""
    torch_schedules = pytest.importorskip("torch.distributed.pipelining.schedules")
    p, stages, m = schedule.num_stages, schedule.total_stages, schedule.num_micro_batches
    rows = {
        rank: [torch_schedules._Action.from_str(str(a)) for a in row if a is not None]
        for rank, row in enumerate(schedule.ranks)
    }
    counted = {rank: list(row) for rank, row in rows.items()}
    if schedule.is_inference:  # it knows training only: give every forward its backward, at the end
        for rank, row in counted.items():
            row += [
                torch_schedules._Action(a.stage_index, torch_schedules.FULL_BACKWARD, a.microbatch_index)
                for a in rows[rank]
                if a.computation_type == torch_schedules.FORWARD
            ]
    try:
        torch_schedules._validate_schedule(counted, p, stages, m)
        if not schedule.has_communication:
            rows = torch_schedules._add_send_recv(rows, schedule.stage_to_rank, stages)
        torch_schedules._simulate_comms_compute(rows, schedule.stage_to_rank, stages)
    except (AssertionError, ValueError):
        return True
    return False


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.fault)
def test_what_torch_lets_pass(planted: Planted) -> None:
    assert torch_objects_to(plant(planted)) is not planted.torch_misses


def test_enough_faults_are_planted() -> None:
    assert len({planted.fault for planted in PLANTED}) >= 12
    assert sum(planted.torch_misses for planted in PLANTED) >= 8


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("p", "m"), [(1, 1), (1, 3), (2, 2), (3, 6), (4, 8), (5, 5)])
@pytest.mark.parametrize("blocking_sends", [True, False])
def test_every_schedule_is_right(name: str, p: int, m: int, blocking_sends: bool) -> None:
    for v in (1, 2, 3) if name == "interleaved" else (1,):
        schedule = build_schedule(name, p, m, v)
        validate(schedule, blocking_sends=blocking_sends)
        validate(add_communication(schedule), blocking_sends=blocking_sends)


@st.composite
def damaged(draw: st.DrawFn) -> Schedule:
    """A schedule in which up to four cells were swapped, moved, copied, removed or rewritten."""
    name, p = draw(st.sampled_from(SCHEDULES)), draw(st.integers(1, 4))
    v = draw(st.integers(1, 2)) if name == "interleaved" else 1
    m = p * draw(st.integers(1, 2)) if name == "interleaved" else draw(st.integers(1, 5))
    schedule = build_schedule(name, p, m, v)
    if draw(st.booleans()):
        schedule = add_communication(schedule)
    rows = [list(row) for row in schedule.ranks]
    for _ in range(draw(st.integers(0, 4))):
        row = rows[draw(st.integers(0, p - 1))]
        if not row:
            continue
        here, there = draw(st.integers(0, len(row) - 1)), draw(st.integers(0, len(row) - 1))
        match draw(st.sampled_from(["swap", "swap", "move", "move", "copy", "remove", "rewrite", "empty"])):
            case "swap":
                row[here], row[there] = row[there], row[here]
            case "move":
                row.insert(there, row.pop(here))
            case "copy":
                row.insert(there, row[here])
            case "remove":
                del row[here]
            case "rewrite":
                stage, mb = draw(st.integers(0, p * v)), draw(st.integers(0, m))
                row[here] = Action(stage, draw(st.sampled_from(Op)), mb)
            case "empty":
                row.insert(here, None)
    return replace(schedule, ranks=tuple(tuple(row) for row in rows))


@settings(deadline=None, max_examples=400)
@given(schedule=damaged(), blocking_sends=st.booleans())
def test_accepts_exactly_what_runs(schedule: Schedule, blocking_sends: bool, run_events: Callable[..., Any]) -> None:
    rendezvous = blocking_sends and schedule.has_communication
    try:
        run_events(schedule, rendezvous=rendezvous)
        runs = True
    except run_events.Broken:  # type: ignore[attr-defined]
        runs = False
    found = faults(schedule, blocking_sends=blocking_sends)
    assert runs == (not found), (schedule.to_text(), found)
    # And the simulation refuses the same tables, in words.
    costs = Costs(overlap=not rendezvous)
    if runs:
        simulate(schedule, costs)
    else:
        with pytest.raises(ScheduleError):
            simulate(schedule, costs)


def test_the_articles_1f1b_holds_one_more() -> None:
    """S6: it runs, it takes as long, and every stage holds one micro-batch more."""
    wrong, right = one_micro_batch_too_many(4, 8), build_schedule("1f1b", 4, 8)
    validate(wrong)
    assert peak_held(wrong) == (5, 4, 3, 2)
    assert peak_held(right) == (4, 3, 2, 1)
    assert simulate(wrong).makespan_s == simulate(right).makespan_s == 33
    validate(right, max_activations=(4, 3, 2, 1))
    with pytest.raises(ScheduleError, match=r"0F4 makes rank 0 hold 5 .*the memory cap allows 4") as caught:
        validate(wrong, max_activations=(4, 3, 2, 1))
    assert {fault.rank for fault in caught.value.faults} == {0, 1, 2, 3}
    assert all(fault.kind == "memory" for fault in caught.value.faults)


def test_interleaved_in_name_only_has_1f1bs_bubble() -> None:
    assert simulate(interleaved_in_name_only(4, 8)).makespan_s == 33
    assert simulate(build_schedule("interleaved", 4, 8, 2)).makespan_s == 28.5


@settings(deadline=None)
@given(schedule=damaged())
def test_peaks_of_the_order_are_those_of_the_trace(schedule: Schedule) -> None:
    if faults(schedule, blocking_sends=False):
        return
    assert simulate(schedule).peak_activations_per_rank == pytest.approx(peak_held(schedule))


@pytest.mark.parametrize("blocking_sends", [True, False])
@pytest.mark.parametrize(
    ("message", "computation", "says"),
    [
        ("1RECV_F2", "1F2", r"1F2 comes before the receive of its input"),
        ("1RECV_B2", "1B2", r"1B2 comes before the receive of its gradient"),
        ("1SEND_F2", "1F2", r"1SEND_F2 comes before the forward whose output it sends"),
        ("1SEND_B2", "1B2", r"1SEND_B2 comes before the backward whose gradient it sends"),
    ],
)
def test_a_message_on_the_wrong_side_of_its_computation(
    message: str, computation: str, says: str, blocking_sends: bool
) -> None:
    schedule = add_communication(build_schedule("1f1b", 3, 4))
    rows = [list(row) for row in schedule.ranks]
    edit = _moved(computation, before=message) if "RECV" in message else _moved(message, before=computation)
    edit(rows)
    wrong = replace(schedule, ranks=tuple(map(tuple, rows)))
    found = faults(wrong, blocking_sends=blocking_sends)
    assert [fault.kind for fault in found] == ["order"]
    with pytest.raises(ScheduleError, match=says):
        validate(wrong, blocking_sends=blocking_sends)


def test_a_cap_for_all_ranks_and_a_wrong_one() -> None:
    schedule = build_schedule("zb-h1", 4, 8)
    validate(schedule, max_activations=4)
    with pytest.raises(ScheduleError, match=r"allows 3\.5"):
        validate(schedule, max_activations=3.5)
    with pytest.raises(ValueError, match="max_activations must be a number or one per rank"):
        validate(schedule, max_activations=[1, 2])


@pytest.mark.parametrize(
    ("micro_batches", "message"),
    [
        ({"kv_from": 7}, "kv_from=7 of micro-batch 1 must be another id below m=3"),
        ({"token_from": 1}, "token_from=1 of micro-batch 1 must be another id"),
        ({"token_from": 2}, "micro-batches 0 and 1 both take in the tokens of micro-batch 2"),
    ],
)
def test_descriptions_that_cannot_be(micro_batches: dict[str, int], message: str) -> None:
    schedule = build_schedule("forward-only", 2, 3)
    first = schedule.micro_batches[0]._replace(token_from=2)
    changed = (first, schedule.micro_batches[1]._replace(**micro_batches), schedule.micro_batches[2])
    with pytest.raises(ScheduleError, match=message):
        validate(replace(schedule, micro_batches=changed))


def test_the_message_lists_a_few_and_shows_the_place() -> None:
    schedule = build_schedule("1f1b", 4, 64)
    rows = [list(row) for row in schedule.ranks]
    rows[2] = rows[2][:40] + rows[2][60:]
    with pytest.raises(ScheduleError) as caught:
        validate(replace(schedule, ranks=tuple(tuple(row) for row in rows)))
    text = str(caught.value)
    assert len(caught.value.faults) == 20
    assert "and 15 more" in text
    assert max(len(line) for line in text.splitlines()) < 160
    assert text.count("?]") == 5


def test_the_error_travels() -> None:
    with pytest.raises(ScheduleError) as caught:
        validate(Schedule.from_text("0F0,0B0,0B0\n"))
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)
    assert again.faults == caught.value.faults


def test_the_grid() -> None:
    assert grid_text(Schedule.from_text("0F0,,0B0\n1F0,1B0\n")) == (
        "step    0   1   2\nrank 0  0F0 .   0B0\nrank 1  1F0 1B0\n"
    )
