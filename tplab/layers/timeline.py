"""One pass through a stack of blocks as it ran: computation, and communication hidden behind it or exposed.

From the host's clock, for ranks on the CPU; ``RecordingComm`` says how. Means over many passes, and GPUs, are
``tplab.layers.overlap``'s.
"""

from typing import TYPE_CHECKING

import pandas as pd

from tplab.layers.overlap import StackPlan, linked_comm, plain_stack
from tplab.measure import provenance_columns

if TYPE_CHECKING:
    from tplab.cluster import Cluster, Rank
    from tplab.layers.strategies import Blocking

Piece = tuple[str, str, float, float]
"""Kind, layer, start and end in seconds."""


def record_timeline(cluster: "Cluster", strategy: "Blocking", plan: StackPlan) -> pd.DataFrame:
    """One pass of the stack with every span written down, after warm-ups; ranks on the CPU.

    Returns one row per span: ``rank``, ``kind`` (``computation``, ``hidden communication``, ``exposed communication``),
    ``name`` (layer), ``start_us``, ``end_us`` from the first rank's start, the strategy, and the provenance.
    Communication is cut where the computing thread begins or ends waiting for it.

    Raises ``ValueError`` on GPUs, whose streams the host does not see.
    """
    if cluster.backend != "gloo":
        raise ValueError(
            f"cluster: a timeline is recorded on CPU ranks; this one runs {cluster.backend}: Cluster(n, 'gloo')"
        )
    per_rank = cluster.run(_record, strategy, plan, timeout=120)
    zero = min(start for spans in per_rank for _, _, start, _ in spans)
    columns = provenance_columns(cluster.provenance, link=plan.link)
    return pd.DataFrame(
        {
            "rank": rank,
            "kind": kind,
            "name": name,
            "start_us": (start - zero) * 1e6,
            "end_us": (end - zero) * 1e6,
            "strategy": str(strategy),
            **columns,
        }
        for rank, spans in enumerate(per_rank)
        for kind, name, start, end in spans
    )


def overlap_ratio(timeline: pd.DataFrame) -> float:
    """Time in which computation and communication both run, over communication time: of a recorded timeline."""
    length = timeline["end_us"] - timeline["start_us"]
    by_kind = length.groupby(timeline["kind"]).sum()
    hidden, exposed = by_kind.get("hidden communication", 0.0), by_kind.get("exposed communication", 0.0)
    return float(hidden / (hidden + exposed)) if hidden + exposed else 0.0


def _record(rank: "Rank", strategy: "Blocking", plan: StackPlan) -> list[tuple[str, str, float, float]]:
    import time

    import torch

    from tplab.layers.block import ParallelBlock, run_blocks
    from tplab.layers.comm import RecordingComm
    from tplab.layers.counting import watch_layers
    from tplab.layers.strategies import set_strategy
    from tplab.measure.clock import Recorder
    from tplab.measure.sampler import WARM_UPS, line_up

    linked = linked_comm(rank, plan.link)
    blocks = torch.nn.ModuleList([ParallelBlock.from_module(block, linked) for block in plain_stack(rank, plan)])
    set_strategy(blocks, strategy)
    x = torch.randn(plan.batch, plan.seq, plan.hidden, generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        for _ in range(WARM_UPS):
            run_blocks(list(blocks), x)  # type: ignore[arg-type]
        with watch_layers(blocks) as layer_at_work:
            recording = RecordingComm(linked, Recorder(rank.device, layer_at_work), in_flight=True)
            for layer in blocks.modules():
                if hasattr(layer, "comm") and linked.size > 1:
                    setattr(layer, "comm", recording)  # noqa: B010  (nn.Module's attributes are not typed)
            line_up(rank)
            began = time.monotonic()
            run_blocks(list(blocks), x)  # type: ignore[arg-type]
            ended = time.monotonic()
    return split_spans(recording.spans(), began, ended)


def split_spans(spans: list[Piece], began: float, ended: float) -> list[Piece]:
    """Computation is when the computing thread does not wait; communication is exposed while it waits, else hidden."""
    waits = sorted((start, end) for kind, _, start, end in spans if kind == "collective")
    pieces: list[Piece] = []
    cursor = began
    for start, end in waits:
        if start > cursor:
            pieces.append(("computation", "", cursor, start))
        cursor = max(cursor, end)
    if ended > cursor:
        pieces.append(("computation", "", cursor, ended))
    for kind, name, start, end in spans:
        if kind != "in flight":
            continue
        at = start
        for wait_start, wait_end in waits:
            low, high = max(at, wait_start), min(end, wait_end)
            if low >= high:
                continue
            if low > at:
                pieces.append(("hidden communication", name, at, low))
            pieces.append(("exposed communication", name, low, high))
            at = high
        if end > at:
            pieces.append(("hidden communication", name, at, end))
    return pieces
