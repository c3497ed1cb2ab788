"""Tables as others write them: all schedules of torch in both forms, spreadsheets, and what is no such table."""

from collections.abc import Callable
from typing import Any
from unittest.mock import MagicMock

import pytest

from tplab.pipeline import Action, Schedule, ScheduleError, simulate, validate

NAMES = {
    "ScheduleGPipe": 1,
    "Schedule1F1B": 1,
    "ScheduleLoopedBFS": 2,
    "ScheduleInterleaved1F1B": 3,
    "ScheduleInterleavedZeroBubble": 2,
    "ScheduleZBVZeroBubble": 2,
    "ScheduleDualPipeV": 2,
}
V_SHAPED = ("ScheduleZBVZeroBubble", "ScheduleDualPipeV")
WRONG = ("ScheduleGPipe", "Schedule1F1B")  # torch's own validator refuses these two


def torch_order(schedules: Any, name: str, p: int, m: int) -> dict[int, list[Any]]:
    """The actions of each rank by torch's own class, whose stages are stand-ins."""
    v = NAMES[name]
    held = [0, 2 * p - 1] if name in V_SHAPED else [chunk * p for chunk in range(v)]
    stages = [MagicMock(stage_index=i, num_stages=p * v, group_size=p, group_rank=0, submod=None) for i in held]
    made = getattr(schedules, name)(stages if v > 1 else stages[0], n_microbatches=m, loss_fn=lambda *_: None)
    order: dict[int, list[Any]] = made.pipeline_order if v > 1 else made._get_pipeline_order()
    return order


def lowered(schedules: Any, order: dict[int, list[Any]], p: int, v: int, m: int) -> dict[int, list[Any]]:
    """With the words that torch's runtime adds: parameters gathered and freed, gradients reduced, sends, receives."""
    home = {
        each.stage_index: rank
        for rank, row in order.items()
        for action in row
        if action is not None
        for each in action.sub_actions or (action,)
    }
    rows = {rank: schedules._add_unshard_reshard(row) for rank, row in order.items()}
    if hasattr(schedules, "_add_reduce_grad"):
        rows = {rank: schedules._add_reduce_grad(row, m) for rank, row in rows.items()}
    result: dict[int, list[Any]] = schedules._add_send_recv(rows, home.__getitem__, p * v)
    return result


def as_text(order: dict[int, list[Any]]) -> str:
    return "\n".join(
        ",".join("" if action is None else str(action) for action in order[rank]) for rank in sorted(order)
    )


def ours(order: dict[int, list[Any]]) -> list[list[str]]:
    """What remains of torch's rows: computations and messages, pairs one after the other."""
    words = ("UNSHARD", "RESHARD", "REDUCE_GRAD")
    flat = [[each for a in order[rank] if a is not None for each in a.sub_actions or (a,)] for rank in sorted(order)]
    return [[str(each) for each in row if not each.computation_type.value.startswith(words)] for row in flat]


@pytest.mark.parametrize("name", NAMES)
def test_every_schedule_of_torch_is_read_in_both_forms(name: str) -> None:
    schedules = pytest.importorskip("torch.distributed.pipelining.schedules")
    v = NAMES[name]
    for p, m in ((2, 4), (3, 6), (4, 8)):
        order = torch_order(schedules, name, p, m)
        forms = [order] if name in WRONG else [order, lowered(schedules, order, p, v, m)]
        for form in forms:
            table = Schedule.from_text(as_text(form))
            assert [[str(action) for action in row if action is not None] for row in table.ranks] == ours(form)
            assert (table.num_stages, table.num_chunks) == (p, v)
            assert table.placement == ("v" if name in V_SHAPED else "loop")
            if name not in WRONG:  # 1F1B's last rank begins with micro-batch 1
                assert table.num_micro_batches == m
                validate(table, blocking_sends=False)  # as torch sends
                assert simulate(table).makespan_s > 0
            assert any("UNSHARD" in note for note in table.notes) == (form is not order)
            assert any("OVERLAP_F_B" in note for note in table.notes) == (name == "ScheduleDualPipeV")


PLAIN = "0F0,0F1,0B0,0B1\n1F0,1B0,1F1,1B1\n"
PAIRED = "0F0,0F1,3F0,3B0,(3F1;0B0)OVERLAP_F_B,3B1,0B1\n1F0,2F0,1F1,2F1,2B0,1B0,2B1,1B1\n"


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda text: text.replace("\n", "\r\n") + "\r\n\r\n",
        lambda text: text.replace("\n", "\r\r\n"),  # csv on Windows without newline=""
        lambda text: "\n  \n" + text,
        lambda text: text.replace(",", "\t"),
        lambda text: "\ufeff" + text.replace(",", ", "),
        lambda text: text.replace(",", ";"),
        lambda text: "sep=;\n" + text.replace(",", ";"),
        lambda text: "\n".join(";".join(f'"{cell}"' for cell in row.split(",")) for row in text.splitlines()),
        lambda text: text.replace("\n", ",,\n") + ",,,,,\n,,,,,\n",  # padded by a spreadsheet
        lambda text: "None," + text,
    ],
)
@pytest.mark.parametrize("text", [PLAIN, PAIRED])
def test_tables_of_spreadsheets(text: str, rewrite: Callable[[str], str]) -> None:
    read, plain = Schedule.from_text(rewrite(text)), Schedule.from_text(text)
    assert [[each for each in row if each] for row in read.ranks] == [[*row] for row in plain.ranks]
    assert read.placement == plain.placement


