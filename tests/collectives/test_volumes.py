"""Byte counts: the claims' numbers, exact counts against simulated runs, bounds, bad input."""

import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tplab.collectives.volumes import (
    ALGORITHMS,
    COLLECTIVES,
    chunk_lengths,
    lower_bound_bytes,
    payload_bytes,
    pp_forward_bytes,
    ring_sent_bytes,
    sent_bytes,
    tp_forward_bytes,
    tp_over_pp,
)

KiB, MiB, GiB = 2**10, 2**20, 2**30
EVERY = [(collective, algorithm) for collective in COLLECTIVES for algorithm in ALGORITHMS[collective]]
num_ranks = st.integers(1, 33)

Sends = list[tuple[int, int, float]]
"""Sender, receiver, bytes."""


# What the article claims


def test_c5_payload_of_a_layer_is_not_its_traffic() -> None:
    payload = tp_forward_bytes(batch=1, seq=2048, hidden=8192, num_layers=1)
    assert payload == 64 * MiB
    assert sent_bytes("all-reduce", "ring", payload, 8).sent_max == 112 * MiB


def test_c6_eighty_layers() -> None:
    payload = tp_forward_bytes(1, 2048, 8192, num_layers=80)
    assert payload == 5 * GiB
    assert payload / 1e9 == pytest.approx(5.37, abs=0.005)
    assert sent_bytes("all-reduce", "ring", payload, 8).sent_mean / 1e9 == pytest.approx(9.4, abs=0.01)
    assert tp_forward_bytes(1, 1, 8192, num_layers=80) == 2.5 * MiB


def test_c4_sequence_parallelism_moves_the_same_in_a_ring_and_more_with_gloo() -> None:
    size = 1000 * KiB
    all_gather = sent_bytes("all-gather", "ring", size, 4).sent_max
    all_reduce = sent_bytes("all-reduce", "ring", size, 4).sent_max
    assert sent_bytes("reduce-scatter", "ring", size, 4).sent_max + all_gather == all_reduce
    assert sent_bytes("reduce-scatter", "ring", size, 4).sent_max == 0.75 * size
    assert sent_bytes("reduce-scatter", "gloo", size, 4).sent_max == 1.5 * size
    assert tp_forward_bytes(1, 1, 8, 3, all_reduces_per_layer=1) * 2 == tp_forward_bytes(1, 1, 8, 3)


def test_c7_four_stages_have_three_boundaries() -> None:
    assert pp_forward_bytes(1, 2048, 8192, num_stages=4) == 96 * MiB
    assert pp_forward_bytes(1, 2048, 8192, num_stages=4, tensors_per_boundary=2) == 192 * MiB
    assert pp_forward_bytes(1, 2048, 8192, num_stages=1) == 0


def test_c20_ratio_depends_on_layers_and_stages_alone() -> None:
    assert tp_over_pp(80, 4) == pytest.approx(53.33, abs=0.01)
    assert tp_over_pp(64, 4) == pytest.approx(42.67, abs=0.01)
    for batch, seq, hidden in [(1, 2048, 8192), (7, 3, 5)]:
        ratio = tp_forward_bytes(batch, seq, hidden, 80) / pp_forward_bytes(batch, seq, hidden, 4)
        assert ratio == pytest.approx(tp_over_pp(80, 4))


# The lab's ring, element by element


