"""From what the ranks say of their calls to who waits for whom. No process involved."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tplab.cluster import RankDied, RankError, RankTimeout, RunStopped, wire
from tplab.cluster.calls import NO_CALLS, Call, Calls, GroupFacts, Position
from tplab.cluster.hang import diagnose
from tplab.cluster.hang_words import describe, name_place
from tplab.cluster.last_words import find_frames, find_sizes
from tplab.cluster.verdict import Evidence, judge

pytestmark = pytest.mark.timeout(60)

SLEEPS = (("/nowhere/train.py", 20, "step", "time.sleep(600)"),)


def call(kind, number=1, state="waits", line=12, **fields):
    given = {"group": "0", "num_elements": 4096, "dtype": "float32", "peer": None, "tag": 0}
    if kind == "barrier":
        given |= {"num_elements": None, "dtype": ""}
    where = ("/nowhere/train.py", line, "step", None)
    return Call(kind=kind, number=number, state=state, where=where, **given | fields)


def said(*calls, ranks=(0, 1), groups=None):
    """What a rank says that made these calls."""
    between = [c for c in calls if c.kind in ("send", "recv")]
    counts: dict[str, int] = {}
    for c in calls:
        if c not in between:
            counts[c.group] = max(counts.get(c.group, 0), c.number)
    facts = groups or [GroupFacts(name, "", ranks, name == "0") for name in {c.group: 0 for c in calls}]
    return Calls(
        groups=tuple(facts),
        counts=tuple(counts.items()),
        exchanged=tuple((c.group, c.kind, c.peer, c.tag, c.number) for c in between),
        calls=calls,
    )


def runs(*calls, frames=SLEEPS, **others):
    return Position("running", frames, said(*calls, **others))


def sentence(*positions):
    found = diagnose(dict(enumerate(positions)))
    assert found is not None
    return found.sentence


class TestWhoIsMissing:
    def test_one_is_elsewhere(self):
        found = diagnose({0: runs(call("all_reduce", 7)), 1: runs(call("all_reduce", 6, "done"))})
        assert found.sentence == (
            "rank 0 waits in all_reduce #7 (4,096 float32, train.py:12); rank 1 never came: it is at train.py:20 "
            "(`time.sleep(600)`)"
        )
        assert (found.reason, found.missing, [*found.waiting]) == ("missing", (1,), [0])
        assert [view.state for view in found.ranks] == ["waits", "missing"]
        assert found.ranks[0].waits_for == (1,)

    @pytest.mark.parametrize(
        ("other", "words"),
        [
            (Position("returned", (), said(call("barrier", 1, "done"))), "it has returned from the function"),
            (Position("returned"), "it has returned from the function"),
            (Position("raised", fault="KeyError"), "it raised KeyError"),
            (Position("ended"), "it has ended"),
            (Position("silent"), "rank 1 did not even say where"),
            (Position("lost"), "rank 1 is on a host that nothing is heard of"),
        ],
    )
    def test_what_became_of_it(self, other, words):
        assert words in sentence(runs(call("all_reduce", 2)), other)

    def test_hosts_are_named(self):
        found = diagnose({0: runs(call("barrier", 1)), 1: Position("returned")}, ["alpha", "beta"])
        assert found.sentence.startswith(
            "rank 0 (host alpha) waits in barrier #1 (train.py:12); rank 1 (host beta) nev"
        )

    def test_nobody_waits(self):
        assert diagnose({0: Position("running", SLEEPS), 1: Position("running", SLEEPS)}) is None
        assert diagnose({0: runs(call("all_reduce", 1, "done")), 1: Position("silent")}) is None, "it has come to that"
        assert diagnose({0: runs(call("all_reduce", 1, "done")), 1: runs(call("all_reduce", 1, "done"))}) is None

    def test_several_wait_for_several(self):
        ranks = tuple(range(4))
        waits = runs(call("barrier", 1), ranks=ranks)
        words = sentence(waits, Position("returned"), waits, runs(frames=SLEEPS))
        assert words.startswith("ranks 0, 2 wait in barrier #1 (train.py:12); rank 1 never came: it has returned")
        assert "; rank 3 never came: it is at train.py:20" in words

    def test_those_who_do_the_same_are_named_together(self):
        waits, lost = runs(call("barrier", 1), ranks=tuple(range(5))), Position("lost")
        words = sentence(waits, Position("returned"), lost, Position("returned"), lost)
        assert "; ranks 1, 3 never came: each has returned from the function; ranks 2, 4: each is on a host" in words

    def test_the_one_at_the_end_of_a_chain_is_named(self):
        """Rank 2 waits for rank 1, which waits for rank 0, which sleeps."""
        recv = call("recv", peer=1, num_elements=8)
        chain = runs(recv, ranks=(0, 1, 2)), runs(call("recv", peer=0), ranks=(0, 1, 2))
        found = diagnose({0: Position("running", SLEEPS), 1: chain[1], 2: chain[0]})
        assert found.sentence.startswith(
            "rank 1 waits in recv #1 from rank 0 (4,096 float32, train.py:12); rank 0 has "
        )
        assert found.missing == (0,)
        assert [view.waits_for for view in found.ranks] == [(), (0,), (1,)]

    def test_of_a_broadcast_the_root_is_waited_for(self):
        waits = runs(call("broadcast", peer=2), ranks=(0, 1, 2))
        assert diagnose({0: waits, 1: Position("returned"), 2: Position("returned")}).missing == (2,)
        assert diagnose({0: waits, 1: Position("returned"), 2: waits}).missing == (1,)

    def test_send_that_nobody_receives(self):
        words = sentence(runs(call("send", peer=1, num_elements=4)), Position("returned"))
        assert words.startswith("rank 0 waits in send #1 to rank 1 (4 float32, train.py:12); rank 1 has no recv for it")

    def test_recv_with_another_tag_does_not_count(self):
        send, recv = call("send", peer=1, tag=3), call("recv", peer=0, tag=4)
        assert diagnose({0: runs(send), 1: runs(recv)}).reason == "circle"
        assert "with tag 3" in sentence(runs(send), runs(recv))

    def test_on_a_gpu_no_call_waits(self):
        """The rank that is ahead has called what the other has not."""
        ahead = runs(call("all_reduce", 1, "done"), call("all_reduce", 2, "done"), call("all_reduce", 3, "done"))
        behind = runs(call("all_reduce", 1, "done"))
        assert sentence(ahead, behind).startswith("rank 0 waits in all_reduce #2 ")

    def test_everybody_came(self):
        found = diagnose({0: runs(call("all_reduce")), 1: runs(call("all_reduce"))})
        assert found.reason == "slow"
        assert found.sentence.startswith("ranks 0, 1 wait in all_reduce #1 ")

    def test_one_came_and_left(self):
        came = Position("raised", (), said(call("all_reduce", state="called")), "RuntimeError")
        assert "rank 1 came there, but it raised RuntimeError" in sentence(runs(call("all_reduce")), came)


class TestWhatDoesNotFit:
    def test_kinds(self):
        found = diagnose({0: runs(call("all_reduce", 3)), 1: runs(call("broadcast", 3, line=14, peer=0))})
        assert found.sentence.startswith(
            "rank 0 is in all_reduce #3 (train.py:12) and rank 1 is in broadcast #3 (train.py:14): "
        )
        assert found.reason == "mismatch"

    def test_the_first_that_differs_is_named(self):
        """What comes after it differs only because of it."""
        mine = call("all_reduce", 1, "done"), call("barrier", 2)
        theirs = call("barrier", 1, "done"), call("all_reduce", 2)
        assert "all_reduce #1" in sentence(runs(*mine), runs(*theirs))

    def test_sizes(self):
        words = sentence(runs(call("all_reduce", num_elements=1024)), runs(call("all_reduce", num_elements=1000)))
        assert words == (
            "in all_reduce #1 rank 1 gives 1,000 elements (train.py:12) where rank 0 gives 1,024 elements (train.py:12)"
        )

    def test_the_odd_one_out_of_many(self):
        right, wrong = (runs(call("all_reduce", num_elements=n), ranks=(0, 1, 2, 3)) for n in (8, 9))
        assert "rank 2 gives 9 elements (train.py:12) where ranks 0, 1, 3 give 8" in sentence(
            right, right, wrong, right
        )

    def test_dtypes_and_roots(self):
        half = runs(call("all_reduce", dtype="float16"))
        assert "rank 1 gives float16" in sentence(runs(call("all_reduce")), half)
        words = sentence(runs(call("broadcast", peer=1)), runs(call("broadcast", peer=0)))
        assert words.startswith("rank 0 names rank 1 as the root of broadcast #1 (train.py:12) and rank 1 names rank 0")

    def test_send_and_recv(self):
        words = sentence(runs(call("send", peer=1, num_elements=16)), runs(call("recv", peer=0, num_elements=8)))
        assert words.startswith("rank 0 sends 16 float32 to rank 1 (train.py:12) where rank 1 receives 8 float32")

    @pytest.mark.parametrize("kind", ["all_to_all", "all_gather"])
    def test_what_may_differ(self, kind):
        """An all-to-all's pieces; and what has gone through is no reason."""
        state = "waits" if kind == "all_to_all" else "done"
        found = diagnose({r: runs(call(kind, 1, state, num_elements=4 + r)) for r in (0, 1)})
        assert found is None or found.reason == "slow"

    def test_on_a_gpu_done_is_not_through(self):
        """With NCCL a call that is done was handed to the GPU."""
        groups = [GroupFacts("0", "", (0, 1), True, returns_early=True)]
        calls = [call("all_reduce", 1, "done", num_elements=n) for n in (8, 9)]
        words = sentence(*(runs(each, call("barrier", 2), groups=groups) for each in calls))
        assert words.startswith("in all_reduce #1 rank 1 gives 9 elements")
        uneven = [call("all_gather", 1, "done", num_elements=n) for n in (8, 9)]
        assert diagnose({r: runs(each, groups=groups) for r, each in enumerate(uneven)}) is None

    def test_a_silent_rank_has_come_to_what_the_others_are_through_with(self):
        groups = [GroupFacts("0", "", (0, 1), True, returns_early=True)]
        calls = call("barrier", 1, "done"), call("all_reduce", 2, "done"), call("all_reduce", 3, "done")
        words = sentence(runs(*calls, groups=groups), Position("silent"))
        assert words.startswith("rank 0 waits in all_reduce #2 ")

    def test_order_on_two_groups(self):
        groups = [GroupFacts("1", "tp", (0, 1), False), GroupFacts("2", "", (0, 1), False)]
        found = diagnose(
            {
                0: runs(call("all_reduce", group="1"), groups=groups),
                1: runs(call("all_reduce", group="2"), groups=groups),
            }
        )
        assert found.reason == "circle"
        assert found.sentence == (
            "rank 0 waits in all_reduce #1 of group tp (4,096 float32, train.py:12) for rank 1, and rank 1 waits in "
            "all_reduce #1 of the second group of ranks 0, 1 (4,096 float32, train.py:12) for rank 0: "
            "they wait for each other"
        )

    def test_a_rank_that_gloo_ended(self):
        ended = Position("ended", SLEEPS, sizes=(1024, 1000))
        raised = Position("raised", (), said(call("all_reduce", state="called")), "RuntimeError")
        words = sentence(raised, ended)
        assert words.startswith("rank 1 was sent 1,024 bytes where it expected 1,000 (train.py:20), and rank 0 gives ")


