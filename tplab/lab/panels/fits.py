"""Notebook 01's panel *Does my model fit, and on what?*: the question of ``tplab fits``, with controls.

Unlike the picture ``WillItFit``, whose numbers are counted beforehand for models with a name, it takes any model that
``fits`` takes: a name, a repository, a path, or a pasted ``config.json``.
"""

from collections.abc import Mapping
from html import escape
from textwrap import wrap
from typing import Any

import ipywidgets as widgets
import pandas as pd
import plotly.graph_objects as go

from tplab.checks import ArgumentError
from tplab.files import parse_json
from tplab.lab.figures.memory import asked_frame, memory_figure
from tplab.lab.panels import html
from tplab.lab.panels.analytic import AnalyticPanel, said
from tplab.lab.panels.controls import wide
from tplab.models.found.named import FoundModel, find_model
from tplab.models.presets import MODELS
from tplab.topology.advisor.engine_memory import ENGINES
from tplab.topology.capacity import Change, Fit, fits, offers
from tplab.topology.machine.machine import Machine
from tplab.topology.machine.names import name_of, offered
from tplab.topology.machine.spec_sheets import GPUS

_WEIGHTS = ("as in the files", "bf16", "fp8", "int8", "int4")
_CACHES = ("as computed", "bf16", "fp8")
_SERVED = ("vllm", "sglang", "trtllm")
_HERE = "here"
_VERDICTS = {True: "fits", False: "does not fit", None: "the weights fit"}
_MOST_BARS = 6
"""Changes that are drawn beside what was asked."""
_LABEL = 14
"""Letters in a line below a bar."""


