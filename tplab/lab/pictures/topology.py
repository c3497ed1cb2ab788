"""A machine as a drawing: chips, switches, links as wide as their bandwidth, the groups of a layout as hulls.

A GPU that is dragged, or sent by a key, into another group changes which links hold the layout up, and with them the
prediction. That comes from a table (``placement_prices``) that the drawing carries: the advisor's own numbers, with and
without a kernel, and no second model in the browser. What the browser works out itself, which links an arrangement
has, is held together with ``placement_of`` by a test.
"""

from collections.abc import Sequence
from typing import Any

import traitlets

from tplab.checks import ArgumentError, check_count
from tplab.lab.pictures.picture import Picture
from tplab.models.shards import Layout
from tplab.models.spec import ModelSpec
from tplab.shown import as_GB, number
from tplab.topology.advisor.calibration import Calibration
from tplab.topology.advisor.group_links import GroupLinks, links_of
from tplab.topology.advisor.memory import LayoutMemory
from tplab.topology.advisor.placement_prices import PlacementPrice, distinct_links, placement_prices
from tplab.topology.advisor.prediction import predict
from tplab.topology.advisor.workload import EnginePolicy, Workload
from tplab.topology.machine.grouping import placement_of
from tplab.topology.machine.machine import Link, Machine
from tplab.topology.machine.names import name_of
from tplab.topology.machine.placement import Placement, place

MOST_DRAWN = 144
"""Most GPUs of a drawing: two NVL72."""
_WORKLOAD = Workload(input_length=1024, output_length=256, concurrency=16, engine=EnginePolicy(name="vllm"))


