"""One pass through a stack of blocks as it ran: computation, and communication hidden behind it or exposed.

From the host's clock on the CPU, from CUDA events on GPUs; ``RecordingComm`` says how. Means over many passes are
``tplab.layers.overlap``'s.
"""

from typing import TYPE_CHECKING

import pandas as pd

from tplab.collectives.emulated_link import check_backend
from tplab.layers.overlap import StackPlan, linked_comm, plain_stack
from tplab.measure import provenance_columns

if TYPE_CHECKING:
    from tplab.cluster import Cluster, Rank
    from tplab.layers.strategies import Blocking

_SPIN_CYCLES = 10_000_000
"""Some five milliseconds of a GPU, in which the host launches what follows."""
Piece = tuple[str, str, float, float]
"""Kind, layer, start and end in seconds."""


def record_timeline(cluster: "Cluster", strategy: "Blocking", plan: StackPlan) -> pd.DataFrame:
    """One pass of the stack with every span written down, after warm-ups.

    Returns one row per span: ``rank``, ``kind`` (``computation``, ``hidden communication``, ``exposed communication``),
    ``name`` (layer), ``start_us``, ``end_us`` from the first rank's start, the strategy, and the provenance.
    Communication is cut where the computing thread, or the computing stream of a GPU, begins or ends waiting for it.
    On a GPU a collective counts as begun when it was started and those before it were over; a pause in which the host
    had launched nothing counts as computation.

    Raises ``ValueError`` for a link without gloo.
    """
    check_backend(plan.link, cluster.backend)
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
    x = x.to(device=rank.device, dtype=getattr(torch, plan.dtype))
    with torch.inference_mode():
        for _ in range(WARM_UPS):
            run_blocks(list(blocks), x)  # type: ignore[arg-type]
        with watch_layers(blocks) as layer_at_work:
            recorder = Recorder(rank.device, layer_at_work)
            recording = RecordingComm(linked, recorder, in_flight=True)
            for layer in blocks.modules():
                if hasattr(layer, "comm") and linked.size > 1:
                    setattr(layer, "comm", recording)  # noqa: B010  (nn.Module's attributes are not typed)
            line_up(rank)
            recorder.start()
            if rank.device.type == "cuda":
                # The host is ahead of the devices then, and these begin together.
                torch.cuda._sleep(_SPIN_CYCLES)  # type: ignore[no-untyped-call]
                linked.all_reduce(torch.zeros(1, device=rank.device))
            began = recorder.mark()
            run_blocks(list(blocks), x)  # type: ignore[arg-type]
            ended = recorder.mark()
    return split_spans(recording.spans(), recorder.seconds(began), recorder.seconds(ended))


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
