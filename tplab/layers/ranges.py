"""Which rows of a tensor, tokens of a vocabulary and attention heads a rank holds: the arithmetic of sharding alone.

Pure: no torch, so that memory can be computed where there are no ranks.

Legend: n ranks, r this rank; H query heads, G key-value heads; V vocabulary.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

from tplab.checks import check_divides


def divisors(number: int) -> list[int]:
    """In order. Looks no further than the square root."""
    low = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return low + [number // n for n in reversed(low) if n * n != number]


def even_range(what: str, size: int, index: int, n: int) -> tuple[int, int]:
    """The part of ``size`` that rank ``index`` of ``n`` holds. Raises ``ValueError`` unless n divides the size."""
    if size % n:
        fitting = [ranks for ranks in divisors(size) if ranks <= 4 * n]
        below, above = size - size % n, size + n - size % n
        nearest = f"{below} or {above}" if below else f"{above}"
        raise ValueError(
            f"{what}={size} does not divide over {n} ranks (remainder {size % n}): use {', '.join(map(str, fitting))} "
            f"ranks, or {what}={nearest}"
        )
    each = size // n
    return index * each, (index + 1) * each


@lru_cache(maxsize=4096)
def vocab_rows(size: int, n: int) -> int:
    """Rows of a vocabulary of ``size`` on each of ``n`` ranks: the last ones of the last ranks are padding. Kept,
    because the advisor asks for every layout."""
    return -(-size // n)


@dataclass(frozen=True, kw_only=True, slots=True)
class VocabShard:
    """The tokens whose rows a rank holds. Any vocabulary size: every rank holds as many rows, the last ones of the
    last ranks are padding."""

    size: int
    """V, the true vocabulary."""
    start: int
    end: int
    """``start`` is the first token, ``end`` the one after the last; they are equal where a rank has padding only."""
    rows: int
    """Rows of the shard, padding included: the same on every rank."""

    @classmethod
    def of(cls, size: int, index: int, n: int) -> "VocabShard":
        """What rank ``index`` of ``n`` holds of a vocabulary of ``size``."""
        rows = vocab_rows(size, n)
        return cls(size=size, start=min(index * rows, size), end=min((index + 1) * rows, size), rows=rows)

    @property
    def padding(self) -> int:
        """Rows that stand for no token."""
        return self.rows - (self.end - self.start)


def kv_ranges(num_heads: int, num_kv_heads: int, n: int) -> tuple[tuple[int, int], ...]:
    """Key-value heads that the query heads of each of ``n`` ranks use: the first, and the one after the last.

    6 heads with 2 key-value heads on 3 ranks give the middle rank a query head of each group, so both key-value heads.
    Raises ``ValueError`` for head counts that cannot be cut.
    """
    check_divides("num_kv_heads", num_kv_heads, "num_heads", num_heads)
    group = num_heads // num_kv_heads
    cuts = (even_range("num_heads", num_heads, rank, n) for rank in range(n))
    return tuple((start // group, (end - 1) // group + 1) for start, end in cuts)


@lru_cache(maxsize=4096)
def kv_heads_by_rank(num_heads: int, num_kv_heads: int, n: int) -> tuple[int, ...]:
    """How many key-value heads each rank holds. Kept, because the advisor asks for every layout."""
    return tuple(end - start for start, end in kv_ranges(num_heads, num_kv_heads, n))


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadShard:
    """The attention heads of a rank. Query heads are cut evenly; a rank holds every key-value head that they need.

    With fewer key-value heads than ranks, or groups that straddle a cut, several ranks hold the same one.
    """

    q_start: int
    q_end: int
    """Query heads ``q_start`` to ``q_end - 1``."""
    kv_start: int
    kv_end: int
    """Key-value heads ``kv_start`` to ``kv_end - 1``."""
    kv_of_q: tuple[int, ...]
    """The key-value head of each query head of this rank, counted from ``kv_start``."""
    replicated: bool
    """Whether any key-value head lies on more than one rank: then their gradients are summed over the ranks."""

    @classmethod
    def of(cls, num_heads: int, num_kv_heads: int, index: int, n: int) -> "HeadShard":
        """What rank ``index`` of ``n`` holds. Raises ``ValueError`` for head counts that cannot be cut."""
        needs = kv_ranges(num_heads, num_kv_heads, n)
        q_start, q_end = even_range("num_heads", num_heads, index, n)
        kv_start, kv_end = needs[index]
        per_group = num_heads // num_kv_heads
        return cls(
            q_start=q_start,
            q_end=q_end,
            kv_start=kv_start,
            kv_end=kv_end,
            kv_of_q=tuple(head // per_group - kv_start for head in range(q_start, q_end)),
            replicated=sum(end - start for start, end in needs) > num_kv_heads,
        )

    @property
    def num_q(self) -> int:
        return self.q_end - self.q_start

    @property
    def num_kv(self) -> int:
        return self.kv_end - self.kv_start
