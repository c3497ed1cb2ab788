"""``profile_step``: where the time of a decode step and a prefill goes, kernel by kernel, beside the advisor's terms.

``verify`` says how far off a prediction is; this says which of its terms. A generation runs under torch's profiler,
with CUDA graphs where the engine replays them, and every instant of the step gets the term of the kernel that ran
(``kernels``). What is left between kernels is ``gaps``: the host that launches, and waits that no kernel shows.

Over pipeline stages the terms of all stages are added up, as the advisor adds them, and what is left of the step is
``hops``: messages, and waiting for the other stages. So the batch is one micro-batch here.

Known to be wrong: the profiler itself costs some microseconds per operation that the host launches, so eager steps come
out slower than without it (the step's time without it stands beside them as ``unprofiled_ms``); on a CPU products and
waiting for another rank within one operation are one.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any

import pandas as pd

from tplab.checks import ArgumentError, check_count
from tplab.cluster.rank import degrees
from tplab.files import write_text
from tplab.models.generation import check_cuda_graphs, generation_of
from tplab.models.records import Activity, Request, Weights, check_prompts
from tplab.models.result import Generation
from tplab.models.shards import Layout
from tplab.models.spec import ModelConfig, ModelSpec
from tplab.topology.advisor.calibration import Calibration
from tplab.topology.advisor.workload import Workload
from tplab.topology.machine.machine import Machine
from tplab.topology.verification.kernels import TERMS, Kernel, TermTime, named, short_name, times_of
from tplab.topology.verification.plan import in_precision
from tplab.topology.verification.static_batch import machine_of, predict_batch

if TYPE_CHECKING:
    from tplab.cluster import Cluster, DerivedRun, Rank, Report, Run
    from tplab.pipeline.trace import Trace
    from tplab.topology.verification.profiled import RankProfile

PHASES = ("prefill", "decode")
_BOTH: dict[str, tuple[str, ...]] = {
    "weights": ("weights",),
    "head": ("lm_head",),
    "all-reduce": ("all_reduce", "ends"),
    "hops": ("hops", "bubble"),
}
_OF_PROMPTS: dict[str, tuple[str, ...]] = {
    "attention": ("attention", "kv_cache"),
    "norms and elementwise": ("activations",),
    "gaps": ("host", "kernels", "launch"),  # launched one by one: the longer of starting kernels and launching them
}
_OF_TOKENS: dict[str, tuple[str, ...]] = {
    "attention": ("kv_cache",),
    "norms and elementwise": ("activations", "kernels"),
    "gaps": ("host", "launch"),
}
PREDICTED_BY: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "prefill": _BOTH | _OF_PROMPTS,
    "decode": _BOTH | _OF_TOKENS,
}
"""Phase -> term of a profile -> the advisor's terms that speak of it; terms that are not here have none."""
_FRAME_COLUMNS = ("phase", "term", "measured_ms", "predicted_ms", "difference_ms", "share_pct", "calls", "names")
_NAMES_SHOWN = 4
_LONGEST_NAME = 160
"""Letters of a kernel's name that a file keeps: templates make hundreds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepProfile:
    """One prefill and one decode step, kernel by kernel, on all ranks."""

    generation: Generation
    """The same generation without the profiler, right before."""
    spans: tuple[tuple[Activity, ...], ...]
    """What each rank did in the generation that was profiled."""
    step: int
    """Number of the decode step."""
    kernels: Mapping[str, tuple[tuple[Kernel, ...], ...]]
    """Phase -> kernels of each rank, with their terms."""
    windows: Mapping[str, tuple[tuple[float, float], ...]]
    """Phase -> when each rank's step began and ended, in seconds of the machine's clock."""
    predicted_ms: Mapping[str, Mapping[str, float]]
    """Phase -> the advisor's terms in ms; empty without a machine to predict from."""
    badge: str
    notes: tuple[str, ...] = ()
    """Sentences to be shown with the result."""

    def terms(self, phase: str) -> list[TermTime]:
        """The terms of ``phase`` over all stages, one of each of ``kernels.TERMS``; they add up to :meth:`wall_ms`.

        Raises ``ArgumentError`` for a phase that there is not.
        """
        if phase not in self.kernels:
            raise ArgumentError("phase", phase, f"must be one of {', '.join(self.kernels)}")
        tp, pp = self.generation.layout.tp, self.generation.layout.pp
        of_rank = [
            times_of(kernels, *window) for kernels, window in zip(self.kernels[phase], self.windows[phase], strict=True)
        ]
        wall_s = self.wall_ms(phase) / 1e3
        made = []
        for place, term in enumerate(TERMS):
            stages = [[of_rank[stage * tp + index][place] for index in range(tp)] for stage in range(pp)]
            made.append(
                TermTime(
                    term=term,
                    wall_s=sum(mean(each.wall_s for each in ranks) for ranks in stages),
                    busy_s=sum(mean(each.busy_s for each in ranks) for ranks in stages),
                    calls=sum(max(each.calls for each in ranks) for ranks in stages),
                    names=tuple(dict.fromkeys(name for ranks in stages for each in ranks for name in each.names)),
                )
            )
        # One stage's rest is a gap. Of several, each waits while the others compute: what is left of the step are hops.
        rest = "gaps" if pp == 1 else "hops"
        left = wall_s - sum(each.wall_s for each in made if each.term not in ("gaps", "hops"))
        return [
            TermTime(
                term=each.term,
                wall_s=left if each.term == rest else 0.0 if each.term in ("gaps", "hops") else each.wall_s,
                busy_s=each.busy_s,
                calls=each.calls,
                names=each.names,
            )
            for each in made
        ]

    def wall_ms(self, phase: str) -> float:
        """Time of the step in ms: mean over the ranks of the first stage, from one step's start to the next one's."""
        windows = self.windows[phase][: self.generation.layout.tp]
        return mean(end - start for start, end in windows) * 1e3

    def frame(self) -> pd.DataFrame:
        """A row per phase and term: ``measured_ms``, ``predicted_ms`` (the sum of ``PREDICTED_BY``; NaN without one),
        ``difference_ms`` (predicted less measured), ``share_pct`` of the step, ``calls``, ``names`` of the kernels that
        took longest; then ``tp``, ``pp``, ``step``, ``wall_ms``, ``unprofiled_ms``, ``badge`` and the provenance."""
        layout, rows = self.generation.layout, []
        for phase in self.kernels:
            predicted, wall = self.predicted_ms.get(phase, {}), self.wall_ms(phase)
            for each in self.terms(phase):
                by = [predicted[name] for name in PREDICTED_BY[phase].get(each.term, ()) if name in predicted]
                ms = each.wall_s * 1e3
                expected = sum(by) if by else float("nan")
                shown = ", ".join(each.names[:_NAMES_SHOWN]) + (", ..." if len(each.names) > _NAMES_SHOWN else "")
                values = (phase, each.term, ms, expected, expected - ms, 100 * ms / wall, each.calls, shown)
                rows.append(
                    dict(zip(_FRAME_COLUMNS, values, strict=True))
                    | {
                        "tp": layout.tp,
                        "pp": layout.pp,
                        "step": self.step if phase == "decode" else 0,
                        "wall_ms": wall,
                        "unprofiled_ms": self.unprofiled_ms[phase],
                        "badge": self.badge,
                        **self.generation.provenance,
                    }
                )
        return pd.DataFrame(rows)

    def unknown(self) -> list[str]:
        """Names of kernels that no pattern knows, in ``other``."""
        return sorted({k.name for ranks in self.kernels.values() for rank in ranks for k in rank if k.term == "other"})

    @property
    def unprofiled_ms(self) -> dict[str, float]:
        """Phase -> time of such a step without the profiler, in ms: median over steps and ranks of the first stage."""
        prefill, decode = [], []
        for spans in self.generation.spans[: self.generation.layout.tp]:
            starts = [start for _, start in sorted(_starts(spans).items())]
            lengths = [(after - before) * 1e3 for before, after in pairwise(starts)]
            prefill.append(lengths[0])
            decode += lengths[1:]
        return {"prefill": median(prefill), "decode": median(decode)}

    @property
    def trace(self) -> "Trace":
        """The stages' steps of the whole generation without the profiler, as a pipeline trace."""
        return self.generation.trace()

    def perfetto(self) -> dict[str, Any]:
        """Both steps in Chrome's JSON form, which ui.perfetto.dev and chrome://tracing open: microseconds; a process
        per rank, with a track for the engine's spans and one for each kernel that runs beside others."""
        spans = self.spans
        zero_s = min(start for windows in self.windows.values() for start, _ in windows)
        end_s = max(end for windows in self.windows.values() for _, end in windows)
        events: list[dict[str, Any]] = []
        for rank in range(len(spans)):
            events += [_meta("process_name", rank, 0, f"rank {rank}"), _meta("thread_name", rank, 0, "engine")]
            for span in spans[rank]:
                if zero_s <= span.start_s <= end_s:
                    where = {"step": span.step, "micro_batch": span.micro_batch}
                    events.append(_slice(rank, 0, span.kind, "engine", span.start_s, span.end_s, zero_s, where))
            lanes: list[float] = []
            kernels = sorted({k for phase in self.kernels.values() for k in phase[rank]}, key=lambda k: k.start_s)
            for kernel in kernels:
                free = (lane for lane, until in enumerate(lanes) if until <= kernel.start_s)
                lane = next(free, len(lanes))
                lanes[lane : lane + 1] = [kernel.end_s]
                times = kernel.start_s, kernel.end_s, zero_s
                short = short_name(kernel.name)
                about = {} if short == kernel.name else {"name": kernel.name[:_LONGEST_NAME]}
                events.append(_slice(rank, lane + 1, short, kernel.term, *times, about))
            events += [_meta("thread_name", rank, lane + 1, f"kernels {lane}") for lane in range(len(lanes))]
        made_by = {"badge": self.badge, "decode_step": self.step, **self.generation.provenance}
        return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": made_by}

    def to_perfetto(self, path: str | Path) -> None:
        """Write :meth:`perfetto` to a file, whole or not at all. Raises ``OSError`` like ``files.replacing``."""
        write_text(path, json.dumps(self.perfetto()))

    def __str__(self) -> str:
        columns = ["phase", "term", "measured_ms", "predicted_ms", "share_pct", "calls"]
        table = self.frame()[columns].to_string(index=False, float_format=lambda value: f"{value:.3g}", na_rep="-")
        unknown = [f"not known by name: {', '.join(self.unknown())}"] if self.unknown() else []
        return "\n".join([self.badge, table, *unknown, *self.notes])