CALLS = st.lists(
    st.builds(
        call,
        st.sampled_from(["all_reduce", "broadcast", "barrier", "send", "recv"]),
        st.integers(1, 3),
        st.sampled_from(["called", "waits", "done"]),
        peer=st.sampled_from([0, 1, 2, None]),
        group=st.sampled_from(["0", "1"]),
        num_elements=st.integers(0, 2),
    ),
    max_size=4,
)
POSITIONS = st.builds(
    lambda status, calls: Position(status, SLEEPS * (status == "running"), said(*calls, ranks=(0, 1, 2))),
    st.sampled_from(["running", "returned", "raised", "ended", "silent"]),
    CALLS,
)


@given(st.lists(POSITIONS, min_size=1, max_size=3))
def test_anything_can_be_judged(positions):
    found = diagnose(dict(enumerate(positions)))
    if found is not None:
        assert found.sentence
        assert len(found.ranks) == len(positions)
        assert str(found).count("\n") == len(positions)


class TestWords:
    def test_waiting_for_the_gpu(self):
        """After the function: no line of the user's is on the stack."""
        frames = (("/x/site-packages/torch/cuda/__init__.py", 9, "synchronize", "return torch._C._cuda_synchronize()"),)
        found = diagnose({0: runs(call("all_reduce", 1, "done"), frames=frames), 1: Position("running", frames)})
        assert found.ranks[1].doing == "waits for the GPU"

    def test_calls(self):
        assert describe(call("all_reduce", 3)) == "all_reduce #3"
        assert describe(call("recv", 2, peer=None)) == "recv #2 from any rank"

    def test_places(self):
        assert name_place(("/a/b/train.py", 12, "f", None)) == "train.py:12"
        assert name_place(("/tmp/ipykernel_7/1234.py", 3, "f", None)) == "a cell, line 3"

    def test_last_words(self):
        lines = [
            "  what():  [enforce fail at pair.cc:456] op.preamble.length <= op.nbytes. 1024 vs 1000. Received data",
            "Thread 0x00007f1 (most recent call first):",
            '  File "/lib/threading.py", line 327 in wait',
            "Current thread 0x00007f2 (most recent call first):",
            '  File "/nowhere/torch.py", line 3252 in all_reduce',
            '  File "/nowhere/train.py", line 14 in step',
            '  File "/nowhere/worker.py", line 156 in _execute',
        ]
        assert find_sizes(lines) == (1024, 1000)
        assert find_sizes(lines[1:]) is None
        assert [frame[:2] for frame in find_frames(lines, "_execute")] == [
            ("/nowhere/train.py", 14),
            ("/nowhere/torch.py", 3252),
        ]
        assert find_frames(lines, "elsewhere") == ()


