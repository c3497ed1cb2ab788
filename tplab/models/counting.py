"""Count what a prefill and a decode step communicate: every collective and message of a real run, by rank.

The formula it is held against: with TP every block sums its partial results twice; the embedding, whose rows are cut
over the ranks, sums once more; and choosing the likeliest token gathers what each rank's part of the vocabulary has.
That is 2L + 1 all-reduces and an all-gather, for a prefill of any length as for a decode step of any batch. With PP
each boundary passes on the hidden states in one message, and the last stage tells each of the others its tokens.

Counted is what the layers ask for, at their ``Comm``. What goes over the wire for it depends on the algorithm: over
gloo a small all-reduce is a message to every other rank, and on GPUs a kernel writes into the other GPUs' memory.

No torch at import: the notebook's kernel calls this.
"""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from tplab.checks import ArgumentError
from tplab.cluster.rank import degrees
from tplab.models.records import Request, Weights, check_prompts
from tplab.models.shards import Layout
from tplab.models.spec import ModelConfig
from tplab.shown import counted

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd
    import torch

    from tplab.cluster import Cluster, Rank, Run
    from tplab.cluster.run import DerivedRun
    from tplab.collectives.transport import Transport
    from tplab.layers.comm import Comm, Pending

T = TypeVar("T")
Counts = Counter[tuple[str, str]]
"""Calls and bytes of a whole run, by the name of the call."""
_COLUMNS = ["phase", "rank", "stage", "call", "calls", "bytes"]


def count_generation(
    cluster: "Cluster", model: ModelConfig, prompts: Any, *, tp: int | None = None, pp: int | None = None
) -> "pd.DataFrame":
    """What each rank asks for in a prefill and in a decode step, counted while a model with random weights runs.

    Args:
        cluster: the ranks.
        model: its configuration.
        prompts: token ids, of one sequence or several; they run as one micro-batch.
        tp, pp: degrees, as for ``generate``.

    Returns:
        A row for each ``phase`` (``prefill``, ``decode``), ``rank`` with its ``stage``, and ``call``: ``all-reduce``,
        ``all-gather``, ``reduce-scatter``, ``hidden states sent``, ``tokens sent``; ``calls``, and ``bytes`` of their
        payloads (of a gather: all that comes out); and the provenance.

    Raises:
        ValueError: degrees or prompts that cannot be.
    """
    __tracebackhide__ = True
    return submit_count_generation(cluster, model, prompts, [degrees(cluster.num_ranks, tp, pp)]).result()[0]


def submit_count_generation(
    cluster: "Cluster",
    model: ModelConfig,
    prompts: Any,
    layouts: "Sequence[tuple[int, int]]",
    **callbacks: Any,
) -> "DerivedRun[list[pd.DataFrame]]":
    """Like :func:`count_generation`, without waiting, in several layouts: a future of a frame for each.

    Args:
        cluster: the ranks.
        model, prompts: as for :func:`count_generation`.
        layouts: pairs of TP and PP, each of all ranks.
        callbacks: as for ``Cluster.submit``.
    """

    config, weights = Weights.of(model, 0)
    cut = [Layout.of(model, *degrees(cluster.num_ranks, tp, pp)) for tp, pp in layouts]
    # The second run makes one step more than the first: the decode step.
    requests = [Request.of(prompts, max_new_tokens=new, stop_tokens=(), cuda_graphs=False) for new in (1, 2)]
    if requests[1].is_text:
        raise ArgumentError("prompts", prompts, "must be token ids: no tokenizer takes part in counting")
    check_prompts(requests[1].prompts, config, 2)  # type: ignore[arg-type]

    def build(run: "Run[list[list[Counts]]]") -> "list[pd.DataFrame]":
        by_layout = zip(*run.result(), strict=True)
        columns = cluster.provenance.columns()
        return [_frame(layout, each).assign(**columns) for layout, each in zip(cut, by_layout, strict=True)]

    return cluster.submit(_count, config, weights, cut, requests, timeout=120, **callbacks).map(build)


def _frame(layout: Layout, by_rank: "Sequence[list[Counts]]") -> "pd.DataFrame":
    """Rows of one layout, of what every rank counted in both runs."""
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for place, phase in enumerate(("prefill", "decode")):
        for rank, runs in enumerate(by_rank):
            more = runs[place] - runs[place - 1] if place else runs[0]
            where = {"phase": phase, "rank": rank, "stage": layout.place(rank)[0]}
            names = dict.fromkeys(name for name, what in more if what == "calls")
            rows += [
                where | {"call": name, "calls": more[name, "calls"], "bytes": more[name, "bytes"]} for name in names
            ]
    return pd.DataFrame(rows, columns=_COLUMNS)


