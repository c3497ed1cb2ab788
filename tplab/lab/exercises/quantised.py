"""Notebook 04: an all-reduce in int8 messages."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tplab.cluster import Cluster
from tplab.collectives.volumes import sent_bytes
from tplab.lab.exercises import on_ranks
from tplab.lab.exercises.trial import Trial
from tplab.lab.exercises.verdict import NotYetError, Verdict, checker

if TYPE_CHECKING:
    import torch

    from tplab.cluster import Rank

_LENGTHS = (4096, 1000)
"""Elements of the tries: multiples of 4, the most ranks that the notebooks use."""
_COARSEST = 256
"""Elements per scale at which the error is still accepted."""
_MOST, _LEAST = 0.55, 0.45
"""Bytes sent, as shares of a bfloat16 all-reduce's. Numbers of one byte cannot come with less."""
_SLACK = 1.5
"""Largest accepted error over the bound. That holds for whatever groups of at most ``_COARSEST`` elements, where an
owner spares its own addend; one that does not has n + 1 roundings in the place of n."""
_MOST_BIAS, _FAR = 0.4, 8.0
"""Largest accepted surplus of errors to one side, as a share, and the error over the bound beyond which it is another
mistake. Rounding has no side: a few hundredths for 1,000 numbers."""
_WRAPS = (
    "You add up int8 numbers. They wrap around at 128, and with a scale so large that they do not they lose digits: "
    "undo the scales first, and add in float32."
)
_TOO_EXACT = 5e-4
"""Median error over median number below which the numbers cannot have come as int8, whose steps are some hundredth."""


@checker("04-int8")
def check_int8_all_reduce(
    cluster: Cluster, all_reduce: "Callable[[Rank, torch.Tensor], torch.Tensor]", *, timeout: float = 20.0
) -> Verdict:
    """``all_reduce(rank, x)``: x (N,) float32, another on every rank; it must return their sum, nearly, on every rank.

    With 0.45 to 0.55 of the bytes of a bfloat16 all-reduce (counted as rings send them), an error below what rounding
    to int8 with a scale for every 256 elements gives, and the same bits on every rank. N is a multiple of 4.
    """
    trial = Trial(cluster, all_reduce, timeout=timeout, modules=("tplab.collectives.quantised",))
    n = cluster.num_ranks
    for length in _LENGTHS:
        what = f"With {length:,} elements"
        seen = trial.run(_given, _compared, length, context=what)
        bf16 = sent_bytes("all-reduce", "ring", 2 * length, n).sent_mean
        for rank in seen:
            if "returned" in rank.value:
                raise NotYetError(
                    f"rank {rank.rank}: it must return {length:,} numbers; it returned {rank.value['returned']}."
                )
            if rank.value["bias"] > _MOST_BIAS and rank.value["worst"] < _FAR:
                raise NotYetError(
                    f"{what}, rank {rank.rank}: most numbers are off to the same side. Converting to int8 cuts the "
                    f"fraction off: round first (.round())."
                )
            if rank.value["worst"] > _SLACK:
                summed = any(call.dtype == "int8" and "reduce" in call.kind for call in rank.calls)
                raise NotYetError(
                    f"{what}, rank {rank.rank}: one is off by {rank.value['worst']:.3g} times what int8 explains. "
                    f"{_WRAPS if summed else rank.value['look']}"
                )
            sent = sum(call.wire_bytes for call in rank.calls)
            share = sent / bf16 if bf16 else _LEAST
            said = (
                f"{what}, rank {rank.rank}: it sends {sent:,.0f} bytes, which is {share:.2f} of a bfloat16 all-reduce's"
            )
            if sent > _MOST * bf16 + 64 * n:  # short chunks have scales of their own
                raise NotYetError(f"{said}; at most {_MOST} is asked. Exchange chunks of int8, not everything.")
            if share < _LEAST:
                raise NotYetError(
                    f"{said}: a byte for every number, there and back, is half. The sum cannot have come this way: "
                    f"exchange x itself, quantised, through torch.distributed."
                )
            if rank.value["typical"] < _TOO_EXACT and n > 1:
                raise NotYetError(
                    f"{what}, rank {rank.rank}: the sum is more exact than int8 messages can make it. Where did the "
                    f"other digits travel? Quantise what you send."
                )
        if len({rank.value["digest"] for rank in seen}) > 1:
            raise NotYetError(
                f"{what}, the ranks hold different bits: the owner of a chunk must use its quantised sum as the others "
                f"get it."
            )
    return Verdict(True, "half of bfloat16's bytes, the error below the bound, and the same bits on every rank.")


def _addend(index: int, seed: int, length: int) -> "torch.Tensor":
    """What rank ``index`` holds: a part of it a hundred times larger than the rest, elsewhere in every try."""
    import torch

    generator = torch.Generator().manual_seed(seed + index)
    addend = torch.randn(length, generator=generator)
    start = seed % (length - length // 8)
    addend[start : start + length // 8] *= 100
    return addend


def _given(rank: "Rank", seed: int, length: int) -> tuple[Any, ...]:
    return (_addend(rank.index, seed, length).to(rank.device),)


def _compared(rank: "Rank", seed: int, got: Any, length: int) -> dict[str, Any]:
    import hashlib

    import torch

    from tplab.collectives.quantised import error_bound

    got = on_ranks.as_tensor(got)
    if not isinstance(got, torch.Tensor) or got.numel() != length:
        return {"returned": on_ranks.described(got)}
    got = got.detach().cpu().flatten().float()
    addends = [_addend(index, seed, length) for index in range(rank.world_size)]
    exact = torch.stack([addend.double() for addend in addends]).sum(0)
    off = (got.double() - exact).nan_to_num(nan=float("inf"))
    # No owner is spared, for which chunks are whose is the learner's choice; nor where a group begins.
    widened = [_largest_nearby(addend) for addend in addends]
    bound = torch.stack([error_bound(widened, owner, 1) for owner in range(rank.world_size)]).amax(0)
    one_scale = torch.stack([error_bound(addends, owner, length) for owner in range(rank.world_size)]).amax(0)
    return {
        "worst": float((off.abs() / bound).max()),
        "typical": float(off.abs().median() / exact.abs().median()),
        "bias": max(abs(float((off.sign() * side).mean())) for side in (exact.sign(), 1.0)),
        "look": _look(off, one_scale),
        "digest": hashlib.sha256(got.numpy().tobytes()).hexdigest(),
    }


def _largest_nearby(x: "torch.Tensor") -> "torch.Tensor":
    """The largest magnitude that can share a scale with each element, in groups that begin anywhere."""
    from torch.nn import functional as F

    window = 2 * _COARSEST - 1
    return F.max_pool1d(x.abs().reshape(1, 1, -1), window, stride=1, padding=window // 2).flatten()


def _look(off: "torch.Tensor", one_scale: "torch.Tensor") -> str:
    """What a too large error comes from, by its pattern."""
    if not bool(off.isfinite().all()):
        return "Some are no numbers: is there a scale of 0 that you divide by?"
    if bool((off.abs() <= _SLACK * one_scale).all()):
        return (
            "Is one scale used for everything? Some elements are a hundred times larger than others: one scale for "
            "every 64 or so keeps the small ones."
        )
    return (
        "That is more than rounding to 127 steps on either side of 0 gives. What every rank gets must be the sum of "
        "all ranks' numbers, each with the scale that its own rank has given it, added in float32. Does a number "
        "become 128, which int8 has not?"
    )
