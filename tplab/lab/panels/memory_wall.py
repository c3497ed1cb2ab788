"""Notebook 01's panels: what every rank of a layout holds against its card, and shards that are really built."""

from typing import Any

import ipywidgets as widgets
import pandas as pd
import plotly.graph_objects as go

from tplab.cluster import Cluster
from tplab.lab.figures.memory import (
    by_stage,
    degrees_frame,
    explain_memory,
    explain_shards,
    memory_figure,
    memory_frame,
    shards_figure,
)
from tplab.lab.panels import html
from tplab.lab.panels.analytic import AnalyticPanel, said
from tplab.lab.panels.base import Drawing, RunPanel, Submitted
from tplab.lab.panels.controls import Settings, toggles, wide
from tplab.lab.panels.pool import Pool
from tplab.lab.panels.run_state import Work
from tplab.models.presets import MODELS
from tplab.models.shards import Layout
from tplab.models.spec import ModelConfig, ModelSpec
from tplab.topology.advisor.workload import Workload
from tplab.topology.machine.names import name_of, offered
from tplab.topology.machine.spec_sheets import GPUS
from tplab.topology.verification.memory import ShardPlan, shards_frame, submit_shards

WEIGHTS = ("bf16", "fp8", "int8", "int4")
CACHES = ("bf16", "fp8")
_VIEWS = ("every rank", "along TP", "along PP")
_CONTEXTS = tuple((f"{1 << power:,}", 1 << power) for power in range(7, 18))
_BATCHES = tuple((f"{1 << power:,}", 1 << power) for power in range(11))


class MemoryWall(AnalyticPanel):
    """Model, precisions, batch, context, TP, PP: a stacked bar per rank against its card, and why not.

    Analytic: follows its controls. ``frame`` is what is drawn. ``show(model=, gpu=, weights=, cache=, batch=,
    context=, tp=, pp=, view=)`` sets controls.
    """

    def __init__(self) -> None:
        self.frame: pd.DataFrame | None = None
        models, gpus = offered(MODELS), offered(GPUS)
        super().__init__(
            title="The memory wall",
            named={
                "model": widgets.Dropdown(options=models, value="llama-3.1-70b", description="model", **wide()),
                "gpu": widgets.Dropdown(options=gpus, value="h100", description="GPU", **wide()),
                "weights": widgets.Dropdown(options=WEIGHTS, description="weights", **wide()),
                "cache": widgets.Dropdown(options=CACHES, description="KV cache", **wide()),
                "batch": widgets.SelectionSlider(options=_BATCHES, value=16, description="batch", **wide()),
                "context": widgets.SelectionSlider(options=_CONTEXTS, value=8192, description="context", **wide()),
                "tp": widgets.IntSlider(value=4, min=1, max=16, description="TP", **wide()),
                "pp": widgets.IntSlider(value=1, min=1, max=16, description="PP", **wide()),
            },
            view=toggles(_VIEWS),
            min_height=460,
        )
        self.add_class("tplab-memory-wall")
        self._draw()

    def draw(self, values: dict[str, Any]) -> tuple[go.Figure, str]:
        spec = ModelSpec.from_config(values["model"], weight_precision=values["weights"], kv_precision=values["cache"])
        gpu, batch = GPUS[values["gpu"]], values["batch"]
        workload = Workload(input_length=values["context"] - 1, output_length=1, concurrency=batch)
        layout = Layout.of(spec, values["tp"], values["pp"])
        ranks = memory_frame(spec, gpu, workload, layout, requests=batch)
        if values["view"] == "every rank":
            self.frame = by_stage(ranks)
            axis, cut = _axis(layout, self.frame), str(layout)
        else:
            along = values["view"][-2:].lower()
            self.frame = degrees_frame(spec, gpu, workload, layout, along=along, requests=batch)
            kept = f"PP {layout.pp}" if along == "tp" else f"TP {layout.tp}"
            axis = f"{'tensor' if along == 'tp' else 'pipeline'}-parallel degree, with {kept}"
            cut = f"the fullest rank at each {along.upper()}"
        title = f"{name_of(spec.name)} in {spec.weight_precision} on {name_of(gpu.name)}: {cut}"
        figure = memory_figure(self.frame, title=title, badge="MODEL", axis=axis)
        fits = bool((ranks["free_GB"] >= 0).all())
        words = explain_memory(ranks, spec, gpu, workload, layout)
        verdict = said(words, ok=fits, word="fits" if fits else "does not fit")
        notes = "".join(html.quiet(f"{note}.") for note in spec.notes)
        return figure, verdict + notes