def simulated_ring(num_elements: int, n: int) -> list[int]:
    """Run it over lists, check the sums, and count the elements each rank sends."""
    lengths = chunk_lengths(num_elements, n)
    chunks = [[[float(r + 1)] * length for length in lengths] for r in range(n)]
    sent = [0] * n
    for phase, ahead in (("reduce", 0), ("gather", 1)):
        for step in range(n - 1):
            messages = [((r + 1) % n, (r + ahead - step) % n) for r in range(n)]
            bodies = [list(chunks[r][index]) for r, (_, index) in enumerate(messages)]
            for r, ((to, index), body) in enumerate(zip(messages, bodies, strict=True)):
                sent[r] += len(body)
                mine = chunks[to][index]
                chunks[to][index] = body if phase == "gather" else [a + b for a, b in zip(mine, body, strict=True)]
    want = [[float(n * (n + 1) // 2)] * length for length in lengths]
    assert all(chunks[r] == want for r in range(n))
    return sent


@settings(deadline=None)
@given(num_elements=st.integers(0, 70), n=st.integers(1, 9), itemsize=st.sampled_from([1, 2, 4, 8]))
def test_ring_counts_agree_with_a_ring_that_runs(num_elements: int, n: int, itemsize: int) -> None:
    sent = [ring_sent_bytes(rank, num_elements, itemsize, n) for rank in range(n)]
    assert sent == [elements * itemsize for elements in simulated_ring(num_elements, n)]


@settings(deadline=None)
@given(num_elements=st.integers(0, 10**12), n=num_ranks, itemsize=st.sampled_from([1, 2, 4, 8]))
def test_ring_counts_add_up_exactly(num_elements: int, n: int, itemsize: int) -> None:
    nbytes = num_elements * itemsize
    sent = [ring_sent_bytes(rank, num_elements, itemsize, n) for rank in range(n)]
    assert sum(sent) == 2 * (n - 1) * nbytes
    even = Fraction(2 * (n - 1) * nbytes, n)
    assert all(abs(each - even) < 2 * itemsize for each in sent)
    if num_elements % n == 0:
        assert set(sent) == {even}


def test_chunks_are_those_of_tensor_split() -> None:
    import torch

    for num_elements in (0, 1, 3, 10, 17):
        for n in (1, 2, 3, 4, 7):
            chunks = torch.arange(num_elements).tensor_split(n)
            assert chunk_lengths(num_elements, n) == [len(chunk) for chunk in chunks]


# The table of sent_bytes, against sends written out


def binary_tree_parent(rank: int, n: int) -> int | None:
    """NCCL's tree that alternates leaves and inner nodes (``ncclGetBtree``); rank 0 is the root."""
    if rank == 0:
        return None
    bit = rank & -rank
    up = (rank ^ bit) | (bit << 1)
    return up if up < n else rank ^ bit


def double_tree(n: int) -> Sends:
    """``ncclGetDtree``: the second tree is the first, mirrored for even n and shifted for odd n."""
    sends: Sends = []
    for relabel in (lambda r: r, (lambda r: n - 1 - r) if n % 2 == 0 else (lambda r: (r + 1) % n)):
        for rank in range(1, n):
            parent = binary_tree_parent(rank, n)
            assert parent is not None
            sends += [(relabel(rank), relabel(parent), 0.5), (relabel(parent), relabel(rank), 0.5)]
    return sends


def binary_tree_depth(n: int) -> int:
    def depth(rank: int) -> int:
        parent = binary_tree_parent(rank, n)
        return 0 if parent is None else 1 + depth(parent)

    return max(depth(rank) for rank in range(n))


def recursive_doubling(n: int) -> Sends:
    inside = 1 << (n.bit_length() - 1)
    folds = [(inside + r, r, 1.0) for r in range(n - inside)]
    rounds = [(r, r ^ (1 << k), 1.0) for k in range(inside.bit_length() - 1) for r in range(inside)]
    return folds + rounds + [(to, sender, size) for sender, to, size in folds]


def binomial(n: int) -> Sends:
    have, sends = 1, []
    while have < n:
        sends += [(r, r + have, 1.0) for r in range(min(have, n - have))]
        have *= 2
    return sends


WRITTEN_OUT = {
    ("all-reduce", "tree"): double_tree,
    ("all-reduce", "recursive-doubling"): recursive_doubling,
    ("all-reduce", "one-shot"): lambda n: [(r, to, 1.0) for r in range(n) for to in range(n) if to != r],
    ("all-reduce", "two-shot"): lambda n: [(r, to, 2 / n) for r in range(n) for to in range(n) if to != r],
    ("all-gather", "direct"): lambda n: [(r, to, 1 / n) for r in range(n) for to in range(n) if to != r],
    ("reduce-scatter", "ring"): lambda n: [(r, (r + 1) % n, 1 / n) for r in range(n)] * (n - 1),
    ("broadcast", "ring"): lambda n: [(r, r + 1, 1.0) for r in range(n - 1)],
    ("broadcast", "tree"): binomial,
    ("broadcast", "flat"): lambda n: [(0, to, 1.0) for to in range(1, n)],
    ("point-to-point", "direct"): lambda n: [(0, 1, 1.0)],
}


@pytest.mark.parametrize(("collective", "algorithm"), list(WRITTEN_OUT))
@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 17, 31, 32])
def test_traffic_is_that_of_the_sends(collective: str, algorithm: str, n: int) -> None:
    sent: Counter[int] = Counter()
    received: Counter[int] = Counter()
    for sender, to, share in WRITTEN_OUT[collective, algorithm](n):
        sent[sender] += share * 240  # type: ignore[assignment]
        received[to] += share * 240  # type: ignore[assignment]
    traffic = sent_bytes(collective, algorithm, 240, n)
    assert traffic.sent_mean == pytest.approx(sum(sent.values()) / n)
    assert traffic.sent_max == pytest.approx(max(sent.values()))
    assert traffic.received_max == pytest.approx(max(received.values()))


@pytest.mark.parametrize("n", range(2, 40))
def test_tree_steps_are_up_and_down_the_deepest_path(n: int) -> None:
    assert sent_bytes("all-reduce", "tree", 1, n).steps == 2 * binary_tree_depth(n)


@pytest.mark.parametrize(("n", "steps", "busiest"), [(2, 1, 1), (3, 3, 2), (4, 2, 2), (5, 4, 3), (6, 4, 3), (8, 3, 3)])
def test_recursive_doubling_pays_for_ranks_that_are_no_power_of_two(n: int, steps: int, busiest: int) -> None:
    traffic = sent_bytes("all-reduce", "recursive-doubling", 1000, n)
    assert (traffic.steps, traffic.sent_max) == (steps, busiest * 1000)


def test_one_shot_sends_everything_to_everybody() -> None:
    assert sent_bytes("all-reduce", "one-shot", 64 * MiB, 8).sent_max == 448 * MiB


# For all of them


@pytest.mark.parametrize(("collective", "algorithm"), EVERY)
@settings(deadline=None)
@given(nbytes=st.integers(0, 2**45), n=num_ranks)
def test_nobody_sends_less_than_the_bound(collective: str, algorithm: str, nbytes: int, n: int) -> None:
    traffic = sent_bytes(collective, algorithm, nbytes, n)
    bound = lower_bound_bytes(collective, nbytes, n)
    assert traffic.sent_mean >= bound * (1 - 1e-12)
    assert traffic.sent_max >= traffic.sent_mean * (1 - 1e-12)
    assert traffic.received_max >= traffic.sent_mean * (1 - 1e-12)
    assert (traffic.steps == 0) == (n == 1)
    assert n > 1 or traffic.sent_max == traffic.sent_mean == traffic.received_max == 0


@pytest.mark.parametrize("algorithm", ["ring", "tree", "two-shot"])
def test_these_all_reduces_reach_the_bound_on_average(algorithm: str) -> None:
    for n in (2, 3, 8):
        assert sent_bytes("all-reduce", algorithm, 960, n).sent_mean == lower_bound_bytes("all-reduce", 960, n)


def test_payload_of_an_all_gather_is_its_output() -> None:
    assert payload_bytes("all-gather", 100, 4) == 400
    for collective in set(COLLECTIVES) - {"all-gather"}:
        assert payload_bytes(collective, 100, 4) == 100


def test_numpy_integers_do_not_overflow() -> None:
    big = np.int32(2**30)
    assert sent_bytes("all-reduce", "one-shot", big, np.int32(8)).sent_max == 7 * 2**30  # type: ignore[arg-type]
    assert tp_forward_bytes(np.int32(2**20), np.int32(2**20), 8, 1) == 2**45  # type: ignore[arg-type]
    assert math.isclose(tp_over_pp(np.int32(80), 4), 160 / 3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: sent_bytes("all-to-all", "ring", 1, 2), r"collective must be one of all-reduce, .*got 'all-to-all'"),
        (lambda: sent_bytes("all-gather", "tree", 1, 2), r"algorithm of all-gather .*ring, direct; got 'tree'"),
        (lambda: sent_bytes("all-reduce", "ring", -5, 2), r"nbytes must be a whole number of at least 0; got -5"),
        (lambda: sent_bytes("all-reduce", "ring", 1, 0), r"n must be a whole number of at least 1; got 0"),
        (lambda: sent_bytes("all-reduce", "ring", 1, 2.5), r"n must be a whole number of at least 1; got 2.5"),  # type: ignore[arg-type]
        (lambda: lower_bound_bytes("gather", 1, 2), r"got 'gather'"),
        (lambda: payload_bytes("all-gather", -1, 2), r"input_bytes must be a whole number of at least 0; got -1"),
        (lambda: ring_sent_bytes(4, 10, 4, 4), r"rank must be a whole number from 0 to 3; got 4"),
        (lambda: ring_sent_bytes(-1, 10, 4, 4), r"rank must be a whole number from 0 to 3; got -1"),
        (lambda: ring_sent_bytes(0, 10, 0, 4), r"itemsize must be a whole number of at least 1; got 0"),
        (lambda: chunk_lengths(-3, 4), r"num_elements must be a whole number of at least 0; got -3"),
        (lambda: tp_forward_bytes(1, -2, 8, 1), r"seq must be a whole number of at least 0; got -2"),
        (lambda: pp_forward_bytes(1, 2, 8, 0), r"num_stages must be a whole number of at least 1; got 0"),
        (lambda: tp_over_pp(80, 1), r"num_stages must be a whole number of at least 2; got 1"),
    ],
)
def test_bad_input_names_the_argument_and_the_number(call: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()  # type: ignore[operator]