def profile_step(
    cluster: "Cluster", model: "str | Path | ModelConfig", *, timeout: float | None = 600.0, **settings: Any
) -> StepProfile:
    """Profile one prefill and one decode step of ``model`` on all ranks of ``cluster``.

    Args:
        model: folder of a Hugging Face checkpoint, or a ``ModelConfig``, which gets weights of no meaning.
        timeout: seconds for everything; None: no limit.
        settings: as for :func:`submit_profile`.

    Raises:
        ValueError: an argument that cannot work, before anything is started.
        ClusterError: the cluster's faults.
    """
    __tracebackhide__ = True
    return submit_profile(cluster, model, timeout=timeout, **settings).result()


def submit_profile(
    cluster: "Cluster",
    model: "str | Path | ModelConfig",
    *,
    tp: int | None = None,
    pp: int | None = None,
    batch: int = 1,
    prompt_length: int = 128,
    new_tokens: int = 8,
    dtype: str | None = None,
    cuda_graphs: bool | None = None,
    calibration: Calibration | None = None,
    machine: Machine | None = None,
    on_report: "Callable[[Report], None] | None" = None,
    timeout: float | None = 600.0,
) -> "DerivedRun[StepProfile]":
    """Like :func:`profile_step`, without waiting.

    Args:
        tp, pp: degrees, as for ``generate``.
        batch: sequences, in one micro-batch.
        prompt_length: tokens of each prompt.
        new_tokens: tokens to generate; the step in the middle is the one that is shown.
        dtype: of weights and cache; by default the config's, and float32 where it names none.
        cuda_graphs: as for ``generate``.
        calibration, machine: what the advisor predicts from: what was measured here, or a spec sheet. By default the
            spec sheet of this machine's GPUs; nothing is predicted on a CPU that was not calibrated.
        on_report: called with each report; those of rank 0 have ``phase``, ``done`` and ``total``.
    """
    check_count("new_tokens", new_tokens, least=3)  # the middle step needs one after it
    check_count("batch", batch, least=1)
    check_count("prompt_length", prompt_length, least=1)
    tp, pp = degrees(cluster.num_ranks, tp, pp)
    config, weights = Weights.of(model)
    if dtype is not None or weights.folder is None:
        config = config.in_dtype(dtype or config.dtype or "float32")
    layout = Layout.of(config, tp, pp)
    prompts = [[(7 * row + place) % config.vocab_size for place in range(prompt_length)] for row in range(batch)]
    check_prompts(prompts, config, new_tokens)
    check_cuda_graphs(cuda_graphs, cluster)
    request = Request.of(prompts, max_new_tokens=new_tokens, cuda_graphs=cuda_graphs)
    workload = Workload(input_length=prompt_length, output_length=new_tokens, concurrency=batch)
    step = max(1, new_tokens // 2)

    def build(run: "Run[RankProfile]") -> StepProfile:
        profiles = run.result()
        generation = generation_of(cluster, [each.result for each in profiles], layout, request)
        starts = [_starts(each.spans) for each in profiles]
        windows = {
            "prefill": tuple((start[0], start[1]) for start in starts),
            "decode": tuple((start[step], start[step + 1]) for start in starts),
        }
        last_stage = (pp - 1) * tp
        kernels = {
            phase: tuple(
                tuple(
                    named(
                        _within(each.kernels, *window),
                        is_last_stage=rank >= last_stage,
                        at_work=None if pp == 1 else _at_work(each.spans) if tp > 1 else [],
                    )
                )
                for rank, (each, window) in enumerate(zip(profiles, windows[phase], strict=True))
            )
            for phase in PHASES
        }
        graph = generation.provenance["launch_mode"] == "graph"
        predicted, notes = _predicted(cluster, config, layout, workload, calibration, machine, graph)
        return StepProfile(
            generation=generation,
            spans=tuple(tuple(each.spans) for each in profiles),
            step=step,
            kernels=kernels,
            windows=windows,
            predicted_ms=predicted,
            badge=generation.badge,
            notes=notes,
        )

    run = cluster.submit(_profile_on_rank, config, weights, layout, request, timeout=timeout, on_report=on_report)
    return run.map(build)


def _profile_on_rank(rank: "Rank", *arguments: Any) -> "RankProfile":
    from tplab.topology.verification.profiled import profile_on_rank  # needs torch

    return profile_on_rank(rank, *arguments)


def _starts(spans: Sequence[Activity]) -> dict[int, float]:
    """Step -> when its work began."""
    return {span.step: span.start_s for span in spans if span.kind in PHASES}


def _at_work(spans: Sequence[Activity]) -> list[tuple[float, float]]:
    return [(span.start_s, span.end_s) for span in spans if span.kind in PHASES]


def _within(kernels: Sequence[Kernel], start_s: float, end_s: float) -> list[Kernel]:
    """Those that begin in the step: what an earlier one left over is not its own."""
    return [kernel for kernel in kernels if start_s <= kernel.start_s < end_s]


def _predicted(
    cluster: "Cluster",
    config: ModelConfig,
    layout: Layout,
    workload: Workload,
    calibration: Calibration | None,
    machine: Machine | None,
    cuda_graphs: bool,
) -> tuple[dict[str, dict[str, float]], tuple[str, ...]]:
    """The advisor's terms of both phases, and what is to be said of them."""
    spec = ModelSpec.from_config(config)
    notes: tuple[str, ...] = ()
    if calibration is not None:
        machine = machine_of(calibration)
        spec, changed = in_precision(spec, calibration)
        notes = (calibration.badge, *changed)
    elif machine is None:
        if cluster.backend != "nccl":
            return {}, ("nothing is predicted: this machine was not calibrated",)
        try:
            machine = Machine.detect()
        except ValueError as error:
            return {}, (f"nothing is predicted: {error}",)
        notes = (f"predicted from the spec sheet of {machine.gpu.name}",)
    if layout.num_gpus > machine.num_gpus:
        return {}, (f"nothing is predicted: {layout} needs {layout.num_gpus} GPUs, {machine.name} has fewer",)
    (made,) = predict_batch(
        spec,
        machine,
        workload,
        [Layout.of(spec, layout.tp, layout.pp)],
        calibration=calibration,
        cuda_graphs=cuda_graphs,
    )
    return {"prefill": made.ttft_terms_ms, "decode": made.terms_ms}, notes


def _meta(what: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"name": what, "ph": "M", "pid": pid, "tid": tid, "args": {"name": name}}


def _slice(
    pid: int, tid: int, name: str, kind: str, start_s: float, end_s: float, zero_s: float, about: dict[str, Any]
) -> dict[str, Any]:
    times = {"ts": round((start_s - zero_s) * 1e6, 3), "dur": round((end_s - start_s) * 1e6, 3)}
    return {"name": name, "cat": kind, "ph": "X", "pid": pid, "tid": tid, **times, "args": about}
