"""The ways that messages of a pipeline take from rank to rank: gloo, emulated links, NCCL.

Not the cluster's own group. With gloo every run gets a group of its own, which goes when the run has gone well: what a
failed run left under way cannot meet the next run's messages, and the counters of the cluster's group, by which it
tells whether its ranks are in step, stay the same on all ranks. With NCCL each directed pair of ranks gets one, kept on
the rank: NCCL runs the messages of a group one after the other, so that two ranks that send to each other first would
wait for ever, and two messages on their way from different ranks would wait for each other.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from tplab.collectives.emulated import EmulatedGroup
from tplab.collectives.emulated_link import EmulatedLink, LinkTable
from tplab.collectives.transport import ProcessGroupTransport
from tplab.pipeline.channels import Route

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from tplab.cluster import Rank

Pair = tuple[int, int]
"""Source and destination."""


@dataclass(frozen=True, slots=True)
class Routes:
    """The ways out of this rank and into it."""

    outgoing: dict[int, Route]
    incoming: dict[int, Route]
    emulated: EmulatedGroup | None = None
    """The emulated group, which knows when each message left and arrived; None without emulated links."""


@contextmanager
def open_routes(rank: "Rank", pairs: Iterable[Pair], links: LinkTable | EmulatedLink | None) -> Iterator[Routes]:
    """Routes for the directed ``pairs`` of ranks, the same on every rank; a collective call."""
    ordered = sorted(set(pairs))
    if rank.world_size == 1:
        yield Routes({}, {})
    elif rank.device.type == "cuda":
        yield _nccl_routes(rank, ordered)
    else:
        group = dist.new_group(list(range(rank.world_size)), backend="gloo")
        assert isinstance(group, dist.ProcessGroup)
        plain = ProcessGroupTransport(group)
        emulated = None if links is None else EmulatedGroup(group, links)
        # Headers pass beside the emulated links: they are our business, not the pipeline's.
        ways = {peer: Route(emulated or plain, plain, peer) for pair in ordered for peer in pair}
        mine = rank.index
        yield Routes(
            {dst: ways[dst] for src, dst in ordered if src == mine},
            {src: ways[src] for src, dst in ordered if dst == mine},
            emulated,
        )
        dist.barrier(group=rank.group)  # nobody still reads what a closed connection would cut off
        dist.destroy_process_group(group)


def _nccl_routes(rank: "Rank", pairs: list[Pair]) -> Routes:
    groups: dict[Pair, ProcessGroup | None] = rank.store.setdefault(("tplab.pipeline.routes", rank.world_size), {})
    for pair in pairs:
        if pair not in groups:
            group = dist.new_group(sorted(pair), backend="nccl")
            groups[pair] = group if rank.index in pair else None
            if rank.index in pair:  # connects now, in the same order everywhere, and not under the first message
                _first_message(rank, group, sending=rank.index == pair[0])
    outgoing, incoming = {}, {}
    for src, dst in pairs:
        group = groups[src, dst]
        if group is None:
            continue
        transport = ProcessGroupTransport(group)
        route = Route(transport, transport, 1 - transport.index)
        if rank.index == src:
            outgoing[dst] = route
        else:
            incoming[src] = route
    return Routes(outgoing, incoming)


def _first_message(rank: "Rank", group: "ProcessGroup", *, sending: bool) -> None:
    transport = ProcessGroupTransport(group)
    message = [(torch.zeros(1, device=rank.device), 1 - transport.index)]
    transport.exchange(message if sending else [], [] if sending else message).wait()
    torch.cuda.synchronize(rank.device)
