"""One call on a machine with GPUs: links, all-reduces, layers, pipeline, whole models; each with a file.

Every step writes its file as soon as it is done, with provenance in its columns, so that a machine that is taken away
loses one step and not all, and a full disk none: what cannot be written is said. The same steps run over gloo with
small shapes: that is how they are tested. What ``tplab.lab.recorded`` holds was made by this.

Not torchrun scripts of their own: a step needs clusters of 2, 4 and 8 ranks. Where torchrun started the ranks, they are
the first ones of those (``tplab.cluster.launched``).
"""

import json
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from tplab.checks import ArgumentError, check_all_of, check_count
from tplab.cluster import Cluster, ClusterError, Provenance
from tplab.collectives.crossover import comparable, crossovers
from tplab.collectives.point_to_point import measure_point_to_point
from tplab.collectives.sweep import sweep_all_reduce
from tplab.collectives.sweep_plan import OF_MESSAGES, ON_SYMMETRIC_MEMORY, PUSHED
from tplab.files import check_writable, write_text
from tplab.layers.overlap import StackPlan, measure_strategies
from tplab.models.spec import ModelConfig
from tplab.pipeline import BlockStages, build_schedule, run_schedule, simulate
from tplab.pipeline.costs import measured_costs
from tplab.topology.advisor.workload import Workload
from tplab.topology.calibration.run import calibrate
from tplab.topology.machine.machine import Machine
from tplab.topology.verification.box_generation import generation_step
from tplab.topology.verification.box_layouts import BoxCase, measure_cases, scores

STEPS = ("links", "sweep", "layers", "pipeline", "layouts", "generation")
_PIPELINES = ("forward-only", "gpipe", "1f1b")
_BESIDE = {
    "links": ("point_to_point.csv",),
    "sweep": ("crossover.csv",),
    "pipeline": tuple(f"pipeline-{name}.json" for name in _PIPELINES),
    "layouts": ("calibration.json",),
    "generation": ("profile.csv",),
}
"""Step -> files that it writes besides its table."""

_TINY = ModelConfig(
    model_type="llama",
    vocab_size=256,
    hidden_size=96,
    intermediate_size=96,
    num_layers=8,
    num_heads=24,
    num_kv_heads=24,
    head_dim=4,
    max_positions=64,
)


_GENERATED = tuple(
    BoxCase(model="llama-3.1-8b", workload=Workload(input_length=prompt, output_length=16, concurrency=requests))
    for prompt, requests in ((128, 1), (2048, 8))
)


@dataclass(frozen=True, kw_only=True, slots=True)
class BoxPlan:
    """How large the steps are."""

    sizes: tuple[int, ...]
    """Sizes of the all-reduces in bytes."""
    own_up_to: int
    """Largest message in bytes for algorithms of our own, which are made of many small CUDA kernels."""
    tokens: tuple[int, ...]
    """Tokens of the steps in which layers are timed."""
    stack: StackPlan
    """Blocks of a stack, and of a pipeline stage; its dtype is that of messages, too."""
    micro_batch_tokens: int
    """Tokens of each micro-batch of a pipeline, which has m = 2p of them."""
    cases: tuple[BoxCase, ...]
    """Models that are run in every layout, each with its workload."""
    generated: tuple[BoxCase, ...]
    """Loads of one model that generates in every layout of 1, 2, 4, ... ranks, profiled kernel by kernel."""
    calibration: Mapping[str, Any]
    """Arguments of the ``calibrate`` that runs before the layouts."""

    @classmethod
    def large(cls) -> "BoxPlan":
        """A plan for GPUs: messages up to 1 GiB, blocks of Llama-3.1 70B's shape."""
        return cls(
            sizes=tuple(1 << power for power in range(10, 31)),
            own_up_to=1 << 25,
            tokens=(1024, 4096, 16384),
            stack=StackPlan(
                batch=1, hidden=8192, num_heads=64, num_kv_heads=8, intermediate=28672, dtype="bfloat16", iterations=7
            ),
            micro_batch_tokens=4096,
            cases=tuple(
                BoxCase(model=model, workload=Workload(input_length=prompt, output_length=new, concurrency=requests))
                for model in ("llama-3.1-8b", "llama-3.1-70b")
                for prompt, new, requests in ((128, 32, 8), (2048, 32, 32))  # decode counts; prompts count
            ),
            generated=_GENERATED,
            calibration={},
        )

    @classmethod
    def shared(cls) -> "BoxPlan":
        """A plan for ranks that share GPUs, whose messages take milliseconds: blocks of Llama-3.1 8B's shape, and
        generation on as many ranks as there are GPUs. No layouts: they would compare how the ranks take turns."""
        return replace(
            cls.large(),
            sizes=tuple(1 << power for power in range(10, 21)),
            own_up_to=1 << 18,
            tokens=(1024,),
            stack=StackPlan(
                batch=1, hidden=4096, num_heads=32, num_kv_heads=8, intermediate=14336, dtype="bfloat16", iterations=5
            ),
            micro_batch_tokens=1024,
            cases=(),
        )

    @classmethod
    def small(cls) -> "BoxPlan":
        """A plan for CPUs, of some seconds in all; heads and features divide over 2, 3, 4, 6 and 8 ranks."""
        return cls(
            sizes=(1 << 10, 1 << 16),
            own_up_to=1 << 16,
            tokens=(16, 64),
            stack=StackPlan(batch=1, hidden=96, num_heads=24, num_kv_heads=8, intermediate=144, depth=1, iterations=2),
            micro_batch_tokens=16,
            cases=(BoxCase(model=_TINY, workload=Workload(input_length=8, output_length=4, concurrency=6)),),
            generated=(BoxCase(model=_TINY, workload=Workload(input_length=8, output_length=4, concurrency=2)),),
            calibration={"rounds": 1, "sizes": (1 << 12, 1 << 16), "tokens": (1, 4, 16), "widths": (64, 128)},
        )


