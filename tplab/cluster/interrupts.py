"""Ctrl-C at a bad moment: held back while something is made or handed over that nobody else could undo."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Hold SIGINT back for a few milliseconds of work; it comes when the block ends, to whoever handles it then.

    Only the main thread can be interrupted, so elsewhere, and where SIGINT is not Python's to handle, nothing is done.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is None:
        yield
        return
    held: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if held:
            signal.raise_signal(signal.SIGINT)
