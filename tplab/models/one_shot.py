"""The sums of a decode step over gloo: everybody sends everything to everybody, at once.

gloo's own all-reduce is a ring, 2(n-1) messages one after another; a decode step's sums are a few kilobytes, so that is
nothing but latency. One exchange instead takes 0.4 to 0.6 of the time on two ranks, and about as much on four up to
64 KiB (loopback, two cores). On two ranks it sends no more bytes than the ring either; on n it sends n/2 times as many.

Not ``tplab.collectives.one_shot``, which is written against ``Transport`` so that it runs over emulated links, too, and
takes twice as long to start its messages; and not for NCCL, which chooses by size itself.

Legend: n ranks.
"""

import torch
import torch.distributed as dist

from tplab.layers.comm import ProcessGroupComm

_MOST_BYTES = 64 << 10


class OneShotComm(ProcessGroupComm):
    """A gloo group whose small all-reduces are one exchange. The addends are added in rank order on every rank, so all
    have the same bits."""

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        n, me = self.size, self.index
        if n > 2 and x.numel() * x.element_size() > _MOST_BYTES:
            return super().all_reduce(x)
        group = self._group
        every = [x if rank == me else torch.empty_like(x) for rank in range(n)]
        others = [rank for rank in range(n) if rank != me]
        # Receives first: a message then goes straight to where it belongs.
        works = [group.recv([every[rank]], rank, 0) for rank in others]
        works += [group.send([x], rank, 0) for rank in others]
        for work in works:
            work.wait()
        total = every[0] + every[1]
        for part in every[2:]:
            total += part
        return x.copy_(total)


def fits(group: "dist.ProcessGroup") -> bool:
    """Whether this is for ``group``: several ranks, over gloo."""
    return dist.get_backend(group) == "gloo" and group.size() > 1
