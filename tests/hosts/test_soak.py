"""See :mod:`tests.hosts.soak`."""

import pytest

from tests.hosts.namespaces import why_not
from tests.hosts.soak import more, soak


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_five_hundred_runs():
    if reason := why_not():
        pytest.skip(reason)
    assert not soak(500, seed=0)


def test_what_is_too_much():
    early = {"processes": 18, "MiB of the kernel": 70}
    assert more(early, {"processes": 17, "MiB of the kernel": 99}) == []
    assert more(early, {"processes": 19, "MiB of the kernel": 101}) == [
        "processes: 18 after a tenth, 19 in the end",
        "MiB of the kernel: 70 after a tenth, 101 in the end",
    ]
