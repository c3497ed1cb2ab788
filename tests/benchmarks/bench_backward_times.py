"""Why do the backwards of a 1F1B run get longer? The same computations with messages and without, and the GPUs' clocks.

``python -m tests.benchmarks.bench_backward_times`` on a machine with GPUs (a minute): the times of two blocks of
Llama-3.1 70B's shape per stage, 4,096 tokens a micro-batch, as the table of 1F1B has them; then every rank by itself in
the order of the last one, where nothing is sent and no receive is ever posted. Beside them ``nvidia-smi``'s clocks, and
the reasons that the driver gives for them (bit 4: the power limit).
"""

import os
import statistics
import subprocess
import time
from typing import Any

import torch

from tplab import Cluster
from tplab.layers.overlap import StackPlan
from tplab.pipeline import BlockStages, Op, build_schedule

_QUERY = "index,clocks.sm,power.draw.instant,clocks_event_reasons.active"
_GAP_S = 1.0  # before each run: the clock comes back up
_STACK = StackPlan(
    batch=1, hidden=8192, num_heads=64, num_kv_heads=8, intermediate=28672, dtype="bfloat16", depth=2, iterations=7
)


def alone(rank: Any, blocks: BlockStages, order: list[tuple[str, int]], turns: int) -> list[list[tuple[str, float]]]:
    """Forwards and backwards in ``order`` on every rank, and no message: operation and milliseconds, for each turn."""
    import torch.distributed as dist

    module, outputs, found = blocks(rank, rank.index), {}, []
    inputs = [blocks.inputs(rank, number).requires_grad_() for number in range(4)]
    gradient = torch.randn_like(inputs[0]) * 1e-3
    for _ in range(turns):
        marks = []
        torch.cuda.synchronize()
        dist.barrier(group=rank.group)
        time.sleep(_GAP_S)
        for op, number in order:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            if op == "F":
                outputs[number] = module(inputs[number % 4])
            else:
                outputs.pop(number).backward(gradient)
            end.record()
            marks.append((op, start, end))
        torch.cuda.synchronize()
        module.zero_grad(set_to_none=True)
        found.append([(op, start.elapsed_time(end)) for op, start, end in marks])
    return found


def show(name: str, times: list[tuple[str, float]]) -> None:
    for op in ("F", "B"):
        print(f"{name:28} {op}  {' '.join(f'{ms:5.1f}' for each, ms in times if each == op)}", flush=True)


def main() -> None:
    p = torch.cuda.device_count()
    print(f"{p} x {torch.cuda.get_device_name(0)}, torch {torch.__version__}")
    blocks, schedule = BlockStages(stack=_STACK, tokens=4096), build_schedule("1f1b", p, 2 * p)
    order = [(action.op.value, action.micro_batch) for action in schedule.ranks[p - 1] if action is not None]
    with Cluster(p) as cluster:
        for turn in range(2):
            with Clocks() as clocks:
                trace = blocks.run(cluster, schedule)
            spans = [span for span in trace.spans if span.op in (Op.F, Op.B)]
            for rank in range(p):
                mine = [(span.op.value, 1e3 * (span.end_s - span.start_s)) for span in spans if span.rank == rank]
                show(f"messages, turn {turn}, rank {rank}", mine)
            print(clocks)
            time.sleep(_GAP_S)
        with Clocks() as clocks:
            made = cluster.run(alone, blocks, order, 3, timeout=120)
        for rank, turns in enumerate(made):
            show(f"no messages, rank {rank}", turns[-1])
        print(clocks)


class Clocks:
    """What ``nvidia-smi`` says of all GPUs every 20 ms."""

    def __enter__(self) -> "Clocks":
        command = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits", "-lms", "20"]
        self._log = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"LC_ALL": "C"})
        return self

    def __exit__(self, *fault: object) -> None:
        self._log.terminate()
        rows = [line.split(", ") for line in self._log.communicate()[0].splitlines()]
        self._rows = [row for row in rows if len(row) == len(_QUERY.split(","))]

    def __str__(self) -> str:
        busy = [row for row in self._rows if float(row[2]) > 400]
        if not busy:
            return "no GPU drew more than 400 W"
        mhz = sorted(float(row[1]) for row in busy)
        reasons = ", ".join(sorted({row[3].strip() for row in busy}))
        return f"above 400 W: {mhz[0]:.0f} to {mhz[-1]:.0f} MHz, median {statistics.median(mhz):.0f}; reasons {reasons}"


if __name__ == "__main__":
    main()
