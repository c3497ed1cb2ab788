"""A model onto the ranks, once: which rank takes what, what it cost, and where it stays.

The weights stay in ``rank.store`` until another model, layout or dtype is asked for: a second ``generate`` loads
nothing. One model at a time, because two layouts of the same model are twice the memory and nobody asked for both.

A fault on one rank is made known to all before any goes on: the others would wait in their first collective for ever.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tplab.models.records import CheckpointError, LoadReport, Weights
from tplab.models.shards import Layout
from tplab.models.spec import ModelConfig

if TYPE_CHECKING:
    from tplab.cluster import Rank
    from tplab.layers.comm import Comm
    from tplab.models.decoder import Stage

T = TypeVar("T")
_KEY = "tplab.models"


@dataclass(kw_only=True, slots=True)
class Loaded:
    """A model's part on this rank."""

    key: object
    stage: "Stage"
    comm: "Comm"
    layout: Layout
    report: LoadReport


def ensure_loaded(rank: "Rank", config: ModelConfig, weights: Weights, layout: Layout) -> tuple[Loaded, LoadReport]:
    """This rank's stage, loaded unless it is there already; and what that cost this time. Runs on every rank.

    Raises on every rank what any rank met: see :func:`together`.
    """
    key = (config, weights, layout)
    held: Loaded | None = rank.store.get(_KEY)
    # A rank that failed last time has nothing while others have: they agree on whether to load.
    fits = held is not None and held.key == key
    if together(rank, lambda: fits, all_of=True):
        assert held is not None
        again = LoadReport(load_s=0.0, read_bytes=0, weight_bytes=held.report.weight_bytes, peak_bytes=0)
        return held, again
    del held
    rank.store.pop(_KEY, None)  # before the next one is allocated
    comm = tensor_parallel_comm(rank, layout)
    loaded = together(rank, lambda: _load(rank, config, weights, layout, comm, key))
    rank.store[_KEY] = loaded
    return loaded, loaded.report


def in_own_dtype(config: ModelConfig, weights: Weights) -> ModelConfig:
    """A model whose configuration names no type, in that of its tensors."""
    if weights.folder is None:
        return config.in_dtype("float32")  # as they are drawn
    from tplab.models.checkpoint import Checkpoint

    return config.in_dtype(Checkpoint(weights.folder, config).dtype)


def unload(rank: "Rank") -> None:
    """Let the weights on this rank go."""
    rank.store.pop(_KEY, None)


def tensor_parallel_comm(rank: "Rank", layout: Layout) -> "Comm":
    """Collectives of the ranks of this stage."""
    import torch.distributed as dist

    from tplab.layers.comm import NullComm, OneShotComm, ProcessGroupComm
    from tplab.models.recorder import TimedComm

    if layout.tp == 1:
        return NullComm()
    group = rank.mesh(tp=layout.tp, pp=layout.pp).get_group("tp")
    return TimedComm((OneShotComm if dist.get_backend(group) == "gloo" else ProcessGroupComm)(group))


def _load(rank: "Rank", config: ModelConfig, weights: Weights, layout: Layout, comm: "Comm", key: object) -> Loaded:
    from tplab.models.checkpoint import Checkpoint, RandomWeights, Source, fill, torch_dtype
    from tplab.models.decoder import Stage

    stage_index, _ = layout.place(rank.index)
    began = time.perf_counter()
    peak = _Peak(rank)
    source: Source
    if weights.folder is not None:
        source = Checkpoint(weights.folder, config)
    else:
        assert weights.seed is not None
        source = RandomWeights(config, weights.seed)
    stage = Stage(config, layout.spec(stage_index), comm, dtype=torch_dtype(config.dtype))

    def progress(done: int, total: int) -> None:
        if done % 10 == 0 or done == total:
            rank.report(phase="load", done=done, total=total)

    taken = fill(stage, source, rank.device, progress)
    report = LoadReport(
        load_s=time.perf_counter() - began,
        read_bytes=taken,
        weight_bytes=stage.weight_bytes,
        peak_bytes=peak.bytes(),
    )
    return Loaded(key=key, stage=stage, comm=comm, layout=layout, report=report)


def together(rank: "Rank", work: Callable[[], T], *, all_of: bool = False) -> T:
    """Do ``work`` on every rank; if it raises on any, every rank raises, so that none waits for one that is gone.

    Two small collectives at most. With ``all_of`` the result is whether every rank's was true.

    Raises:
        CheckpointError: naming the rank, where the fault was another's; else the fault itself.
    """
    import torch
    import torch.distributed as dist

    error: Exception | None = None
    result: Any = None
    try:
        result = work()
    except Exception as raised:
        error = raised
    flags = torch.tensor([0 if error is None else 1, 0 if result else 1], device=rank.device)
    if rank.world_size > 1:
        dist.all_reduce(flags, group=rank.group)
    num_failed, num_false = flags.tolist()
    if num_failed:
        what = None if error is None else f"{type(error).__name__}: {error}"
        heard: list[Any] = [what]
        if rank.world_size > 1:
            heard = [None] * rank.world_size
            dist.all_gather_object(heard, what, group=rank.group)
        if error is not None:
            raise error
        first = next(index for index, said in enumerate(heard) if said is not None)
        raise CheckpointError(f"rank {first} failed, so no rank went on: {heard[first]}")
    answer: T = num_false == 0 if all_of else result
    return answer


class _Peak:
    """Growth of this process's memory since it was made, at its highest."""

    def __init__(self, rank: "Rank") -> None:
        self._cuda = rank.device if rank.device.type == "cuda" else None
        if self._cuda is not None:
            import torch

            torch.cuda.reset_peak_memory_stats(self._cuda)
            self._before: int | None = torch.cuda.memory_allocated(self._cuda)
            return
        try:
            Path("/proc/self/clear_refs").write_text("5")  # Linux: the high-water mark starts anew
        except OSError:
            self._before = None
        else:
            self._before = _status_bytes("VmRSS")

    def bytes(self) -> int | None:
        if self._before is None:
            return None
        if self._cuda is not None:
            import torch

            return torch.cuda.max_memory_allocated(self._cuda) - self._before
        now = _status_bytes("VmHWM")
        return None if now is None else now - self._before


def _status_bytes(field: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    found = [line.split() for line in lines if line.startswith(f"{field}:")]
    return int(found[0][1]) * 1024 if found else None
