"""Simulating a table, with times, messages and memory, takes less than torch takes to dry run it without any.

A relation within one interleaved run, with slack: the target is half. `bench_schedules.py` beside this file says more.
"""

import runpy
from pathlib import Path

import pytest

MOST_OF_TORCH = 0.5


def test_simulating_takes_half_of_torchs_dry_run_at_most() -> None:
    pytest.importorskip("torch.distributed.pipelining")
    bench = runpy.run_path(str(Path(__file__).with_name("bench_schedules.py")))
    row = bench["compare"](16, 256, rounds=5)
    assert row["actions"] == 8192
    assert row["ratio"] <= MOST_OF_TORCH, row
