"""Recorded measurements: readable, right, and with where they come from."""

import pytest

from tplab.lab.recorded import recorded, recorded_badge, recordings


def test_every_step_of_every_recording_is_readable() -> None:
    assert recordings()
    for name in recordings():
        for step in ("links", "sweep", "layers"):
            frame = recorded(name, step)
            assert len(frame)
            assert {"backend", "num_ranks", "device", "torch_version", "nccl_version", "started_at"} <= set(frame)
            assert frame["started_at"].str.startswith(name[-10:]).all()


def test_all_results_were_checked() -> None:
    for name in recordings():
        assert recorded(name, "sweep")["correct"].all()
        assert recorded(name, "links")["agree"].all()


def test_badges() -> None:
    assert recorded_badge("2xH100-2026-11-24") == "RECORDED 2xH100 2026-11-24"


def test_what_there_is_not() -> None:
    with pytest.raises(ValueError, match=r"name must be one of 2xH100-2026-11-24.*got '8xB300'"):
        recorded("8xB300", "sweep")
    with pytest.raises(ValueError, match="step must be one of layers, links, sweep; got 'weather'"):
        recorded(recordings()[0], "weather")
