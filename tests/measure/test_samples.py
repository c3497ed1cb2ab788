"""The reduction, on planted times: the slowest rank of every sample, then the median, and what some ranks lack."""

import numpy as np
import pytest

from tplab.cluster import Report
from tplab.measure import Samples, samples_of


def of(*ranks: list[float]) -> Samples:
    return Samples(us=np.array(ranks))


def test_a_slow_rank_is_the_time_of_every_sample() -> None:
    samples = of([10.0, 11.0, 12.0], [30.0, 29.0, 31.0])
    assert samples.slowest_us.tolist() == [30.0, 29.0, 31.0]
    assert samples.p50_us == 30.0
    assert samples.min_us == 29.0
    assert samples.fastest_rank_p50_us == 11.0  # the rest is waiting for the slow one


def test_the_slowest_is_taken_before_the_median_not_after() -> None:
    """Ranks that are slow in turns: every sample is slow, though no rank's median is."""
    samples = of([90.0, 10.0, 10.0], [10.0, 90.0, 10.0], [10.0, 10.0, 90.0])
    assert samples.p50_us == 90.0
    assert samples.fastest_rank_p50_us == 10.0


def test_a_spike_moves_the_tail_and_not_the_median() -> None:
    quiet = [100.0] * 39
    samples = of([*quiet, 5000.0], [*quiet, 100.0])
    assert samples.p50_us == samples.min_us == 100.0
    assert samples.p95_us == 100.0
    assert of([*quiet[:9], 5000.0], [*quiet[:9], 100.0]).p95_us > 1000


def test_reports_are_put_together_by_key_and_rank() -> None:
    reports = [
        Report(1, {"samples": {"a": [5.0, 2.0], "b": 7.0}}),
        Report(0, {"samples": {"a": [1.0, 9.0]}}),
        Report(0, {"phase": "measure", "done": 1, "total": 2}),
        Report(0, {"samples": {"a": [4.0], "b": 8.0}}),
        Report(1, {"samples": {"a": 3.0}}),
    ]
    made = samples_of(reports, 2)
    assert made["a"].us.tolist() == [[1.0, 9.0, 4.0], [5.0, 2.0, 3.0]]
    assert made["b"].us.tolist() == [[8.0], [7.0]]


def test_a_sample_counts_once_every_rank_has_reported_it() -> None:
    reports = [Report(0, {"samples": {"a": [1.0, 2.0, 3.0]}}), Report(1, {"samples": {"a": [4.0]}})]
    assert samples_of(reports, 2)["a"].us.tolist() == [[1.0], [4.0]]
    assert samples_of(reports, 3) == {}
    assert samples_of([*reports, Report(2, {"samples": {"a": []}})], 3) == {}


def test_without_a_number_of_ranks_whoever_reported_is_all_there_is() -> None:
    assert samples_of([Report(3, {"samples": {"a": 1.5}})])["a"].p50_us == 1.5
    assert samples_of([]) == {}


@pytest.mark.parametrize("rank", [0, 1])
def test_one_wrong_result_on_one_rank_makes_the_whole_wrong(rank: int) -> None:
    reports = [Report(r, {"samples": {"a": 1.0}, "correct": not (r == rank and i)}) for i in (0, 1) for r in (0, 1)]
    reports += [Report(r, {"samples": {"b": 1.0}, "correct": True}) for r in (0, 1)]
    made = samples_of(reports, 2)
    assert not made["a"].correct
    assert made["b"].correct
