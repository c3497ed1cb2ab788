"""A CUDA context that is begun before torch is there, through a driver that is not."""

import ctypes

import pytest

from tplab.cluster.context import _make, begin_context


class Driver:
    """Knows two devices, and what it was asked for."""

    def __init__(self) -> None:
        self.retained: list[int] = []

    def cuInit(self, flags: int) -> int:
        return 0

    def cuDeviceGet(self, device: object, index: int) -> int:
        device._obj.value = 70 + index  # type: ignore[attr-defined]
        return 0 if index < 2 else 101

    def cuDevicePrimaryCtxRetain(self, context: object, device: ctypes.c_int) -> int:
        self.retained.append(device.value)
        return 0


def test_the_primary_context_of_the_device_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    begin_context("cuda:1").join(10)
    begin_context("cuda:2").join(10)  # there is none: torch says so
    assert driver.retained == [71]


def test_without_a_driver_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    _make(0)
