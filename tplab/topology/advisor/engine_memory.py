"""What an engine takes of a GPU besides weights and cache: physical names, one place, a source each. Pure.

Sources, by the letter in the comments (project, where in it, version):
  [L] logs of vLLM 0.19 on H100, seven models at TP 1, 2 and 4, with every part that its profiling names: llm-d-planner
      (github.com/llm-d-incubation/llm-d-planner, accuracy/accuracy_report.md at 875a4fd, Apache-2.0)
  [V] logs of vLLM 0.6-0.8: vllm issues 10517 (RTX 3090), 13061 (two RTX 4090), 16570 (four A100 of 40 GB), and pull
      requests 10511 (H100), 14447 (sixteen RTX 3090)
  [G] logs of SGLang 0.4: pull request 4760 (H100), issue 2468 (24 GB), QwQ-32B on four A10G; of 0.5: pull request 11716
      (eight H200)
  [R] log of TensorRT-LLM 0.8: issue 1400 (A100)
  [K] NVIDIA AIConfigurator's system files (commit 095f58a): nccl_mem
  [O] vLLM 0.2 to 0.4: pull request 2031 (four A100: 11 GiB less cache per GPU than without it), issues 2248 (four A10G)
      and 4429 (two L40): no room at all; in torch, TORCH_NCCL_AVOID_RECORD_STREAMS is about the same
  [C] code: vllm/v1/worker/gpu_worker.py (determine_available_memory), sglang/srt/model_executor/model_runner.py
      (profile_max_num_token), tensorrt_llm/_torch/pyexecutor/_util.py (KvCacheCreator)
  [A] an assumption
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tplab.topology.machine.machine import Gpu

_GIB = 2.0**30

COLLECTIVE_BYTES = {1: 0.0, 2: 342 * 2.0**20}
"""Bytes of the buffers of one NCCL communicator over NVLink, by group size [K]; for any larger group
``COLLECTIVE_BYTES_LARGE``."""
COLLECTIVE_BYTES_LARGE = 392 * 2.0**20
COLLECTIVE_BYTES_PCIE = 0.25 * _GIB
"""The same of all communicators of an engine over PCIe, whatever the group's size: few channels, whose buffers are in
the host's memory. [G] 0.13 for four A10G; [V] 0.20 to 0.32 for two and sixteen cards, with what one alone takes."""
HOST_BYTES = 0.3e9
"""Bytes of a rank on a CPU core: interpreter and torch."""
USUAL_ROWS = 256
"""Sequences that every version of vLLM samples at once by default."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineMemory:
    """How one engine sizes its cache."""

    share: str = "all"
    """What ``gpu_memory_utilization`` is a share of. ``all``: the GPU's memory, for everything that the engine's trial
    run takes (vLLM). ``left``: what weights and trial run leave, for the cache (TensorRT-LLM). ``static``: what the GPU
    has free before loading, for weights and cache; activations are left to the rest (SGLang). [C]"""
    runtime_bytes: float = 0.6 * _GIB
    """Bytes of one process outside torch's tensors that count against that share: CUDA context, kernels and cuBLAS's
    workspace, as far as the engine counts them."""
    communicators: int = 1
    """NCCL communicators per tensor-parallel group that carry tensors: torch's own, and the engine's."""
    exchange_bytes: float = 0.0
    """Bytes of the engine's own all-reduce over NVLink: peers' buffers, workspaces of fused kernels."""
    row_bytes: float = 4.0
    """Bytes per entry of a row of logits while tokens are sampled, all copies that are alive at once."""
    further_row_bytes: float = 4.0
    """The same of rows beyond ``USUAL_ROWS``."""
    keeps_summed: bool = False
    """Whether a step keeps the inputs of all its all-reduces until its end, with TP 2L of them: torch's all-reduce says
    to the allocator that another stream reads them, and the host is far ahead of the GPU."""
    tries: bool = True
    """Whether it tries its largest step and its largest batch when it starts, and never gives that memory away. If not,
    a batch has the rows that it has."""

    def rows_bytes(self, vocab_size: int, rows: float) -> float:
        """Bytes of sampling ``rows`` sequences."""
        further = max(0.0, rows - USUAL_ROWS)
        return vocab_size * (self.row_bytes * (rows - further) + self.further_row_bytes * further)

    def collective_bytes(self, gpu: Gpu, tp: int, pp: int) -> float:
        """Bytes of the buffers of TP's and PP's communicators on one GPU."""
        nvlink = 1.0 if gpu.num_nvlinks >= 12 else 0.5 if gpu.num_nvlinks >= 6 else 0.0  # fewer: bridges, few channels
        nvlink = 1.0 if gpu.xgmi_GBps else nvlink  # [A] RCCL as NCCL
        each = COLLECTIVE_BYTES.get(tp, COLLECTIVE_BYTES_LARGE)
        within = max(COLLECTIVE_BYTES_PCIE, nvlink * (self.communicators * each + self.exchange_bytes))
        between = max(COLLECTIVE_BYTES_PCIE, nvlink * COLLECTIVE_BYTES[2])
        return within * (tp > 1) + between * (pp > 1)


_SERVING = EngineMemory(
    runtime_bytes=0.25 * _GIB,  # [L] 0.25; [V] 0.16-0.35; vLLM 0.8-0.9.1 counted the context of 0.3 besides
    communicators=3,  # torch's and vLLM's own of the TP group, and torch's of the world
    exchange_bytes=0.8 * _GIB,  # [L] 1.82 more at TP 2 than at TP 1, 1.88-1.96 more at TP 4, less the communicators'
    row_bytes=38.4,  # [V] 38-39 up to 0.16: fp32 logits, sorted with 64-bit indices, probabilities; [L] 15 since 0.17
    further_row_bytes=22.8,  # of 1024 rows, the default since 0.8.3, the mean of sorted and unsorted is 26.7
)
ENGINES: Mapping[str, EngineMemory] = {
    "vllm": _SERVING,
    "vllm-0.4": replace(_SERVING, keeps_summed=True),  # [O]; from 0.5 on it calls NCCL itself, which tells nobody
    "sglang": EngineMemory(
        share="static",
        runtime_bytes=0.5 * _GIB,  # [G] 0.3-0.4 before loading, 0.13-0.28 more than the weights after it
        communicators=3,
        exchange_bytes=0.8 * _GIB,  # [G] 2.0 in all for eight H200
        row_bytes=0.0,  # sampling is left to what it does not claim, too
        further_row_bytes=0.0,
    ),
    "trtllm": EngineMemory(
        share="left",
        runtime_bytes=0.5 * _GIB,  # [R] up to 0.7 with what a trial run of 4096 tokens takes
        communicators=3,  # [A] as the others
        exchange_bytes=0.8 * _GIB,  # [A] as the others
        # row_bytes: fp32 logits of its largest batch [A]
    ),
    "generic": _SERVING,
    "fastertransformer": EngineMemory(tries=False),  # [K] one communicator; runtime [A]
    "lab": EngineMemory(tries=False),  # torch's group alone
}
"""What each engine takes, by its name."""


def engine_memory(name: str) -> EngineMemory:
    """Of the engine called so; of ``generic`` for one that nobody has looked at."""
    return ENGINES.get(name, ENGINES["generic"])
