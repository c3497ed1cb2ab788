"""What the sweep's own timing adds: its median against a bare loop of the same all-reduce, in one run.

    python tests/benchmarks/bench_sweep.py --ranks 2

Both are taken on the same ranks, in turns: blocks of samples as the sweep takes them (refill, barrier, then one timed
call), and blocks of the bare loop (refill, barrier, then the same call, timed around by nothing but a pair of clock
readings over the block, less the same block without the call).
"""

import argparse
import statistics
import time

import pandas as pd

from tplab import Cluster
from tplab.collectives.sweep_plan import Point

SIZES = tuple(1 << power for power in range(16, 25))


def compare(rank, point, rounds, block):
    """Median microseconds per all-reduce: as the sweep times it, and by the bare loop."""
    import torch
    import torch.distributed as dist

    from tplab.collectives.timing import _Inputs, _sampler

    inputs = _Inputs(rank, [point])
    sample = _sampler(rank, point, inputs)
    x, mine = inputs.target(point), inputs.source(point, rank.index)

    def loop(call):
        began = time.perf_counter()
        for _ in range(block):
            x.copy_(mine)
            dist.barrier(group=rank.group)
            if call:
                dist.all_reduce(x, group=rank.group)
        return (time.perf_counter() - began) / block * 1e6

    timed, bare = [], []
    torch.set_num_threads(1)
    for _ in range(rounds):
        timed.append(statistics.mean(sample() for _ in range(block)))
        bare.append(loop(True) - loop(False))
    return statistics.median(timed), statistics.median(bare)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--block", type=int, default=10)
    arguments = parser.parse_args()
    rows = []
    with Cluster(arguments.ranks, "gloo") as cluster:
        for size in SIZES:
            point = Point(algorithm="library", dtype="float32", num_elements=size // 4, iterations=1, mode="eager")
            for rank, (timed, bare) in enumerate(
                cluster.run(compare, point, arguments.rounds, arguments.block, timeout=300)
            ):
                rows.append({"bytes": size, "rank": rank, "sweep_us": timed, "bare_us": bare, "ratio": timed / bare})
        print(cluster.badge)
    print(pd.DataFrame(rows).round(3).to_string(index=False))


if __name__ == "__main__":
    main()
