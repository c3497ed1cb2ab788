"""Recursive doubling: all-reduce in log2(n) rounds, each with a partner twice as far away.

Not one-shot where n is large: it sends S bytes log2(n) times instead of n-1 times, and each round goes to one partner
only. Not the ring where messages are small: log2(n) latencies instead of 2(n-1).

Legend: n ranks, N elements, S bytes, p the largest power of two up to n.
"""

from typing import TYPE_CHECKING

import torch

from tplab.collectives.transport import Transport, as_transport, flat_view, scratch_like

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def recursive_doubling_all_reduce(tensor: torch.Tensor, group: "ProcessGroup | Transport | None") -> None:
    """Sum ``tensor`` over the ranks of ``group``, in place, the same bits on every rank.

    ==================  =========================  ==================================================
    on rank r           shape, dtype               what
    ==================  =========================  ==================================================
    tensor              any (N elements)           in: own addend; out: the sum
    scratch             (N,), its dtype            the partner's partial sum
    ==================  =========================  ==================================================

    Equation: ``out = sum over r of in_r`` as a balanced tree, the lower ranks' partial sum always on the left, in the
    tensor's own dtype: each addend is rounded log2(n) times, not n - 1 times as in a ring.

    Communication: rank r exchanges the whole tensor with ``r xor 1``, ``r xor 2``, ``r xor 4``, ...

    A number of ranks that is no power of two: fold in first. Of the ranks below ``2 (n - p)``, the even ones send their
    tensor to the next odd one and wait; the odd ones and the rest are p ranks, which double. Fold out: the odd ones
    send the result back.

    Bytes sent by each rank: ``log2(p) S``, S more on a rank that folded another one in; S on a rank that was folded.

    Args:
        group: a process group, or any :class:`~tplab.collectives.transport.Transport`; None for a rank alone.

    Raises:
        ValueError: ``tensor`` or ``group`` cannot work.

    Source: Thakur, Rabenseifner and Gropp, "Optimization of collective communication operations in MPICH", IJHPCA 19
    (2005), section 4.5.
    """
    transport = as_transport(group)
    with flat_view(tensor, transport) as x:
        if transport.size > 1 and x.numel() > 0:
            _recursive_doubling(x, transport)


def _recursive_doubling(x_N: torch.Tensor, transport: Transport) -> None:
    n, r = transport.size, transport.index
    p = 1 << (n.bit_length() - 1)
    num_folded = n - p
    if r >= 2 * num_folded:
        with scratch_like(x_N, x_N.numel()) as scratch_N:
            _double(x_N, scratch_N, transport, place=r - num_folded, p=p, num_folded=num_folded)
    elif r % 2 == 0:
        transport.exchange([(x_N, r + 1)], []).wait()
        transport.exchange([], [(x_N, r + 1)]).wait()
    else:
        with scratch_like(x_N, x_N.numel()) as scratch_N:
            transport.exchange([], [(scratch_N, r - 1)]).wait()
            torch.add(scratch_N, x_N, out=x_N)
            _double(x_N, scratch_N, transport, place=r // 2, p=p, num_folded=num_folded)
        transport.exchange([(x_N, r - 1)], []).wait()


def _double(
    x_N: torch.Tensor, scratch_N: torch.Tensor, transport: Transport, *, place: int, p: int, num_folded: int
) -> None:
    """Doubling among p ranks; ``place`` is this rank's number among them."""
    distance = 1
    while distance < p:
        other = place ^ distance
        peer = 2 * other + 1 if other < num_folded else other + num_folded
        transport.exchange([(x_N, peer)], [(scratch_N, peer)]).wait()
        # The same order on both sides: a + b and b + a differ where both are NaN.
        lower, higher = (x_N, scratch_N) if place < other else (scratch_N, x_N)
        torch.add(lower, higher, out=x_N)
        distance *= 2
