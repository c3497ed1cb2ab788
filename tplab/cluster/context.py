"""A rank's CUDA context, made while torch is being imported: both take their time, and neither needs the other.

Through the driver's own library. What torch's runtime uses later is the device's primary context, which is this one.
"""

import ctypes
import threading
from contextlib import suppress


def begin_context(device: str) -> threading.Thread:
    """Make the context of a GPU, ``cuda:i``, on a thread of its own, to be joined."""
    thread = threading.Thread(target=_make, args=(int(device.removeprefix("cuda:")),), daemon=True)
    thread.start()
    return thread


def _make(index: int) -> None:
    with suppress(OSError):  # no driver by this name: torch makes the context, or says what is wrong
        driver = ctypes.CDLL("libcuda.so.1")
        device, context = ctypes.c_int(), ctypes.c_void_p()
        if driver.cuInit(0) == 0 and driver.cuDeviceGet(ctypes.byref(device), index) == 0:
            driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