class FitPanel(AnalyticPanel):
    """A model, GPUs, context, users: whether it fits, a bar of one GPU, what would help, and on what else it fits.

    ``fit`` is the answer (of ``fits``), ``others`` what is said of other GPUs (of ``offers``). ``show(model=, config=,
    gpu=, gpus=, context=, users=, weights=, cache=, engine=, share=)`` sets controls; a button below *what would help*
    does what ``take`` does. Where this machine has a GPU, it begins with that.
    """

    def __init__(self) -> None:
        self.fit: Fit | None = None
        self.others: tuple[Fit, ...] = ()
        self._found: tuple[Any, FoundModel] | None = None
        self._here = _local()
        gpus = list(offered(GPUS))
        if self._here is not None:
            gpus.insert(0, (f"this machine's {name_of(self._here.gpu.name)}", _HERE))
        served = [(name_of(name), name) for name in _SERVED if name in ENGINES]
        entry: dict[str, Any] = {"continuous_update": False, **wide()}
        self._ways = widgets.VBox([], layout=widgets.Layout(width="auto"))
        self._ways.add_class("tplab-ways")
        super().__init__(
            title="Does my model fit, and on what?",
            named={
                "model": widgets.Combobox(
                    value="llama-3.1-8b", options=tuple(MODELS), placeholder="name, owner/name or path",
                    description="model", **entry,
                ),
                "config": widgets.Textarea(
                    placeholder="or paste a config.json here", rows=2, description="config", **entry
                ),
                "weights": widgets.Dropdown(options=_WEIGHTS, description="weights", **wide()),
                "cache": widgets.Dropdown(options=_CACHES, description="KV cache", **wide()),
                "gpu": widgets.Dropdown(
                    options=gpus, value=_HERE if self._here else "rtx-3090", description="GPU", **wide()
                ),
                "gpus": widgets.BoundedIntText(value=1, min=1, max=64, description="GPUs", **entry),
                "context": widgets.BoundedIntText(value=8192, min=1, max=1 << 24, description="context", **entry),
                "users": widgets.BoundedIntText(value=1, min=1, max=1 << 20, description="users", **entry),
                "engine": widgets.Dropdown(options=served, description="engine", **wide()),
                "share": widgets.BoundedFloatText(
                    value=0.9, min=0.05, max=1.0, step=0.01, description="engine's share", **entry
                ),
            },
            beneath=[self._ways],
            min_height=460,
        )  # fmt: skip
        self.add_class("tplab-fits")
        self.children[1].children[1].children = [self._error, self._below, self._view]  # the answer first
        self._draw()

    def draw(self, values: dict[str, Any]) -> tuple[go.Figure, str]:
        self._offer(())
        precision = {
            "precision": None if values["weights"] == _WEIGHTS[0] else values["weights"],
            "kv_precision": None if values["cache"] == _CACHES[0] else values["cache"],
        }
        found = self._model(values, **precision)
        how = {
            **precision,
            "context": values["context"],
            "users": values["users"],
            "engine": values["engine"],
            "gpu_memory_utilization": values["share"],
        }
        gpu = self._here if values["gpu"] == _HERE else values["gpu"]
        self.fit = fit = fits(found, gpu, values["gpus"], **how)
        self.others = offers(found, **how)
        self._offer(fit.changes)
        title = f"{fit.model} on {fit.where}"
        figure = memory_figure(fits_frame(fit), title=title, badge="MODEL", axis="the fullest GPU")
        figure.update_xaxes(tickangle=0)  # its words are wrapped
        notes = "".join(html.quiet(f"{note}.") for note in fit.notes)
        return figure, said(fit.sentence, ok=fit.fits is not False, word=_VERDICTS[fit.fits]) + notes

    def take(self, change: Change) -> "FitPanel":
        """Set what a change says; what a button does."""
        names = {"precision": "weights", "kv_precision": "cache", "gpu_memory_utilization": "share"}
        return self.show(**{names.get(name, name): _plain(value) for name, value in change.settings.items()})

    def table(self) -> str:
        rows = [
            (
                name_of(fit.gpu.name),
                _VERDICTS[fit.fits],
                "" if fit.fits is False else fit.where,
                f"{fit.max_users:,}" if fit.fits and fit.max_users else "",
                f"{fit.max_context:,}" if fit.fits and fit.max_context else "",
            )
            for fit in self.others
        ]
        head = ("GPU", "", "the fewest of one node", "users at this context", "context for these users")
        return html.quiet("On what it fits:") + html.table(head, [[escape(cell) for cell in row] for row in rows])

    def _model(self, values: Mapping[str, Any], precision: str | None, kv_precision: str | None) -> FoundModel:
        """The model that is meant; asked for anew only where what is written of it has changed."""
        pasted = values["config"].strip()
        asked = (pasted or values["model"].strip(), bool(pasted), precision, kv_precision)
        if self._found is None or self._found[0] != asked:
            source = parse_json(pasted, "config") if pasted else asked[0]
            if pasted and not isinstance(source, Mapping):
                raise ArgumentError("config", source, "must be the contents of a config.json: a JSON object, in braces")
            self._found = asked, find_model(source, weight_precision=precision, kv_precision=kv_precision)
        return self._found[1]

    def _offer(self, changes: tuple[Change, ...]) -> None:
        """A button for each change; what was there is closed, or a page would collect them."""
        for old in self._ways.children:
            old.close()
        buttons = [_button(change) for change in changes]
        for button, change in zip(buttons, changes, strict=True):
            button.on_click(lambda _, change=change: self.take(change))
        self._ways.children = [widgets.HTML(html.quiet("What would help:")), *buttons] if buttons else []


def fits_frame(fit: Fit) -> pd.DataFrame:
    """What the fullest GPU holds: as asked, and after each change that keeps the card."""
    bars = {"as asked": fit.rank}
    for change in fit.changes[:_MOST_BARS]:
        then = fit.again(**change.settings)
        if then.gpu == fit.gpu and then.gpu_memory_utilization == fit.gpu_memory_utilization:
            words = change.words.replace("P ", "P\u00a0").replace(" × ", "\u00a0×\u00a0")
            bars["<br>".join(wrap(words, _LABEL, break_long_words=False))] = then.rank
    return asked_frame(bars, fit.gpu)


def _local() -> Machine | None:
    machine = Machine.detect()
    return None if machine.gpu.kind == "cpu" else machine


def _plain(value: Any) -> Any:
    return getattr(value, "name", value)


def _button(change: Change) -> widgets.Button:
    layout = widgets.Layout(width="auto")
    return widgets.Button(description=change.words, tooltip=change.flag or change.words, layout=layout)
