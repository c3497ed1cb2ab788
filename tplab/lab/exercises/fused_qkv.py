"""Notebook 03: a rank's part of a fused QKV weight, read from a safetensors file without reading the rest.

A contiguous split of the rows [Q | K | V] has the right shape wherever there are as many key-value heads as query
heads, and gives rank 0 of two all of Q and half of K. And a slice after ``fused[:]`` is right, but reads n times too
much: counted where the file is read.
"""

import os
import tempfile
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from tplab.checks import ArgumentError
from tplab.cluster import Cluster
from tplab.lab.exercises.on_ranks import as_tensor, described
from tplab.lab.exercises.trial import Trial, check_cluster
from tplab.lab.exercises.verdict import NotYetError, Verdict, checker
from tplab.layers.ranges import HeadShard

if TYPE_CHECKING:
    import torch

    from tplab.cluster import Rank

_HEAD_DIM, _HIDDEN = 4, 24
_NAME = "self_attn.qkv_proj.weight"
_KEY = "tplab exercise: slices read"


@checker("03-qkv")
def check_qkv(
    cluster: Cluster, my_qkv: "Callable[[Rank, CountedSlice, int, int], torch.Tensor]", *, timeout: float = 20.0
) -> Verdict:
    """``my_qkv(rank, fused, num_heads, num_kv_heads)``: fused is a slice of a file, ((H + 2·G)·E, D), rows Q, K, V.

    It must return this rank's rows of all three, one below the other: ((h + 2·g)·E, D) with h = H/n query heads and the
    g key-value heads that they need, G/n of them, or one that several ranks share where there are fewer than ranks. And
    it must not read another byte. ``fused`` is what safetensors' ``get_slice`` gives: ``fused.get_shape()``,
    ``fused[a:b]``.

    Args:
        cluster: two, four or eight ranks.
        my_qkv: the learner's.
        timeout: seconds that a call may take.
    """
    check_cluster(cluster)
    n = cluster.num_ranks
    if n not in (2, 4, 8):
        raise ArgumentError("cluster", n, "must have 2, 4 or 8 ranks, which the checker's heads divide over")
    trial = Trial(cluster, my_qkv, timeout=timeout, modules=("safetensors.torch",))
    cases = ((2 * n, 2 * n), (4 * n, 2 * n), (4 * n, n), (2 * n, n // 2), (n, 1))
    for num_heads, num_kv_heads in cases:
        context = f"With {num_heads} heads and {num_kv_heads} key-value head{'s' * (num_kv_heads > 1)} on {n} ranks"
        for each in trial.run(_prepare, _judge, num_heads, num_kv_heads, context=context):
            if fault := each.value:
                raise NotYetError(f"{context}: rank {each.rank}: {fault}")
    return Verdict(
        True,
        f"each of {n} ranks has its heads' rows of Q, K and V for {len(cases)} models, and has read no others: "
        f"{' and '.join(f'{_share(h, g, n):.0%}' for h, g in (cases[0], cases[-1]))} of the file in the first and the "
        f"last of them.",
    )


def _share(num_heads: int, num_kv_heads: int, n: int) -> float:
    shard = HeadShard.of(num_heads, num_kv_heads, 0, n)
    return (shard.num_q + 2 * shard.num_kv) / (num_heads + 2 * num_kv_heads)


class CountedSlice:
    """A tensor in a safetensors file, as ``safe_open(...).get_slice(name)`` gives it; it knows what was read of it."""

    def __init__(self, file: Any, name: str) -> None:
        self._slice = file.get_slice(name)
        self._reads: list[int] = []

    def get_shape(self) -> list[int]:
        """Its rows and columns. Reads nothing."""
        return list(self._slice.get_shape())

    def get_dtype(self) -> str:
        """Such as ``F32``. Reads nothing."""
        return str(self._slice.get_dtype())

    def __getitem__(self, key: Any) -> "torch.Tensor":
        part: torch.Tensor = self._slice[key].clone()  # what it gives is a view of the whole file
        self._reads.append(part.numel() * part.element_size())
        return part

    @property
    def num_bytes(self) -> int:
        """Bytes read so far."""
        return sum(self._reads)


def _weight(seed: int, num_heads: int, num_kv_heads: int) -> "torch.Tensor":
    """The same rows on every rank, no two alike."""
    import torch

    rows = (num_heads + 2 * num_kv_heads) * _HEAD_DIM
    drawn = torch.randn(rows, _HIDDEN, generator=torch.Generator().manual_seed(seed)).bfloat16()
    drawn[:, 0] = torch.arange(rows)  # below 256, which bfloat16 holds exactly; checkers say which rows came
    return drawn


def _prepare(rank: "Rank", seed: int, num_heads: int, num_kv_heads: int) -> tuple[Any, ...]:
    from safetensors import safe_open
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.safetensors")
        save_file({_NAME: _weight(seed, num_heads, num_kv_heads)}, path)
        fused = CountedSlice(safe_open(path, "pt", device="cpu"), _NAME)  # stays mapped when its name is gone
    rank.store[_KEY] = fused
    return fused, num_heads, num_kv_heads


def _rows(shard: HeadShard, num_heads: int, num_kv_heads: int) -> list[tuple[str, range]]:
    """The rows of a rank's part: of Q, of K and of V."""
    starts = {"Q": 0, "K": num_heads, "V": num_heads + num_kv_heads}
    heads = {
        "Q": (shard.q_start, shard.q_end),
        "K": (shard.kv_start, shard.kv_end),
        "V": (shard.kv_start, shard.kv_end),
    }
    return [
        (part, range((starts[part] + first) * _HEAD_DIM, (starts[part] + last) * _HEAD_DIM))
        for part, (first, last) in heads.items()
    ]


def _judge(rank: "Rank", seed: int, got: Any, num_heads: int, num_kv_heads: int) -> str | None:
    import torch

    fused = rank.store.pop(_KEY)
    full = _weight(seed, num_heads, num_kv_heads)
    parts = _rows(HeadShard.of(num_heads, num_kv_heads, rank.index, rank.world_size), num_heads, num_kv_heads)
    rows = [row for _, part in parts for row in part]
    want = full[rows]
    if isinstance(got, tuple | list) and len(got) == 3 and all(isinstance(part, torch.Tensor) for part in got):
        return f"it must return one tensor, {described(want)}; it returned three. torch.cat puts them together."
    got = as_tensor(got)
    if not isinstance(got, torch.Tensor) or got.dim() != 2 or got.shape[1] != _HIDDEN or got.dtype != want.dtype:
        return f"it must return its rows of the file, {described(want)}; it returned {described(got)}."
    mine = got.detach().cpu()
    if not torch.equal(mine, want):
        known = [row if torch.equal(mine[i], full[row]) else None for i, row in enumerate(_told_rows(mine, len(full)))]
        return _look(known, parts, rank.world_size, num_heads, num_kv_heads)
    read, least = fused.num_bytes, want.numel() * want.element_size()
    if read > least:
        whole = " That is the whole of it: fused[:] reads before it is sliced." if read >= full.nbytes else ""
        return (
            f"right, but {read:,} bytes were read of the file, {read / least:.3g} times the {least:,} of this rank's "
            f"part.{whole} Slice the file, fused[a:b], once for each of Q, K and V."
        )
    if read < least:
        return f"right, but only {read:,} of {least:,} bytes were read through fused: read them there."
    return None


def _told_rows(mine: "torch.Tensor", most: int) -> list[int]:
    """Which row of the file each one would be, by the number that it begins with."""
    return [int(value) if 0 <= value < most else 0 for value in mine[:, 0].nan_to_num().tolist()]


def _look(
    known: Sequence[int | None], parts: Sequence[tuple[str, range]], n: int, num_heads: int, num_kv_heads: int
) -> str:
    """Where to look for what is wrong with the rows that came; None stands for one that is in no place of the file."""
    want = [row for _, part in parts for row in part]
    if None in known:
        return "it returned rows that are not in the file: they are to be read, not computed."
    came = [row for row in known if row is not None]
    q_end, k_end = num_heads * _HEAD_DIM, (num_heads + num_kv_heads) * _HEAD_DIM
    counts = {
        "Q": sum(row < q_end for row in came),
        "K": sum(q_end <= row < k_end for row in came),
        "V": sum(k_end <= row for row in came),
    }
    wanted = ", ".join(f"{part} {_range(rows)}" for part, rows in parts)
    consecutive = len(came) > 1 and all(after == before + 1 for before, after in pairwise(came))
    if consecutive and len(came) >= (2 * k_end - q_end) // n:
        held = ", ".join(f"{count // _HEAD_DIM} heads of {part}" for part, count in counts.items())
        return (
            f"rows {came[0]} to {came[-1]} in one piece: that is {held}. The rows are [Q | K | V], so a rank's part is "
            f"not one piece but one of each: {wanted}."
        )
    if sorted(came) == sorted(want):
        return f"the right rows in another order: expected {wanted}, one below the other, head by head."
    for part, rows in parts:
        lowest, highest = {"Q": (0, q_end), "K": (q_end, k_end), "V": (k_end, 1 << 30)}[part]
        have = [row for row in came if lowest <= row < highest]
        if have != list(rows):
            heads = [(row - lowest) // _HEAD_DIM for row in have[::_HEAD_DIM]]
            needs = [(row - lowest) // _HEAD_DIM for row in rows[::_HEAD_DIM]]
            hint = (
                f" Query head q uses key-value head q // {num_heads // num_kv_heads}."
                if part != "Q"
                else " Query heads are shared out evenly."
            )
            return f"{part}: expected head{'s' * (len(needs) > 1)} {needs} ({_range(rows)}), came {heads}.{hint}"
    return f"expected {wanted}; came other rows."


def _range(rows: range) -> str:
    return f"rows {rows[0]} to {rows[-1]}"
