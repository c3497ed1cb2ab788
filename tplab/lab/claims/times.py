"""Recipes for claims about times: C9 from runs recorded in the lab, C21 from them and from a model of links; C12's and
C9's live halves are in ``tplab.lab.claims.live`` (see docs/article.md)."""

import pandas as pd

from tplab.collectives.cost import time_us
from tplab.lab.claims.findings import Finding, between, chosen, said
from tplab.lab.recorded import recorded, recorded_badge
from tplab.topology.machine.machine import Link, Machine

KIB, MIB = 1 << 10, 1 << 20
DECODE, PREFILL = 16 * KIB, 32 * MIB
"""Bytes of one all-reduce at h = 8192 in 16 bits: one token, and 2,048."""
_BOX, _PAIR = "4xH200-2026-11-26", "2xH200-2026-11-28"
_CALLS = 160


def all_reduce_on_nvlink(tolerance: float) -> Finding:
    """C9: what NCCL took on four H200, eager and in a CUDA graph, beside 50 to 100 us; the sizes that would fit."""
    four = _sweep(_BOX, 4)
    cases = []
    for phase, nbytes in (("decode, 16 KiB", DECODE), ("prefill, 32 MiB", PREFILL)):
        for mode in ("eager", "graph"):
            us = _us(four, nbytes, "library", mode)
            where = "eager" if mode == "eager" else "in a CUDA graph"
            cases.append(between(f"{phase}, {where}: one all-reduce", 50, 100, us, "µs", tolerance, "one"))
        eager = _us(four, nbytes, "library", "eager")
        cases.append(between(f"{phase}: {_CALLS} of them", 8, 16, _CALLS * eager / 1e3, "ms", tolerance, "80 layers"))
    library = four[(four.algorithm == "library") & (four.launch_mode == "eager") & four.p50_us.between(50, 100)]
    pushed = _us(_sweep(_PAIR, 2), DECODE, "pushed-one-shot", "graph")
    return Finding(
        cases=cases,
        facts={
            "decode": said(_us(four, DECODE, "library", "eager"), "µs"),
            "graph": said(_us(four, DECODE, "library", "graph"), "µs"),
            "one_shot": said(_us(four, DECODE, "symmetric-one-shot", "graph"), "µs"),
            "pushed": said(pushed, "µs"),
            "step": said(_CALLS * _us(four, DECODE, "library", "eager") / 1e3, "ms"),
            "prefill": said(_us(four, PREFILL, "library", "eager"), "µs"),
            "layers": said(_CALLS * _us(four, PREFILL, "library", "eager") / 1e3, "ms"),
            "low": said(library.bytes.min() / MIB, "MiB"),
            "high": said(library.bytes.max() / MIB, "MiB"),
        },
        badge=recorded_badge(_BOX),
    )


def what_binds(tolerance: float) -> Finding:
    """C21: whether latency or bandwidth is the larger part of an all-reduce on 8 GPUs and of a hop, by phase."""
    node, network = Machine.preset("h100").link(0, 1), Machine.preset("h100", nodes=2).network
    assert network is not None, "between nodes"

    def bound(algorithm: str, nbytes: int, n: int, link: Link) -> str:
        empty, whole = (time_us(algorithm, size, n, link.latency_us, link.bandwidth_GBps) for size in (0, nbytes))
        return "latency" if empty > whole / 2 else "bandwidth"

    def hop(nbytes: int) -> str:
        return "latency" if network.latency_us > nbytes / network.bandwidth_GBps / 1e3 else "bandwidth"

    four = _sweep(_BOX, 4)
    small, large = (_us(four, size, "library", "eager") for size in (DECODE, PREFILL))
    least = _us(four, KIB, "library", "eager")
    return Finding(
        cases=(
            chosen("TP, decode of one request (16 KiB), 8 GPUs", "latency", bound("ring", DECODE, 8, node), "TP"),
            chosen("TP, prefill of 2,048 tokens (32 MiB), 8 GPUs", "latency", bound("ring", PREFILL, 8, node), "TP"),
            chosen("PP between nodes, prefill (32 MiB)", "bandwidth", hop(PREFILL), "PP"),
            chosen("PP between nodes, decode (16 KiB)", "bandwidth", hop(DECODE), "PP"),
        ),
        facts={
            "least": said(least, "µs"),
            "decode": said(small, "µs"),
            "prefill": said(large, "µs"),
        },
    )


def _sweep(box: str, num_ranks: int) -> pd.DataFrame:
    frame = recorded(box, "sweep")
    return frame[frame.num_ranks == num_ranks]


def _us(frame: pd.DataFrame, nbytes: int, algorithm: str, mode: str) -> float:
    row = frame[(frame.bytes == nbytes) & (frame.algorithm == algorithm) & (frame.launch_mode == mode)]
    return float(row.p50_us.iloc[0])
