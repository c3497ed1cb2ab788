"""One call on a machine with GPUs: links, all-reduces, layers, pipeline, whole models; each with a file.

Every step is made of parts, the most telling first, and its file is written anew after each, with provenance in its
columns: a machine that is taken away loses one part and not all, and a full disk none, for what cannot be written is
said. The same steps run over gloo with small shapes: that is how they are tested. What ``tplab.lab.recorded`` holds was
made by this.

Not torchrun scripts of their own: a step needs clusters of 2, 4 and 8 ranks. Where torchrun started the ranks, they are
the first ones of those (``tplab.cluster.launched``).
"""

import json
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from tplab.checks import ArgumentError, check_all_of, check_count
from tplab.cluster import Cluster, ClusterError
from tplab.collectives.point_to_point import submit_point_to_point, usual_sizes
from tplab.files import check_writable
from tplab.layers.overlap import measure_strategies
from tplab.pipeline import BlockStages, build_schedule, run_schedule, simulate
from tplab.pipeline.costs import measured_costs
from tplab.topology.calibration.run import calibrate
from tplab.topology.machine.machine import Machine
from tplab.topology.verification.box_files import BoxFiles, partial
from tplab.topology.verification.box_generation import generation_step
from tplab.topology.verification.box_layouts import BoxCase, each_case, scores
from tplab.topology.verification.box_plan import BoxPlan
from tplab.topology.verification.box_run import BoxRun, Parts
from tplab.topology.verification.box_sweep import sweep_step
from tplab.topology.verification.box_time import BoxTime, as_far_as_it_came

_SHARES = {"links": 1, "sweep": 3, "layers": 1, "pipeline": 1, "layouts": 5, "generation": 3}
"""Step -> its part of the time, where there is an end."""
STEPS = tuple(_SHARES)
_PIPELINES = ("forward-only", "1f1b", "gpipe")
_PIPELINE_S = _CALIBRATION_S = 300.0
"""Longest time of a schedule, and of the calibration."""
_BESIDE = {
    "links": ("point_to_point.csv",),
    "sweep": ("crossover.csv",),
    "pipeline": tuple(f"pipeline-{name}.json.gz" for name in _PIPELINES),
    "layouts": ("calibration.json",),
    "generation": ("profile.csv",),
}
"""Step -> files that it writes besides its table."""


def measure_box(
    out: "str | Path",
    *,
    num_ranks: int | None = None,
    backend: str = "auto",
    cluster: Cluster | None = None,
    steps: Sequence[str] = STEPS,
    plan: BoxPlan | None = None,
    cases: Sequence[BoxCase] | None = None,
    minutes: float | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, pd.DataFrame]:
    """Measure the machine and write into the folder ``out``: ``links.csv`` (with ``point_to_point.csv``), ``sweep.csv``
    (with ``crossover.csv``), ``layers.csv``, ``pipeline.csv`` (with ``pipeline-*.json.gz`` for
    ui.perfetto.dev), ``layouts.csv`` (with ``calibration.json``) and ``generation.csv`` (with ``profile.csv`` and
    ``profile-*.json.gz``).

    Until a step is done its table is ``sweep.partial.csv`` and so on, written anew after every part. A step that fails
    is said and left out, and leaves that; the others go on. So they do when a file cannot be written: then what was to
    go into it is said instead.

    Args:
        num_ranks: all of them; the sweep also takes 2, 4, ... of them, generation 1, 2, 4, ...
        backend: of ranks that are started for this.
        cluster: ranks that are there, instead of starting some; they may be on several hosts.
        steps: which of ``STEPS``.
        plan: by default large on GPUs of their own, ``shared`` on fewer GPUs, small without.
        cases: instead of the plan's.
        minutes: for everything, from this call on: the steps share them (see ``box_time``), what there is no time for
            is left out and said, and what is running at the end is stopped (under torchrun all ranks, and the command
            with them); a shorter table takes an earlier one's place. None: as long as it takes.
        say: called with lines about what goes on.

    Returns the frames by step, without those that failed or that there was no time for.

    Raises:
        ValueError: a step that there is not, fewer than 2 ranks, minutes that are no positive number, or a folder that
            cannot be made.
        OSError: one of the files cannot be written. Known before anything is measured or else, as when the disk fills
            up, raised after the last step.
    """
    steps = list(dict.fromkeys(check_all_of("steps", steps, STEPS)))
    wanted: Any = cluster.num_ranks if cluster else num_ranks  # None is refused
    check_count("num_ranks", wanted, least=2)  # one rank has no links
    time_left = BoxTime(minutes, {step: _SHARES[step] for step in steps}, say)
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError("out", str(out), f"cannot be made a folder ({error})") from error
    files = BoxFiles(folder, say)
    for step in steps:
        for name in (f"{step}.csv", *_BESIDE.get(step, ())):
            check_writable(folder / name)
    with nullcontext(cluster) if cluster else Cluster(wanted, backend) as cluster:
        plan = plan or (
            BoxPlan.large() if cluster.own_gpus else BoxPlan.shared() if cluster.shares_gpus else BoxPlan.small()
        )
        if cases is not None:
            plan = replace(plan, cases=tuple(cases))
        run = BoxRun(cluster=cluster, plan=plan, files=files, time_left=time_left, say=say)
        under_way = [_Step(run, step) for step in steps]
        time_left.run(under_way)
    if files.unwritten:
        raise files.unwritten[0]
    return {step.name: step.frame for step in under_way if step.is_whole}


