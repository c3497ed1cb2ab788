"""The rank's side of a profile: a generation under torch's profiler, cut down to one prefill and one decode step.

The profiler's clock and the engine's marks are brought together by one event that is made between two looks at the
host's clock. Kernels inside of CUDA graphs are seen as those outside are.
"""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from torch.profiler import ProfilerActivity, profile, record_function

from tplab.measure.clock import synchronize
from tplab.models.generation import ensure_loaded, generate_loaded
from tplab.models.loading import Loaded, tensor_parallel_comm
from tplab.models.records import Activity, RankResult, Request, Weights
from tplab.models.shards import Layout
from tplab.models.spec import ModelConfig
from tplab.models.together import together
from tplab.topology.calibration.copies import load_random
from tplab.topology.verification.kernels import Kernel

if TYPE_CHECKING:
    from tplab.cluster import Rank

WARM_UPS = 2
"""Generations before the profiled one: libraries choose, graphs are captured."""
_ZERO = "tplab zero"
_ZEROS = 8
_KEY = "tplab.profile"
_ANNOTATIONS = ("nccl:", "gloo:", "ProfilerStep")


class RankProfile(NamedTuple):
    """What one rank sends back."""

    result: RankResult
    """The generation before, without the profiler."""
    spans: list[Activity]
    """What the rank did in the generation that was profiled."""
    kernels: list[Kernel]
    """What ran during that, without terms."""


def profile_on_rank(
    rank: "Rank", config: ModelConfig, weights: Weights, layout: Layout, request: Request
) -> RankProfile:
    """Generate, and once more under the profiler. All ranks do it together.

    Args:
        rank: this rank.
        config, weights: the model, and where its weights come from; those made up are quick ones of no meaning.
        layout: how it is sharded over the ranks.
        request: what is asked of it; its prompts are token ids.
    """
    prompts = [[*map(int, prompt)] for prompt in request.prompts]
    loaded = _loaded(rank, config, weights, layout)
    for done in range(WARM_UPS):
        result = generate_loaded(rank, loaded, request, prompts)
        rank.report(phase="warm-up", done=done + 1, total=WARM_UPS + 1)
    on_gpu = rank.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    profiler: Any = profile(activities=activities, acc_events=True)
    with _quiet():
        profiler.start()
    try:
        zeros_s = []
        for _ in range(_ZEROS):  # the first one takes the profiler milliseconds
            with record_function(_ZERO):
                zeros_s.append(time.monotonic())
        spans = generate_loaded(rank, loaded, request, prompts).spans
        synchronize(rank.device)
    finally:
        with _quiet():
            profiler.stop()
    rank.report(phase="profile", done=WARM_UPS + 1, total=WARM_UPS + 1)
    load = replace(result.load, weight_bytes=loaded.stage.weight_bytes)
    return RankProfile(replace(result, load=load), spans, _kernels(profiler.events(), zeros_s, on_gpu))


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing goes to the error output: torch 2.13's profiler writes there that it starts and stops, whatever the level
    of its log."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _loaded(rank: "Rank", config: ModelConfig, weights: Weights, layout: Layout) -> Loaded:
    """The stage with its weights; random ones stay for the next profile of the same."""
    if weights.folder is not None:
        return ensure_loaded(rank, config, weights, layout)[0]
    key = config, layout
    held = rank.store.get(_KEY)
    if together(rank, lambda: held is not None and held[0] == key, all_of=True) and held is not None:
        loaded: Loaded = held[1]
        return loaded
    rank.store.pop(_KEY, None)  # before the next one is allocated
    comm = tensor_parallel_comm(rank, layout)
    loaded = together(rank, lambda: load_random(config, layout, rank.index, comm, device=rank.device))
    rank.store[_KEY] = key, loaded
    return loaded


def unload_random(rank: "Rank") -> None:
    """Let random weights that stay for the next profile go."""
    rank.store.pop(_KEY, None)


def _kernels(events: Any, zeros_s: list[float], on_gpu: bool) -> list[Kernel]:
    """What ran on the device; on a CPU its outermost operations, and what gloo's threads did."""
    marks = [event for event in events if event.name == _ZERO and event.device_type.name == "CPU"]
    marks.sort(key=lambda mark: mark.time_range.start)
    # The shortest of them says best when the clock was looked at, which was in its middle.
    mark, zero_s = min(zip(marks, zeros_s, strict=True), key=lambda pair: pair[0].time_range.elapsed_us())
    offset_s = zero_s - (mark.time_range.start + mark.time_range.end) / 2e6
    made = []
    for event in events:
        on_device = event.device_type.name != "CPU"
        if on_gpu:
            counts = on_device and not event.is_user_annotation and not event.name.startswith(_ANNOTATIONS)
        else:
            outermost = event.cpu_parent is None and not event.is_user_annotation
            counts = event.name.startswith("gloo:") or (outermost and not event.is_async)
        if counts and event.name != _ZERO:
            start, end = (offset_s + us / 1e6 for us in (event.time_range.start, event.time_range.end))
            made.append(Kernel(event.name, start, end))
    return made