def measure_box(
    out: "str | Path",
    *,
    num_ranks: int | None = None,
    backend: str = "auto",
    cluster: Cluster | None = None,
    steps: Sequence[str] = STEPS,
    plan: BoxPlan | None = None,
    cases: Sequence[BoxCase] | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, pd.DataFrame]:
    """Measure the machine and write into the folder ``out``: ``links.csv`` (with ``point_to_point.csv``), ``sweep.csv``
    (with ``crossover.csv``), ``layers.csv``, ``pipeline.csv`` (with ``pipeline-*.json`` for ui.perfetto.dev),
    ``layouts.csv`` (with ``calibration.json``) and ``generation.csv`` (with ``profile.csv`` and ``profile-*.json``).

    A step that fails is said and left out; the others go on. So they do when a file cannot be written: then what was
    to go into it is said instead.

    Args:
        num_ranks: all of them; the sweep also takes 2, 4, ... of them, generation 1, 2, 4, ...
        backend: of ranks that are started for this.
        cluster: ranks that are there, instead of starting some; they may be on several hosts.
        steps: which of ``STEPS``.
        plan: by default large on GPUs of their own, ``shared`` on fewer GPUs, small without.
        cases: instead of the plan's.
        say: called with lines about what goes on.

    Returns the frames by step, without those that failed.

    Raises:
        ValueError: a step that there is not, fewer than 2 ranks, or a folder that cannot be made.
        OSError: one of the files cannot be written. Known before anything is measured or else, as when the disk fills
            up, raised after the last step.
    """
    steps = check_all_of("steps", steps, STEPS)
    wanted: Any = cluster.num_ranks if cluster else num_ranks  # None is refused
    check_count("num_ranks", wanted, least=2)  # one rank has no links
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError("out", str(out), f"cannot be made a folder ({error})") from error
    files = _Files(folder, say)
    for step in steps:
        for name in (f"{step}.csv", *_BESIDE.get(step, ())):
            check_writable(folder / name)
    frames: dict[str, pd.DataFrame] = {}
    with nullcontext(cluster) if cluster else Cluster(wanted, backend) as cluster:
        plan = plan or (
            BoxPlan.large() if cluster.own_gpus else BoxPlan.shared() if cluster.shares_gpus else BoxPlan.small()
        )
        if cases is not None:
            plan = replace(plan, cases=tuple(cases))
        calls: dict[str, Callable[[], pd.DataFrame]] = {
            "links": lambda: links_step(cluster, files),
            "sweep": lambda: with_crossovers(sweep_step(cluster, plan, say), files),
            "layers": lambda: layers_step(cluster, plan),
            "pipeline": lambda: pipeline_step(cluster, plan, files),
            "layouts": lambda: layouts_step(cluster, plan, files, say),
            "generation": lambda: generation_step(cluster, plan.generated, plan.stack.dtype, files.write, say),
        }
        for step in steps:
            began = time.monotonic()
            try:
                frames[step] = calls[step]()
            except (ClusterError, ValueError) as error:
                say(f"{step}: failed after {time.monotonic() - began:.0f} s: {error}")
                continue
            took = f"{step}: {len(frames[step])} rows in {time.monotonic() - began:.0f} s"
            where = files.write(f"{step}.csv", frames[step].to_csv(index=False))
            say(took if where is None else f"{took}, {where}")
    if files.unwritten:
        raise files.unwritten[0]
    return frames


