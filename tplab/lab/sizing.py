"""What a learner takes of a machine: memory and cores of a notebook's kernel and ranks, measured while it runs.

Memory is PSS, the proportional set size: a page that n processes share counts 1/n for each, so that the sum over all
processes is what they take together.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import psutil

from tplab.checks import ArgumentError

_EVERY_S = 0.5
_CELL_S = 600


@dataclass(slots=True)
class _Watch:
    """Peaks of a process and all below it."""

    pid: int
    own_bytes: float = 0.0
    below_bytes: float = 0.0
    most_bytes: float = 0.0
    most_processes: int = 0
    cpu_s: dict[tuple[int, float], float] = field(default_factory=dict)

    def look(self) -> None:
        sizes: dict[int, float] = {}
        with suppress(psutil.Error):
            top = psutil.Process(self.pid)
            for process in (top, *top.children(recursive=True)):
                with suppress(psutil.Error):
                    memory, times = process.memory_full_info(), process.cpu_times()
                    sizes[process.pid] = getattr(memory, "pss", memory.uss)
                    self.cpu_s[process.pid, process.create_time()] = times.user + times.system
        own, total = sizes.get(self.pid, 0.0), sum(sizes.values())
        if total > self.most_bytes:
            self.most_bytes, self.own_bytes, self.below_bytes = total, own, total - own
            self.most_processes = len(sizes)


def measure_notebooks(
    paths: Sequence[Path], on_notebook: Callable[[dict[str, Any]], None] | None = None
) -> pd.DataFrame:
    """Run each notebook from top to bottom in a fresh kernel, in its own folder, and watch what it takes.

    Columns: ``notebook``, ``seconds``, ``processes`` (at the peak), ``peak_GB`` (PSS of kernel and ranks together),
    ``kernel_GB`` and ``ranks_GB`` (its parts), ``cores`` (processor time by wall-clock time), ``error`` (the first line
    of what ended it). ``on_notebook`` is called with each row when it is known. Raises ``ArgumentError`` for a path
    that is no file.
    """
    for path in paths:
        if not path.is_file():
            raise ArgumentError("paths", str(path), "must be notebooks")
    rows = []
    for path in paths:
        rows.append(_measured(path))
        if on_notebook is not None:
            on_notebook(rows[-1])
    return pd.DataFrame(rows)


def _measured(path: Path) -> dict[str, Any]:
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, DeadKernelError

    book = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    client = NotebookClient(book, timeout=_CELL_S, resources={"metadata": {"path": str(path.parent)}})
    began, error = time.monotonic(), ""
    watch = _Watch(0)
    try:
        with client.setup_kernel(), _watched(watch, client):
            began = time.monotonic()
            for index, cell in enumerate(book.cells):
                client.execute_cell(cell, index)
    except (CellExecutionError, DeadKernelError, TimeoutError) as fault:
        error = (
            f"cell {len([c for c in book.cells if c.get('execution_count')])}: {str(fault).strip().splitlines()[-1]}"
        )
    seconds = time.monotonic() - began
    return {
        "notebook": path.stem,
        "seconds": seconds,
        "processes": watch.most_processes,
        "peak_GB": watch.most_bytes / 1e9,
        "kernel_GB": watch.own_bytes / 1e9,
        "ranks_GB": watch.below_bytes / 1e9,
        "cores": sum(watch.cpu_s.values()) / seconds,
        "error": error,
    }


@contextmanager
def _watched(watch: _Watch, client: Any) -> Iterator[None]:
    watch.pid = client.km.provisioner.pid
    over = threading.Event()

    def look() -> None:
        while not over.wait(_EVERY_S):
            watch.look()

    thread = threading.Thread(target=look, name="tplab-sizing", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        watch.look()
