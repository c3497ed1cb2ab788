"""The sampler on real ranks, with planted waits: what is timed, what is not, and who waits for whom."""

import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tplab import Cluster
from tplab.measure import samples_of
from tplab.measure.clock import HostClock, synchronize, timed
from tplab.measure.sampler import WARM_UPS, collective_sampler, lone_sampler

pytestmark = pytest.mark.timeout(60)


def test_a_call_is_timed_and_gives_what_it_returned() -> None:
    us, value = timed(lambda: time.sleep(0.02) or "done")
    assert value == "done"
    assert 20_000 <= us < 2_000_000
    synchronize(torch.device("cpu"))


def test_the_mean_of_one_call() -> None:
    seen = []
    sample = lone_sampler([lambda: seen.append(1) or time.sleep(0.01)] * 4, torch.device("cpu"))
    assert 10_000 <= sample() < 40_000
    assert len(seen) == 4


def test_a_graph_needs_a_gpu() -> None:
    rank: Any = SimpleNamespace(device=torch.device("cpu"))
    with pytest.raises(ValueError, match=r"graph=True needs a GPU to capture the call on; this rank computes on cpu"):
        collective_sampler(rank, lambda: None, graph=True)


def test_marks_of_the_host_are_seconds_of_one_clock() -> None:
    clock = HostClock()
    clock.start()
    before = time.monotonic()
    marks = [clock.mark(), clock.mark()]
    first, second = map(clock.seconds, marks)
    assert before <= first <= second <= time.monotonic()


def test_refilling_and_lining_up_are_not_timed_and_a_late_rank_holds_all_up(cluster2: Cluster) -> None:
    """Rank 1 is 50 ms late to every sample, in its refill: no rank's time has it."""

    def measure(rank: Any) -> list[float]:
        import time

        from tplab.measure.sampler import collective_sampler

        calls: list[str] = []

        def refill() -> None:
            calls.append("refill")
            time.sleep(0.05 * rank.index)

        sample = collective_sampler(rank, lambda: calls.append("call"), before=refill)
        us = [sample() for _ in range(5)]
        assert calls == ["refill", "call"] * 5
        return us

    for us in cluster2.run(measure):
        assert sorted(us)[2] < 40_000


def test_a_slow_rank_and_a_wrong_result_come_out_of_turns(cluster2: Cluster) -> None:
    def measure(rank: Any) -> None:
        import time

        from tplab.measure.sampler import take_turns

        def slow() -> str:
            time.sleep(0.03 * rank.index)
            return "slow"

        works = {"quick": lambda: "quick", "slow": slow}
        take_turns(rank, works, 3, lambda key, result: key == result)
        take_turns(rank, {"wrong": lambda: rank.index}, 2, lambda key, result: result == 0)

    run = cluster2.submit(measure)
    run.result()
    samples = samples_of(run.reports, 2)
    assert samples["slow"].us.shape == samples["quick"].us.shape == (2, 3)  # warm-ups are not reported
    assert samples["slow"].p50_us >= 30_000
    assert samples["slow"].us[0].max() < 30_000  # a rank's own time: it does not wait for the other
    assert samples["quick"].p50_us < 30_000
    assert samples["quick"].correct
    assert samples["slow"].correct
    assert not samples["wrong"].correct
    phases = [report.fields["phase"] for report in run.reports if report.rank == 0]
    assert phases == ["warm-up"] * WARM_UPS + ["measure"] * 3 + ["warm-up"] * WARM_UPS + ["measure"] * 2
    last = [report.fields for report in run.reports if report.rank == 0][WARM_UPS + 2]
    assert (last["done"], last["total"]) == (3, 3)


def test_one_way_is_half_of_there_and_back(cluster2: Cluster) -> None:
    """A wait of 40 ms in each rank's receive: both ways have it."""

    def measure(rank: Any) -> None:
        import time

        from tplab.collectives.transport import ProcessGroupTransport
        from tplab.measure.sampler import ping_pong

        p2p = ProcessGroupTransport(rank.group)

        class Slow:
            def __init__(self, sends, receives):  # type: ignore[no-untyped-def]
                self.handle, self.receives = p2p.exchange(sends, receives), receives

            def wait(self):  # type: ignore[no-untyped-def]
                self.handle.wait()
                for message, _ in self.receives:
                    assert bool((message == 1).all())
                    time.sleep(0.04)

        ping_pong(rank, [(0, 1), (1, 0)], [1, 1 << 12], 3, Slow)

    run = cluster2.submit(measure)
    run.result()
    assert {(report.rank, *report.fields["samples"]) for report in run.reports} == {
        (source, ("send", source, 1 - source, nbytes)) for source in (0, 1) for nbytes in (1, 1 << 12)
    }
    for one_way in samples_of(run.reports).values():
        assert one_way.us.shape == (1, 3)
        assert 40_000 <= one_way.p50_us < 80_000