class _Files:
    """The folder's files. What cannot be written is said: it may have taken minutes on a machine that is soon gone."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.folder, self.say = folder, say
        self.unwritten: list[OSError] = []

    def write(self, name: str, text: str) -> Path | None:
        """Write a file; its path, or None if it could not be written."""
        path = self.folder / name
        try:
            write_text(path, text)
        except OSError as error:
            self.unwritten.append(error)
            self.say(f"{path} cannot be written: {error.strerror}; this was to go into it:\n{text}")
            return None
        return path


def links_step(cluster: Cluster, files: _Files) -> pd.DataFrame:
    """A row per ordered pair: ``detected`` and ``topo`` (kind of link, by the driver's library and by the text of
    ``nvidia-smi topo -m``; empty without GPUs), ``agree``, ``latency_us`` of a small message and ``GBps`` of a large
    one, with the provenance."""
    pairs = measure_point_to_point(cluster)
    files.write("point_to_point.csv", pairs.to_csv(index=False))
    detected, from_text = _driver(Machine.detect), _driver(lambda: Machine.from_topo(_topo_text()))
    here = cluster.hosts.count(cluster.hosts[0]) if cluster.hosts else cluster.num_ranks  # this driver knows of
    small, large = pairs["bytes"].min(), pairs["bytes"].max()
    rows = []
    for src, dst in sorted({*zip(pairs["src"].tolist(), pairs["dst"].tolist(), strict=True)}):
        of_pair = pairs[(pairs["src"] == src) & (pairs["dst"] == dst)]
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
    return pd.DataFrame(rows)


def _driver(make: Callable[[], Machine]) -> Machine | None:
    try:
        return make()
    except (ValueError, OSError, subprocess.SubprocessError):
        return None


def _topo_text() -> str:
    return subprocess.run(["nvidia-smi", "topo", "-m"], capture_output=True, text=True, check=True, timeout=30).stdout


def _kind(machine: Machine | None, src: int, dst: int) -> str:
    if machine is None or max(src, dst) >= machine.num_gpus:
        return ""
    link = machine.link(src, dst)
    return "" if link is None else str(link.kind)


def sweep_step(cluster: Cluster, plan: BoxPlan, say: Callable[[str], None]) -> pd.DataFrame:
    """All-reduces of 2, 4, ... and all ranks: the library's, eager and in a CUDA graph, symmetric memory's where ranks
    have GPUs of their own, ours of messages and int8 up to a size; rows as ``sweep_frame`` has them.

    GPUs that cannot reach each other's memory have no rows of symmetric memory; that is said.
    """
    frames = []
    small = [size for size in plan.sizes if size <= plan.own_up_to]
    for clustered in _clusters(cluster):
        sweep = partial(sweep_all_reduce, clustered, dtypes=[plan.stack.dtype])
        modes = ("eager", "graph") if clustered.own_gpus else ("eager",)
        frames += [sweep(algorithms=["library"], sizes=plan.sizes, mode=mode) for mode in modes]
        own = ["ring"] if clustered.own_gpus else OF_MESSAGES
        frames.append(sweep(algorithms=[*own, "int8-two-shot"], sizes=small))
        torchs = [name for name in ON_SYMMETRIC_MEMORY if name not in PUSHED]
        if clustered.own_gpus and len(set(clustered.hosts)) > 1:
            say(f"sweep: no symmetric memory over {clustered.num_ranks} ranks: they are on several hosts")
            continue
        for algorithms, mode in product((torchs, PUSHED), modes) if clustered.own_gpus else ():
            try:
                frames.append(sweep(algorithms=algorithms, sizes=plan.sizes, mode=mode))
            except ClusterError as error:
                say(f"sweep: no symmetric memory over {clustered.num_ranks} ranks: {error}")
                break
    return pd.concat(frames, ignore_index=True)


def with_crossovers(frame: pd.DataFrame, files: _Files) -> pd.DataFrame:
    """The sweep again; which all-reduce is the fastest for which size, as ``crossovers`` has it, is in
    ``crossover.csv``."""
    bands = []
    for num_ranks in sorted(frame["num_ranks"].unique()):
        rows = comparable(frame, num_ranks=int(num_ranks))
        about = {name: rows[name].iloc[0] for name in Provenance.__dataclass_fields__}
        bands.append(crossovers(rows).assign(dtype=rows["dtype"].iloc[0], **about))
    files.write("crossover.csv", pd.concat(bands, ignore_index=True).to_csv(index=False))
    return frame


def _clusters(cluster: Cluster) -> Iterator[Cluster]:
    """Yield clusters of 2, 4, ... ranks, then the full cluster."""
    size = 2
    while size < cluster.num_ranks:
        yield cluster.resized(size)
        size *= 2
    yield cluster


def layers_step(cluster: Cluster, plan: BoxPlan) -> pd.DataFrame:
    """A stack of blocks by number of tokens and strategy: rows of ``measure_strategies`` with ``tokens``.

    ``compute_us`` is the stack with all its communication deleted: the bound of every way of hiding it.
    """
    from tplab.layers import BatchSplit, Blocking, Chunked, Int8, SequenceParallel

    ways = [Blocking(), Chunked(2), Chunked(4), Chunked(8), BatchSplit(2), SequenceParallel(), Int8()]
    frames = []
    for tokens in plan.tokens:
        frame = measure_strategies(cluster, ways, replace(plan.stack, seq=tokens))
        frame.insert(0, "tokens", tokens)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def pipeline_step(cluster: Cluster, plan: BoxPlan, files: _Files) -> pd.DataFrame:
    """Stages of real blocks under forward-only, GPipe and 1F1B: ``schedule``, ``makespan_ms``, ``simulated_ms`` (from
    the measured times of the actions), ``idle_over_total``, ``idle_over_work`` and the provenance.

    Each trace is also written as ``pipeline-<schedule>.json``.
    """
    p = cluster.num_ranks
    blocks = BlockStages(stack=plan.stack, tokens=plan.micro_batch_tokens)
    rows = []
    for name in _PIPELINES:
        schedule = build_schedule(name, p, 2 * p)
        training = {} if schedule.is_inference else {"loss": blocks.loss}
        trace = run_schedule(
            cluster, schedule, blocks, inputs=blocks.inputs, warm_ups=2, keep=False, timeout=300.0, **training
        )
        files.write(f"pipeline-{name}.json", json.dumps(trace.perfetto()))
        rows.append(
            {
                "schedule": name,
                "micro_batches": 2 * p,
                "makespan_ms": trace.makespan_s * 1e3,
                "simulated_ms": simulate(schedule, measured_costs(trace)).makespan_s * 1e3,
                "idle_over_total": trace.idle_over_total,
                "idle_over_work": trace.idle_over_work,
                **cluster.provenance.columns(),
            }
        )
    return pd.DataFrame(rows)


def layouts_step(cluster: Cluster, plan: BoxPlan, files: _Files, say: Callable[[str], None]) -> pd.DataFrame:
    """The plan's models in every layout, advised, run and predicted: rows of ``box_layouts.measure_cases``."""
    detected = _driver(Machine.detect) if cluster.own_gpus and len(set(cluster.hosts)) <= 1 else None
    calibration = calibrate(cluster, timeout=300.0, **plan.calibration)
    files.write("calibration.json", calibration.to_json())
    sheet = _first_gpus(detected, cluster.num_ranks) if detected is not None else None
    frame = measure_cases(cluster, plan.cases, calibration, sheet=sheet, say=say)
    say(scores(frame).to_string(index=False, float_format=lambda value: f"{value:.3g}"))
    return frame


def _first_gpus(machine: Machine, num_ranks: int) -> Machine:
    """The machine cut down to the GPUs that the ranks have."""
    links = tuple(row[:num_ranks] for row in machine.links[:num_ranks])
    return replace(machine, name=f"{num_ranks} x {machine.gpu.name}", gpus_per_node=num_ranks, links=links)
