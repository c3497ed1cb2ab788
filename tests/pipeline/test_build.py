"""Tables by name: torch as their judge, their own promises, and the errors."""

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tplab.pipeline import SCHEDULES, Op, Schedule, add_communication, build_schedule, drop_communication
from tplab.pipeline.build import INFERENCE, TRAINING

SIZES = [(1, 1), (1, 4), (2, 1), (2, 2), (3, 4), (4, 3), (4, 8), (5, 9), (8, 16)]


@pytest.fixture(scope="module")
def torch_schedules() -> Any:
    return pytest.importorskip("torch.distributed.pipelining.schedules")


def tables(name: str, p: int, m: int) -> list[Schedule]:
    if name == "interleaved":
        return [build_schedule(name, p, p * -(-m // p), v) for v in (1, 2, 3)]
    return [build_schedule(name, p, m)]


def to_torch(schedule: Schedule, torch_schedules: Any) -> dict[int, list[Any]]:
    return {
        rank: [torch_schedules._Action.from_str(str(action)) for action in row]
        for rank, row in enumerate(schedule.ranks)
    }


def padded(rows: dict[int, list[Any]], torch_schedules: Any) -> dict[int, list[Any]]:
    """Forward-only tables with a backward for every forward, in reverse: torch's validator knows training only."""
    return {
        rank: [
            *row,
            *(
                torch_schedules._Action(a.stage_index, torch_schedules.FULL_BACKWARD, a.microbatch_index)
                for a in reversed(row)
            ),
        ]
        for rank, row in rows.items()
    }


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("p", "m"), SIZES)
def test_torch_accepts_and_dry_runs_them(name: str, p: int, m: int, torch_schedules: Any) -> None:
    for schedule in tables(name, p, m):
        stages = schedule.total_stages
        rows = to_torch(schedule, torch_schedules)
        if name in INFERENCE:
            rows = padded(rows, torch_schedules)
        homes = torch_schedules._validate_schedule(rows, p, stages, schedule.num_micro_batches)
        assert homes == {stage: schedule.stage_to_rank(stage) for stage in range(stages)}
        with_messages = torch_schedules._add_send_recv(rows, homes.__getitem__, stages)
        torch_schedules._simulate_comms_compute(with_messages, homes.__getitem__, stages)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("p", "m"), SIZES)
def test_our_messages_are_torchs(name: str, p: int, m: int, torch_schedules: Any) -> None:
    for schedule in tables(name, p, m):
        ours = add_communication(schedule)
        theirs = torch_schedules._add_send_recv(
            to_torch(schedule, torch_schedules), schedule.stage_to_rank, schedule.total_stages
        )
        back = [] if not schedule.has_back_edge else [(schedule.total_stages - 1, Op.SEND_F), (0, Op.RECV_F)]
        got = [[str(a) for a in row if (a.stage, a.op) not in back] for row in ours.ranks if row is not None]  # type: ignore[union-attr]
        assert got == [[str(a) for a in theirs[rank]] for rank in range(p)]
        torch_schedules._simulate_comms_compute(
            {rank: [torch_schedules._Action.from_str(text) for text in row] for rank, row in enumerate(got)},
            schedule.stage_to_rank,
            schedule.total_stages,
        )
        assert drop_communication(ours) == schedule


@pytest.mark.parametrize("p", [2, 3, 4, 8])
@pytest.mark.parametrize("v", [2, 3, 4])
@pytest.mark.parametrize("rounds", [1, 2, 3, 4])
def test_interleaved_is_torchs(p: int, v: int, rounds: int, torch_schedules: Any) -> None:
    """Its class wants modules and a process group; its order comes from two of its methods, which want neither."""
    m = p * rounds
    cls = torch_schedules.ScheduleInterleaved1F1B
    theirs = cls.__new__(cls)
    theirs.pp_group_size, theirs.n_local_stages, theirs._n_microbatches = p, v, m
    theirs.number_of_rounds, theirs.microbatches_per_round = rounds, p
    ours = build_schedule("interleaved", p, m, v)
    for rank in range(p):
        order = [str(a) for a in theirs._calculate_single_rank_operations(rank) if a is not None]
        assert [str(a) for a in ours.ranks[rank]] == order


@pytest.mark.parametrize("name", TRAINING)
@pytest.mark.parametrize(("p", "m"), SIZES)
def test_everything_is_computed_once(name: str, p: int, m: int) -> None:
    for schedule in tables(name, p, m):
        actions = [action for _, _, action in schedule.actions()]
        backward = (Op.I, Op.W) if name == "zb-h1" else (Op.B,)
        wanted = itertools.product(range(schedule.total_stages), (Op.F, *backward), range(schedule.num_micro_batches))
        assert sorted(actions) == sorted(tuple(action) for action in wanted)


@pytest.mark.parametrize("name", SCHEDULES)
def test_text_round_trips(name: str, tmp_path: Any) -> None:
    for schedule in tables(name, 3, 6):
        for table in (schedule, add_communication(schedule)):
            table.to_csv(tmp_path / f"{name}.csv")
            assert Schedule.from_csv(tmp_path / f"{name}.csv", micro_batches=schedule.micro_batches) == table


def test_gpipe_goes_back_in_reverse() -> None:
    assert build_schedule("gpipe", 2, 3).to_text() == "0F0,0F1,0F2,0B2,0B1,0B0\n1F0,1F1,1F2,1B2,1B1,1B0\n"


def test_zb_h1_puts_the_weights_off() -> None:
    """The last rank's W comes p - 1 micro-batches after its I, the first one's at once."""
    schedule = build_schedule("zb-h1", 3, 4)
    assert schedule.to_text().splitlines() == [
        "0F0,0F1,0F2,0I0,0W0,0F3,0I1,0W1,0I2,0W2,0I3,0W3",
        "1F0,1F1,1I0,1F2,1I1,1W0,1F3,1I2,1W1,1I3,1W2,1W3",
        "2F0,2I0,2F1,2I1,2F2,2I2,2W0,2F3,2I3,2W1,2W2,2W3",
    ]


@settings(deadline=None)
@given(p=st.integers(1, 4), m=st.integers(1, 20), k=st.integers(1, 6))
def test_a_decode_ring_feeds_every_batch_its_own_tokens(p: int, m: int, k: int) -> None:
    schedule = build_schedule("decode-ring", p, m, num_in_flight=k)
    assert schedule.has_back_edge == (m > k)
    for i, micro_batch in enumerate(schedule.micro_batches):
        assert micro_batch.phase == "decode"
        assert micro_batch.token_from == micro_batch.kv_from == (i - k if i >= k else None)
    sends = [a for _, _, a in add_communication(schedule).actions() if a.op is Op.SEND_F and a.stage == p - 1]
    assert [a.micro_batch for a in sends] == (list(range(m - k)) if p > 1 else [])


@settings(deadline=None)
@given(p=st.integers(1, 4), m=st.integers(1, 30), k=st.integers(1, 4), chunks=st.integers(1, 4))
def test_a_prompt_among_decodes(p: int, m: int, k: int, chunks: int) -> None:
    """Every sequence goes on from its micro-batch before: a prompt's next chunk, or the token just sampled."""
    described = build_schedule("prefill-decode", p, m, num_in_flight=k, num_prefill_chunks=chunks).micro_batches
    assert sum(micro_batch.phase == "prefill" for micro_batch in described) == min(chunks, m // (k + 1))
    for i, micro_batch in enumerate(described):
        before = micro_batch.kv_from
        assert before == (i - (k + 1) if i > k else None)
        if micro_batch.phase == "prefill":
            assert micro_batch.token_from is None
        else:
            assert micro_batch.token_from == before


def test_chunks_of_a_prompt_need_those_before() -> None:
    assert [micro_batch.kv_from for micro_batch in build_schedule("chunked-prefill", 2, 4).micro_batches] == [
        None,
        0,
        1,
        2,
    ]
    assert not build_schedule("chunked-prefill", 2, 4).has_back_edge


def test_adding_communication_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="has sends and receives already"):
        add_communication(add_communication(build_schedule("1f1b", 2, 2)))


def test_communication_of_a_table_that_cannot_run() -> None:
    with pytest.raises(ValueError, match=r"every rank waits \(rank 0 at 0B0, rank 1 at 1F1\)"):
        add_communication(Schedule.from_text("0F0,0B0,0F1,0B1\n1F1,1F0,1B0,1B1\n"))


def test_a_v_shape_sends_nothing_at_its_turn() -> None:
    schedule = Schedule.from_text("0F0,3F0,3B0,0B0\n1F0,2F0,2B0,1B0\n")
    assert schedule.placement == "v"
    messages = {str(a) for _, _, a in add_communication(schedule).actions() if not a.op.is_compute}
    assert messages == {"0SEND_F0", "1RECV_F0", "2SEND_F0", "3RECV_F0", "3SEND_B0", "2RECV_B0", "1SEND_B0", "0RECV_B0"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("zb-v", 4, 8), "name must be one of gpipe, 1f1b, interleaved, zb-h1, forward-only.*got 'zb-v'"),
        (("1f1b", 0, 8), "num_stages must be a whole number of at least 1; got 0"),
        (("1f1b", 4, 0), "num_micro_batches must be a whole number of at least 1; got 0"),
        (("1f1b", 4, 2.5), r"num_micro_batches must be a whole number of at least 1; got 2\.5"),
        (("1f1b", 4, 8, 2), "num_chunks must be 1 for 1f1b, got 2"),
        (("interleaved", 4, 8, 0), "num_chunks must be a whole number of at least 1; got 0"),
        (("interleaved", 4, 3, 2), "3 are fewer than 4; take num_micro_batches of at least 4, or 1f1b"),
        (("interleaved", 4, 10, 2), "10 is not a multiple of 4; take num_micro_batches of 8 or 12"),
    ],
)
def test_errors(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_schedule(*arguments)


def test_arguments_without_use_are_refused() -> None:
    with pytest.raises(ValueError, match="num_in_flight is for decode-ring and prefill-decode, not for 1f1b; got 4"):
        build_schedule("1f1b", 4, 8, num_in_flight=4)
    with pytest.raises(ValueError, match="num_prefill_chunks is for prefill-decode, not for decode-ring"):
        build_schedule("decode-ring", 4, 8, num_prefill_chunks=4)
    with pytest.raises(ValueError, match="num_in_flight must be a whole number of at least 1; got 0"):
        build_schedule("decode-ring", 4, 8, num_in_flight=0)
