"""What the chip of a pool says when there are no ranks, and why."""

import time
from typing import Any

import pytest

from tplab.checks import ArgumentError
from tplab.cluster import NoRoom, State, admission
from tplab.cluster.admission import FreeMemory
from tplab.lab import HelloPanel, Pool

pytestmark = pytest.mark.timeout(60)


def wait_for(condition: Any, timeout: float = 20.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


def test_too_little_memory_stands_in_the_chip_and_in_the_panel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "torch_is_for_cuda", lambda: False)
    monkeypatch.setattr(admission, "free_memory", lambda: FreeMemory(num_bytes=200_000_000, where="JupyterHub's limit"))
    pool = Pool(2, backend="gloo")
    try:
        panel = HelloPanel(pool)
        pool._repr_mimebundle_()  # shown: no traceback
        wait_for(lambda: "2 ranks take about 0.4 GB" in pool._detail.value)
        assert "down" in pool._chip.value
        assert "(1 fits)" in pool._detail.value
        with pytest.raises(NoRoom):
            pool.start()
        panel._run_button.click()
        wait_for(lambda: "Too little memory" in panel._error.value)
        monkeypatch.setenv("TPLAB_MEMORY", "ignore")
        assert pool.start().cluster.state is State.READY
        wait_for(lambda: "process ids" in pool._detail.value)
    finally:
        pool.close()


def test_a_pool_whose_ranks_were_idle_says_why_and_what_is_lost() -> None:
    pool = Pool(1, backend="gloo", idle_minutes=0.3 / 60)
    try:
        pool.start()
        wait_for(lambda: "idle minutes" in pool._detail.value)
        assert "down" in pool._chip.value
        assert "next run starts them again" in pool._detail.value
        assert "rank.store" in pool._detail.value
        assert pool.cluster.run(lambda rank: rank.index) == [0]
    finally:
        pool.close()
    with pytest.raises(ArgumentError, match="idle_minutes"):
        Pool(1, backend="gloo", idle_minutes=-2)