class _Step:
    """A step that is under way, and its table as far as it has come."""

    def __init__(self, run: BoxRun, name: str) -> None:
        self.name, self._run = name, run
        self.frame = pd.DataFrame()
        self.is_whole = False
        """Whether it has ended, with rows and without a fault."""
        self._took_s = 0.0
        self._parts = _growing(run, name)

    def go_on(self) -> bool:
        run, wants_more, fault = self._run, False, None
        began_s = time.monotonic()
        try:
            if not run.time_left.is_over:
                run.cluster.start()  # after a fault: none of the step's time
            run.time_left.begin(self.name)
            for frame in self._parts:
                if wants_more := frame is None:
                    break
                self.frame = frame
                run.files.draft(f"{self.name}.csv", frame.to_csv(index=False))
        except (ClusterError, ValueError) as error:
            fault = error
        self._took_s += time.monotonic() - began_s
        if not wants_more:
            self._end(fault)
        return wants_more

    def _end(self, fault: Exception | None) -> None:
        """Write the table, and say how it went."""
        well = fault is None or self._run.time_left.is_no_fault(fault)
        there, took = f"{len(self.frame)} rows", f"{self._took_s:.0f} s"
        if len(self.frame):
            name = f"{self.name}.csv"
            where = self._run.files.write(name if well else partial(name), self.frame.to_csv(index=False))
            there += f" in {where}" if where is not None else ""
        ended = took if fault is None else f"then after {took} {self._run.time_left.why(fault)}"
        self._run.say(f"{self.name}: {there}, {ended}")
        self.is_whole = well and len(self.frame) > 0


def _growing(run: BoxRun, step: str) -> Parts:
    """All parts of the step so far as one frame, after each of them."""
    so_far: list[pd.DataFrame] = []
    for part in _CALLS[step](run):
        if part is not None:
            so_far.append(part)
        yield None if part is None else pd.concat(so_far, ignore_index=True)


def links_step(run: BoxRun) -> Parts:
    """In one part, a row per ordered pair that took messages of every size: ``detected`` and ``topo`` (kind of link, by
    the driver's library and by the text of ``nvidia-smi topo -m``; empty without GPUs), ``agree``, ``latency_us`` of a
    small message and ``GBps`` of a large one, with the provenance."""
    cluster, sizes = run.cluster, usual_sizes(run.cluster)
    pairs, fault = as_far_as_it_came(submit_point_to_point(cluster, sizes, timeout=run.time_left.limit_s(cluster)))
    if fault is not None and pairs.empty:
        raise fault
    whole = fault is None or run.time_left.is_no_fault(fault)
    run.files.write("point_to_point.csv" if whole else partial("point_to_point.csv"), pairs.to_csv(index=False))
    detected, from_text = _driver(Machine.detect), _driver(lambda: Machine.from_topo(_topo_text()))
    here = cluster.hosts.count(cluster.hosts[0]) if cluster.hosts else cluster.num_ranks  # this driver knows of
    small, large = sizes[0], sizes[-1]
    rows = []
    for src, dst in sorted({*zip(pairs["src"].tolist(), pairs["dst"].tolist(), strict=True)}):
        of_pair = pairs[(pairs["src"] == src) & (pairs["dst"] == dst)]
        if large not in set(of_pair["bytes"]):
            continue
        same = max(src, dst) < here
        kinds = [_kind(machine, src, dst) if same else "" for machine in (detected, from_text)]
        rows.append(
            {
                "src": src,
                "dst": dst,
                "detected": kinds[0],
                "topo": kinds[1],
                "agree": kinds[0] == kinds[1],
                "latency_us": float(of_pair.loc[of_pair["bytes"] == small, "p50_us"].iloc[0]),
                "GBps": float(of_pair.loc[of_pair["bytes"] == large, "GBps"].iloc[0]),
                **cluster.provenance.columns(),
            }
        )
    if rows:
        yield pd.DataFrame(rows)
    if fault is not None:
        raise fault


def _driver(make: Callable[[], Machine]) -> Machine | None:
    from pynvml import NVMLError

    try:
        return make()
    except (ValueError, OSError, subprocess.SubprocessError, NVMLError):
        return None