def test_a_pair_is_two_actions() -> None:
    assert Schedule.from_text(PAIRED).ranks[0][4:6] == (Action.parse("3F1"), Action.parse("0B0"))
    for cell in ("(3F1)OVERLAP_F_B", "(3F1;0SEND_F0)OVERLAP_F_B", "(3F1;0B0;0F1)OVERLAP_F_B"):
        with pytest.raises(ValueError, match=r"row 1 .*, column 2: OVERLAP_F_B holds two computations"):
            Schedule.from_text(f"0F0,{cell}")
    with pytest.raises(ValueError, match=r"row 1 .*, column 1: text must be an action .*'3Q1'"):
        Schedule.from_text("(3Q1;0B0)OVERLAP_F_B")


def test_a_rank_without_actions_is_written() -> None:
    assert len(Schedule.from_text('0F0\n""\n').ranks) == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("step 0,step 1\n" + PLAIN, "column 1: .*No cell of row 1 is an action: leave a header out"),
        ("Rank 0,0F0,0B0\nRank 1,1F0,1B0\n", "column 1: .*No cell of column 1 is an action: leave an index out"),
        ("0F0 0B0\n1F0 1B0\n", r"row 1 \(rank 0\), column 1: .*got '0F0 0B0'\. Separate the actions by commas$"),
        ("|0F0|0B0|\n|1F0|1B0|\n", r"got '\|0F0\|0B0\|'\. Separate the actions by commas$"),
        ("0f0,0b0\n1f0,1b0\n", r"got '0f0'\. It is written 0F0$"),
        ("0F0,0 B 0\n1F0,1B0\n", r"column 2: .*got '0 B 0'\. It is written 0B0$"),
        (
            "         Rank 0  Rank 1\nStep 00: 0F0\nStep 01: 0F1     1F0\n",
            "got 'Rank 0  Rank 1'.* as torch prints it: give",
        ),
        ("0G0,0G1\n1G0,1G1\n", r"got '0G0'$"),
        ("0F0,0G0\n1F0,1B0\n", r"row 1 \(rank 0\), column 2: text must be an action"),
        ("0F0,0B0\n1F99999999,1B0\n", r"row 2 \(rank 1\), column 1: 1F99999999 makes it a table of"),
    ],
)
def test_what_is_no_cell_is_named(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Schedule.from_text(text)


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        (PLAIN.replace("1B1", "1B111"), "mistyped", "1B111: of 112 micro-batch ids up to its own, 3 occur"),
        (PLAIN.replace("1F1", "21F1"), "mistyped", "21F1: of 22 stage ids up to its own, 3 occur"),
        (
            "1F0,1B0\n2F0,2B0\n",
            "counted from 1",
            "1F0 is of the lowest stage, and there is no stage 0: do ids start at 1",
        ),
        ("0F1,0B1\n1F1,1B1\n", "counted from 1", "0F1 is of the lowest micro-batch, and there is no micro-batch 0"),
        ("0F0,\n0F1,1F0\n0B0,1B0\n0B1,1F1\n,1B1\n", "transposed", "stage 0 stands in one column and several rows"),
        ("0F0,1F0,1B0,0B0\n2F0,2B0\n", "placement", "rank 0 has 0, 1; rank 1 has 2. All ranks must have equally many"),
        ("1F0,1B0\n0F0,0B0\n", "placement", "rank 0 has 1; rank 1 has 0"),
        ("0F0,1F0,1B0,0B0\n2F0,3F0,3B0,2B0\n", "placement", "rank 0 has 0, 1; rank 1 has 2, 3"),  # by halves
    ],
)
def test_one_thing_that_explains_all_faults_stands_alone(text: str, kind: str, said: str) -> None:
    for check in (validate, simulate):
        with pytest.raises(ScheduleError, match=said) as caught:
            check(Schedule.from_text(text))
        assert [fault.kind for fault in caught.value.faults] == [kind]


@pytest.mark.parametrize("text", [PLAIN.replace(",1B1", ""), PLAIN.replace("0F1", "1F1"), "0F0,0B0\n1F0,1F1,1B0,1B1\n"])
def test_other_faults_are_not_explained_away(text: str) -> None:
    with pytest.raises(ScheduleError) as caught:
        validate(Schedule.from_text(text))
    assert not {"mistyped", "transposed", "placement"} & {fault.kind for fault in caught.value.faults}
