"""What a kind of GPU cannot do: engines that do not run on it, numbers that it does not multiply, and what nobody has
measured there. Said with every prediction, and no command is printed that would be refused.

Sources: installation pages of vLLM (docs.vllm.ai, 0.3 to 0.14: compute capability 7.0) and SGLang (docs.sglang.io, 0.5:
sm75; later pages say sm80), TensorRT-LLM's support matrix (0.18 on: SM80), vLLM's table of quantisation kernels
(docs.vllm.ai, 0.9.2, features/quantization/supported_hardware: fp8 from Ampere on).
"""

from tplab.checks import ArgumentError
from tplab.models.spec import ModelSpec
from tplab.topology.machine.machine import Gpu, Machine

ENGINE_NAMES = {"vllm": "vLLM", "sglang": "SGLang", "trtllm": "TensorRT-LLM"}
_LEAST_CAPABILITY = {"vllm": (7, 0), "sglang": (7, 5), "trtllm": (8, 0)}
_NVIDIA_ONLY = ("trtllm", "fastertransformer")
_KEPT = 0.9
"""Least part of the peak, over an H100's, that is not worth a word."""
_FP8_KERNELS = (8, 0)
"""Least compute capability of kernels for fp8 weights."""


def refused(engine: str, gpu: Gpu) -> str | None:
    """Why ``engine`` does not run on ``gpu``; None if it does, or if that is not known."""
    made, name = gpu.made, ENGINE_NAMES.get(engine, engine)
    if made is None:
        return None
    if made.maker == "amd":
        return f"{name} does not run on AMD's GPUs" if engine in _NVIDIA_ONLY else None
    least = _LEAST_CAPABILITY.get(engine)
    if least is None or made.capability is None or made.capability >= least:
        return None
    return (
        f"{name} needs compute capability {_dotted(least)}, and {gpu.name} ({gpu.generation}) has "
        f"{_dotted(made.capability)}"
    )


def check_engine(engine: str, gpu: Gpu) -> None:
    """Raises ``ValueError`` for an engine that no version of ever ran on such GPUs."""
    if gpu.is_amd and engine in _NVIDIA_ONLY:
        raise ArgumentError(
            "engine", engine, f"must be one that runs on AMD's GPUs, such as vllm or sglang: {gpu.name}"
        )


def hardware_notes(engine: str, model: ModelSpec, machine: Machine) -> tuple[str, ...]:
    """Sentences about the machine's kind of GPU; none where there is nothing unusual about it."""
    gpu, made, notes = machine.gpu, machine.gpu.made, []
    if why := refused(engine, gpu):
        notes.append(f"{why}: no command is given, and the times are those that it would have")
    if made is not None and made.maker == "amd":
        notes.append("nothing was fitted to AMD's GPUs: fixed times of kernels and of the engine are NVIDIA's")
        if machine.num_gpus > 1:
            notes.append(
                "RCCL's all-reduce is another curve than NCCL's: its bandwidth is AMD's figure for the Infinity Fabric "
                "links of the group, its fixed times are not known and taken as NVLink's"
            )
    if gpu.kept_share < _KEPT:
        notes.append(f"large GEMMs on {gpu.name} reach {gpu.kept_share:.0%} of what such a peak is worth on an H100")
    if made is not None and not made.matrix_units:
        notes.append(f"{gpu.name} has no tensor cores: GEMMs run at {gpu.bf16_TFLOPS:g} TFLOP/s")
    if made is not None and not made.bf16 and "bf16" in (model.activation_precision, model.weight_precision):
        notes.append(f"{gpu.name} multiplies no bf16: engines refuse it or run the model in fp16 (--dtype half)")
    old = made is not None and made.capability is not None and made.capability < _FP8_KERNELS
    if old and model.weight_precision in ("fp8", "fp4"):
        notes.append(f"{gpu.name}: engines have no kernels for {model.weight_precision} weights before Ampere")
    if gpu.shared_memory:
        notes.append(
            f"CPU and GPU share the memory of {gpu.name}: what the system and its programs take comes off the part "
            f"that the engine may (lower gpu_memory_utilization)"
        )
    return tuple(notes)


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"