class Topology(Picture):
    """A machine, and a layout on it that can be rearranged by hand.

    ``groups`` has the group of each GPU (replica · PP + stage; -1: idle), ``placement`` what that is as a
    ``Placement``, ``result`` what the drawing says of it: ``finished``, ``faults`` and, if it is finished, the times.

    Args:
        machine: at most 144 GPUs; by default a DGX-1, whose links differ.
        model: name or spec of what is predicted.
        workload: what is asked of it; by default 16 requests in flight at vLLM.
        tp, pp, replicas: the layout; by default as many replicas as there is room for.
        calibration: what was measured on the machine.
    """

    module = "topology"
    moved_by_hand = ("groups",)
    caption = "A machine's links, and the groups of a layout on it"

    machine = traitlets.Dict().tag(sync=True)
    tp = traitlets.Int(1).tag(sync=True)
    pp = traitlets.Int(1).tag(sync=True)
    replicas = traitlets.Int(1).tag(sync=True)
    groups = traitlets.List(traitlets.Int()).tag(sync=True)
    start = traitlets.List(traitlets.Int()).tag(sync=True)
    best = traitlets.List(traitlets.Int()).tag(sync=True)
    in_order = traitlets.List(traitlets.Int()).tag(sync=True)
    prices = traitlets.Dict().tag(sync=True)
    heading = traitlets.Unicode().tag(sync=True)
    about = traitlets.Unicode().tag(sync=True)
    badge = traitlets.Unicode().tag(sync=True)
    result = traitlets.Dict().tag(sync=True)

    def __init__(
        self,
        machine: Machine | None = None,
        model: "ModelSpec | str" = "llama-3.1-8b",
        workload: Workload | None = None,
        *,
        tp: int = 2,
        pp: int = 2,
        replicas: int | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        super().__init__()
        self.observe(self._measured, names="groups")
        self.lay(
            machine or Machine.preset("dgx-1"),
            model,
            workload,
            tp=tp,
            pp=pp,
            replicas=replicas,
            calibration=calibration,
        )

    def lay(
        self,
        machine: Machine,
        model: "ModelSpec | str",
        workload: Workload | None = None,
        *,
        tp: int,
        pp: int,
        replicas: int | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        """Draw another machine or layout, on its best placement.

        Args:
            machine, model, workload, tp, pp, replicas, calibration: as for the class.

        Raises:
            ValueError: more GPUs than are drawn, or a layout for which the machine has no room.
        """
        check_count("tp", tp, least=1)
        check_count("pp", pp, least=1)
        if machine.num_gpus > MOST_DRAWN:
            raise ArgumentError(
                "machine", machine.name, f"must have at most {MOST_DRAWN} GPUs to be drawn, not {machine.num_gpus}"
            )
        placed = place(machine, tp, pp, replicas)
        self._machine, self._calibration = machine, calibration
        self._spec = ModelSpec.from_config(model) if isinstance(model, str) else model
        self._workload, best = workload or _WORKLOAD, _by_gpu(machine, placed.groups)
        chains = len(placed.groups)
        used = [gpu // tp if gpu < tp * pp * chains else -1 for gpu in range(machine.num_gpus)]
        asked = self._workload
        load = f"{number(asked.concurrency)} requests in flight" if asked.concurrency else f"{asked.request_rate}/s"
        copies = f" × {chains}" if chains > 1 else ""
        with self.hold_sync():
            self.set_trait("machine", _drawn(machine))
            self.tp, self.pp, self.replicas = tp, pp, chains
            self.prices = {}  # those of another layout say nothing of the groups to come
            self.groups = self.start = self.best = best
            self.in_order = used
            name = " × ".join(map(name_of, machine.name.split(" x ")))
            self.heading = f"{name}: TP {tp} × PP {pp}{copies}"
            self.about = (
                f"Predicted for {name_of(self._spec.name)}, {load}, {asked.input_length:,} tokens in and "
                f"{asked.output_length:,} out, with what each choice of links would give."
            )
            self.badge = f"MODEL · {calibration.badge if calibration else f'{machine.source} links'}"
            self.prices = self._priced(placed)
            self._measured(None)

    @property
    def placement(self) -> Placement:
        """The groups as they are now. Raises ``ValueError`` while they are of different sizes."""
        members: list[list[int]] = [[] for _ in range(self.pp * self.replicas)]
        for gpu, group in enumerate(self.groups):
            if group >= 0:
                members[group].append(gpu)
        return placement_of(self._machine, [members[c * self.pp : (c + 1) * self.pp] for c in range(self.replicas)])

    def _priced(self, placed: Placement) -> dict[str, Any]:
        try:
            layout = Layout.of(self._spec, self.tp, self.pp, self.replicas)
            lacks = -LayoutMemory.of(self._spec, self._machine.gpu, self._workload, layout).fullest(1).free
            if lacks > 0:
                return {"why": f"{name_of(self._spec.name)} does not fit so: a GPU lacks {as_GB(lacks)}."}
            made = placement_prices(self._spec, self._machine, self._workload, layout, calibration=self._calibration)
        except ValueError as error:
            return {"why": f"No prediction for {name_of(self._spec.name)}: {error}."}
        index = {link: at for at, link in enumerate(_links(self._machine))}
        best = made.rows.get(links_of(self._machine, placed))
        return {
            "nbytes": made.nbytes,
            "rows": {_key(index, links): _row(price) for links, price in made.rows.items()},
            **({"best": {name: getattr(best, name) for name in PlacementPrice.__slots__}} if best else {}),
        }

    def _measured(self, _: Any) -> None:
        """All-reduces that were measured on these very GPUs say more than the table, which knows links only."""
        c = self._calibration
        if c is None or "rows" not in self.prices or not any(sweep.gpus for sweep in c.all_reduce):
            return
        try:
            placement = self.placement
        except ValueError:
            return
        made = predict(
            self._spec,
            self._machine,
            self._workload,
            self.tp,
            self.pp,
            replicas=self.replicas,
            placement=placement,
            calibration=c,
        )
        row = [made.tpot_ms, made.output_tokens_per_s, made.term_ms("all_reduce"), made.term_ms("hops"), 0.0]
        of = ";".join(",".join(map(str, sorted(group))) for chain in placement.groups for group in chain)
        prices = {**self.prices, "exact": {**self.prices.get("exact", {}), of: row}}
        if self.groups == self.best:
            prices["best"] = dict(zip(PlacementPrice.__slots__, row, strict=True))
        self.prices = prices


def _by_gpu(machine: Machine, groups: Sequence[Sequence[Sequence[int]]]) -> list[int]:
    """The group of each GPU; -1 for those that are idle."""
    made = [-1] * machine.num_gpus
    for index, group in enumerate(group for chain in groups for group in chain):
        for gpu in group:
            made[gpu] = index
    return made


def _links(machine: Machine) -> tuple[Link, ...]:
    """The different links, the one between nodes last."""
    return tuple(dict.fromkeys([*distinct_links(machine), *([machine.network] if machine.network else [])]))


def _drawn(machine: Machine) -> dict[str, Any]:
    """What ``topology_links.js`` calls a machine."""
    links = _links(machine)
    index = {link: at for at, link in enumerate(links)}
    return {
        "name": machine.name,
        "perNode": machine.gpus_per_node,
        "nodes": machine.nodes,
        "what": "rank" if machine.gpu.kind == "cpu" else "GPU",
        "links": [
            {
                "kind": link.kind,
                "label": link.label,
                "GBps": min(link.bandwidth_GBps, 1e6),
                "us": link.latency_us,
                "peer": link.is_peer,
            }
            for link in links
        ],
        "pairs": [index[link] if link else -1 for row in machine.links for link in row],
        "network": index[machine.network] if machine.network else -1,
        "nics": len(machine.nics),
    }


def _key(index: dict[Link, int], links: GroupLinks) -> str:
    ring, hop = (-1 if link is None else index[link] for link in (links.ring, links.hop))
    return f"{ring}|{links.direct:d}|{links.bridged:d}|{links.nodes}|{hop}"


def _row(price: PlacementPrice) -> list[float]:
    return [float(f"{getattr(price, name):.6g}") for name in PlacementPrice.__slots__]
