"""The table as data: text and CSV, exactly and both ways; errors that name the cell."""

from dataclasses import replace
from pathlib import Path

import cloudpickle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tplab.pipeline import Action, MicroBatch, Op, Schedule

cells = st.none() | st.builds(Action, st.integers(0, 40), st.sampled_from(Op), st.integers(0, 2000))


@st.composite
def tables(draw: st.DrawFn) -> Schedule:
    rows = draw(st.lists(st.lists(cells, max_size=12).map(tuple), min_size=1, max_size=5).map(tuple))
    actions = [action for row in rows for action in row if action is not None]
    if not actions:
        rows = ((Action(0, Op.F, 0),), *rows[1:])
        actions = [rows[0][0]]
    return Schedule(
        name="random",
        num_stages=len(rows),
        num_micro_batches=max(action.micro_batch for action in actions) + 1,
        num_chunks=max(action.stage for action in actions) // len(rows) + 1,
        ranks=rows,
    )


@settings(deadline=None)
@given(table=tables())
def test_text_round_trips_exactly(table: Schedule) -> None:
    again = Schedule.from_text(table.to_text(), name="random")
    assert again.ranks == tuple(row if any(row) else () for row in table.ranks)
    assert (again.num_stages, again.num_micro_batches, again.num_chunks) == (
        table.num_stages,
        table.num_micro_batches,
        table.num_chunks,
    )


def test_csv_round_trips_exactly(tmp_path: Path) -> None:
    rows = ((Action(0, Op.F, 0), None, Action(0, Op.SEND_F, 0), None), (), (None,))
    table = Schedule(name="odd", num_stages=3, num_micro_batches=1, ranks=rows)
    table.to_csv(tmp_path / "odd.csv")
    assert (tmp_path / "odd.csv").read_text() == '0F0,,0SEND_F0,\n""\n""\n'  # torch reads as many ranks
    assert Schedule.from_csv(tmp_path / "odd.csv") == replace(table, ranks=(rows[0], (), ()))


def test_what_the_text_leaves_out_is_given_again() -> None:
    micro_batches = (MicroBatch(), MicroBatch("decode", 0, 0))
    table = Schedule(
        name="two",
        num_stages=1,
        num_micro_batches=2,
        ranks=((Action(0, Op.F, 0), Action(0, Op.F, 1)),),
        micro_batches=micro_batches,
    )
    assert Schedule.from_text("0F0,0F1\n", name="two", micro_batches=micro_batches) == table


@settings(deadline=None)  # the first example imports torch
@given(action=st.builds(Action, st.integers(0, 10**6), st.sampled_from(Op), st.integers(0, 10**6)))
def test_actions_print_as_in_torch(action: Action) -> None:
    schedules = pytest.importorskip("torch.distributed.pipelining.schedules")
    theirs = schedules._Action.from_str(str(action))
    assert (theirs.stage_index, theirs.computation_type.value, theirs.microbatch_index) == tuple(action)
    assert str(theirs) == str(action)
    assert Action.parse(f" {action} ") == action


@pytest.mark.parametrize(
    "text", ["", "F0", "2F", "2f0", "2X0", "-1F0", "2F0 3F0", "2FF0", "2F0x", "2UNSHARD", "1.0F0", "²F0"]
)
def test_parse_refuses_what_is_no_action(text: str) -> None:
    with pytest.raises(ValueError, match="text must be an action such as 2F0"):
        Action.parse(text)


def test_a_bad_cell_is_named_by_row_and_column(tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("0F0,0B0\n1F0,1Q0\n")
    with pytest.raises(ValueError, match=r"row 2 \(rank 1\), column 2: .*got '1Q0'"):
        Schedule.from_csv(tmp_path / "bad.csv")


@pytest.mark.parametrize("text", ["", "\n\n", ",,\n"])
def test_a_table_without_actions_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="holds no action"):
        Schedule.from_text(text)


def test_placement_is_read_off_the_table() -> None:
    loop = Schedule.from_text("0F0,2F0\n1F0,3F0\n")
    bent = Schedule.from_text("0F0,3F0\n1F0,2F0\n")
    assert (loop.placement, bent.placement) == ("loop", "v")
    assert [loop.stage_to_rank(s) for s in range(4)] == [0, 1, 0, 1]
    assert [bent.stage_to_rank(s) for s in range(4)] == [0, 1, 1, 0]


def test_columns_are_the_table() -> None:
    table = Schedule.from_text("0F0,,0B0\n1F0,1B0\n")
    columns = table.columns
    assert columns.rank.tolist() == [0, 0, 1, 1]
    assert columns.step.tolist() == [0, 2, 0, 1]
    assert [(r, s) for r, s, _ in table.actions()] == list(zip(columns.rank, columns.step, strict=True))
    assert table.columns is columns
    assert table.num_actions == 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_stages": 0}, "num_stages must be a whole number from 1 to 4,096; got 0"),
        ({"num_micro_batches": 0}, "num_micro_batches must be a whole number from 1 to 1,048,576; got 0"),
        ({"num_stages": 3}, "ranks must have one for each of the 3 num_stages; got 1"),
        ({"placement": "w"}, "placement must be one of loop, v; got 'w'"),
        ({"micro_batches": (MicroBatch(),)}, "micro_batches must have one for each of the 2 micro-batches; got 1"),
    ],
)
def test_impossible_tables_are_refused(fields: dict[str, object], message: str) -> None:
    good = {"name": "x", "num_stages": 1, "num_micro_batches": 2, "ranks": ((Action(0, Op.F, 0),),)}
    with pytest.raises(ValueError, match=message):
        Schedule(**{**good, **fields})  # type: ignore[arg-type]


def test_a_schedule_travels_to_ranks_and_is_a_value() -> None:
    table = Schedule.from_text("0F0,0B0\n1F0,1B0\n")
    assert table.columns.op.tolist() == [0, 1, 0, 1]
    again = cloudpickle.loads(cloudpickle.dumps(table))
    assert again == table
    assert hash(again) == hash(table)
