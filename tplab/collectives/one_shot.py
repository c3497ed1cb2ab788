"""One-shot all-reduce: everyone sends everything to everyone, then adds it up alone.

One round, so the lowest latency there is, for n-1 times the tensor's bytes: for the small messages of decoding, where
the bytes hardly count. Not an all-gather followed by a sum, which is the same in bytes but needs n buffers, not n-1.

Legend: n ranks, N elements, S bytes.
"""

from typing import TYPE_CHECKING

import torch

from tplab.collectives.transport import Transport, as_transport, flat_view, scratch_like
from tplab.collectives.two_shot import add_in_rank_order

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def one_shot_all_reduce(tensor: torch.Tensor, group: "ProcessGroup | Transport | None") -> None:
    """Sum ``tensor`` over the ranks of ``group``, in place, the same bits on every rank.

    ==================  =========================  ==================================================
    on rank r           shape, dtype               what
    ==================  =========================  ==================================================
    tensor              any (N elements)           in: own addend; out: the sum
    scratch             (n-1, N), its dtype        the tensors of all other ranks
    ==================  =========================  ==================================================

    Equation: ``out = ((in_0 + in_1) + in_2) + ...``, in rank order on every rank and in the tensor's own dtype.

    Communication: one exchange, the whole tensor to every other rank.

    Bytes sent by each rank: ``(n-1) S``.

    Args:
        group: a process group, or any :class:`~tplab.collectives.transport.Transport`; None for a rank alone.

    Raises:
        ValueError: ``tensor`` or ``group`` cannot work.

    Source: the one-shot kernels of TensorRT-LLM's and vLLM's custom all-reduce, which read the peers' memory where this
    sends messages.
    """
    transport = as_transport(group)
    with flat_view(tensor, transport) as x:
        if transport.size > 1 and x.numel() > 0:
            _one_shot(x, transport)


def _one_shot(x_N: torch.Tensor, transport: Transport) -> None:
    n, r = transport.size, transport.index
    others = [(r + distance) % n for distance in range(1, n)]
    with scratch_like(x_N, (n - 1) * x_N.numel()) as scratch:
        addends = dict(zip(others, scratch.view(n - 1, x_N.numel()), strict=True))
        # Also waits for the sends: the sum overwrites what they read.
        transport.exchange([(x_N, peer) for peer in others], [(addends[peer], peer) for peer in others]).wait()
        add_in_rank_order(x_N, r, addends)
