"""An all-reduce that is called a ring and is none, for notebook 02 and the tests; never to be used.

It is what a course's exercise asks for: neighbours pass on the *whole* tensor in each of a ring's steps. The sum is
right, which is why nothing but a count of the bytes finds it (X2 of docs/article.md).
"""

from typing import TYPE_CHECKING

import torch

from tplab.collectives.transport import Transport, as_transport, flat_view, scratch_like, split_evenly

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def whole_tensor_all_reduce(tensor: torch.Tensor, group: "ProcessGroup | Transport | None") -> None:
    """Sum ``tensor`` over the ranks of ``group``, in place: a ring's 2(n-1) steps, each with all S bytes.

    Bytes sent by each rank: ``2(n-1)·S``, n times those of ``ring_all_reduce``, for one chunk of each message is used.
    """
    transport = as_transport(group)
    n, r = transport.size, transport.index
    with flat_view(tensor, transport) as x, scratch_like(x, x.numel()) as arriving:
        for step in range(2 * (n - 1)):
            transport.exchange([(x, (r + 1) % n)], [(arriving, (r - 1) % n)]).wait()
            gathering = step >= n - 1
            start, end = split_evenly(x.numel(), n)[(r - step - 1) % n if not gathering else (r - step + n - 1) % n]
            if gathering:
                x[start:end] = arriving[start:end]
            else:
                x[start:end] += arriving[start:end]
