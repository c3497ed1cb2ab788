"""Requests that cannot be: numbers of the wrong kind are refused by the name of their field."""

import math

import numpy as np
import pytest

from tplab.topology.advisor.workload import Workload

USUAL = {"input_length": 10, "output_length": 20, "concurrency": 1}


@pytest.mark.parametrize("key", USUAL)
@pytest.mark.parametrize("value", [1024.5, 8.0, True, math.nan, math.inf, "8"])
def test_counts_are_whole_numbers(key, value):
    with pytest.raises(ValueError, match=f"^{key} must be a whole number from 1 to 1,000,000,000; got "):
        Workload(**USUAL | {key: value})


@pytest.mark.parametrize("key", ["request_rate", "ttft_limit_ms", "tpot_limit_ms"])
@pytest.mark.parametrize(
    ("value", "shown"),
    [("8", "'8'"), (True, "True"), (math.nan, "nan"), (math.inf, "inf"), (0, "0"), (1e300, "1e.300")],
)
def test_limits_are_numbers(key, value, shown):
    load = {"concurrency": None, "request_rate": 1.0} if key == "request_rate" else {}
    with pytest.raises(ValueError, match=f"^{key} must be a number above 0 and at most 1,000,000,000; got {shown}"):
        Workload(**USUAL | load | {key: value})


def test_numbers_of_numpy_are_numbers():
    made = Workload(
        input_length=np.int64(10), output_length=np.int32(20), concurrency=np.int64(4), tpot_limit_ms=np.float32(8.0)
    )
    assert made.context_length == 30
    assert Workload(input_length=1, output_length=1, request_rate=np.float64(2.5)).request_rate == 2.5
