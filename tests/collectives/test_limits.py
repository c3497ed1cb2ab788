"""Which kernel a message goes by: from times, and before there are any."""

from types import SimpleNamespace
from typing import Any

import pytest

from tplab.collectives.limits import Limits, limits_key
from tplab.collectives.sweep_plan import plan_sweep


def test_each_goes_as_far_as_it_is_the_fastest_without_a_gap() -> None:
    times = {
        "library": {1024: 15.0, 2048: 15.0, 4096: 15.0, 8192: 15.0, 16384: 15.0, 32768: 15.0},
        "pushed-one-shot": {1024: 5.0, 2048: 6.0, 4096: 12.0, 8192: 1.0},
        "pushed-two-shot": {1024: 9.0, 2048: 9.0, 4096: 10.0, 8192: 11.0, 16384: 16.0, 32768: 2.0},
    }
    # One step is the fastest at 8 KiB again; two are at 32 KiB again. Neither counts: noise, or another protocol.
    assert Limits.measured(times) == Limits(one_shot_bytes=2048, two_shot_bytes=4096)


def test_where_the_library_is_the_fastest_nothing_else_is_taken() -> None:
    times = {"library": {1024: 4.0}, "pushed-one-shot": {1024: 5.0}, "pushed-two-shot": {1024: 6.0}}
    assert Limits.measured(times) == Limits(one_shot_bytes=0, two_shot_bytes=0)


@pytest.mark.parametrize("n", [2, 4, 8])
def test_before_anything_is_measured(n: int) -> None:
    limits = Limits.default(n)
    assert 64 << 10 <= limits.one_shot_bytes <= 256 << 10 < limits.two_shot_bytes <= 32 << 20


def test_a_sweep_leaves_its_limits_with_the_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    from tplab.collectives import timing

    monkeypatch.setattr(timing.dist, "all_reduce", lambda *_, **__: None)
    rank: Any = SimpleNamespace(device="cpu", group=None, world_size=2, store={})
    which = ["library", "pushed-one-shot", "pushed-two-shot"]
    eager = plan_sweep(sizes=[1024, 2048], algorithms=which, backend="nccl")
    graph = plan_sweep(sizes=[1024, 2048], algorithms=which, backend="nccl", mode="graph")
    timing._keep_limits(rank, eager[:2], [[1.0]] * 2)
    assert rank.store == {}, "there was nothing to choose between"
    timing._keep_limits(rank, graph, [[9.0, 9.0, 1.0], [9.0], [1.0], [10.0], [5.0], [6.0]])
    assert rank.store[limits_key(2)] == Limits(one_shot_bytes=1024, two_shot_bytes=2048)
    timing._keep_limits(rank, eager, [[1.0]] * 2 + [[2.0]] * 4)
    assert rank.store[limits_key(2)].one_shot_bytes == 1024, "graphs go before eager calls"
