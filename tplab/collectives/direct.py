"""All-gather and reduce-scatter by direct exchange: one round, everyone talking to everyone.

Not the ring: over links of their own between all pairs (NVSwitch, or emulated) one round is all it takes; the bytes
are the same.

Legend: n ranks; S bytes of the full tensor.
"""

import torch

from tplab.collectives.transport import Transport
from tplab.collectives.two_shot import add_in_rank_order


def direct_all_gather(out: torch.Tensor, x: torch.Tensor, transport: Transport) -> None:
    """``x`` (d, ...) of each rank -> ``out`` (n·d, ...) on every rank, in rank order. Sends (n-1)/n·S per rank.

    Both must be contiguous.
    """
    n, r = transport.size, transport.index
    parts = out.view(n, *x.shape)
    parts[r] = x
    others = [(r + distance) % n for distance in range(1, n)]
    if others and x.numel():
        transport.exchange([(x, peer) for peer in others], [(parts[peer], peer) for peer in others]).wait()


def direct_reduce_scatter(out: torch.Tensor, x: torch.Tensor, transport: Transport) -> None:
    """``x`` (n·d, ...) of each rank -> ``out`` (d, ...): part r of the sum on rank r. Sends (n-1)/n·S per rank.

    Added up in rank order in the tensor's dtype: the bits of a two-shot all-reduce. Both must be contiguous; ``x`` is
    left as it was.
    """
    n, r = transport.size, transport.index
    parts = x.view(n, *out.shape)
    out.copy_(parts[r])
    others = [(r + distance) % n for distance in range(1, n)]
    if others and out.numel():
        arriving = {peer: torch.empty_like(out) for peer in others}
        transport.exchange([(parts[peer], peer) for peer in others], [(arriving[peer], peer) for peer in others]).wait()
        add_in_rank_order(out, r, arriving)
