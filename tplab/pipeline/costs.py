"""What the parts of a schedule cost: times of computations, messages and activations. Numbers in, arrays out.

Every cost is one number, or one per stage, or one per stage and micro-batch, or a function of the two; that is enough
for an lm_head on the last stage, a slow rank, the growing prefix of a chunked prefill, or prefill chunks among decodes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tplab.pipeline.schedule import CODES, Op, Schedule

if TYPE_CHECKING:
    from tplab.pipeline.trace import Trace

Cost: TypeAlias = (
    float | Sequence[float] | Sequence[Sequence[float]] | NDArray[np.float64] | Callable[[int, int], float]
)
"""One number, or one by stage, or by stage and micro-batch, or a function ``cost(stage, micro_batch)``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """Seconds and bytes. A single number for a computation or for activations is for *one rank's share of the model*,
    which its v chunks divide evenly, so that schedules with and without chunks do the same work; anything else is by
    stage, as it is."""

    forward_s: Cost = 1.0
    """F: seconds of a forward."""
    input_grad_s: Cost = 1.0
    """I: seconds of the input's gradient. A whole backward B takes I + W."""
    weight_grad_s: Cost = 1.0
    """W: seconds of the weights' gradients."""
    hop_s: float | Sequence[Sequence[float]] | NDArray[np.float64] = 0.0
    """Latency of a message between ranks, seconds; or a (p, p) table, from row to column."""
    bandwidth_Bps: float | Sequence[Sequence[float]] | NDArray[np.float64] = np.inf
    """Bytes per second of the link between two ranks, each direction one link; or a (p, p) table."""
    message_bytes: Cost = 0.0
    """Bytes of what a stage sends on, and of the gradient that comes back. A number is that of each message, whatever
    v."""
    token_bytes: Cost = 0.0
    """Bytes of what the last stage of a decoding ring sends back to the first: token ids, not activations."""
    overlap: bool = True
    """A rank goes on while what it sends travels. If not, it waits until the message has arrived, which is what a
    blocking send of a large message does."""
    activation_bytes: Cost | None = None
    """What one micro-batch leaves behind for the backward: a number or by stage. Changes nothing but the trace's
    memory lane in bytes."""

    @classmethod
    def of_stages(cls, stage_s: Sequence[float], *, backward: float = 2.0, **costs: object) -> "Costs":
        """Uneven stages: forward times by stage, and a backward ``backward`` times as long, half I and half W."""
        halves = [stage * backward / 2 for stage in stage_s]
        return cls(forward_s=list(stage_s), input_grad_s=halves, weight_grad_s=halves, **costs)  # type: ignore[arg-type]


def measured_costs(trace: "Trace") -> Costs:
    """What each stage's forward and backward took in a run, medians over micro-batches; no hops. Simulated with these,
    the same schedule shows what order alone makes of them.

    A whole backward counts as half I and half W. Raises ``ValueError`` for a table that has both whole ones and parts.
    """
    seconds = trace.end_s - trace.start_s

    def medians(op: Op) -> list[float]:
        each = [seconds[(trace.op == CODES[op]) & (trace.stage == s)] for s in range(trace.schedule.total_stages)]
        return [float(np.median(times)) if len(times) else 0.0 for times in each]

    whole, inputs, weights = medians(Op.B), medians(Op.I), medians(Op.W)
    if any(whole) and (any(inputs) or any(weights)):
        raise ValueError("the trace has whole backwards (B) and parts (I, W): costs by stage cannot tell them apart")
    if any(whole):
        inputs = weights = [time / 2 for time in whole]
    return Costs(forward_s=medians(Op.F), input_grad_s=inputs, weight_grad_s=weights)


def durations(schedule: Schedule, costs: Costs) -> NDArray[np.float64]:
    """Seconds of every action in ``schedule.columns``; those of sends and receives are 0 here."""
    columns = schedule.columns
    seconds = np.zeros(len(columns.op))
    parts = {
        Op.F: ("forward_s",),
        Op.B: ("input_grad_s", "weight_grad_s"),
        Op.I: ("input_grad_s",),
        Op.W: ("weight_grad_s",),
    }
    table: dict[str, NDArray[np.float64]] = {}
    for op, names in parts.items():
        chosen = columns.op == CODES[op]
        if not chosen.any():
            continue
        for name in names:
            if name not in table:
                table[name] = grid(schedule, name, getattr(costs, name), shared=True)
            seconds[chosen] += table[name][columns.stage[chosen], columns.micro_batch[chosen]]
    return seconds


def grid(schedule: Schedule, name: str, cost: Cost, *, shared: bool) -> NDArray[np.float64]:
    """``cost`` by stage and micro-batch, (p·v, m). With ``shared`` a single number is divided by v.

    Raises ``ValueError`` with ``name`` for another shape, a negative number or one that is not finite.
    """
    stages, m = schedule.total_stages, schedule.num_micro_batches
    try:
        values = np.asarray(
            [[cost(stage, i) for i in range(m)] for stage in range(stages)] if callable(cost) else cost,
            dtype=np.float64,
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be made of numbers, got {cost!r}: {error}") from None
    if values.ndim == 0:
        values = values / schedule.num_chunks if shared else values
    elif values.ndim == 1:
        values = values[:, None]
    if values.ndim > 2 or (values.ndim == 2 and (values.shape[0] != stages or values.shape[1] not in (1, m))):
        raise ValueError(
            f"{name} must be a number, one per stage ({stages}), a ({stages}, {m}) table by stage and micro-batch, or "
            f"a function of both; got shape {values.shape}"
        )
    _check(name, values)
    return np.broadcast_to(values, (stages, m))


def links(schedule: Schedule, costs: Costs) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Latency (seconds) and inverse bandwidth (seconds per byte) from rank to rank, (p, p) each."""
    p = schedule.num_stages
    tables = []
    for name in ("hop_s", "bandwidth_Bps"):
        values = np.asarray(getattr(costs, name), dtype=np.float64)
        if values.ndim != 0 and values.shape != (p, p):
            raise ValueError(f"{name} must be a number or a ({p}, {p}) table from rank to rank; got {values.shape}")
        tables.append(np.broadcast_to(values, (p, p)))
    hop, bandwidth = tables
    _check("hop_s", hop)
    if not (bandwidth > 0).all():
        raise ValueError(f"bandwidth_Bps must be above 0, got {bandwidth.min()}")
    return hop, 1.0 / bandwidth


def stage_bytes(schedule: Schedule, costs: Costs) -> tuple[float, ...] | None:
    """``activation_bytes`` by stage."""
    if costs.activation_bytes is None:
        return None
    values = grid(schedule, "activation_bytes", costs.activation_bytes, shared=True)
    if not (values == values[:, :1]).all():
        raise ValueError("activation_bytes must be a number or one per stage; it differs between micro-batches")
    return tuple(float(value) for value in values[:, 0])


def _check(name: str, values: NDArray[np.float64]) -> None:
    if not (np.isfinite(values) & (values >= 0)).all():
        worst = values[~(np.isfinite(values) & (values >= 0))].flat[0]
        raise ValueError(f"{name} must be finite and not negative, got {worst}")
