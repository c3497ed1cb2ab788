"""What ran when: the result of simulating a schedule and of running it, in one type.

Spans are kept as arrays, since a table of 64 ranks and 1,024 micro-batches has a quarter of a million of them;
``spans`` makes objects of them for whoever wants a few.

A rank is idle while it does not compute, whatever it waits for. Both names of a bubble are here: ``idle_over_total`` is
idle time over the makespan, a fraction; ``idle_over_work`` is idle time over work, Megatron's ratio.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tplab.checks import check_count
from tplab.files import read_json, write_text
from tplab.pipeline.schedule import CODES, OPS, Action, Op, Schedule
from tplab.shown import listed

if TYPE_CHECKING:
    import pandas as pd

KINDS = ("forward", "decode", "backward", "input gradient", "weight gradient", "point-to-point")
"""Kinds that figures colour by. ``backward`` is the whole one, B; ``decode`` a forward of a decoding micro-batch."""

_KIND_OF_OP = {Op.F: "forward", Op.B: "backward", Op.I: "input gradient", Op.W: "weight gradient"}
_B, _W, _FIRST_COMM = CODES[Op.B], CODES[Op.W], CODES[Op.SEND_F]


class Span(NamedTuple):
    """One action as it ran."""

    rank: int
    stage: int
    op: Op
    micro_batch: int
    start_s: float
    end_s: float


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Trace:
    """Spans on one clock, in seconds from its zero: the start of a simulation, or of a run's first action.

    Computations (F, B, I, W) of one rank do not overlap. Sends, where recorded, last from the start on the wire (or
    from isend) to the arrival, receives from the wait's begin to its end; they may overlap anything, and are not work.
    """

    schedule: Schedule
    """The schedule that was simulated or run."""
    rank: NDArray[np.int64]
    stage: NDArray[np.int64]
    op: NDArray[np.int64]
    """Index into ``tplab.pipeline.schedule.OPS``."""
    micro_batch: NDArray[np.int64]
    start_s: NDArray[np.float64]
    end_s: NDArray[np.float64]
    measured: bool
    """Whether the trace is of a run on real ranks, rather than simulated."""
    badge: str = "MODEL"
    """Badge that says where the trace comes from, as figures show it."""
    provenance: Mapping[str, str | int] = field(default_factory=dict)
    """Columns of the run's provenance; empty for a simulation."""
    activation_bytes: tuple[float, ...] | None = None
    """Bytes that one micro-batch leaves on each of the p·v stages until its backward; None if not known."""
    collectives: tuple[tuple[int, float, float], ...] = ()
    """Rank, start and end, in seconds, of the collectives within its computations, where somebody noted them: figures
    draw them below the computations that they are part of. Not in ``frame``, nor in the file for Perfetto."""

    def __post_init__(self) -> None:
        lengths = {len(column) for column in self._arrays()}
        if len(lengths) != 1:
            raise ValueError(f"the columns of a trace must be equally long, got lengths {sorted(lengths)}")

    @classmethod
    def from_spans(
        cls,
        schedule: Schedule,
        spans: Sequence[tuple[int, int, Op, int, float, float]],
        *,
        measured: bool,
        badge: str,
        provenance: Mapping[str, str | int] | None = None,
        activation_bytes: Sequence[float] | None = None,
        zero_s: float | None = None,
    ) -> "Trace":
        """A trace of spans (``Span`` or plain tuples) in any order.

        Args:
            zero_s: what the spans' clock showed at the trace's zero; by default the earliest start.
        """
        ordered = sorted(spans, key=lambda span: (span[0], span[4]))
        if zero_s is None:
            zero_s = min((span[4] for span in ordered), default=0.0)
        ints: list[ArrayLike] = [
            [span[0] for span in ordered],
            [span[1] for span in ordered],
            [CODES[span[2]] for span in ordered],
            [span[3] for span in ordered],
        ]
        rank, stage, op, micro_batch = (np.asarray(column, dtype=np.int64) for column in ints)
        return cls(
            schedule=schedule,
            rank=rank,
            stage=stage,
            op=op,
            micro_batch=micro_batch,
            start_s=np.asarray([span[4] for span in ordered], dtype=np.float64) - zero_s,
            end_s=np.asarray([span[5] for span in ordered], dtype=np.float64) - zero_s,
            measured=measured,
            badge=badge,
            provenance=dict(provenance or {}),
            activation_bytes=None if activation_bytes is None else tuple(activation_bytes),
        )

    @classmethod
    def from_perfetto(cls, path: "str | Path", schedule: Schedule, *, badge: str | None = None) -> "Trace":
        """A measured trace as :meth:`to_perfetto` wrote it; ``activation_bytes`` are not in the file.

        Args:
            schedule: what was run; the file has its spans only.
            badge: instead of the file's, which says LIVE.

        Raises:
            ValueError: a file that is no such trace, a simulation's, or one of another schedule.
        """
        try:
            data = read_json(path)
            about = dict(data["otherData"])
            name, found_badge = str(about.pop("schedule")), str(about.pop("badge"))
            if not all(isinstance(value, str | int) for value in about.values()):
                raise ValueError("otherData holds more than texts and whole numbers")
            spans = [_span(event) for event in data["traceEvents"] if event["ph"] == "X"]
        except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
            raise ValueError(f"path={path} is no trace that to_perfetto wrote: {error!r}") from error
        if found_badge == "MODEL":
            raise ValueError(f"path={path} is a simulation: simulate the schedule again instead")
        wanted = {(rank, *action) for rank, _, action in schedule.actions() if action.op.is_compute}
        outside = any(
            not 0 <= span.rank < schedule.num_stages
            or span.stage >= schedule.total_stages
            or span.micro_batch >= schedule.num_micro_batches
            for span in spans
        )
        computed = [tuple(span[:4]) for span in spans if span.op.is_compute]
        if outside or name != schedule.name or wanted != set(computed) or len(wanted) != len(computed):
            raise ValueError(
                f"path={path} is a trace of {listed([name])}, not of this {schedule.name} of {schedule.num_stages} "
                f"stages and {schedule.num_micro_batches} micro-batches"
            )
        return cls.from_spans(schedule, spans, measured=True, badge=badge or found_badge, provenance=about, zero_s=0.0)

    def _arrays(self) -> tuple[NDArray[Any], ...]:
        return self.rank, self.stage, self.op, self.micro_batch, self.start_s, self.end_s

    @property
    def spans(self) -> tuple[Span, ...]:
        """All spans as objects."""
        rank, stage, op, micro_batch, start, end = (column.tolist() for column in self._arrays())
        return tuple(
            Span(*span) for span in zip(rank, stage, [OPS[code] for code in op], micro_batch, start, end, strict=True)
        )

    @property
    def num_ranks(self) -> int:
        """p."""
        return self.schedule.num_stages

    @property
    def is_compute(self) -> NDArray[np.bool_]:
        """Whether each span is a computation: F, B, I or W."""
        return self.op < _FIRST_COMM

    @property
    def makespan_s(self) -> float:
        """Seconds from the start of the first computation on any rank to the end of the last."""
        compute = self.is_compute
        return float(self.end_s[compute].max() - self.start_s[compute].min()) if compute.any() else 0.0

    @property
    def work_s(self) -> NDArray[np.float64]:
        """Seconds that each rank computes."""
        compute = self.is_compute
        length = (self.end_s - self.start_s)[compute]
        return np.bincount(self.rank[compute], weights=length, minlength=self.num_ranks).astype(np.float64)

    @property
    def idle_s(self) -> NDArray[np.float64]:
        """Seconds that each rank does not compute: makespan less work."""
        return self.makespan_s - self.work_s

    @property
    def collective_over_total(self) -> float:
        """Time in ``collectives`` over the makespan of all ranks together: a part of what is not idle."""
        return float(_ratio(sum(end - start for _, start, end in self.collectives), self.makespan_s * self.num_ranks))

    @property
    def idle_over_total_per_rank(self) -> NDArray[np.float64]:
        return _ratio(self.idle_s, np.full(self.num_ranks, self.makespan_s))

    @property
    def idle_over_work_per_rank(self) -> NDArray[np.float64]:
        return _ratio(self.idle_s, self.work_s)

    @property
    def idle_over_total(self) -> float:
        """Idle time over the makespan of all ranks together: a fraction between 0 and 1."""
        return float(_ratio(self.idle_s.sum(), self.makespan_s * self.num_ranks))

    @property
    def idle_over_work(self) -> float:
        """Idle time over work of all ranks together: Megatron's bubble ratio, which may pass 1."""
        return float(_ratio(self.idle_s.sum(), self.work_s.sum()))

    def activations(self, rank: int, *, in_bytes: bool = False) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The memory lane of a rank: times at which what it holds changes, and what it holds from then on.

        Held from the start of a forward to the end of the backward that needs it last (B or W); in inference to the
        end of the forward. In micro-batches: one chunk's activations count 1/v, so that schedules with and without
        chunks compare. Or in bytes, by ``activation_bytes``.
        """
        ranks, times, held = self._held(in_bytes)
        first, last = np.searchsorted(ranks, [rank, rank + 1])
        return times[first:last], held[first:last]

    def _held(self, in_bytes: bool) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
        """The lanes of all ranks, one after the other: rank, time, held from then on."""
        share = self._shares(in_bytes)
        takes = np.flatnonzero(self.op == CODES[Op.F])
        freed = self.op == CODES[Op.F] if self.schedule.is_inference else (self.op == _B) | (self.op == _W)
        gives = np.flatnonzero(freed)
        which = np.concatenate([gives, takes])
        ranks = self.rank[which]
        times = np.concatenate([self.end_s[gives], self.start_s[takes]])
        deltas = np.concatenate([-share[self.stage[gives]], share[self.stage[takes]]])
        order = np.lexsort((times, ranks))  # stable: at one instant room is made before it is taken
        ranks, times, total = ranks[order], times[order], np.cumsum(deltas[order])
        before = np.concatenate([[0.0], total])[np.searchsorted(ranks, np.arange(self.num_ranks))]
        return ranks, times, total - before[ranks]

    def peak_activations(self, rank: int | None = None, *, in_bytes: bool = False) -> float:
        """The most that ``rank`` (by default any) holds at a time, as :meth:`activations` counts."""
        peaks = self._peaks(in_bytes)
        return max(peaks) if rank is None else peaks[rank]

    def _peaks(self, in_bytes: bool) -> tuple[float, ...]:
        ranks, _, held = self._held(in_bytes)
        most = np.zeros(self.num_ranks)
        np.maximum.at(most, ranks, held)
        return tuple(np.round(most, 9).tolist())  # sums of 1/v

    @property
    def peak_activations_per_rank(self) -> tuple[float, ...]:
        """Most micro-batches whose activations each rank holds at once."""
        return self._peaks(in_bytes=False)

    def _shares(self, in_bytes: bool) -> NDArray[np.float64]:
        if not in_bytes:
            return np.full(self.schedule.total_stages, 1.0 / self.schedule.num_chunks)
        if self.activation_bytes is None:
            raise ValueError("in_bytes=True needs activation_bytes, which this trace does not know")
        return np.asarray(self.activation_bytes, dtype=np.float64)

    def kinds(self) -> list[str]:
        """The kind of each span, one of ``KINDS``."""
        decodes = {i for i, micro_batch in enumerate(self.schedule.micro_batches) if micro_batch.phase == "decode"}
        by_code = [_KIND_OF_OP.get(op, "point-to-point") for op in OPS]
        forward = CODES[Op.F]
        return [
            "decode" if code == forward and micro_batch in decodes else by_code[code]
            for code, micro_batch in zip(self.op.tolist(), self.micro_batch.tolist(), strict=True)
        ]

    def frame(self) -> "pd.DataFrame":
        """One row per span: ``schedule``, ``rank``, ``stage``, ``chunk``, ``op``, ``kind``, ``micro_batch``, ``action``
        (as in the table), ``start_ms``, ``end_ms``, ``duration_ms``, ``measured``, ``badge``, and the provenance."""
        import pandas as pd

        names = np.asarray([str(op) for op in OPS], dtype=object)[self.op]
        return pd.DataFrame(
            {
                "schedule": self.schedule.name,
                "rank": self.rank,
                "stage": self.stage,
                "chunk": self.stage // self.num_ranks,
                "op": names,
                "kind": self.kinds(),
                "micro_batch": self.micro_batch,
                "action": [
                    f"{stage}{op}{mb}"
                    for stage, op, mb in zip(self.stage.tolist(), names, self.micro_batch.tolist(), strict=True)
                ],
                "start_ms": self.start_s * 1e3,
                "end_ms": self.end_s * 1e3,
                "duration_ms": (self.end_s - self.start_s) * 1e3,
                "measured": self.measured,
                "badge": self.badge,
                **self.provenance,
            }
        )

    def perfetto(self) -> dict[str, Any]:
        """The trace in Chrome's JSON form, which ui.perfetto.dev and chrome://tracing open: microseconds; a process
        per rank, with a track for its computations, one each for sends and receives, and a counter of activations."""
        events: list[dict[str, Any]] = []
        for rank in range(self.num_ranks):
            events.append(_named("process_name", rank, 0, f"rank {rank}"))
            events += [_named("thread_name", rank, track, name) for track, name in enumerate(_TRACKS)]
            events += [
                {"name": "activations", "ph": "C", "pid": rank, "ts": time * 1e6, "args": {"micro-batches": held}}
                for time, held in zip(*(column.tolist() for column in self.activations(rank)), strict=True)
            ]
        for span, kind in zip(self.spans, self.kinds(), strict=True):
            events.append(
                {
                    "name": f"{span.stage}{span.op.value}{span.micro_batch}",
                    "cat": kind,
                    "ph": "X",
                    "pid": span.rank,
                    "tid": 0 if span.op.is_compute else 1 if span.op.is_send else 2,
                    "ts": span.start_s * 1e6,
                    "dur": (span.end_s - span.start_s) * 1e6,
                    "args": {"stage": span.stage, "micro_batch": span.micro_batch},
                }
            )
        about = {"schedule": self.schedule.name, "badge": self.badge, **self.provenance}
        return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": about}

    def to_perfetto(self, path: str | Path) -> None:
        """Write :meth:`perfetto` to a file, whole or not at all. Raises ``OSError`` like ``files.replacing``."""
        write_text(path, json.dumps(self.perfetto()))


def _span(event: Mapping[str, Any]) -> Span:
    action, rank, start, length = Action.parse(event["name"]), event["pid"], event["ts"] * 1e-6, event["dur"] * 1e-6
    check_count(f"pid of {action}", rank)
    if not (abs(start) < _LONGEST_S and 0 <= length < _LONGEST_S):
        raise ValueError(f"ts and dur of {action} must be microseconds, got {event['ts']} and {event['dur']}")
    return Span(rank, *action, start, start + length)


_LONGEST_S = 1e9
"""Longest time of a trace in seconds, 30 years: no run lasts that long."""
_TRACKS = ("computations", "sends", "receives")


def _named(what: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"name": what, "ph": "M", "pid": pid, "tid": tid, "args": {"name": name}}


def _ratio(part: Any, whole: Any) -> NDArray[np.float64]:
    """``part / whole``, and 0 where there is no whole."""
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    safe: NDArray[np.float64] = part / np.where(whole > 0, whole, 1.0)
    return np.where(whole > 0, safe, 0.0)
