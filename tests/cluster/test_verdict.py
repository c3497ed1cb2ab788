"""From what the ranks said to the one exception. No process involved."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tplab.cluster import ClusterError, RankDied, RankError, RankTimeout, RunStopped, wire
from tplab.cluster.naming import several
from tplab.cluster.verdict import Evidence, judge

pytestmark = pytest.mark.timeout(60)

FRAMES = (("/nowhere/cell.py", 3, "work", "x = 1 / 0"),)


def fault(text="ValueError: wrong", error=None):
    return wire.RankFault(
        type_name=text.split(":")[0],
        text=text,
        frames=FRAMES,
        pickled=None if error is None else wire.pack_value(error),
    )


def answer(fault=None, sequences=None, **fields):
    value = None if fault else b""
    return wire.Answer(run_id=1, value=value, fault=fault, seconds=0.1, sequences=sequences or {"0": 1}, **fields)


def evidence(world_size=2, **fields):
    return Evidence("work", world_size, 60.0, **fields)


class TestState:
    def test_nothing_yet(self):
        assert evidence().missing == [0, 1]
        assert not evidence().complete
        assert not evidence().succeeded
        assert not evidence().in_step

    def test_all_answered(self):
        all_in = evidence(answers={1: answer(), 0: answer()})
        assert all_in.complete
        assert all_in.succeeded
        assert all_in.in_step

    def test_one_died(self):
        died = evidence(answers={0: answer()}, deaths={1: -9})
        assert died.complete
        assert not died.succeeded
        assert not died.in_step

    def test_one_raised(self):
        raised = evidence(answers={0: answer(), 1: answer(fault())})
        assert raised.complete
        assert not raised.succeeded
        assert raised.in_step

    def test_out_of_step(self):
        assert not evidence(answers={0: answer(sequences={"0": 4}), 1: answer(fault(), sequences={"0": 5})}).in_step

    def test_groups_of_their_own(self):
        """Each group is counted for itself, among its own members."""
        apart = {0: answer(sequences={"0": 4, "tp0": 7}), 1: answer(sequences={"0": 4, "tp1": 9})}
        assert evidence(answers=apart).in_step
        together = {0: answer(sequences={"0": 4, "tp": 7}), 1: answer(sequences={"0": 4, "tp": 9})}
        assert not evidence(answers=together).in_step

    def test_device_that_no_longer_works(self):
        assert not evidence(answers={0: answer(fault()), 1: answer(fault(), fit=False)}).in_step


class TestJudge:
    def test_raised(self):
        error = judge(evidence(cause="fault", answers={1: answer(fault(error=ValueError("wrong")))}))
        assert type(error) is RankError
        assert error.rank == 1
        assert isinstance(error.__cause__, ValueError)
        for text in ("rank 1 of 2", "work", "x = 1 / 0", "ValueError: wrong"):
            assert text in str(error)
        assert error.traceback.endswith("ValueError: wrong")

    def test_the_first_to_raise_is_named_the_others_are_mentioned(self):
        answers = {2: answer(fault("KeyError: 'two'")), 0: answer(fault("ValueError: zero")), 1: answer()}
        error = judge(evidence(3, cause="fault", answers=answers))
        assert error.rank == 2
        assert "KeyError: 'two'" in error.traceback
        assert "zero" not in error.traceback
        assert "ValueError: zero" in str(error)

    @pytest.mark.parametrize(
        ("text", "line"),
        [
            ("torch.OutOfMemoryError: no room\nTried to allocate\na note", "torch.OutOfMemoryError: no room"),
            ("SyntaxError: ", "SyntaxError:"),
            ('  File "x.py", line 1\n    a b\nSyntaxError: invalid syntax\na note', "SyntaxError: invalid syntax"),
            ("no exception's words\nthe last of them", "the last of them"),
        ],
    )
    def test_another_rank_is_mentioned_by_the_line_that_has_its_exception(self, text, line):
        type_name = line.partition(":")[0].rpartition(".")[2]
        other = wire.RankFault(type_name=type_name, text=text, frames=(), pickled=None)
        error = judge(evidence(answers={0: answer(fault()), 1: answer(other)}))
        assert f"Rank 1 failed too: {line}" in str(error).splitlines()

    def test_a_death_explains_the_errors_it_caused(self):
        """When a rank dies, the others' collectives fail, and they answer first."""
        answers = {0: answer(fault("RuntimeError: Connection closed by peer"))}
        error = judge(evidence(cause="fault", answers=answers, deaths={1: -11}))
        assert type(error) is RankDied
        assert (error.rank, error.exit_code) == (1, -11)
        assert "SIGSEGV" in str(error)

    @pytest.mark.parametrize(("exit_code", "words"), [(0, "code 0"), (3, "code 3"), (-15, "SIGTERM"), (None, "ended")])
    def test_exit_codes(self, exit_code, words):
        error = judge(evidence(cause="fault", deaths={0: exit_code}))
        assert error.exit_code == exit_code
        assert words in str(error)

    def test_output_of_the_dead_rank_only(self):
        lines = ["[rank 0] mine", "[rank 1] not mine", "[rank 10] nor mine", "[rank 0] last"]
        error = judge(evidence(11, cause="fault", deaths={0: 1}), lines)
        assert error.output == ("mine", "last")
        assert "mine\nlast" in str(error)
        assert "not mine" not in str(error)

    def test_timed_out(self):
        error = judge(evidence(3, cause="timeout", answers={1: answer()}, stacks={0: FRAMES}))
        assert type(error) is RankTimeout
        assert isinstance(error, TimeoutError)
        assert error.ranks == (0, 2)
        assert error.rank == 2, "the one that could not even say where it is"
        assert "Rank 2 did not even say where" in str(error)
        assert list(error.stacks) == [0]
        assert "x = 1 / 0" in error.stacks[0]
        for text in ("ranks 0, 2 of 3", "60 s", "work", "x = 1 / 0"):
            assert text in str(error)

    def test_timed_out_with_an_error_that_explains_it(self):
        """The limit passed while others waited for a rank that had raised: still the rank that raised, or the wait,
        but one of the two."""
        answers = {1: answer(fault())}
        error = judge(evidence(cause="timeout", answers=answers))
        assert isinstance(error, RankTimeout | RankError)
        assert "ValueError: wrong" in str(error)

    def test_all_answered_just_after_the_limit(self):
        error = judge(evidence(cause="timeout", answers={0: answer(fault()), 1: answer(fault())}))
        assert type(error) is RankError

    def test_stopped(self):
        error = judge(evidence(cause="stop", answers={0: answer(fault("KeyboardInterrupt: "))}))
        assert type(error) is RunStopped
        assert "work" in str(error)

    def test_start(self):
        timeout = judge(Evidence("", 2, 0.5, cause="timeout"))
        assert type(timeout) is RankTimeout
        assert timeout.ranks == (0, 1)
        assert "0.5 s" in str(timeout)
        assert "start" in str(timeout)
        raised = judge(Evidence("", 2, 0.5, cause="fault", start_faults={1: fault("ImportError: no torch")}))
        assert type(raised) is RankError
        assert raised.rank == 1
        assert "ImportError: no torch" in str(raised)
        assert "start" in str(raised)

    def test_says_what_becomes_of_the_ranks(self):
        replaced = judge(evidence(cause="fault", answers={0: answer(fault())}))
        stay = judge(evidence(cause="fault", answers={0: answer(fault()), 1: answer(fault())}))
        assert "rank.store" in str(replaced)
        assert "rank.store" not in str(stay)

    @given(
        st.integers(1, 6).flatmap(
            lambda n: st.tuples(
                st.just(n),
                st.permutations(range(n)),
                st.lists(st.sampled_from(["well", "raised", "died", "silent"]), min_size=n, max_size=n),
                st.booleans(),
            )
        )
    )
    def test_blames_a_rank_that_deserves_it(self, case):
        """Whatever happened in whatever order: a dead rank before all others, then one that is silent or raised; and
        the message names it."""
        n, order, fates, timed_out = case
        seen = evidence(n, cause="timeout" if timed_out else "fault")
        for rank in order:
            if fates[rank] == "well":
                seen.answers[rank] = answer()
            elif fates[rank] == "raised":
                seen.answers[rank] = answer(fault(f"ValueError: from {rank}"))
            elif fates[rank] == "died":
                seen.deaths[rank] = -9
        if set(fates) <= {"well", "silent"} and not (timed_out and "silent" in fates):
            return  # nothing to judge
        error = judge(seen)
        assert isinstance(error, ClusterError)
        expected = "died" if "died" in fates else "silent" if timed_out and "silent" in fates else "raised"
        assert type(error) is {"died": RankDied, "silent": RankTimeout, "raised": RankError}[expected]
        assert error.rank == next(r for r in (sorted(order) if expected == "silent" else order) if fates[r] == expected)
        assert f"{error.rank}" in str(error).splitlines()[0]
        if expected != "silent":
            assert f"rank {error.rank} of {n}" in str(error)


@pytest.mark.parametrize(
    ("indices", "hosts", "words"),
    [
        ([0], (), "rank 0"),
        ([2, 3], (), "ranks 2, 3"),
        ([*range(8)], (), "ranks 0, 1, 2, 3, 4, 5, 6, 7"),
        ([*range(62), 63], (), "ranks 0 to 61, 63"),
        ([1], ("alpha", "beta"), "rank 1 (host beta)"),
        ([*range(16)], ("alpha",) * 8 + ("beta",) * 8, "ranks 0 to 7 (host alpha), 8 to 15 (host beta)"),
    ],
)
def test_ranks(indices, hosts, words):
    assert several(indices, hosts) == words
