"""The parallel MLP beside two hand-written matmuls and ``dist.all_reduce``, and beside torch's DTensor, over gloo.

    python tests/benchmarks/bench_layers.py --ranks 2 --rounds 31

GELU, no biases, float32, intermediate 4·h; the same weights for all three, which must give the same result. Without
gradients, as in inference. They take turns within a round in an order that changes from round to round; a sample is ten
calls after a barrier, its time that of the slowest rank. The table gives medians per call, and ratios to hand-written:
compare those of one run only.
"""

import argparse
import os
import statistics
import sys
import time
from typing import Any

import cloudpickle

from tplab import Cluster

CASES = ((256, 1), (1024, 1), (256, 16), (1024, 16), (1024, 256))
"""Hidden size and tokens."""
CALLS = 10
NAMES = ("hand-written", "tplab", "DTensor")


def take_turns(rank: Any, cases: tuple[tuple[int, int], ...], rounds: int) -> list[dict[str, list[float]]]:
    """Runs on the ranks: per case, who -> microseconds per call, one per round."""
    import torch
    import torch.distributed as dist
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
    from torch.nn import functional as F

    from tplab.layers.block import ParallelMLP
    from tplab.layers.plain import MLP

    torch.set_num_threads(1)
    outcome = []
    for hidden, tokens in cases:
        torch.manual_seed(1)
        x = torch.randn(tokens, hidden)
        plain = MLP(hidden, 4 * hidden, activation="gelu")
        want = plain(x)
        ours = ParallelMLP.from_module(plain, rank.group)
        up, down = ours.gate_up.weight.detach(), ours.down.weight.detach()
        plan = {"up_proj": ColwiseParallel(), "down_proj": RowwiseParallel()}
        dtensor = parallelize_module(plain, rank.mesh()["tp"], plan)

        def by_hand(x: Any = x, up: Any = up, down: Any = down) -> Any:
            y = F.linear(F.gelu(F.linear(x, up)), down)
            dist.all_reduce(y, group=rank.group)
            return y

        calls = {
            "hand-written": by_hand,
            "tplab": lambda x=x, ours=ours: ours(x),
            "DTensor": lambda x=x, dtensor=dtensor: dtensor(x),
        }
        times: dict[str, list[float]] = {name: [] for name in calls}
        with torch.no_grad():
            for number in range(-3, rounds):  # three to warm up
                for name in [*calls][:: 1 if number % 2 else -1]:
                    dist.barrier(group=rank.group)
                    began = time.perf_counter()
                    for _ in range(CALLS):
                        y = calls[name]()
                    took = (time.perf_counter() - began) / CALLS
                    torch.testing.assert_close(y, want, rtol=1e-4, atol=1e-5)
                    if number >= 0:
                        times[name].append(took * 1e6)
        outcome.append(times)
        rank.report(phase=f"h={hidden}, {tokens} tokens", done=len(outcome), total=len(cases))
    return outcome


def measure(num_ranks: int, rounds: int, cases: tuple[tuple[int, int], ...] = CASES) -> list[dict[str, float]]:
    """One row per case."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with Cluster(num_ranks, "gloo") as cluster:
        by_rank = cluster.run(take_turns, cases, rounds, timeout=600)
    rows = []
    for index, (hidden, tokens) in enumerate(cases):
        row: dict[str, float] = {"hidden": hidden, "tokens": tokens}
        slowest = {
            name: [max(samples) for samples in zip(*(outcome[index][name] for outcome in by_rank), strict=True)]
            for name in NAMES
        }
        for name in NAMES:
            row[f"{name} us"] = statistics.median(slowest[name])
            row[f"{name} ratio"] = row[f"{name} us"] / row["hand-written us"]
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="parallel MLP beside hand-written code and DTensor")
    parser.add_argument("--ranks", type=int, default=2, help="number of ranks (default: 2)")
    parser.add_argument("--rounds", type=int, default=31, help="samples per case (default: 31)")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    print(f"{os.cpu_count()} cores, {arguments.ranks} ranks; load average before: {os.getloadavg()[0]:.2f}")
    print(f"{'hidden':>6} {'tokens':>6} {'hand-written us':>16} {'tplab':>6} {'DTensor':>8}")
    for row in measure(arguments.ranks, arguments.rounds):
        print(
            f"{row['hidden']:6} {row['tokens']:6} {row['hand-written us']:16.1f} {row['tplab ratio']:6.3f} "
            f"{row['DTensor ratio']:8.3f}",
            flush=True,
        )
    print(f"load average after: {os.getloadavg()[0]:.2f}")


if __name__ == "__main__":
    main()
