"""Own ring all-reduce beside ``torch.distributed.all_reduce``, over gloo on this machine.

    python tests/benchmarks/bench_ring.py --ranks 2 4 --rounds 15

Both sum the same float32 tensors on the same ranks, one thread each (OMP_NUM_THREADS=1, set by this program), taking
turns within a round in an order that changes from round to round. Each sample: refill, barrier, call; the time is that
of the slowest rank. The table gives medians, and the ratio of the medians: compare those of one run only. Results are
checked after every call.
"""

import argparse
import os
import statistics
import sys
import time
from typing import Any

import cloudpickle

from tplab import Cluster

SIZES = tuple(1 << power for power in range(10, 27, 2))
"""1 KiB to 64 MiB."""


def take_turns(rank: Any, sizes: tuple[int, ...], rounds: int) -> dict[int, dict[str, list[float]]]:
    """Runs on the ranks: bytes -> who -> milliseconds, one per round."""
    import torch
    import torch.distributed as dist

    from tplab.collectives.ring import ring_all_reduce

    torch.set_num_threads(1)
    times: dict[int, dict[str, list[float]]] = {}
    for size in sizes:
        source = torch.randint(-8, 9, (size // 4,), generator=torch.Generator().manual_seed(1)).float()
        x, want = torch.empty_like(source), source * sum(range(1, rank.world_size + 1))
        calls = {
            "library": lambda x=x: dist.all_reduce(x, group=rank.group),
            "ring": lambda x=x: ring_all_reduce(x, rank.group),
        }
        times[size] = {name: [] for name in calls}
        for number in range(-2, rounds):  # two to warm up
            for name in list(calls)[:: 1 if number % 2 else -1]:
                torch.mul(source, rank.index + 1, out=x)
                dist.barrier(group=rank.group)
                began = time.perf_counter()
                calls[name]()
                took = time.perf_counter() - began
                assert torch.equal(x, want)
                if number >= 0:
                    times[size][name].append(took * 1e3)
        rank.report(phase=f"{size} bytes", done=len(times), total=len(sizes))
    return times


def measure(num_ranks: int, rounds: int, sizes: tuple[int, ...] = SIZES) -> list[dict[str, float]]:
    """One row per size."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with Cluster(num_ranks, "gloo") as cluster:
        by_rank = cluster.run(take_turns, sizes, rounds, timeout=600)
    rows = []
    for size in sizes:
        row: dict[str, float] = {"ranks": num_ranks, "bytes": size}
        for name in ("library", "ring"):
            slowest = [max(samples) for samples in zip(*(times[size][name] for times in by_rank), strict=True)]
            row[f"{name} ms"] = statistics.median(slowest)
        row["ratio"] = row["ring ms"] / row["library ms"]
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="own ring all-reduce beside torch.distributed.all_reduce")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4], help="numbers of ranks (default: 2 4)")
    parser.add_argument("--rounds", type=int, default=15, help="samples per size (default: 15)")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    print(f"{os.cpu_count()} cores; load average before: {os.getloadavg()[0]:.2f}")
    print(f"{'ranks':>5} {'bytes':>10} {'library ms':>11} {'ring ms':>9} {'ratio':>6}")
    for n in arguments.ranks:
        for row in measure(n, arguments.rounds):
            print(
                f"{n:5} {row['bytes']:10} {row['library ms']:11.3f} {row['ring ms']:9.3f} {row['ratio']:6.2f}",
                flush=True,
            )
    print(f"load average after: {os.getloadavg()[0]:.2f}")


if __name__ == "__main__":
    main()
