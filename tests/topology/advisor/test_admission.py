"""The most requests that keep a limit, against trying every number."""

import numpy as np
import pytest

from tplab.topology.advisor.admission import most_within

RUNNING = np.array([[5000.4, 4000.5, 4000.0, 17.2, 2.0], [1234.5, 999.5, 640.0, 12.0, 1.5]])
"""By load and layout; those that no number of the first round hits, whole and not."""


def by_trying(running: float, fits: int) -> float:
    """Where up to ``fits`` requests keep the limit."""
    below = [n for n in range(1, fits + 1) if n < running]
    return float(below[-1]) if below else np.inf


@pytest.mark.parametrize("fits", [0, 1, 2, 11, 16, 639, 998, 999, 1234, 3998, 3999, 4000, 4999, 5000])
def test_no_number_is_left_out(fits: int) -> None:
    """A microsecond a request, over a limit of ``fits`` of them."""
    over = fits < RUNNING
    found = most_within(lambda columns: lambda requests: requests, RUNNING, over, fits)
    want = [[by_trying(running, fits) if running > fits else np.inf for running in row] for row in RUNNING]
    assert found.tolist() == want