def _topo_text() -> str:
    return subprocess.run(["nvidia-smi", "topo", "-m"], capture_output=True, text=True, check=True, timeout=30).stdout


def _kind(machine: Machine | None, src: int, dst: int) -> str:
    if machine is None or max(src, dst) >= machine.num_gpus:
        return ""
    link = machine.link(src, dst)
    return "" if link is None else str(link.kind)


def layers_step(run: BoxRun) -> Parts:
    """A stack of blocks by number of tokens and strategy: rows of ``measure_strategies`` with ``tokens``.

    ``compute_us`` is the stack with all its communication deleted: the bound of every way of hiding it.
    """
    from tplab.layers import BatchSplit, Blocking, Chunked, Int8, SequenceParallel

    ways = [Blocking(), Chunked(2), Chunked(4), Chunked(8), BatchSplit(2), SequenceParallel(), Int8()]
    nothing = True
    for tokens in run.time_left.parts(run.plan.tokens, "{} tokens".format):
        if tokens is None:
            yield None
            continue
        stack = replace(run.plan.stack, seq=tokens)
        try:
            frame = measure_strategies(run.cluster, ways, stack, timeout=run.time_left.limit_s(run.cluster))
        except ClusterError as error:
            run.lose(f"layers, {tokens} tokens", error)
            continue
        nothing = False
        frame.insert(0, "tokens", tokens)
        yield frame
    if nothing:
        raise ValueError("no layers could be measured, for the reasons above")


def pipeline_step(run: BoxRun) -> Parts:
    """Stages of real blocks under forward-only, GPipe and 1F1B: ``schedule``, ``makespan_ms``, ``simulated_ms`` (from
    the measured times of the actions), ``idle_over_total``, ``idle_over_work`` and the provenance.

    Each trace is also written as ``pipeline-<schedule>.json.gz``.
    """
    cluster, p = run.cluster, run.cluster.num_ranks
    blocks = BlockStages(stack=run.plan.stack, tokens=run.plan.micro_batch_tokens)
    nothing = True
    for name in run.time_left.parts(_PIPELINES, str):
        if name is None:
            yield None
            continue
        schedule = build_schedule(name, p, 2 * p)
        training = {} if schedule.is_inference else {"loss": blocks.loss}
        try:
            limit_s = run.time_left.limit_s(cluster, _PIPELINE_S)
            trace = run_schedule(
                cluster, schedule, blocks, inputs=blocks.inputs, warm_ups=2, keep=False, timeout=limit_s, **training
            )
        except ClusterError as error:
            run.lose(f"pipeline, {name}", error)
            continue
        nothing = False
        run.files.write(f"pipeline-{name}.json.gz", json.dumps(trace.perfetto()))
        row = {
            "schedule": name,
            "micro_batches": 2 * p,
            "makespan_ms": trace.makespan_s * 1e3,
            "simulated_ms": simulate(schedule, measured_costs(trace)).makespan_s * 1e3,
            "idle_over_total": trace.idle_over_total,
            "idle_over_work": trace.idle_over_work,
            **cluster.provenance.columns(),
        }
        yield pd.DataFrame([row])
    if nothing:
        raise ValueError("no schedule could be run, for the reasons above")


def layouts_step(run: BoxRun) -> Parts:
    """The plan's models in every layout, advised, run and predicted: rows of ``box_layouts.measure_cases``."""
    cluster = run.cluster
    calibration = calibrate(cluster, timeout=run.time_left.limit_s(cluster, _CALIBRATION_S), **run.plan.calibration)
    run.files.write("calibration.json", calibration.to_json())
    frames = []
    for frame in each_case(
        cluster, run.plan.cases, calibration, sheet=_sheet(cluster), say=run.say, time_left=run.time_left
    ):
        if frame is not None:
            frames.append(frame)
        yield frame
    run.say(scores(pd.concat(frames)).to_string(index=False, float_format=lambda value: f"{value:.3g}"))


def _sheet(cluster: Cluster) -> Machine | None:
    """The machine as its driver and spec sheet have it, cut down to the ranks' GPUs; None without GPUs of their own, on
    GPUs that are not known, and over several hosts."""
    machine = _driver(Machine.detect) if cluster.own_gpus and len(set(cluster.hosts)) <= 1 else None
    num_ranks = cluster.num_ranks
    if machine is None or machine.num_gpus < num_ranks:
        return None
    links = tuple(row[:num_ranks] for row in machine.links[:num_ranks])
    return replace(machine, name=f"{num_ranks} x {machine.gpu.name}", gpus_per_node=num_ranks, links=links)


_CALLS: Mapping[str, Callable[[BoxRun], Parts]] = {
    "links": links_step,
    "sweep": lambda run: sweep_step(run, _sheet(run.cluster)),
    "layers": layers_step,
    "pipeline": pipeline_step,
    "layouts": layouts_step,
    "generation": generation_step,
}
