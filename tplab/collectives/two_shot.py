"""Two-shot all-reduce: the ring's bytes in two rounds instead of 2(n-1), everyone talking to everyone.

Not the ring where every pair of ranks has its own link (NVSwitch): the ring uses one link out of n-1 and pays the
latency 2(n-1) times. Where all pairs share one link the rounds are no faster than the ring's, only burstier.

Legend: n ranks, N elements, S bytes, a chunk has N/n elements.
"""

from typing import TYPE_CHECKING

import torch

from tplab.collectives.transport import Message, Transport, as_transport, flat_view, scratch_like, split_evenly

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def two_shot_all_reduce(tensor: torch.Tensor, group: "ProcessGroup | Transport | None") -> None:
    """Sum ``tensor`` over the ranks of ``group``, in place, the same bits on every rank.

    ==================  =========================  ==================================================
    on rank r           shape, dtype               what
    ==================  =========================  ==================================================
    tensor              any (N elements)           in: own addend; out: the sum
    chunk c             (N/n,), its dtype          by ``torch.tensor_split``: the first N mod n are one longer
    scratch             (n-1, N/n)                 chunk r of every other rank
    ==================  =========================  ==================================================

    Equation: ``out = ((in_0 + in_1) + in_2) + ...``, in rank order and in the tensor's own dtype: the same bits as
    one-shot.

    Communication: reduce-scatter by direct exchange (send chunk c to rank c, for all c but r; add up chunk r), then
    all-gather by direct exchange (send chunk r to everyone).

    Bytes sent by each rank: ``2 (n-1)/n S``, exactly when n divides N; otherwise S less its own chunk, and n-1 times
    its own chunk.

    Args:
        group: a process group, or any :class:`~tplab.collectives.transport.Transport`; None for a rank alone.

    Raises:
        ValueError: ``tensor`` or ``group`` cannot work.

    Source: Rabenseifner, "Optimization of collective reduction operations", ICCS 2004, with direct exchange in place of
    halving and doubling; "two-shot" as in TensorRT-LLM's and vLLM's custom all-reduce kernels.
    """
    transport = as_transport(group)
    with flat_view(tensor, transport) as x:
        if transport.size > 1 and x.numel() > 0:
            _two_shot(x, transport)


def _two_shot(x_N: torch.Tensor, transport: Transport) -> None:
    n, r = transport.size, transport.index
    chunks = [x_N[start:end] for start, end in split_evenly(x_N.numel(), n)]
    mine = chunks[r]
    # Start with the next neighbour, then the one after: in the same moment no two ranks send to the same one.
    others = [(r + distance) % n for distance in range(1, n)]
    with scratch_like(x_N, (n - 1) * mine.numel()) as scratch:
        addends = dict(zip(others, scratch.view(n - 1, mine.numel()), strict=True))
        _exchange(transport, [(chunks[c], c) for c in others], [(addends[c], c) for c in others])
        add_in_rank_order(mine, r, addends)
    _exchange(transport, [(mine, c) for c in others], [(chunks[c], c) for c in others])


def _exchange(transport: Transport, sends: list[Message], recvs: list[Message]) -> None:
    """Send and receive what is not empty: with fewer elements than ranks, some chunks are."""
    transport.exchange(
        [message for message in sends if message[0].numel()], [message for message in recvs if message[0].numel()]
    ).wait()


def add_in_rank_order(mine: torch.Tensor, index: int, addends: dict[int, torch.Tensor]) -> None:
    """``mine`` becomes the sum of itself, as the addend of rank ``index``, and the others' ``addends``.

    In rank order, whoever adds: so several ranks that add up the same numbers get the same bits. Uses up ``addends``.
    """
    addends[index] = mine
    total = addends[0]
    for rank in range(1, len(addends)):
        # Into the scratch, until `mine` has been added; from then on into `mine`.
        torch.add(total, addends[rank], out=mine if rank >= index else total)
        total = mine if rank >= index else total
