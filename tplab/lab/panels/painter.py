"""The shard painter: choose column, row or replicated per matrix and see what it forces. Analytic: it runs nothing.

The plan and its prices follow the controls at once. A choice that cannot work (heads that do not divide by the ranks)
is said in words above the last good figure, not prevented: which choices need which sizes to divide is half the lesson.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

import ipywidgets as widgets
import plotly.graph_objects as go

from tplab.collectives.cost import AlphaBeta
from tplab.lab import style
from tplab.lab.figures.painter import painter_figure, short_bytes
from tplab.lab.known_links import LINKS, THIS_MACHINE
from tplab.lab.panels import html
from tplab.lab.panels.analytic import AnalyticPanel
from tplab.lab.panels.controls import Settings, wide
from tplab.layers.plan import CANONICAL, CHOICES, MATRICES, BlockPlan, plan_block

_ITEMSIZE = 2  # bfloat16


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """Sizes of a model that matter to a block."""

    hidden: int
    intermediate: int
    num_heads: int
    num_kv_heads: int
    num_layers: int


SHAPES: Mapping[str, Shape] = {
    "tiny": Shape(hidden=768, intermediate=3072, num_heads=12, num_kv_heads=4, num_layers=12),
    "Llama-3.1 8B": Shape(hidden=4096, intermediate=14336, num_heads=32, num_kv_heads=8, num_layers=32),
    "Llama-3.1 70B": Shape(hidden=8192, intermediate=28672, num_heads=64, num_kv_heads=8, num_layers=80),
}
"""Tiny has heads that divide by 3 and 6, and key-value heads that do not. Llama: Meta's published configurations."""


class ShardPainter(AnalyticPanel):
    """Four choices, ranks, tokens, model and link; the painted block and its price beside column, row, column, row.

    ``paint(qkv="column", ...)`` sets the controls; ``plan`` and ``figure`` are what is shown. With ``link``, what was
    fitted on this machine, the prices are its own: it becomes the first link offered.
    """

    def __init__(self, *, link: AlphaBeta | None = None) -> None:
        self._links = dict(LINKS) if link is None else {THIS_MACHINE: link, **LINKS}
        self._about_link = widgets.HTML()
        self._verdict = widgets.HTML()
        tokens = [(f"{1 << power:,}", 1 << power) for power in range(14)]
        super().__init__(
            title="Shard painter",
            named={
                **{
                    name: widgets.Dropdown(options=CHOICES, value=CANONICAL[name], description=name, **wide(50))
                    for name in MATRICES
                },
                "ranks": widgets.IntSlider(value=4, min=1, max=8, description="ranks", **wide(50)),
                "tokens": widgets.SelectionSlider(options=tokens, value=1024, description="tokens", **wide(50)),
                "model": widgets.Dropdown(options=list(SHAPES), value="Llama-3.1 8B", description="model", **wide(50)),
                "link": widgets.Dropdown(options=list(self._links), description="link", **wide(50)),
            },
            beneath=(self._about_link, self._verdict),
            min_height=740,
        )
        self.add_class("tplab-painter")
        self._draw()

    @property
    def plan(self) -> BlockPlan:
        """The plan shown: the last one that can work."""
        return self._plan

    def paint(
        self,
        *,
        qkv: str | None = None,
        out: str | None = None,
        up: str | None = None,
        down: str | None = None,
        ranks: int | None = None,
        tokens: int | None = None,
        model: str | None = None,
        link: str | None = None,
    ) -> "ShardPainter":
        """Set controls; what is not given stays. ``ValueError`` for what is not offered or cannot work together.

        Args:
            qkv, out, up, down: ``column``, ``row`` or ``replicated``, by matrix.
            ranks: number of ranks.
            tokens: tokens of the pass.
            model: name of the shapes.
            link: name of the link whose speed prices the collectives.
        """
        given = {"qkv": qkv, "out": out, "up": up, "down": down, "ranks": ranks, "tokens": tokens}
        given |= {"model": model, "link": link}
        wanted = {name: value for name, value in given.items() if value is not None}
        self._named.check(wanted)
        self._planned(self._named.settings() | wanted)  # names what does not divide, before anything is changed
        return self.show(**wanted)

    @staticmethod
    def _planned(settings: Mapping[str, Any], choices: Mapping[str, str] | None = None) -> BlockPlan:
        shape = SHAPES[settings["model"]]
        return plan_block(
            {name: settings[name] for name in MATRICES} if choices is None else choices,
            hidden=shape.hidden,
            intermediate=shape.intermediate,
            num_heads=shape.num_heads,
            num_kv_heads=shape.num_kv_heads,
            tokens=settings["tokens"],
            itemsize=_ITEMSIZE,
            n=settings["ranks"],
        )

    def draw(self, values: Settings) -> tuple[go.Figure, str]:
        self._plan = plan = self._planned(values)
        try:
            canonical = self._planned(values, CANONICAL)
        except ValueError:  # heads that do not divide, and a painting that does not mind
            canonical = None
        link, layers = self._links[values["link"]], SHAPES[values["model"]].num_layers
        self._about_link.value = html.quiet(
            f"{link.alpha_us:.3g} µs per message, {link.beta_GBps:.3g} GB/s per rank. Weights and activations: 2 bytes."
        )
        self._verdict.value = html.quiet(verdict(plan, canonical, link))
        return painter_figure(plan), _price_table(plan, canonical, link, layers) + _reason_table(plan)


