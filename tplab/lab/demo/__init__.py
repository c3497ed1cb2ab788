"""The panels alone, as a page: what ``tplab demo`` shows through Voila.

The page is a notebook that is made when it is asked for, so that no second text of the workshop has to be kept. A
visitor has a kernel of their own, which runs these cells and no others; ranks start at the press of a button only.
"""

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

IDLE_MINUTES: Final = 10
"""Kernels that no page looks at, and ranks that nobody uses, end after so long."""
_JUPYTER: Final = Path(__file__).parent / "jupyter"
_LIMITS: Final = (
    # As JupyterLab: or whoever has an account on this machine could start processes of the one who serves.
    "--Voila.auto_token=True",
    # A page that is closed asks for its kernel's end, without the argument that this check is for, and is refused:
    # https://github.com/voila-dashboards/voila/issues/1458
    "--Voila.tornado_settings=disable_check_xsrf=yes",
    f"--MappingKernelManager.cull_idle_timeout={60 * IDLE_MINUTES}",
    "--MappingKernelManager.cull_interval=60",
)
_TITLE: Final = "tplab: predict it, run it, compare"


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A panel, and what is said of it."""

    title: str
    """The heading."""
    text: str
    """A sentence or two of Markdown."""
    code: str
    """Python whose last line is the panel; ``pool`` is there."""
    asks_ranks: bool = False
    """Whether it has buttons that start ranks."""


SECTIONS: Final = (
    Section(
        title="Will it fit?",
        text="One GPU as a vessel: weights first, then the cache of everybody's conversation. Choose a model, a GPU, "
        "and how many read along.",
        code='from tplab.lab import WillItFit\nWillItFit(["llama-3.1-8b", "qwen3-14b", "llama-3.1-405b"])',
    ),
    Section(
        title="What does each rank hold?",
        text="A model that is cut: weights, cache and workspace of every rank, or of one along TP or PP.",
        code="from tplab.lab import MemoryWall\nMemoryWall().show(tp=8)",
    ),
    Section(
        title="The links of a machine",
        text="Which GPU talks to which, and over what. Choose a machine, then a layout: the groups that talk most "
        "should have the fastest links.",
        code="from tplab.lab import LinkPanel\nlinks = LinkPanel()\nlinks",
    ),
    Section(
        title="Which layout?",
        text="Every way to cut the model for the machine above, ranked by a model of time and memory that is fitted to "
        "published measurements.",
        code="from tplab.lab import AdvisorPanel\nAdvisorPanel(links)",
    ),
    Section(
        title="Paint a block",
        text="Cut the matrices of one block by column or by row, and see which communication that forces.",
        code="from tplab.lab import ShardPainter\nShardPainter()",
    ),
    Section(
        title="All-reduces, one clock",
        text="Algorithms side by side: the same sum, with other messages.",
        code="from tplab.lab.pictures import Race\nRace()",
    ),
    Section(
        title="Which all-reduce for which size?",
        text="Recorded on four H200. **Run** measures the same on the processor of the machine that serves this page.",
        code="from tplab.lab import CrossoverPanel\n"
        'CrossoverPanel(pool).configure(source="4xH200-2026-11-26, 4 ranks", model="llama-3.1-70b")',
        asks_ranks=True,
    ),
    Section(
        title="Hide it behind computation",
        text="A matrix in chunks: while one is summed, the next is computed. How many chunks are too many?",
        code="from tplab.lab import ChunkModel\nChunkModel()",
    ),
    Section(
        title="A pipeline, played",
        text="Eight micro-batches through four stages. The grey places are the bubble.",
        code="from tplab.lab import PlayHead\n"
        "from tplab.pipeline import build_schedule, simulate\n"
        'PlayHead(simulate(build_schedule("1f1b", 4, 8)), unit="units of F")',
    ),
    Section(
        title="Schedules",
        text="GPipe, 1F1B, interleaved, zero bubble: simulated with costs of your own.",
        code="from tplab.lab import ScheduleStudio\nScheduleStudio()",
    ),
    Section(
        title="Beat 1F1B",
        text="Drag actions about. Every move is judged at once.",
        code="from tplab.lab import ScheduleEditor\nScheduleEditor()",
    ),
    Section(
        title="Real ranks",
        text="Nothing of this is a model: processes that really talk, and are timed. They end with this page.",
        code="from tplab.lab.demo.ranks import RanksOnRequest\nRanksOnRequest(pool)",
        asks_ranks=True,
    ),
)
"""The page, from top to bottom."""


def demo_notebook(*, ranks: bool = True) -> dict[str, Any]:
    """The page as a notebook, in the form of its JSON.

    Args:
        ranks: also the panels that can start ranks.
    """
    sections = [section for section in SECTIONS if ranks or not section.asks_ranks]
    contents = " · ".join(f"[{section.title}](#{section.title.replace(' ', '-')})" for section in sections)
    intro = "What large models say to each other when they are split over GPUs. Everything here can be moved."
    first = f"from ipywidgets import VBox\nfrom tplab.lab import Pool\npool = Pool(2, idle_minutes={IDLE_MINUTES})"
    cells = [_cell("markdown", f"# {_TITLE}\n\n{intro}\n\n{contents}"), _cell("code", first)]
    for section in sections:
        *before, panel = section.code.split("\n")
        # In a box, a panel leaves no picture of itself for when its kernel is gone: nobody saves this page.
        shown = "\n".join([*before, f"VBox([{panel}])"])
        cells += [_cell("markdown", f"## {section.title}\n\n{section.text}"), _cell("code", shown)]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    for number, cell in enumerate(cells):
        cell["id"] = f"demo-{number}"
    return {
        "cells": cells,
        "metadata": {"title": _TITLE, "kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def serve_demo(options: Sequence[str], *, ranks: bool = True) -> None:
    """Serve the page until Ctrl-C.

    Args:
        options: for Voila, as on its command line.
        ranks: also the panels that can start ranks.
    """
    from voila.app import Voila

    os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, (str(_JUPYTER), os.environ.get("JUPYTER_PATH"))))
    os.environ["TPLAB_PROGRESS"] = "off"  # a visitor is no learner with a folder
    with tempfile.TemporaryDirectory(prefix="tplab-demo-") as folder:
        page = Path(folder, "demo.ipynb")
        page.write_text(json.dumps(demo_notebook(ranks=ranks)), encoding="utf-8")
        Voila.launch_instance([str(page), "--template=tplab", *_LIMITS, *options])


def _cell(kind: str, source: str) -> dict[str, Any]:
    cell: dict[str, Any] = {"cell_type": kind, "metadata": {}, "source": source}
    return cell | ({"execution_count": None, "outputs": []} if kind == "code" else {})
