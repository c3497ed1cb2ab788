"""The same prompts in several layouts, one after the other in one run: what each writes, and when.

One run, not one for each layout: it is stopped as one, and a layout does not wait for the notebook's kernel between two
others. A layout takes all ranks of the cluster, or one of them; then the others wait.

No torch at import: the notebook's kernel calls this, and the work is on the ranks.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tplab.checks import ArgumentError
from tplab.cluster.rank import Rank
from tplab.cluster.run import DerivedRun
from tplab.models.generation import generate_on_rank, generation_of
from tplab.models.records import RankResult, Request, Weights, check_prompts
from tplab.models.result import Generation
from tplab.models.shards import Layout, can_cut
from tplab.models.spec import ModelConfig
from tplab.models.together import together

if TYPE_CHECKING:
    from tplab.cluster import Cluster, Report, Run


def layouts_of(model: ModelConfig, num_ranks: int) -> list[tuple[int, int]]:
    """(TP, PP) of one rank, and of all layouts of ``num_ranks`` that the model can be cut to, most TP first."""
    every = [(tp, num_ranks // tp) for tp in range(num_ranks, 0, -1) if num_ranks % tp == 0]
    return list(dict.fromkeys([(1, 1), *(each for each in every if can_cut(model, *each))]))


class BesideRun(DerivedRun[list[Generation]]):
    """Layouts that write one after the other: a ``concurrent.futures.Future`` of their generations."""

    tokens: list[list[list[int]]]
    """What has come so far: of each layout, of each sequence. Also of a run that was stopped."""


def submit_beside(
    cluster: "Cluster",
    model: "str | Path | ModelConfig",
    prompts: Any,
    layouts: Sequence[tuple[int, int]],
    *,
    max_new_tokens: int = 32,
    temperature: float = 0.0,
    seed: int = 0,
    dtype: str | None = None,
    on_report: "Callable[[Report], None] | None" = None,
    timeout: float | None = 600.0,
) -> BesideRun:
    """Continue ``prompts`` in every one of ``layouts``, without waiting.

    Args:
        model, prompts: as for :func:`~tplab.models.generation.generate`.
        layouts: (TP, PP), each of all ranks of the cluster, or of one.
        max_new_tokens, temperature, seed, dtype: as for :func:`~tplab.models.generation.submit_generate`; a sequence
            ends with the model's stop token. Margins are kept where the likeliest token is taken.
        on_report: called with each report of a rank, after its tokens were put into ``tokens``; ``phase`` says which
            layout is at work.

    Raises:
        ValueError: an argument that cannot work, before anything is started.
    """
    config, weights = Weights.of(model)
    config = config if dtype is None else config.in_dtype(dtype)
    parts = [Layout.of(config, tp, pp) for tp, pp in layouts]
    for part in parts:
        if part.gpus_per_replica not in (1, cluster.num_ranks):
            rule = f"must each be of one rank, or of all {cluster.num_ranks} of the cluster"
            raise ArgumentError("layouts", (part.tp, part.pp), rule)
    request = Request.of(
        prompts,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        stop_tokens=tuple(config.stop_tokens),
        margins=temperature == 0,
        stream=True,
    )
    if request.is_text and weights.folder is None:
        raise ValueError("prompts are texts, but a model made up by seed has no tokenizer: give token ids")
    if not request.is_text:
        check_prompts(request.prompts, config, max_new_tokens)  # type: ignore[arg-type]
    tokens: list[list[list[int]]] = [[[] for _ in request.prompts] for _ in parts]
    at_work = 0

    def deliver(report: "Report") -> None:
        nonlocal at_work
        at_work = report.fields.get("layout", at_work)
        for sequence, token in report.fields.get("tokens", ()):
            tokens[at_work][sequence].append(token)
        if on_report is not None:
            on_report(report)

    def build(run: "Run[list[RankResult | None]]") -> list[Generation]:
        made = []
        for number, part in enumerate(parts):
            results = [result for rank in run.result() if (result := rank[number]) is not None]
            made.append(generation_of(cluster.resized(part.gpus_per_replica), results, part, request))
        return made

    run = cluster.submit(_write_on_rank, config, weights, parts, request, timeout=timeout, on_report=deliver)
    handle = BesideRun(run, build)
    handle.tokens = tokens
    return handle


def _write_on_rank(
    rank: Rank, config: ModelConfig, weights: Weights, layouts: Sequence[Layout], request: Request
) -> list[RankResult | None]:
    """What every rank does: its part of each layout, None where it has none."""
    alone = Rank(
        index=0,
        world_size=1,
        group=rank.group,
        device=rank.device,
        send_report=lambda fields: rank.report(**fields),
        store=rank.store,
    )

    def write(layout: Layout) -> RankResult | None:
        if layout.gpus_per_replica == rank.world_size:
            return generate_on_rank(rank, config, weights, layout, request)
        # The others learn of its end, or of its fault, when it is over.
        return together(rank, lambda: None if rank.index else generate_on_rank(alone, config, weights, layout, request))

    written = []
    for number, layout in enumerate(layouts):
        if rank.index == 0:
            rank.report(layout=number)
        written.append(write(layout))
    return written
