"""Notebook 08's first panel: a trained model continues a text, in every layout of the pool's ranks."""

import time
from dataclasses import dataclass

import ipywidgets as widgets
import pandas as pd

from tplab.checks import ArgumentError
from tplab.cluster import Cluster, Report
from tplab.lab.figures.generation import layouts_figure
from tplab.lab.panels.base import Drawing, RunPanel, Submitted
from tplab.lab.panels.controls import Settings, wide
from tplab.lab.panels.generation import layouts_badge, layouts_frame
from tplab.lab.panels.pool import Pool
from tplab.lab.panels.run_state import Work
from tplab.lab.pictures.writing import Writing, name_of_layout
from tplab.models.beside import BesideRun, layouts_of, submit_beside
from tplab.models.result import Generation
from tplab.models.spec import ModelConfig
from tplab.models.tokenizer import Tokenizer
from tplab.models.trained import trained_model

PROMPTS = (
    "It was a truth universally acknowledged, that",
    "Emma was very much pleased with",
    '"My dear Mr. Darcy," said she,',
    "The two ladies walked on without speaking, till",
    "He had never in his life been so",
)
"""Beginnings that are offered."""
_WRITE_EVERY_S = 0.1
_PLAIN = str.maketrans("“”‘’—–", "\"\"''--")
"""What keyboards and word processors put in place of the characters that the model has read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Plan:
    """What is written."""

    handle: BesideRun
    """The layouts' run."""
    layouts: list[tuple[int, int]]
    """TP and PP of each."""
    prompt: str
    """What they continue."""


class WritingPanel(RunPanel):
    """A text of the reader's own, continued by the model that comes with tplab: on one rank, and cut over all ranks of
    the pool in every way that it can be cut; the texts side by side, and below them the time of each.

    ``generations`` are those of the last run, ``texts`` what they wrote, by layout; ``writing`` is the picture.
    """

    def __init__(self, pool: Pool) -> None:
        look = wide(96)
        self._example = widgets.Dropdown(options=PROMPTS, description="Begin with", **look)
        self._text = widgets.Textarea(
            PROMPTS[0], description="Prompt", rows=4, continuous_update=False, placeholder="How the text begins", **look
        )
        named = {
            "example": self._example,
            "prompt": self._text,
            "new_tokens": widgets.Dropdown(options=(16, 32, 64, 128), value=64, description="New tokens", **look),
            "temperature": widgets.Dropdown(
                options=[("the likeliest", 0.0), ("drawn, at 0.5", 0.5), ("drawn, at 0.8", 0.8)],
                value=0.5,
                description="Next token",
                **look,
            ),
            "seed": widgets.BoundedIntText(value=1, min=0, max=9999, description="Seed", **look),
            "dtype": widgets.Dropdown(options=("float32", "bfloat16"), description="Dtype", **look),
        }
        tokenizer = Tokenizer.of(trained_model())
        assert tokenizer is not None
        self._tokenizer: Tokenizer = tokenizer
        self._config = ModelConfig.from_hf(trained_model())
        self._handle: BesideRun | None = None
        self._written_at = 0.0
        self.writing = Writing()
        super().__init__(pool, title="The same text in every layout", named=named, above=[self.writing], height=460)
        self._example.observe(lambda change: self.configure(prompt=change["new"]), names="value")
        self.add_class("tplab-writing-panel")

    @property
    def generations(self) -> list[Generation]:
        """What the last run gave, a generation per layout; none if it did not come to its end."""
        done = self._handle is not None and self._handle.done() and self._handle.exception() is None
        return self._handle.result() if done and self._handle is not None else []

    @property
    def texts(self) -> dict[str, str]:
        """What each layout wrote."""
        return {
            name_of_layout(each.layout.tp, each.layout.pp): self._tokenizer.decode(each.tokens[0])
            for each in self.generations
        }

    @property
    def frame(self) -> pd.DataFrame:
        """A row per layout of the last run, see ``layouts_frame``."""
        return layouts_frame(self.generations)

    def measures(self, settings: Settings) -> Settings:
        return {name: value for name, value in settings.items() if name != "example"}  # it only fills the prompt

    def submit(self, cluster: Cluster, settings: Settings) -> Submitted:
        prompt = settings["prompt"].translate(_PLAIN).strip()
        if not prompt:
            raise ArgumentError("prompt", settings["prompt"], "must have a word: write how the text begins")
        ids = self._tokenizer.encode(prompt, name="prompt")
        most = self._config.max_length
        assert most is not None
        if len(ids) + settings["new_tokens"] > most:
            rule = f"has {len(ids)} tokens, and the model takes {most} with the new ones: shorten it, or ask for fewer"
            raise ArgumentError("prompt", settings["prompt"], rule)
        layouts = layouts_of(self._config, cluster.num_ranks)
        self._handle = None  # a report may come before there is another
        self._handle = submit_beside(
            cluster,
            trained_model(),
            [ids],
            layouts,
            max_new_tokens=settings["new_tokens"],
            temperature=settings["temperature"],
            seed=settings["seed"],
            dtype=settings["dtype"],
            on_report=self.on_report,
        )
        return self._handle.run, _Plan(handle=self._handle, layouts=layouts, prompt=prompt)

    def on_report(self, report: Report) -> None:
        super().on_report(report)
        work = self._begun
        if work is not None and time.monotonic() - self._written_at > _WRITE_EVERY_S:
            self._written_at = time.monotonic()
            self._write(work)

    def draw(self, work: Work) -> Drawing:
        made = self._write(work)
        if not made:
            return None, ""
        frame = layouts_frame(made)
        return layouts_figure(frame, badge=layouts_badge(frame)), ""

    def _write(self, work: Work) -> list[Generation]:
        """Show what a run has written; returns its generations, once they are all there."""
        plan: _Plan = work.plan
        self.writing.prompt = plan.prompt
        if not plan.handle.done() or plan.handle.exception() is not None:
            self.writing.show_begun(plan.handle, self._tokenizer, plan.layouts)
            return []
        made = plan.handle.result()
        self.writing.show(made, self._tokenizer, work.settings["dtype"])
        return made
