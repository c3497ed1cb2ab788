"""Count what a prefill and a decode step communicate: every collective and message of a real run, by rank.

The formula it is held against: with TP every block sums its partial results twice; the embedding, whose rows are cut
over the ranks, sums once more; and choosing the likeliest token gathers what each rank's part of the vocabulary has.
That is 2L + 1 all-reduces and an all-gather, for a prefill of any length as for a decode step of any batch. With PP
each boundary passes on the hidden states in one message, and the last stage tells each of the others its tokens.

Counted is what the layers ask for. What goes over the wire for it depends on the algorithm: over gloo a small
all-reduce is a message to every other rank.

No torch at import: the notebook's kernel calls this.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tplab.checks import ArgumentError
from tplab.cluster.rank import degrees
from tplab.models.generation import ensure_loaded
from tplab.models.records import Request, Weights, check_prompts
from tplab.models.shards import Layout
from tplab.models.spec import ModelConfig

if TYPE_CHECKING:
    import pandas as pd

    from tplab.cluster import Cluster, Rank
    from tplab.layers.comm import Comm

_COLLECTIVES = {
    "all_reduce": "all-reduce",
    "all_reduce_max": "all-reduce",
    "start_all_reduce": "all-reduce",
    "start_all_gather": "all-gather",
    "start_reduce_scatter": "reduce-scatter",
}
_COLUMNS = ["phase", "rank", "stage", "call", "calls", "bytes"]


def count_generation(
    cluster: "Cluster", model: ModelConfig, prompts: Any, *, tp: int | None = None, pp: int | None = None
) -> "pd.DataFrame":
    """What each rank asks for in a prefill and in a decode step, counted while a model with random weights runs.

    Args:
        cluster: of ranks over gloo: on GPUs kernels of ours add up over the ranks as a part of something else.
        model: its configuration.
        prompts: token ids, of one sequence or several; they run as one micro-batch.
        tp, pp: degrees, as for ``generate``.

    Returns:
        A row for each ``phase`` (``prefill``, ``decode``), ``rank`` with its ``stage``, and ``call``: ``all-reduce``,
        ``all-gather``, ``reduce-scatter``, ``hidden states sent``, ``tokens sent``; ``calls``, and ``bytes`` of their
        payloads (of a gather: all that comes out); and the provenance.

    Raises:
        ValueError: ranks that do not speak gloo; degrees or prompts that cannot be.
    """
    import pandas as pd

    if cluster.backend != "gloo":
        raise ArgumentError("cluster", f"ranks over {cluster.backend}", "must speak gloo: Cluster(num_ranks, 'gloo')")
    tp, pp = degrees(cluster.num_ranks, tp, pp)
    layout = Layout.of(model, tp, pp)
    config, weights = Weights.of(model, 0)
    rows: list[dict[str, Any]] = []
    earlier: list[Counter[Any]] = [Counter() for _ in range(cluster.num_ranks)]
    for new_tokens, phase in ((1, "prefill"), (2, "decode")):  # the second run makes one step more than the first
        request = Request.of(prompts, max_new_tokens=new_tokens, stop_tokens=(), cuda_graphs=False)
        check_prompts(request.prompts, config, new_tokens)  # type: ignore[arg-type]
        counted = cluster.run(_count, config, weights, layout, request, timeout=120)
        for rank, (found, before) in enumerate(zip(counted, earlier, strict=True)):
            place = {"phase": phase, "rank": rank, "stage": layout.place(rank)[0]}
            more = found - before
            names = dict.fromkeys(name for name, what in more if what == "calls")
            rows += [
                place | {"call": name, "calls": more[name, "calls"], "bytes": more[name, "bytes"]} for name in names
            ]
        earlier = counted
    return pd.DataFrame(rows, columns=_COLUMNS).assign(**cluster.provenance.columns())


def _count(
    rank: "Rank", config: ModelConfig, weights: Weights, layout: Layout, request: Request
) -> "Counter[tuple[str, str]]":
    """Calls and bytes of a whole run, by name."""
    import torch

    from tplab.collectives.counter import CommCounter
    from tplab.models.ready import ready_engine

    loaded, _ = ensure_loaded(rank, config, weights, layout)
    engine = ready_engine(rank, loaded, request, [[*map(int, prompt)] for prompt in request.prompts])
    counts: Counter[tuple[str, str]] = Counter()
    with _asked(loaded.comm, counts) as inside, CommCounter(where=inside) as counter:
        engine.run()
    for record in counter.records:
        if record.kind == "send" and not record.where:  # else it is a part of a collective
            name = "tokens sent" if record.dtype == torch.int64 else "hidden states sent"
            counts[name, "calls"] += 1
            counts[name, "bytes"] += record.num_bytes
    return counts


@contextmanager
def _asked(comm: "Comm", counts: "Counter[tuple[str, str]]") -> Iterator[Any]:
    """Count what is asked of ``comm`` meanwhile; gives a function that names the collective that is being started."""
    within: list[str] = []

    def counting(method: str, name: str) -> Any:
        call = getattr(comm, method)

        def counted(x: Any) -> Any:
            copies = comm.size if name == "all-gather" else 1
            counts[name, "calls"] += 1
            counts[name, "bytes"] += copies * x.numel() * x.element_size()
            within.append(name)
            try:
                return call(x)
            finally:
                within.pop()

        return counted

    if comm.size > 1:
        for method, name in _COLLECTIVES.items():
            setattr(comm, method, counting(method, name))
    try:
        yield lambda: within[-1] if within else ""
    finally:
        for method in _COLLECTIVES:
            vars(comm).pop(method, None)


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
                f"{_number(sums, 'all-reduce')} and {_number(gathers, 'all-gather')} (by the formula "
                f"2L + 1 = {2 * num_layers + 1}, and 1)"
            )
        if hidden or tokens:
            boundaries = int(rows["stage"].max())
            words.append(
                f"{_number(hidden, 'message')} of hidden states over {_number(boundaries, 'boundary', 'boundaries')}, "
                f"and {_number(tokens, 'message')} that take{'s' * (tokens == 1)} the tokens back"
            )
        lines.append(f"{phase}: {'; '.join(words)}.")
    return "\n".join(lines) or "No rank had anything to say to another."


def _number(count: int, thing: str, plural: str = "") -> str:
    return f"{count} {thing if count == 1 else plural or thing + 's'}"
