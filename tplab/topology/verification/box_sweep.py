"""The step ``sweep`` of ``measure_box``: all-reduces of all ranks and of fewer, and which of them to take."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from tplab.cluster import Cluster, ClusterError, Provenance
from tplab.collectives.crossover import comparable, crossovers
from tplab.collectives.sweep import submit_all_reduce
from tplab.collectives.sweep_plan import OF_MESSAGES, ON_SYMMETRIC_MEMORY, PUSHED
from tplab.topology.machine.machine import Machine
from tplab.topology.verification.box_formula import formula_words, with_formula
from tplab.topology.verification.box_plan import powers_below
from tplab.topology.verification.box_run import BoxRun, Parts
from tplab.topology.verification.box_time import as_far_as_it_came


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sweep:
    """One run of the sweep."""

    cluster: Cluster
    name: str
    """What is swept, in words."""
    algorithms: tuple[str, ...]
    sizes: tuple[int, ...]
    mode: str
    """``eager`` or ``graph``."""
    symmetric: bool = False
    """Whether it is over symmetric memory."""

    @property
    def label(self) -> str:
        return f"all-reduces of {self.cluster.num_ranks} ranks, {self.name}, {self.mode}"


def sweep_step(run: BoxRun, sheet: Machine | None) -> Parts:
    """All-reduces of all ranks, then of fewer: the library's, eager and in a CUDA graph, symmetric memory's where ranks
    have GPUs of their own, ours of messages and int8 up to a size; rows as ``sweep_frame`` has them.

    GPUs that cannot reach each other's memory have no rows of symmetric memory; that is said. Of a run that fails or is
    stopped the sizes until then are kept. Which all-reduce is the fastest for which size, as ``crossovers`` has it, is
    in ``crossover.csv``. With ``sheet`` the library's rows have ``formula_us`` beside, what the advisor would say by
    spec sheet; how far off that is, is said.

    Args:
        run: where and what.
        sheet: the machine as its driver and spec sheet have it.

    Raises:
        ValueError: nothing could be measured.
    """
    made: dict[int, list[pd.DataFrame]] = {}
    unreached: set[int] = set()
    clusters = [run.cluster, *(run.cluster.resized(size) for size in powers_below(run.cluster.num_ranks) if size > 1)]
    sweeps = [sweep for cluster in clusters for sweep in _sweeps(run, cluster)]
    bands = pd.DataFrame()
    for sweep in run.time_left.parts(sweeps, lambda each: each.label):
        if sweep is None:
            yield None
            continue
        num_ranks = sweep.cluster.num_ranks
        if sweep.symmetric and num_ranks in unreached:
            continue
        frame, error = _measure(run, sweep)
        if error is not None:
            run.time_left.came_to_nothing()
            run.say(f"sweep: {sweep.label}: {len(frame)} rows, then {run.time_left.why(error)}")
            if sweep.symmetric and not run.time_left.is_no_fault(error):
                unreached.add(num_ranks)
                run.say(f"sweep: no more of symmetric memory over {num_ranks} ranks")
        if frame.empty:
            continue
        if sheet is not None and sweep.algorithms == ("library",):
            frame = with_formula(frame, sheet)
            for words in formula_words(frame):
                run.say(f"sweep: {words}")
        yield frame
        made.setdefault(num_ranks, []).append(frame)
        if len(bands := _bands(made)):
            run.files.draft("crossover.csv", bands.to_csv(index=False))
    if not made:
        raise ValueError("no all-reduce could be measured, for the reasons above")
    if len(bands):
        run.files.write("crossover.csv", bands.to_csv(index=False))


def _sweeps(run: BoxRun, cluster: Cluster) -> Iterator[_Sweep]:
    plan, gpus = run.plan, cluster.own_gpus
    small = tuple(size for size in plan.sizes if size <= plan.own_up_to)
    modes = ("eager", "graph") if gpus else ("eager",)
    for mode in modes:
        yield _Sweep(cluster=cluster, name="the library's", algorithms=("library",), sizes=plan.sizes, mode=mode)
    own = (*(("ring",) if gpus else OF_MESSAGES), "int8-two-shot")
    yield _Sweep(cluster=cluster, name="of messages", algorithms=own, sizes=small, mode="eager")
    if gpus and len(set(cluster.hosts)) > 1:
        run.say(f"sweep: no symmetric memory over {cluster.num_ranks} ranks: they are on several hosts")
        return
    torchs = tuple(name for name in ON_SYMMETRIC_MEMORY if name not in PUSHED)
    for name, algorithms in (("torch's", torchs), ("pushed", tuple(PUSHED))) if gpus else ():
        for mode in modes:
            yield _Sweep(cluster=cluster, name=name, algorithms=algorithms, sizes=plan.sizes, mode=mode, symmetric=True)


def _measure(run: BoxRun, sweep: _Sweep) -> tuple[pd.DataFrame, ClusterError | None]:
    """What was measured, and what ended it early."""
    cluster = sweep.cluster
    try:
        limit_s = run.time_left.limit_s(cluster)
    except ClusterError as late:
        return pd.DataFrame(), late
    return as_far_as_it_came(
        submit_all_reduce(
            cluster,
            sizes=sweep.sizes,
            dtypes=[run.plan.stack.dtype],
            algorithms=sweep.algorithms,
            mode=sweep.mode,
            timeout=limit_s,
        )
    )


def _bands(made: Mapping[int, Sequence[pd.DataFrame]]) -> pd.DataFrame:
    """Which all-reduce is the fastest for which size, for each number of ranks that has something to compare."""
    bands = []
    for frames in made.values():
        try:
            rows = comparable(pd.concat(frames, ignore_index=True))
        except ValueError:  # the runs that others are compared with came to nothing
            continue
        about = {name: rows[name].iloc[0] for name in ("dtype", *Provenance.__dataclass_fields__)}
        bands.append(crossovers(rows).assign(**about))
    return pd.concat(bands, ignore_index=True) if bands else pd.DataFrame()