def _axis(layout: Layout, frame: pd.DataFrame) -> str:
    if frame["ranks"].iloc[0] > 1:
        return f"stage: the fullest of its {layout.tp} ranks"
    if layout.tp > 1 and layout.pp > 1:
        return "stage · place in it"
    return "stage" if layout.pp > 1 else "rank"


_SHAPES: dict[str, dict[str, int]] = {
    "6 heads, 2 key-value": {"num_heads": 6, "num_kv_heads": 2, "head_dim": 64},
    "12 heads, 4 key-value": {"num_heads": 12, "num_kv_heads": 4, "head_dim": 32},
    "12 heads, 1 key-value": {"num_heads": 12, "num_kv_heads": 1, "head_dim": 32},
    "12 heads, 12 key-value": {"num_heads": 12, "num_kv_heads": 12, "head_dim": 32},
}


def small_model(shape: str = "6 heads, 2 key-value", layers: int = 7, **changes: Any) -> ModelConfig:
    """A Llama to build shards of: hidden size 384, vocabulary 1,003, which does not divide evenly."""
    made: dict[str, Any] = {
        "model_type": "llama",
        "vocab_size": 1003,
        "hidden_size": 384,
        "intermediate_size": 1536,
        "num_layers": layers,
        "max_positions": 4096,
        "dtype": "bfloat16",
        **_SHAPES[shape],
        **changes,
    }
    return ModelConfig(**made)


class ShardsPanel(RunPanel):
    """A small model's shards, random weights, really built on the pool's ranks; the formula beside them.

    Layouts may have more places than the pool has ranks: each rank then builds several, one after the other.
    ``frame`` is the last measurement.
    """

    def __init__(self, pool: Pool) -> None:
        named = {
            "shape": widgets.Dropdown(options=list(_SHAPES), description="heads", **wide()),
            "layers": widgets.IntSlider(value=7, min=1, max=12, description="layers", **wide()),
            "tp": widgets.IntSlider(value=3, min=1, max=6, description="TP", **wide()),
            "pp": widgets.IntSlider(value=2, min=1, max=6, description="PP", **wide()),
            "batch": widgets.SelectionSlider(options=(1, 2, 4, 8, 16), value=4, description="batch", **wide()),
            "context": widgets.SelectionSlider(options=(16, 64, 256, 1024), value=256, description="context", **wide()),
        }
        self.frame: pd.DataFrame | None = None
        super().__init__(pool, title="Shards, really built", named=named, height=480)

    def submit(self, cluster: Cluster, settings: Settings) -> Submitted:
        config = small_model(settings["shape"], settings["layers"])
        layouts = (Layout.of(config), Layout.of(config, settings["tp"], settings["pp"]))
        plan = ShardPlan(
            config=config, layouts=tuple(dict.fromkeys(layouts)), batch=settings["batch"], context=settings["context"]
        )
        return submit_shards(cluster, plan, on_report=self.on_report), plan

    def draw(self, work: Work) -> Drawing:
        frame = shards_frame(work.plan, work.run.reports, work.provenance)
        if frame.empty:
            return None, ""
        self.frame = frame
        return shards_figure(frame, badge=work.badge), html.quiet(explain_shards(frame))