def verdict(plan: BlockPlan, canonical: BlockPlan | None, link: AlphaBeta) -> str:
    """What was painted, in words, and how much dearer it is than column, row, column, row."""
    if plan.is_canonical:
        return f"Canonical: {plan.summary} per block."
    if canonical is None:
        return f"{_capital(plan.summary)} per block. Column, row, column, row cannot be split over {plan.n} ranks."
    if plan.n == 1:
        return "One rank: every choice is the same, and nothing is sent."
    here, best = (item.time_us(link.alpha_us, link.beta_GBps) for item in (plan, canonical))
    words = [f"{_capital(plan.summary)} per block; canonical: {canonical.summary}."]
    if math.isclose(here, best):
        same = "in as many calls" if plan.num_collectives == canonical.num_collectives else "in more calls"
        words.append(f"As much on the link, {same}.")
    elif here > best:
        words.append(f"{here / best:.3g} times the canonical plan's time on the link.")
    else:
        words.append(f"{1 - here / best:.0%} less time on the link." if here else "Nothing on the link.")
    if plan.weight_bytes > canonical.weight_bytes:
        ratio = plan.weight_bytes / canonical.weight_bytes
        words.append(f"Each rank holds and multiplies {ratio:.3g} times the weights.")
    if plan.kv_heads_per_rank > canonical.kv_heads_per_rank:
        words.append(
            f"Its key-value cache is {plan.kv_heads_per_rank / canonical.kv_heads_per_rank:.3g} times as large."
        )
    return " ".join(words)


def _price_table(plan: BlockPlan, canonical: BlockPlan | None, link: AlphaBeta, layers: int) -> str:
    def cells(item: BlockPlan) -> list[str]:
        us = item.time_us(link.alpha_us, link.beta_GBps)
        return [
            item.summary,
            short_bytes(item.payload_bytes),
            short_bytes(item.sent_bytes),
            _time_text(us),
            _time_text(us * layers),
            short_bytes(item.weight_bytes),
            short_bytes(item.weight_bytes * layers),
            short_bytes(item.kv_bytes_per_token * layers),
        ]

    names = [
        "collectives per block",
        "payload S per block",
        "sent by each rank, ring",
        "time on the link, one block",
        f"time on the link, {layers} blocks",
        "weights per rank, one block",
        f"weights per rank, {layers} blocks",
        f"KV cache per token and rank, {layers} blocks",
    ]
    best = ["cannot be split"] + [""] * (len(names) - 1) if canonical is None else cells(canonical)
    return html.table(
        ("", "painted", "column, row, column, row"),
        [tuple(map(escape, row)) for row in zip(names, cells(plan), best, strict=True)],
    )


def _reason_table(plan: BlockPlan) -> str:
    if not plan.forced:
        return html.quiet("No collective is forced.")
    rows = [
        (escape(step.name), html.pill(str(step.collective), style.COLLECTIVE), escape(step.why)) for step in plan.forced
    ]
    return html.table(("before", "forced", "why"), rows)


def _time_text(us: float) -> str:
    return f"{us:.3g} µs" if us < 1000 else f"{us / 1000:.3g} ms" if us < 1e6 else f"{us / 1e6:.3g} s"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
