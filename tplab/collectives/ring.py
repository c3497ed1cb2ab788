"""Ring all-reduce: the least bytes a rank can send, and only ever to its neighbour.

Not one blocking send and receive per step: while a segment of a chunk is added up, the next ones are on their way, in
both directions. Not ``torch.distributed.all_reduce``, which this is measured against: here every message is in sight.

Legend: n ranks, N elements, S bytes, a chunk has N/n elements, a segment is the part of a chunk in one message.
"""

from collections import deque
from typing import TYPE_CHECKING

import torch

from tplab.checks import check_count
from tplab.collectives.transport import Handle, Transport, as_transport, flat_view, scratch_like, split_evenly

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

SEGMENT_BYTES = 2 << 20
_IN_FLIGHT = 4


def ring_all_reduce(
    tensor: torch.Tensor, group: "ProcessGroup | Transport | None", *, segment_bytes: int | None = SEGMENT_BYTES
) -> None:
    """Sum ``tensor`` over the ranks of ``group``, in place, the same bits on every rank.

    ==================  =========================  ==================================================
    on rank r           shape, dtype               what
    ==================  =========================  ==================================================
    tensor              any (N elements)           in: own addend; out: the sum
    chunk c             (N/n,), its dtype          by ``torch.tensor_split``: the first N mod n are one longer
    scratch             up to 4 segments           arriving addends
    ==================  =========================  ==================================================

    Equation: ``out = sum over r of in_r``, chunk c added up in the order c, c+1, ..., c+n-1 (mod n) of the ranks, in
    the tensor's own dtype: as with NCCL, sums in bfloat16 are rounded n - 1 times.

    Communication, to rank r+1 and from rank r-1 only:

    - reduce-scatter, step s = 0 .. n-2: send chunk ``(r - s) mod n``, add what comes to chunk ``(r - s - 1) mod n``;
    - all-gather, step s = 0 .. n-2: send chunk ``(r + 1 - s) mod n``, put what comes into chunk ``(r - s) mod n``.

    Bytes sent by each rank: ``2 (n-1)/n S``, exactly when n divides N (no padding); otherwise all but two of its own
    chunks twice: chunk r+1 is left out of the first phase, chunk r+2 of the second.

    Args:
        group: a process group, or any :class:`~tplab.collectives.transport.Transport`; None for a rank alone.
        segment_bytes: longest message. None: a whole chunk, one message per step. That is the ring of the textbook
            formula ``2(n-1) a + 2(n-1)/n S/B``. With segments, step s+1 starts before step s has ended, and on a link
            where the latency ``a`` is short beside a chunk it is paid about once, not 2(n-1) times.

    Raises:
        ValueError: ``tensor``, ``group`` or ``segment_bytes`` cannot work.

    Source: Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations", JPDC 69 (2009).
    """
    if segment_bytes is not None:
        check_count("segment_bytes", segment_bytes, least=1)
    transport = as_transport(group)
    with flat_view(tensor, transport) as x:
        if transport.size > 1 and x.numel() > 0:
            _ring(x, transport, segment_bytes)


def _ring(x_N: torch.Tensor, transport: Transport, segment_bytes: int | None) -> None:
    chunks = split_evenly(x_N.numel(), transport.size)
    longest = chunks[0][1] - chunks[0][0]
    segment = longest if segment_bytes is None else max(1, segment_bytes // x_N.element_size())
    num_segments = -(-longest // segment)
    segment = -(-longest // num_segments)  # as many of them, but no short last one
    in_flight = min(num_segments, _IN_FLIGHT)
    with scratch_like(x_N, in_flight * segment) as scratch:
        _run(x_N, transport, chunks, segment, num_segments, list(torch.split(scratch, segment)))


def _run(
    x_N: torch.Tensor,
    transport: Transport,
    chunks: list[tuple[int, int]],
    segment: int,
    num_segments: int,
    scratch: list[torch.Tensor],
) -> None:
    """All segments of step 0, then all of step 1, ..., as one list of messages.

    The message of place i sends what the message of place i - num_segments brought: up to num_segments can be under way
    at a time, and ``len(scratch)`` are.
    """
    n, r = transport.size, transport.index
    right, left = (r + 1) % n, (r - 1) % n
    num_adding = (n - 1) * num_segments
    num_messages = 2 * num_adding
    in_flight = len(scratch)
    under_way: deque[tuple[Handle, torch.Tensor, torch.Tensor]] = deque()

    def part(chunk: int, number: int) -> torch.Tensor:
        start, end = chunks[chunk % n]
        return x_N[min(start + number * segment, end) : min(start + (number + 1) * segment, end)]

    def start(place: int) -> None:
        step, number = divmod(place, num_segments)
        # Holds in both phases: step s of the all-gather is step n - 1 + s here, and r + 1 - s = r - (n - 1 + s) mod n.
        out, into = part(r - step, number), part(r - step - 1, number)
        landing = scratch[place % in_flight][: into.numel()] if place < num_adding else into
        sends = [(out, right)] if out.numel() else []
        recvs = [(landing, left)] if into.numel() else []
        under_way.append((transport.exchange(sends, recvs), landing, into))

    for place in range(in_flight):
        start(place)
    for place in range(num_messages):
        handle, landing, into = under_way.popleft()
        handle.wait()
        if place < num_adding:
            into.add_(landing)
        if place + in_flight < num_messages:
            start(place + in_flight)
