"""Notebook 02's map: which all-reduce is the fastest for which size, here and where it was recorded, beside what
serving engines take by the limits in their code."""

from typing import Any

import ipywidgets as widgets
import pandas as pd
import plotly.graph_objects as go

from tplab.cluster import Cluster
from tplab.collectives.crossover import comparable, crossovers, engine_losses, explain_crossovers, rules_beside
from tplab.collectives.sweep import submit_sweep, sweep_frame
from tplab.collectives.sweep_plan import plan_crossover
from tplab.lab import style
from tplab.lab.figures.crossover import HERE, crossover_figure, explain_losses, losses_figure
from tplab.lab.panels import html
from tplab.lab.panels.base import Drawing, RunPanel, Submitted
from tplab.lab.panels.controls import Settings, wide
from tplab.lab.panels.pool import Pool
from tplab.lab.panels.run_state import Work
from tplab.lab.recorded import recorded, recorded_badge, recordings
from tplab.models.presets import MODELS
from tplab.models.spec import ModelSpec
from tplab.topology.machine.names import name_of, offered

BATCHES = (1, 4, 16, 64, 256)
"""Numbers of sequences that the second view compares."""
_MAP, _STEP = "Map", "Decode step"


def _recorded_sweeps() -> dict[str, tuple[str, int]]:
    """What can be chosen besides this machine -> recording and number of ranks."""
    found: dict[str, tuple[str, int]] = {}
    for name in recordings():
        sweep = recorded(name, "sweep")
        if sweep["backend"].iloc[0] != "nccl":  # engines have no limits for it
            continue
        for num_ranks in sorted(sweep["num_ranks"].unique().tolist(), reverse=True):
            found[f"{name}, {num_ranks} ranks"] = name, int(num_ranks)
    return found


class CrossoverPanel(RunPanel):
    """Source (this machine, or a recording) and model; the map of winners with engines' limits below, and what a decode
    step loses by them.

    Run measures this machine; the other controls draw anew by themselves. ``measured`` holds the last measurement,
    ``frame`` the rows that are drawn, ``bands`` the sizes at which the choice changes, ``losses`` the second view's.
    """

    def __init__(self, pool: Pool) -> None:
        self._recorded = _recorded_sweeps()
        look = wide(60)
        named = {
            "source": widgets.Dropdown(options=[HERE, *self._recorded], description="Source", **look),
            "model": widgets.Dropdown(
                options=offered(sorted(MODELS)), value="llama-3.1-70b", description="Model", **look
            ),
        }
        self.measured: pd.DataFrame | None = None
        self._badge = ""
        super().__init__(pool, title="Crossover map", named=named, views=(_MAP, _STEP), height=430)
        self.redraw()

    @property
    def frame(self) -> pd.DataFrame:
        """The rows that the source has. Raises ``ValueError`` where nothing was measured yet."""
        source = self.settings()["source"]
        if source != HERE:
            name, num_ranks = self._recorded[source]
            return comparable(recorded(name, "sweep"), num_ranks=num_ranks)
        if self.measured is None:
            raise ValueError("nothing is measured on this machine yet: press Run")
        return comparable(self.measured)

    @property
    def bands(self) -> pd.DataFrame:
        """What to take from which size on, see ``crossovers``."""
        return crossovers(self.frame)

    @property
    def losses(self) -> pd.DataFrame:
        """What each engine's choice costs per decode step of the model, see ``engine_losses``."""
        return self._losses(self.frame)

    def configure(self, **settings: Any) -> "CrossoverPanel":
        super().configure(**settings)
        self.redraw()
        return self

    def submit(self, cluster: Cluster, settings: Settings) -> Submitted:
        points = plan_crossover(
            backend=cluster.backend, shares_gpus=cluster.shares_gpus, peer_memory=cluster.peer_memory
        )
        self._named["source"].value = HERE
        return submit_sweep(cluster, points, on_report=self.on_report), points

    def draw(self, work: Work) -> Drawing:
        measured = sweep_frame(work.plan, work.run.reports, work.provenance)
        if not measured.empty:
            self.measured = measured
            self._badge = f"{work.badge} · CUDA graph" if work.plan[0].mode == "graph" else work.badge
        return self._map() if self.measured is not None else (None, "")

    def measures(self, settings: Settings) -> Settings:
        """None: what is measured is the same for all, and the controls choose what is drawn."""
        return {}

    def redraw(self) -> None:
        """Draw what the controls say: from a recording, or from what was measured here."""
        if self.settings()["source"] != HERE or self.measured is not None:
            self._put(*self._map())
        elif self.figure is not None:  # a recording's
            self._put(style.card(go.Figure(), title="Nothing measured yet", badge="LIVE", height=430), "")
        self._become()

    @property
    def shows_run(self) -> bool:
        return bool(self.settings()["source"] == HERE)

    def _settings_moved(self) -> None:
        self.redraw()

    def _map(self) -> tuple[go.Figure, str]:
        source = self.settings()["source"]
        badge = self._badge if source == HERE else recorded_badge(self._recorded[source][0])
        frame = self.frame
        losses = self._losses(frame)
        words = f"{explain_crossovers(frame)} {explain_losses(losses)}"
        if self._look.value == _MAP:
            return crossover_figure(frame, self._rules(frame), badge=badge), html.quiet(words)
        model = self.settings()["model"]
        title = f"{name_of(model)}, TP {int(frame['num_ranks'].iloc[0])}: what a decode step loses by fixed limits"
        return losses_figure(losses, title=title, badge=badge), html.quiet(words)

    def _rules(self, frame: pd.DataFrame) -> list[Any]:
        return rules_beside(frame, ModelSpec.from_config(self.settings()["model"]).hidden_size)

    def _losses(self, frame: pd.DataFrame) -> pd.DataFrame:
        spec = ModelSpec.from_config(self.settings()["model"])
        sizes = {"hidden": spec.hidden_size, "num_layers": spec.num_layers}
        return engine_losses(frame, self._rules(frame), **sizes, batches=BATCHES)
