"""A stage of a model onto its rank: which tensors it takes, over which group it sums, and what loading cost."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from tplab.layers.comm import Comm, NullComm, OneShotComm, ProcessGroupComm, RecordingComm
from tplab.layers.symmetric_comm import gpu_comm
from tplab.models.checkpoint import Checkpoint, RandomWeights, Source, fill, torch_dtype
from tplab.models.decoder import Stage
from tplab.models.graphed import KeptSteps
from tplab.models.records import LoadReport, Weights
from tplab.models.shards import Layout, kv_bytes_per_token
from tplab.models.spec import ModelConfig

if TYPE_CHECKING:
    from tplab.cluster import Rank


@dataclass(kw_only=True, slots=True)
class Loaded:
    """A model's part on this rank."""

    stage: Stage
    comm: Comm
    """Collectives of the ranks that share the stage."""
    layout: Layout
    place: int
    """The rank's place in the layout."""
    report: LoadReport
    """What loading cost."""
    kv_bytes_per_token: float = 0.0
    """Bytes of the cache of a token, on all ranks that share this one's memory."""
    kept: KeptSteps = field(default_factory=KeptSteps)
    """Decode steps that were captured in CUDA graphs, with their caches."""


def tensor_parallel_comm(rank: "Rank", layout: Layout) -> Comm:
    """Collectives of the ranks of this stage, recorded while an engine runs."""
    if layout.tp == 1:
        return NullComm()
    group = rank.mesh(tp=layout.tp, pp=layout.pp).get_group("tp")
    backend = dist.get_backend(group)
    if backend == "nccl":
        return RecordingComm(gpu_comm(rank, group))
    return RecordingComm((OneShotComm if backend == "gloo" else ProcessGroupComm)(group))


def load_stage(rank: "Rank", config: ModelConfig, weights: Weights, layout: Layout, comm: Comm) -> Loaded:
    """This rank's stage with its weights.

    Args:
        rank: this rank, whose index is its place in the layout.
        config, weights: the model, in the type of its tensors if it names none, and where its weights come from.
        layout: how it is sharded over the ranks.
        comm: collectives of the ranks that share the stage.

    Raises:
        CheckpointError: what is wrong with the checkpoint.
    """
    began, peak = time.perf_counter(), _Peak(rank)
    source: Source
    if weights.folder is not None:
        source = checkpoint = Checkpoint(weights.folder, config)
        config = config if config.dtype else config.in_dtype(checkpoint.dtype)
    else:
        assert weights.seed is not None
        source = RandomWeights(config, weights.seed)
        config = config if config.dtype else config.in_dtype("float32")  # as they are drawn
    stage = Stage(config, layout.spec(layout.place(rank.index)[0]), comm, dtype=torch_dtype(config.dtype))

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
    # Ranks on the CPU share the machine's memory; on GPUs each has its own.
    sharing = range(layout.gpus_per_replica) if rank.device.type == "cpu" else [rank.index]
    per_token = sum(kv_bytes_per_token(config, layout, *layout.place(each)) for each in sharing)
    return Loaded(stage=stage, comm=comm, layout=layout, place=rank.index, report=report, kv_bytes_per_token=per_token)


class _Peak:
    """Growth of this process's memory since it was made, at its highest."""

    def __init__(self, rank: "Rank") -> None:
        self._cuda = rank.device if rank.device.type == "cuda" else None
        if self._cuda is not None:
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
