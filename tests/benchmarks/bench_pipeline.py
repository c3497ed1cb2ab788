"""Measured over ideal makespan with emulated compute: tplab beside torch's own pipeline schedules and runtime, on gloo.

    python tests/benchmarks/bench_pipeline.py --ranks 4 --micro-batches 8 --milliseconds 20 --rounds 7

Every F, I and W waits the given time, by the same function in both; B is I and W in one. Messages are 4 KiB of float32.
Ideal is the simulated makespan with free messages. ``torch`` is its class of that name (ScheduleGPipe, Schedule1F1B,
ScheduleInterleaved1F1B, _ScheduleForwardOnly), ``runtime`` its _PipelineScheduleRuntime with the table that tplab runs
(it has no forward-only). All from the start of the first computation to the end of the last, on any rank. They take
turns within a round in an order that changes from round to round; the table gives medians, and the best in brackets:
compare those of one run only, on a machine that does nothing else.
"""

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import cloudpickle

from tplab import Cluster
from tplab.pipeline import Costs, Schedule, build_schedule, run_schedule, simulate

NAMES = ("gpipe", "1f1b", "interleaved", "forward-only")
FLOATS = 1024
"""Elements of a message."""
WARM_UPS = 1


def torch_step(rank: Any, who: str, schedule: Schedule, seconds: float) -> tuple[float, float]:
    """Runs on the ranks: one step of torch's schedule; start of this rank's first computation, end of its last."""
    import torch
    import torch.distributed as dist

    key = "bench_pipeline", who, schedule.name
    if key not in rank.store:
        rank.store[key] = make_torch(rank, who, schedule, seconds)
    pipeline, spans = rank.store[key]
    spans.clear()
    m = schedule.num_micro_batches
    inputs = (torch.ones(m, FLOATS),) if rank.index == 0 else ()
    target = torch.ones(m, FLOATS) if rank.index == rank.world_size - 1 and not schedule.is_inference else None
    dist.barrier(group=rank.group)
    if schedule.is_inference:
        with torch.no_grad():
            pipeline.step(*inputs)
    else:
        pipeline.step(*inputs, target=target)
    dist.barrier(group=rank.group)
    return min(start for start, _ in spans), max(end for _, end in spans)


def make_torch(rank: Any, who: str, schedule: Schedule, seconds: float) -> tuple[Any, list[tuple[float, float]]]:
    """Torch's schedule over stages that wait, and the list of their spans."""
    import time

    import torch
    from torch import nn
    from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe, ScheduleInterleaved1F1B
    from torch.distributed.pipelining.schedules import _PipelineScheduleRuntime, _ScheduleForwardOnly

    from tplab.collectives.emulated import sleep_until

    spans: list[tuple[float, float]] = []

    def wait(duration: float) -> None:
        start = time.monotonic()
        sleep_until(round((start + duration) * 1e9))
        spans.append((start, time.monotonic()))

    class Waits(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight):
            wait(seconds)
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            wait(2 * seconds)
            return gradient.clone(), None

    class Stage(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x):
            return Waits.apply(x, self.weight)

    stages = [
        PipelineStage(Stage(), index, schedule.total_stages, rank.device, group=rank.group)
        for index in range(rank.index, schedule.total_stages, rank.world_size)
    ]
    m, loss = schedule.num_micro_batches, lambda y, target: (y - target).mean()
    if who == "runtime":
        runtime = _PipelineScheduleRuntime(stages, m, loss_fn=loss)
        with tempfile.TemporaryDirectory() as folder:
            schedule.to_csv(Path(folder) / "table.csv")
            runtime._load_csv(str(Path(folder) / "table.csv"))
        return runtime, spans
    match schedule.name:
        case "gpipe":
            return ScheduleGPipe(stages[0], m, loss_fn=loss), spans
        case "1f1b":
            return Schedule1F1B(stages[0], m, loss_fn=loss), spans
        case "interleaved":
            return ScheduleInterleaved1F1B(stages, m, loss_fn=loss), spans
        case _:
            return _ScheduleForwardOnly(stages[0], m), spans


def measure(p: int, m: int, seconds: float, rounds: int, names: tuple[str, ...] = NAMES) -> list[dict[str, Any]]:
    """One row per schedule: ideal milliseconds, and for each runner the ratios to it, one per round."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    rows = []
    with Cluster(p, "gloo") as cluster:
        for name in names:
            schedule = build_schedule(name, p, m, 2 if name == "interleaved" else 1)
            each = [seconds] * schedule.total_stages
            costs = Costs(forward_s=each, input_grad_s=each, weight_grad_s=each, message_bytes=4 * FLOATS)
            ideal = simulate(schedule, costs).makespan_s
            runners = ["tplab", "torch"] + ["runtime"] * (not schedule.is_inference)
            ratios: dict[str, list[float]] = {who: [] for who in runners}
            for number in range(-WARM_UPS, rounds):
                for who in runners[:: 1 if number % 2 else -1]:
                    if who == "tplab":
                        took = run_schedule(cluster, schedule, costs).makespan_s
                    else:
                        ends = cluster.run(torch_step, who, schedule, seconds)
                        took = max(end for _, end in ends) - min(start for start, _ in ends)
                    if number >= 0:
                        ratios[who].append(took / ideal)
            rows.append({"schedule": name, "ideal_ms": ideal * 1e3, **ratios})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="pipelines with emulated compute: measured over ideal makespan")
    parser.add_argument("--ranks", type=int, default=4, help="p (default: 4)")
    parser.add_argument("--micro-batches", type=int, default=8, help="m (default: 8)")
    parser.add_argument("--milliseconds", type=float, default=20.0, help="of each F, I and W (default: 20)")
    parser.add_argument("--rounds", type=int, default=7, help="samples of each (default: 7)")
    parser.add_argument("--schedules", nargs="+", default=NAMES, choices=NAMES, help="which (default: all)")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    print(f"{os.cpu_count()} cores, {arguments.ranks} ranks; load average before: {os.getloadavg()[0]:.2f}")
    print(f"{'schedule':13} {'ideal ms':>8} {'tplab':>16} {'torch':>16} {'runtime':>16}")
    rows = measure(
        arguments.ranks,
        arguments.micro_batches,
        arguments.milliseconds / 1e3,
        arguments.rounds,
        tuple(arguments.schedules),
    )
    for row in rows:
        shown = [
            f"{statistics.median(row[who]):.3f} ({min(row[who]):.3f})" if who in row else "-"
            for who in ("tplab", "torch", "runtime")
        ]
        print(f"{row['schedule']:13} {row['ideal_ms']:8.1f} " + " ".join(f"{cell:>16}" for cell in shown))
    print(f"load average after: {os.getloadavg()[0]:.2f}")


if __name__ == "__main__":
    main()
