"""What one layout would do on any choice of GPUs, as a table: for a drawing that a hand rearranges. Pure.

A prediction depends on the GPUs only through the links that hold the layout up (``GroupLinks``), and a machine has few
of those: all their combinations are predicted at once. So whoever can tell a choice's links needs no second model and
no kernel.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tplab.models.shards import Layout
from tplab.models.spec import ModelSpec
from tplab.topology.advisor.calibration import Calibration
from tplab.topology.advisor.constants import DEFAULT, Constants
from tplab.topology.advisor.group_links import GroupLinks
from tplab.topology.advisor.latency import Server
from tplab.topology.advisor.layouts import arrays_of_links
from tplab.topology.advisor.memory import LayoutMemory
from tplab.topology.advisor.workload import Workload
from tplab.topology.machine.machine import Link, Machine

_MOST = 20_000
"""Combinations up to which a table is made: beyond, on machines whose every link was measured, it would not be few."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlacementPrice:
    """A layout on GPUs that these links hold up."""

    tpot_ms: float
    """Time per output token, in ms."""
    tokens_per_s: float
    """Output tokens per second over all replicas."""
    all_reduce_ms: float
    """Part of ``tpot_ms`` that its all-reduces take."""
    hops_ms: float
    """Part of ``tpot_ms`` that messages between stages take."""
    all_reduce_us: float
    """Time of a single all-reduce of ``PlacementPrices.nbytes``, in us."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlacementPrices:
    """The table of one layout on one machine."""

    nbytes: int
    """Bytes of an all-reduce in a decode step."""
    rows: dict[GroupLinks, PlacementPrice]
    """Every combination of links; empty if there are too many."""


def distinct_links(machine: Machine) -> tuple[Link, ...]:
    """The different links inside nodes, in the order in which pairs have them."""
    return tuple(dict.fromkeys(link for row in machine.links for link in row if link is not None))


def placement_prices(
    model: ModelSpec,
    machine: Machine,
    workload: Workload,
    layout: Layout,
    *,
    calibration: Calibration | None = None,
    constants: Constants = DEFAULT,
) -> PlacementPrices:
    """Predict ``layout`` for every combination of links that GPUs of ``machine`` could give it.

    With a calibration, all-reduces and messages are those of its sizes, not those of its very GPUs: which GPUs they
    are is what the table leaves open.

    Args:
        model, machine, workload: what is run, where, and what is asked of it.
        layout: how it is cut.
        calibration, constants: as in ``predict``.
    """
    combinations = list(_combinations(machine, layout))
    if len(combinations) > _MOST:
        return PlacementPrices(nbytes=0, rows={})
    memories = [LayoutMemory.of(model, machine.gpu, workload, layout)] * len(combinations)
    arrays = arrays_of_links(machine, memories, combinations, constants)
    server = Server.of(machine, memories, calibration=calibration, constants=constants, layouts=arrays)
    served = server.asked()
    best = int(np.argmax(served.requests_per_s))
    tokens = served.decoding[best] / served.micro_batches[best] * server.tokens_per_sequence
    nbytes = max(1, round(float(tokens) * server.bytes_per_token))
    columns = (
        served.tpot_us / 1e3,
        served.requests_per_s * workload.output_length,
        served.terms["all_reduce"] / 1e3,
        served.terms["hops"] / 1e3,
        np.broadcast_to(server.all_reduce_us(nbytes), served.tpot_us.shape),
    )
    prices = (
        PlacementPrice(**dict(zip(PlacementPrice.__slots__, row, strict=True)))
        for row in np.stack(columns, axis=1).tolist()
    )
    return PlacementPrices(nbytes=nbytes, rows=dict(zip(combinations, prices, strict=True)))


def _combinations(machine: Machine, layout: Layout) -> Iterator[GroupLinks]:
    inside = distinct_links(machine)
    network = [machine.network] if machine.network else []
    hops: Sequence[Link | None] = [*inside, *network] if layout.pp > 1 else [None]
    for hop in hops:
        if layout.tp == 1:
            yield GroupLinks(ring=None, direct=False, hop=hop, nodes=1, bridged=False)
            continue
        spans = range(1, (layout.tp if machine.nodes > 1 else 1) + 1)
        for nodes in spans:
            for ring in inside if nodes == 1 else [*inside, *network]:
                flags = [(False, False)]
                if nodes == 1 and ring.is_peer:
                    flags.append((True, False))
                if not ring.is_peer:
                    flags.append((False, True))
                for direct, bridged in flags:
                    yield GroupLinks(ring=ring, direct=direct, hop=hop, nodes=nodes, bridged=bridged)
