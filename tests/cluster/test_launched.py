"""torchrun's ranks as a cluster, refused alike; what they do is in ``tests/hosts/test_torchrun.py``."""

import math
from typing import Any

import pytest

from tplab.cluster.launched import Launched


@pytest.mark.parametrize(
    ("fn", "timeout", "error", "message"),
    [
        ("no function", 60.0, TypeError, "fn must be a function that takes a rank first; got 'no function'"),
        (print, 0, ValueError, "timeout must be a number above 0"),
        (print, math.nan, ValueError, "timeout must be a number above 0"),
    ],
)
def test_a_call_that_cannot_be_run_reaches_no_rank(fn: Any, timeout: float, error: Any, message: str) -> None:
    nobody: Any = object()
    with pytest.raises(error, match=message):
        Launched(nobody, 2).submit(fn, timeout=timeout)