def _count(
    rank: "Rank", config: ModelConfig, weights: Weights, layouts: Sequence[Layout], requests: Sequence[Request]
) -> "list[list[Counts]]":
    """Runs on the ranks: each request in each layout, counted."""
    from functools import partial

    import torch

    from tplab.collectives.counter import CommCounter
    from tplab.models.generation import unload
    from tplab.models.loading import load_stage, tensor_parallel_comm
    from tplab.models.ready import ready_engine
    from tplab.models.together import together

    unload(rank)  # one model at a time
    runs_of_layouts = []
    for layout in layouts:
        comm = _TallyComm(tensor_parallel_comm(rank, layout))
        loaded = together(rank, partial(load_stage, rank, config, weights, layout, comm))
        runs = []
        for request in requests:
            engine = ready_engine(rank, loaded, request, [[*map(int, prompt)] for prompt in request.prompts])
            comm.counts = Counter()
            with CommCounter(where=comm.collective_at_work) as counter:
                engine.run()
            for record in counter.records:
                if record.kind == "send" and not record.where:  # else it is a part of a collective
                    name = "tokens sent" if record.dtype == torch.int64 else "hidden states sent"
                    comm.counts.update({(name, "calls"): 1, (name, "bytes"): record.num_bytes})
            runs.append(comm.counts)
        runs_of_layouts.append(runs)
    return runs_of_layouts


class _TallyComm:
    """The collectives of another ``Comm``, counted when they are called. Not one of those whose sum and norm are one
    kernel, so every sum passes here."""

    is_capturable = False

    def __init__(self, comm: "Comm") -> None:
        self._comm = comm
        self.index, self.size, self.device_types = comm.index, comm.size, comm.device_types
        self.counts: Counts = Counter()
        self._at_work = ""

    def collective_at_work(self) -> str:
        """The collective that is being started; empty outside of any."""
        return self._at_work

    @property
    def transport(self) -> "Transport":
        return self._comm.transport

    def all_reduce(self, x: "torch.Tensor") -> "torch.Tensor":
        return self._counted("all-reduce", self._comm.all_reduce, x)

    def start_all_reduce(self, x: "torch.Tensor") -> "Pending":
        return self._counted("all-reduce", self._comm.start_all_reduce, x)

    def all_reduce_max(self, x: "torch.Tensor") -> "torch.Tensor":
        return self._counted("all-reduce", self._comm.all_reduce_max, x)

    def start_all_gather(self, x: "torch.Tensor") -> "Pending":
        return self._counted("all-gather", self._comm.start_all_gather, x)

    def start_reduce_scatter(self, x: "torch.Tensor") -> "Pending":
        return self._counted("reduce-scatter", self._comm.start_reduce_scatter, x)

    def _counted(self, name: str, call: "Callable[[torch.Tensor], T]", x: "torch.Tensor") -> T:
        if self.size > 1:
            copies = self.size if name == "all-gather" else 1
            self.counts.update({(name, "calls"): 1, (name, "bytes"): copies * x.numel() * x.element_size()})
        self._at_work = name
        try:
            return call(x)
        finally:
            self._at_work = ""


def explain_counts(frame: "pd.DataFrame", num_layers: int) -> str:
    """A line for each phase of a frame of :func:`count_generation`: what a rank of each stage asks for, all stages
    together, beside 2L + 1 all-reduces and an all-gather; and a pipeline's messages, beside its boundaries."""
    lines = []
    for phase, rows in frame.groupby("phase", sort=False):
        first = rows[rows["rank"].isin(rows.groupby("stage")["rank"].min())]
        calls = first.groupby("call")["calls"].sum()
        sums, gathers = int(calls.get("all-reduce", 0)), int(calls.get("all-gather", 0))
        hidden, tokens = int(calls.get("hidden states sent", 0)), int(calls.get("tokens sent", 0))
        words = []
        if sums or gathers:
            words.append(
                f"{counted(sums, 'all-reduce')} and {counted(gathers, 'all-gather')} (by the formula "
                f"2L + 1 = {2 * num_layers + 1}, and 1)"
            )
        if hidden or tokens:
            boundaries = int(rows["stage"].max())
            words.append(
                f"{counted(hidden, 'message')} of hidden states over {counted(boundaries, 'boundary', 'boundaries')}, "
                f"and {counted(tokens, 'message')} that take{'s' * (tokens == 1)} the tokens back"
            )
        lines.append(f"{phase}: {'; '.join(words)}.")
    return "\n".join(lines) or "No rank had anything to say to another."
