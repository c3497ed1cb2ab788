"""Models that generate in every layout of a machine's GPUs, profiled: times of whole steps, and where they go."""

import json
from collections.abc import Iterator
from contextlib import suppress
from itertools import product

import pandas as pd

from tplab.cluster import Cluster, ClusterError
from tplab.models.shards import Layout
from tplab.topology.verification.box_layouts import BoxCase
from tplab.topology.verification.box_plan import powers_below
from tplab.topology.verification.box_run import BoxRun, Parts
from tplab.topology.verification.static_batch import runnable
from tplab.topology.verification.step_profile import StepProfile, profile_step

_LIMIT_S = 600.0
"""Longest time of one layout."""


def generation_step(run: BoxRun) -> Parts:
    """Each generated case in every layout of all ranks, as many as have a GPU of their own, and then of ..., 4, 2, 1 of
    them.

    Rows as ``Generation.frame`` has them, with ``model``, ``layers``, ``compute_share``, ``collective_share`` and
    ``wait_share`` (means over the ranks); on GPUs the first case also without CUDA graphs. Written besides:
    ``profile.csv`` (rows of ``StepProfile.frame``, with ``model``, ``batch`` and ``prompt_length``), and for the first
    case ``profile-tp1-pp1.json.gz`` and so on for ui.perfetto.dev. A layout that fails is said and left out.

    Raises:
        ValueError: nothing could be run.
    """
    cluster, cases = run.cluster, run.plan.generated
    profiles: list[pd.DataFrame] = []
    longest = max(case.workload.context_length for case in cases) + 1
    modes = (None, False) if cluster.backend == "nccl" else (None,)
    # Layout by layout, so that weights are loaded once for each.
    layouts = [layout for size in _sizes(cluster) for layout in _layouts(cases[0], size)]
    turns = [turn for turn in product(layouts, cases, modes) if turn[1] is cases[0] or turn[2] is None]
    for turn in run.time_left.parts(turns, _label):
        if turn is None:
            _forget(run)
            yield None
            continue
        (tp, pp), case, graphs = turn
        workload, spec = case.workload, case.spec
        config = runnable(spec, spec.num_layers, longest, run.plan.stack.dtype)
        try:
            made = profile_step(
                cluster if tp * pp == cluster.num_ranks else cluster.resized(tp * pp),
                config,
                tp=tp,
                pp=pp,
                batch=workload.concurrency or 1,
                prompt_length=workload.input_length,
                new_tokens=workload.output_length,
                cuda_graphs=graphs,
                timeout=run.time_left.limit_s(cluster, _LIMIT_S),
            )
        except (ClusterError, ValueError) as error:
            run.lose(_label(turn), error)
            continue
        about = {"model": spec.name, "batch": workload.concurrency, "prompt_length": workload.input_length}
        profiles.append(made.frame().assign(**about))
        run.files.draft("profile.csv", pd.concat(profiles, ignore_index=True).to_csv(index=False))
        if case is cases[0] and graphs is None:
            run.files.write(f"profile-tp{tp}-pp{pp}.json.gz", json.dumps(made.perfetto()))
        yield _row(made).assign(model=spec.name, layers=config.num_layers)
    _forget(run)
    if not profiles:
        raise ValueError("no layout of any model could be run, for the reasons above")
    run.files.write("profile.csv", pd.concat(profiles, ignore_index=True).to_csv(index=False))


def _forget(run: BoxRun) -> None:
    """Let the last layout's weights go: a step that has another turn counts the memory that is free."""
    from tplab.topology.verification.profiled import unload_random

    if run.time_left.is_over:
        return
    with suppress(ClusterError):
        run.cluster.run(unload_random)


def _label(turn: tuple[tuple[int, int], BoxCase, bool | None]) -> str:
    (tp, pp), case, graphs = turn
    return f"{case.label}, TP {tp} × PP {pp}{', eager' if graphs is False else ''}"


def _sizes(cluster: Cluster) -> Iterator[int]:
    """All ranks, then ..., 4, 2, 1 of them; of ranks that share GPUs as many as there are GPUs."""
    most = cluster.provenance.num_devices if cluster.shares_gpus else cluster.num_ranks
    yield from (most, *powers_below(most))


def _layouts(case: BoxCase, size: int) -> Iterator[tuple[int, int]]:
    """TP × PP of so many ranks that the model can be cut into, the most TP first."""
    for tp in range(size, 0, -1):
        if size % tp:
            continue
        try:
            Layout.of(case.spec, tp, size // tp)
        except ValueError:
            continue
        yield tp, size // tp


def _row(made: StepProfile) -> pd.DataFrame:
    shares = pd.DataFrame(made.generation.shares()).mean()
    return made.generation.frame().assign(**{f"{name}_share": value for name, value in shares.items()})
