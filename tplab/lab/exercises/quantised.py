"""Notebook 04: an all-reduce in int8 messages."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tplab.cluster import Cluster, ClusterError
from tplab.collectives.volumes import sent_bytes
from tplab.lab.exercises.verdict import Verdict

if TYPE_CHECKING:
    import torch

    from tplab.cluster import Rank

_LENGTHS = (4096, 1000)
_COARSEST = 256
"""Elements per scale at which the error is still accepted."""


def check_int8_all_reduce(
    cluster: Cluster, all_reduce: "Callable[[Rank, torch.Tensor], torch.Tensor]", *, timeout: float = 20.0
) -> Verdict:
    """``all_reduce(rank, x)``: x (N,) float32, another on every rank; it must return their sum, nearly, on every rank.

    With at most 0.55 of the bytes of a bfloat16 all-reduce (counted as rings send them), and an error below what
    rounding to int8 with a scale for every 256 elements gives.
    """
    n = cluster.num_ranks
    for length in _LENGTHS:
        try:
            outcomes = cluster.run(_try, all_reduce, length, timeout=timeout)
        except ClusterError as error:
            return Verdict(False, f"With {length:,} elements the run failed: {error}")
        bf16 = sent_bytes("all-reduce", "ring", 2 * length, n).sent_mean
        allowed = 0.55 * bf16 + 64 * n  # short chunks have scales of their own
        for rank, outcome in enumerate(outcomes):
            if "returned" in outcome:
                return Verdict(False, f"rank {rank}: it must return {length:,} numbers; got {outcome['returned']}.")
            if outcome["worst"] > 1:
                return Verdict(
                    False,
                    f"rank {rank}: with {length:,} elements one is {outcome['worst']:.3g} times further off than int8 "
                    f"explains. Do you add up int8 numbers? They wrap around at 128: dequantise first. Or is one scale "
                    f"used for everything? Some elements are a hundred times larger than others.",
                )
            sent = sum(_wire_bytes(kind, payload, n) for kind, payload in outcome["calls"])
            if sent > allowed:
                return Verdict(
                    False,
                    f"rank {rank}: sends {sent:,.0f} bytes for {length:,} elements, which is {sent / bf16:.2f} of a "
                    f"bfloat16 all-reduce's; at most 0.55 is asked. Exchange chunks, not everything.",
                )
        if len({outcome["digest"] for outcome in outcomes}) > 1:
            return Verdict(
                False,
                "the ranks hold different bits: the owner of a chunk must use its quantised sum as the others get it.",
            )
    return Verdict(True, "half of bfloat16's bytes, the error below the bound, and the same bits on every rank.")


def _wire_bytes(kind: str, payload: int, n: int) -> float:
    if kind == "recv":
        return 0.0
    if kind in ("send", "broadcast", "reduce"):
        return float(payload)
    if kind in ("all-reduce", "all-gather", "reduce-scatter"):
        return sent_bytes(kind, "ring", payload, n).sent_mean
    return payload * (n - 1) / n  # all-to-all, gather, scatter


def _try(rank: "Rank", all_reduce: Callable[..., Any], length: int) -> dict[str, Any]:
    import hashlib

    import torch

    from tplab.collectives.counter import CommCounter
    from tplab.collectives.quantised import error_bound

    addends = []
    for index in range(rank.world_size):
        generator = torch.Generator().manual_seed(100 * length + index)
        addend = torch.randn(length, generator=generator)
        addend[: length // 8] *= 100
        addends.append(addend)
    with CommCounter() as counter:
        got = all_reduce(rank, addends[rank.index].clone().to(rank.device))
    if not isinstance(got, torch.Tensor) or got.numel() != length:
        return {"returned": repr(got)[:60] if not isinstance(got, torch.Tensor) else f"shape {tuple(got.shape)}"}
    got = got.detach().cpu().flatten().float()
    exact = torch.stack([addend.double() for addend in addends]).sum(0)
    # No owner is spared, for which chunks are whose is the learner's choice.
    bound = torch.stack([error_bound(addends, owner, _COARSEST) for owner in range(rank.world_size)]).amax(0) * 1.5
    return {
        "worst": float(((got.double() - exact).abs() / bound).nan_to_num(nan=float("inf")).max()),
        "calls": [(record.kind, record.num_bytes) for record in counter.records],
        "digest": hashlib.sha256(got.numpy().tobytes()).hexdigest(),
    }
