"""Models that generate in every layout of a machine's GPUs, profiled: times of whole steps, and where they go."""

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import product

import pandas as pd

from tplab.cluster import Cluster, ClusterError
from tplab.models.shards import Layout
from tplab.topology.verification.box_layouts import BoxCase
from tplab.topology.verification.static_batch import runnable
from tplab.topology.verification.step_profile import StepProfile, profile_step


def generation_step(
    cluster: Cluster,
    cases: Sequence[BoxCase],
    dtype: str,
    write: Callable[[str, str], object],
    say: Callable[[str], None],
) -> pd.DataFrame:
    """Each case in every layout of 1, 2, 4, ... and all ranks, as many as have a GPU of their own.

    Rows as ``Generation.frame`` has them, with ``model``, ``layers``, ``compute_share``, ``collective_share`` and
    ``wait_share`` (means over the ranks); on GPUs the first case also without CUDA graphs. Written besides:
    ``profile.csv`` (rows of ``StepProfile.frame``, with ``model``, ``batch`` and ``prompt_length``), and for the first
    case ``profile-tp1-pp1.json`` and so on for ui.perfetto.dev. A layout that fails is said and left out; what was
    measured is written after each.

    Args:
        cluster: all ranks.
        cases: loads of one model, each with a batch of ``concurrency`` prompts.
        dtype: of weights and cache.
        write: called with the name of a file and what goes into it.
        say: called with failures.

    Raises:
        ValueError: nothing could be run.
    """
    rows, profiles = [], []
    longest = max(case.workload.context_length for case in cases) + 1
    modes = (None, False) if cluster.backend == "nccl" else (None,)
    for size in _sizes(cluster):
        clustered = cluster if size == cluster.num_ranks else cluster.resized(size)
        # Layout by layout, so that weights are loaded once for each.
        runs = product(_layouts(cases[0], size), enumerate(cases), modes)
        for (tp, pp), (place, case), graphs in runs:
            if place and graphs is False:
                continue
            workload, spec = case.workload, case.spec
            config = runnable(spec, spec.num_layers, longest, dtype)
            try:
                made = profile_step(
                    clustered,
                    config,
                    tp=tp,
                    pp=pp,
                    batch=workload.concurrency or 1,
                    prompt_length=workload.input_length,
                    new_tokens=workload.output_length,
                    cuda_graphs=graphs,
                )
            except (ClusterError, ValueError) as error:
                say(f"{case.label}, TP {tp} × PP {pp}: left out: {error}")
                continue
            about = {"model": spec.name, "batch": workload.concurrency, "prompt_length": workload.input_length}
            rows.append(_row(made).assign(model=spec.name, layers=config.num_layers))
            profiles.append(made.frame().assign(**about))
            write("generation.csv", pd.concat(rows, ignore_index=True).to_csv(index=False))
            write("profile.csv", pd.concat(profiles, ignore_index=True).to_csv(index=False))
            if place == 0 and graphs is None:
                write(f"profile-tp{tp}-pp{pp}.json", json.dumps(made.perfetto()))
    if not rows:
        raise ValueError("no layout of any model could be run, for the reasons above")
    return pd.concat(rows, ignore_index=True)


def _sizes(cluster: Cluster) -> Iterator[int]:
    """1, 2, 4, ... and all ranks; of ranks that share GPUs as many as there are GPUs."""
    most = cluster.provenance.num_devices if cluster.shares_gpus else cluster.num_ranks
    size = 1
    while size < most:
        yield size
        size *= 2
    yield most


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
