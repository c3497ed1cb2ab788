"""What ``measure_point_to_point`` finds, beside a bare ping-pong on the same ranks in the same run.

    python tests/benchmarks/bench_point_to_point.py            # NCCL where there is a GPU, else gloo
    python tests/benchmarks/bench_point_to_point.py --backend gloo --rounds 5

The bare loop is what anybody would write: on GPUs ``dist.batch_isend_irecv`` of one message there and one back, a
number of times between two CUDA events, everything queued before the first of them is reached; on CPUs ``dist.send``
and ``dist.recv`` between two readings of the clock. Both take turns, round by round, and each round's medians go
through the same fit. Printed: one way at every size, alpha and beta, each with its ratio to the bare loop's.
"""

import argparse
import statistics
import time

import pandas as pd

from tplab import Cluster
from tplab.collectives import fit_ends, fit_link, measure_point_to_point


def bare(rank, sizes, iterations):
    """Median microseconds of one way from rank 0 to rank 1 for each size."""
    import torch
    import torch.distributed as dist

    on_gpu = rank.device.type == "cuda"
    found = []
    dist.barrier()
    for nbytes in sizes:
        x = torch.ones(nbytes, dtype=torch.uint8, device=rank.device)

        def message(is_sender, x=x):
            if on_gpu:
                operation = dist.P2POp(dist.isend if is_sender else dist.irecv, x, 1 - rank.index)
                for work in dist.batch_isend_irecv([operation]):
                    work.wait()
            else:
                (dist.send if is_sender else dist.recv)(x, 1 - rank.index)

        def trips(count, message=message):
            for _ in range(count):
                message(rank.index == 0)
                message(rank.index == 1)

        us = []
        count = max(1, min(8, (8 << 20) // nbytes)) if on_gpu else 1
        for _ in range(2 + iterations):
            if on_gpu:
                torch.cuda._sleep(4_000_000)
                trips(1)
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                trips(count)
                end.record()
                end.synchronize()
                us.append(start.elapsed_time(end) * 1e3 / count / 2)
            else:
                began = time.perf_counter()
                trips(count)
                us.append((time.perf_counter() - began) * 1e6 / count / 2)
        found.append(statistics.median(us[2:]))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=15)
    arguments = parser.parse_args()
    ours, theirs, fits = [], [], []
    with Cluster(2, arguments.backend) as cluster:
        for _ in range(arguments.rounds):
            frame = measure_point_to_point(cluster, iterations=arguments.iterations)
            forward = frame[frame["src"] == 0]
            sizes = forward["bytes"].tolist()
            plain = cluster.run(bare, sizes, arguments.iterations, timeout=None)[0]
            ours.append(forward["p50_us"].tolist())
            theirs.append(plain)
            fits.append((fit_link(forward), fit_ends(sizes, plain)))
        print(cluster.badge)
    rows = [
        {"bytes": size, "ours_us": statistics.median(mine), "bare_us": statistics.median(other)}
        for size, mine, other in zip(sizes, zip(*ours, strict=True), zip(*theirs, strict=True), strict=True)
    ]
    table = pd.DataFrame(rows)
    table["GBps"] = table["bytes"] / table["ours_us"] / 1e3
    table["ratio"] = table["ours_us"] / table["bare_us"]
    print(table.round(3).to_string(index=False))
    for name in ("alpha_us", "beta_GBps"):
        mine, other = (statistics.median(getattr(pair[side], name) for pair in fits) for side in (0, 1))
        print(f"{name}: ours {mine:.3g}, bare {other:.3g}, ratio {mine / other:.3f}")


if __name__ == "__main__":
    main()