class TestOnTheException:
    """The sentence is in front of the stacks, and the whole is on the exception."""

    WAITS = said(call("all_reduce", 7))

    def evidence(self, **fields):
        return Evidence(
            "work", 2, 3.0, **{"stacks": {0: SLEEPS, 1: SLEEPS}, "calls": {0: self.WAITS, 1: NO_CALLS}} | fields
        )

    @pytest.mark.parametrize(("cause", "kind"), [("timeout", RankTimeout), ("stop", RunStopped)])
    def test_timeout_and_stop(self, cause, kind):
        error = judge(self.evidence(cause=cause))
        assert type(error) is kind
        assert error.hang.missing == (1,)
        assert error.hang.sentence in str(error).splitlines()[0]

    @pytest.mark.parametrize(
        ("other", "helps"),
        [
            ({}, True),  # it is elsewhere, and may come
            ({"answers": {1: wire.Answer(1, None, None, 0.1, {})}, "stacks": {0: SLEEPS}}, False),
            ({"calls": {0: WAITS, 1: said(call("barrier", 7))}}, False),
            ({"calls": {0: WAITS, 1: WAITS}}, True),  # all are there: it takes long
        ],
    )
    def test_more_time_is_advised_where_it_may_help(self, other, helps):
        assert ("If the work is just long" in str(judge(self.evidence(cause="timeout", **other)))) == helps

    def test_silent_rank_is_spoken_of_once(self):
        error = judge(self.evidence(cause="timeout", stacks={0: SLEEPS}))
        assert str(error).count("did not even say where") == 1

    def test_a_fault_comes_first(self):
        fault = wire.RankFault("ValueError", "ValueError: wrong", SLEEPS, None)
        answer = wire.Answer(1, None, fault, 0.1, {}, calls=said(call("barrier", 1, "done")))
        error = judge(self.evidence(cause="fault", answers={1: answer}, stacks={0: SLEEPS}))
        assert type(error) is RankError
        text = str(error)
        assert text.index("ValueError: wrong") < text.index("Rank 0 waits in all_reduce #7") < text.index("Meanwhile")

    def test_but_what_does_not_fit_explains_it(self):
        fault = wire.RankFault("RuntimeError", "RuntimeError: reset by peer", SLEEPS, None)
        answer = wire.Answer(1, None, fault, 0.1, {}, calls=said(call("broadcast", 7, "called", peer=0)))
        error = judge(self.evidence(cause="fault", answers={1: answer}, stacks={0: SLEEPS}))
        assert "rank 0 is in all_reduce #7" in str(error).splitlines()[0]

    def test_size_that_gloo_ended_a_rank_for(self):
        fault = wire.RankFault("RuntimeError", "RuntimeError: reset by peer", SLEEPS, None)
        answer = wire.Answer(1, None, fault, 0.1, {}, calls=replace(self.WAITS))
        output = ["[rank 1] op.preamble.length <= op.nbytes. 1024 vs 1000."]
        error = judge(self.evidence(cause="fault", answers={0: answer}, deaths={1: -6}), output)
        assert type(error) is RankDied
        assert "rank 1 was sent 1,024 bytes where it expected 1,000" in str(error).splitlines()[0]

    def test_none_while_starting(self):
        assert judge(Evidence("", 2, 3.0, cause="timeout")).hang is None
