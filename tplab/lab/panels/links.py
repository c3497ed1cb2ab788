"""Notebook 07's link panel: a machine from a preset, from this computer or from pasted text, as a drawing on which GPUs
are dragged from group to group, and as a heat map."""

from collections.abc import Callable
from typing import Any, Self

import ipywidgets as widgets
import plotly.graph_objects as go

from tplab.lab.figures.topology import explain_links, explain_placement, link_figure, link_frame, placement_figure
from tplab.lab.panels.analytic import AnalyticPanel, said
from tplab.lab.panels.controls import toggles, wide
from tplab.lab.pictures.topology import MOST_DRAWN, Topology
from tplab.topology.machine.machine import Machine
from tplab.topology.machine.names import offered
from tplab.topology.machine.presets import MACHINES
from tplab.topology.machine.spec_sheets import GPUS

SOURCES = ("preset", "detect", "paste")
_VIEWS = (("drawing", "placement"), ("bandwidth", "bandwidth"), ("latency", "latency"))
_GUESS = "guess"
_MODEL = "llama-3.1-8b"
_MOST_CELLS = 72

EXAMPLE_TOPO = """\
\tGPU0\tGPU1\tGPU2\tGPU3\tNIC0\tCPU Affinity\tNUMA Affinity
GPU0\t X \tNV4\tPXB\tSYS\tPXB\t0-31\t0
GPU1\tNV4\t X \tPXB\tSYS\tPXB\t0-31\t0
GPU2\tPXB\tPXB\t X \tSYS\tPIX\t0-31\t0
GPU3\tSYS\tSYS\tSYS\t X \tSYS\t32-63\t1
NIC0\tPXB\tPXB\tPIX\tSYS\t X
"""
"""A bridge on two of four cards, the last one alone on the other socket."""


class LinkPanel(AnalyticPanel):
    """Preset, detected or pasted machine, with a layout on it to be rearranged by hand; and its links as a heat map.

    ``machine`` is the machine, ``drawing`` the picture (``drawing.placement``: the groups as they are). ``show(source=,
    preset=, gpus=, nodes=, text=, gpu=, tp=, pp=, view=)`` sets controls; ``on_machine(callback)`` tells whoever draws
    something of it.
    """

    drawing: Topology

    def __init__(self, preset: str = "h100") -> None:
        self._machine: Machine | None = None
        self._told: list[Callable[[Machine], None]] = []
        self._detected: Machine | None = None
        text = widgets.Textarea(
            value=EXAMPLE_TOPO,
            placeholder="paste what nvidia-smi topo -m prints",
            rows=8,
            layout=widgets.Layout(width="auto"),
        )
        text.add_class("tplab-topo-text")
        super().__init__(
            title="Links",
            named={
                "source": toggles(SOURCES, 88),
                "preset": widgets.Dropdown(options=offered(MACHINES), value=preset, description="machine", **wide()),
                "gpus": widgets.BoundedIntText(value=8, min=1, max=72, description="GPUs", **wide()),
                "nodes": widgets.BoundedIntText(value=1, min=1, max=64, description="nodes", **wide()),
                "text": text,
                "gpu": widgets.Dropdown(options=[(_GUESS, _GUESS), *offered(GPUS)], description="GPU", **wide()),
                "tp": widgets.IntSlider(value=4, min=1, max=16, description="TP", **wide()),
                "pp": widgets.IntSlider(value=2, min=1, max=16, description="PP", **wide()),
            },
            view=toggles(_VIEWS),
            drawing=Topology(Machine.preset(preset), _MODEL, tp=1, pp=1),
            min_height=480,
        )
        self.add_class("tplab-links")
        self.show(preset=preset)

    @property
    def machine(self) -> Machine:
        """The machine of the last settings that worked."""
        assert self._machine is not None, "drawn on construction"
        return self._machine

    def on_machine(self, callback: Callable[[Machine], None]) -> None:
        """Call ``callback`` with the machine whenever it is another one."""
        self._told.append(callback)

    def show(self, **settings: Any) -> Self:
        """See the class. With ``preset=`` and no ``gpus=``, a usual node's number."""
        if "preset" in settings and settings["preset"] in MACHINES and "gpus" not in settings:
            settings["gpus"] = Machine.preset(settings["preset"]).gpus_per_node
        if "preset" in settings:
            settings.setdefault("source", "preset")
        if "text" in settings:
            settings.setdefault("source", "paste")
        return super().show(**settings)

    def draw(self, values: dict[str, Any]) -> tuple[go.Figure, str]:
        source, view = values["source"], values["view"]
        for name in ("preset", "gpus"):
            self._named[name].layout.display = "" if source == "preset" else "none"
        for name in ("text", "gpu"):
            self._named[name].layout.display = "" if source == "paste" else "none"
        self._named["nodes"].layout.display = "none" if source == "detect" else ""
        for name in ("tp", "pp"):
            self._named[name].disabled = view != "placement"
        machine = self._read(values)
        tp, pp = self._fitting(machine, values) if machine != self._machine else (values["tp"], values["pp"])
        self._tell(machine)
        badge = f"MODEL · {machine.source}"
        if view == "placement":
            if machine.num_gpus > MOST_DRAWN:
                raise ValueError(_too_many(machine, MOST_DRAWN))
            self.drawing.lay(machine, _MODEL, tp=tp, pp=pp)
            self.drawn = True
            placed = self.drawing.placement
            words = f"{explain_links(machine)} {explain_placement(machine, placed)}"
            return placement_figure(machine, placed, title=self.drawing.heading, badge=badge), said(words)
        if machine.num_gpus > _MOST_CELLS:
            raise ValueError(_too_many(machine, _MOST_CELLS))
        value = {"bandwidth": "bandwidth_GBps", "latency": "latency_us"}[view]
        what = "rank" if machine.gpu.kind == "cpu" else "GPU"
        title = f"{machine.name}: {view} of every pair"
        figure = link_figure(link_frame(machine), title=title, badge=badge, value=value, what=what)
        return figure, said(explain_links(machine))

    def _fitting(self, machine: Machine, values: dict[str, Any]) -> tuple[int, int]:
        """A layout that another machine has room for: a control must not be left where nothing can be drawn."""
        tp = min(values["tp"], machine.gpus_per_node)
        pp = min(values["pp"], machine.room_for(tp))
        self._setting, before = True, self._setting
        try:
            self._named.put({"tp": tp, "pp": pp})
        finally:
            self._setting = before
        return tp, pp

    def _read(self, values: dict[str, Any]) -> Machine:
        if values["source"] == "detect":
            if self._detected is None:
                self._detected = Machine.detect()
            return self._detected
        if values["source"] == "paste":
            gpu = None if values["gpu"] == _GUESS else values["gpu"]
            return Machine.from_topo(values["text"], gpu=gpu, nodes=values["nodes"])
        return Machine.preset(values["preset"], gpus=values["gpus"], nodes=values["nodes"])

    def _tell(self, machine: Machine) -> None:
        if machine != self._machine:
            self._machine = machine
            for callback in self._told:
                callback(machine)


def _too_many(machine: Machine, most: int) -> str:
    return f"{machine.name} has {machine.num_gpus} GPUs, and up to {most} are drawn: use fewer nodes here"
