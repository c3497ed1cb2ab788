"""A decode step's sums on GPUs: NCCL, torch's kernels and ours; alone, and with the residual and norm that follow.

    python tests/benchmarks/bench_sum_norm.py --ranks 4

Every way is captured in a CUDA graph of ``--calls`` calls one after another, as in a decode step, and replayed in turns
with the others; printed are microseconds per call, medians of the slowest rank's. A GPU per rank; without one, what the
kernels take for the CPU's interpreter is of no use, and it ends with an error.
"""

import argparse
from functools import partial
from statistics import median

import pandas as pd

from tplab import Cluster


def ways(rank, tokens, hidden):
    """Name -> call, of this rank: sums first, then sums with residual and norm."""
    import torch
    import torch.distributed as dist
    from torch.nn import functional as F

    from tplab.collectives import peer_memory, symmetric
    from tplab.layers.comm import ProcessGroupComm
    from tplab.layers.kernels.norm import add_norm

    kind = {"dtype": torch.bfloat16, "device": rank.device}
    x, residual, weight = (torch.zeros(*shape, **kind) for shape in ((tokens, hidden), (tokens, hidden), (hidden,)))
    memory = peer_memory.memory_of(rank, rank.group, 8 << 20)
    shared = symmetric.empty(tokens * hidden, torch.bfloat16, rank.device, rank.group)
    nccl = ProcessGroupComm(rank.group)

    def three():
        dist.all_reduce(x, group=rank.group)
        return F.rms_norm(x + residual, (hidden,), weight, 1e-5)

    return {
        "NCCL": partial(nccl.all_reduce, x),
        "torch two-shot": partial(symmetric.symmetric_two_shot, shared, rank.group),
        "one-shot": partial(peer_memory.one_shot, x, memory),
        "two-shot": partial(peer_memory.two_shot, x, memory),
        "NCCL, add, norm": three,
        "NCCL, add + norm": lambda: add_norm(residual, nccl.all_reduce(x), weight, 1e-5),
        "one kernel": partial(peer_memory.all_reduce_add_rms_norm, x, residual, weight, memory, eps=1e-5),
    }


def measure(rank, tokens, hidden, calls, rounds):
    """Name -> median microseconds per call."""
    import torch

    from tplab.measure.sampler import collective_sampler

    def often(call):
        for _ in range(calls):
            call()

    with torch.inference_mode():
        named = ways(rank, tokens, hidden)
        samplers = {name: collective_sampler(rank, partial(often, call), graph=True) for name, call in named.items()}
        times = {name: [] for name in samplers}
        for _ in range(rounds):
            for name, sample in samplers.items():
                times[name].append(sample() / calls)
    return {name: median(each[2:]) for name, each in times.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ranks", type=int, default=None, help="ranks; by default all GPUs")
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=22)
    arguments = parser.parse_args()
    rows = []
    with Cluster(arguments.ranks, "nccl") as cluster:
        for tokens, hidden in ((1, 4096), (1, 8192), (4, 4096), (4, 8192), (16, 8192)):
            each = cluster.run(measure, tokens, hidden, arguments.calls, arguments.rounds)
            us = {name: max(one[name] for one in each) for name in each[0]}
            fused = us["one kernel"] / us["NCCL, add + norm"]
            ratios = {"one-shot / NCCL": us["one-shot"] / us["NCCL"], "one kernel / NCCL, add + norm": fused}
            rows.append({"tokens": tokens, "hidden": hidden, "KiB": tokens * hidden // 512, **us, **ratios})
        print(cluster.provenance)
    print(pd.DataFrame(rows).set_index(["tokens", "hidden"]).round(2).T.to_string())


if __name__ == "__main__":
    main()
