"""What one move of a slider costs: CPU time of the kernel, and bytes to the page, for every analytic panel.

``python tests/benchmarks/bench_redraw.py`` prints a table. CPU time is the least of several moves, measured without a
page: what the browser adds is Plotly's own. The columns "before" were measured in the same way on the code of
November 2026 (da71058), in which each move handed plotly's MIME bundle to an Output widget and made the plot anew.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from typing import Any

import comm
from comm.base_comm import BaseComm

from tplab.lab.panels.advisor import AdvisorPanel
from tplab.lab.panels.layers import ChunkModel
from tplab.lab.panels.links import LinkPanel
from tplab.lab.panels.memory_wall import MemoryWall
from tplab.lab.panels.schedule_studio import ScheduleStudio

_MOVES = 7


class _Counting(BaseComm):
    """Sends nothing; counts what would be sent."""

    sent = 0

    def publish_msg(self, msg_type: str, data: Any = None, metadata: Any = None, buffers: Any = None, **_: Any) -> None:
        type(self).sent += len(json.dumps(data, default=str)) + sum(len(memoryview(each)) for each in buffers or ())


@contextmanager
def counting() -> Iterator[None]:
    """Widgets that are made here count their bytes."""
    before, comm.create_comm = comm.create_comm, _Counting
    try:
        yield
    finally:
        comm.create_comm = before


def cost(move: Callable[[Any], object], values: Sequence[Any]) -> tuple[float, float]:
    """CPU time in ms and bytes of a move, by turns to each of ``values``; the first move warms up."""
    times, sizes = [], []
    for value in islice(cycle(values), _MOVES + 1):
        sent, began = _Counting.sent, time.process_time()
        move(value)
        times.append(1e3 * (time.process_time() - began))
        sizes.append(_Counting.sent - sent)
    return min(times[1:]), sum(sizes[1:]) / _MOVES


def cases() -> dict[str, tuple[Callable[[], Any], Callable[[Any, Any], object], Sequence[Any]]]:
    """Name -> how the panel is made, what one move does to it, and the places that it moves between."""

    def move(name: str) -> Callable[[Any, Any], object]:
        return lambda panel, value: setattr(panel._named[name], "value", value)

    def advisor(view: str) -> Callable[[], Any]:
        return lambda: AdvisorPanel(LinkPanel("h100")).show(view=view)

    return {
        "memory wall": (MemoryWall, move("batch"), (16, 32)),
        "memory wall, along TP": (lambda: MemoryWall().show(view="along TP"), move("batch"), (16, 32)),
        "memory wall, TP 8 PP 16": (lambda: MemoryWall().show(tp=8, pp=16), move("batch"), (16, 32)),
        "links, drawing": (lambda: LinkPanel("h100"), move("gpus"), (8, 7)),
        "links, bandwidth": (lambda: LinkPanel("h100").show(view="bandwidth"), move("gpus"), (8, 7)),
        "links, latency": (lambda: LinkPanel("h100").show(view="latency"), move("gpus"), (8, 7)),
        "advisor, one step": (advisor("one step"), move("concurrency"), (16, 32)),
        "advisor, latency vs throughput": (advisor("front"), move("concurrency"), (16, 32)),
        "advisor, flips": (advisor("flips"), move("concurrency"), (16, 32)),
        "chunks": (ChunkModel, move("num_chunks"), (4, 8)),
        "studio, 1f1b 4 x 8": (ScheduleStudio, move("forward_ms"), (10.0, 11.0)),
        "studio, 1f1b 16 x 64": (lambda: ScheduleStudio().show(p=16, m=64), move("forward_ms"), (10.0, 11.0)),
        "studio, interleaved 8 x 32 x 4": (
            lambda: ScheduleStudio().show(schedule="interleaved", p=8, m=32, v=4),
            move("forward_ms"),
            (10.0, 11.0),
        ),
    }


BEFORE = {
    "painter": (151.1, 29_300),
    "memory wall": (25.0, 4_700),
    "memory wall, along TP": (24.4, 5_000),
    "memory wall, TP 8 PP 16": (27.3, 18_000),
    "links, bandwidth": (152.3, 10_500),
    "links, latency": (142.6, 10_000),
    "advisor, one step": (40.7, 39_800),
    "advisor, latency vs throughput": (54.2, 32_800),
    "advisor, flips": (111.0, 38_900),
    "chunks": (19.8, 3_600),
    "studio, 1f1b 4 x 8": (8.5, 20_200),
    "studio, 1f1b 16 x 64": (41.5, 409_400),
    "studio, interleaved 8 x 32 x 4": (61.6, 464_600),
}
"""CPU time in ms and bytes of a move before, on a server's core (AMD EPYC)."""


def main() -> None:
    now: dict[str, tuple[float, float]] = {}
    for name, (make, move, values) in cases().items():
        with counting():
            panel = make()
            now[name] = cost(lambda value, panel=panel, move=move: move(panel, value), values)
    print(f"{'one move':32} {'ms before':>10} {'ms':>8} {'KB before':>10} {'KB':>8}")
    for name in {**BEFORE, **now}:
        columns = [
            value for pair in zip(BEFORE.get(name, ("", "")), now.get(name, ("", "")), strict=True) for value in pair
        ]
        shown = (
            f"{value / scale:,.1f}" if value != "" else "-"
            for value, scale in zip(columns, (1, 1, 1e3, 1e3), strict=True)
        )
        print(f"{name:32} {next(shown):>10} {next(shown):>8} {next(shown):>10} {next(shown):>8}")
    print("-: not there before; or in the browser now, which asks no kernel (painter).")


if __name__ == "__main__":
    main()
