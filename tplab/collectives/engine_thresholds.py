"""Which all-reduce serving engines take for a message, by sizes that stand in their code: facts, cited. No torch.

An engine does not measure the machine it runs on. It has a table: up to so many bytes its own kernel in one step, up to
so many in two, NCCL above, by compute capability and number of ranks. Users found such limits off by 2 to 4 us per call
on eight H200; ``crossover`` sets them beside what is measured here.

Not read from installed engines: they need not be installed, and their limits sit in C++ and in conditions around the
tables. What stands here is what those conditions come to on GPUs of one host that NVLink joins pair by pair, in a CUDA
graph, in bfloat16 and without fusions, with the engine's defaults.

Known to be wrong: where an environment variable sets another limit, for other versions, and where NVLink multicast is
on, which this lab leaves off: vLLM and SGLang then have further kernels for large messages of four ranks and more
(``EngineRule.note``).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from tplab.checks import check_count

KIB, MIB = 1 << 10, 1 << 20
ENGINES = ("vLLM", "SGLang", "TensorRT-LLM")
KINDS: Mapping[str, tuple[str, ...]] = {
    "one-shot": ("pushed-one-shot", "symmetric-one-shot"),
    "two-shot": ("pushed-two-shot", "symmetric-two-shot"),
    "NCCL": ("library",),
}
"""What an engine can choose -> algorithms of the sweep that take the same steps."""
_BF16 = 2

VLLM = (
    "vLLM: csrc/custom_all_reduce.cuh (commit 036bb68), vllm/distributed/device_communicators/custom_all_reduce.py and "
    "all_reduce_utils.py (commit 00d618a)"
)
SGLANG = (
    "SGLang: python/sglang/srt/distributed/device_communicators/configs/custom_all_reduce_v2.py (commit 09e7d8e), "
    "python/sglang/srt/environ.py (SGLANG_CUSTOM_ALL_REDUCE_V2_MAX_SIZE_KB)"
)
TRTLLM = (
    "TensorRT-LLM: cpp/tensorrt_llm/common/customAllReduceUtils.h (commit 005b299), cpp/tensorrt_llm/thop/"
    "allreduceOp.cpp (commit 01e2c36)"
)

_CAPABILITIES = (
    (r"\b(GH200|H[128]00|H20)\b", (9, 0)),
    (r"\bG?B300\b", (10, 3)),
    (r"\bG?B200\b", (10, 0)),
    (r"\bA[18]00\b", (8, 0)),
)
"""Pattern of a driver's name -> compute capability, of GPUs that NVLink joins in servers (NVIDIA, CUDA GPU compute
capability table)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Band:
    """A range of sizes for which an engine has one choice."""

    to_bytes: float
    """First size in bytes that is no longer in the band; infinite for the last one."""
    kind: str
    """One of ``KINDS``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineRule:
    """What one engine chooses on one machine, by size."""

    engine: str
    """One of ``ENGINES``."""
    bands: tuple[Band, ...]
    """Bands in rising order, from 0 bytes to infinity; empty where the engine has no threshold for this machine."""
    source: str
    """Project, file and commit that the limits are from."""
    note: str = ""
    """Why there is no threshold, or under which condition there would be another."""

    def kind_at(self, nbytes: float) -> str | None:
        """What it takes for a message; None without a threshold for this machine."""
        return next((band.kind for band in self.bands if nbytes < band.to_bytes), None)

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Sizes in bytes at which the choice changes."""
        return tuple(band.to_bytes for band in self.bands[:-1])


def capability_of(device: str) -> tuple[int, int] | None:
    """Compute capability of a GPU by its driver's name; None for one that NVLink does not join to all others of a
    server, or that the list does not have, or no GPU."""
    if "PCIe" in device:
        return None
    return next((found for pattern, found in _CAPABILITIES if re.search(pattern, device)), None)


def engine_rules(device: str, num_ranks: int, hidden: int, *, own_gpus: bool = True) -> list[EngineRule]:
    """A rule for each of ``ENGINES``, on GPUs of one host.

    Args:
        device: name of the GPU, as in a frame's ``device``.
        num_ranks: ranks that share a layer.
        hidden: width of the model: TensorRT-LLM's table is by width and tokens, not by bytes.
        own_gpus: whether each rank has a GPU of its own; an engine knows no other way.
    """
    check_count("num_ranks", num_ranks, least=1)
    check_count("hidden", hidden, least=1)
    capability = capability_of(device)
    if capability is not None and own_gpus and num_ranks > 1:
        return [_vllm(num_ranks), _sglang(capability, num_ranks), _trtllm(capability, num_ranks, hidden)]
    note = f"no threshold for {device}: the tables are of GPUs that NVLink joins"
    if not own_gpus:
        note = "no threshold: engines give each rank a GPU of its own"
    elif num_ranks == 1:
        note = "no threshold: one rank has nothing to reduce"
    sources = zip(ENGINES, (VLLM, SGLANG, TRTLLM), strict=True)
    return [EngineRule(engine=engine, bands=(), source=source, note=note) for engine, source in sources]


def _bands(*limits: tuple[float, str]) -> tuple[Band, ...]:
    """Bands up to each limit in turn, NCCL above the last one; empty ones are left out, neighbours alike joined."""
    kept: list[Band] = []
    for limit, kind in (*limits, (float("inf"), "NCCL")):
        if kept and limit <= kept[-1].to_bytes:
            continue
        if kept and kept[-1].kind == kind:
            kept.pop()
        kept.append(Band(to_bytes=limit, kind=kind))
    return tuple(kept)


_VLLM_ONE_SHOT = {2: 8 * MIB, 4: 512 * KIB, 6: 256 * KIB, 8: 256 * KIB}
"""Ranks -> size from which vLLM's kernel takes two steps; with two ranks never, up to the kernel's largest size."""
_VLLM_MOST = 8 * MIB


def _vllm(n: int) -> EngineRule:
    if n not in _VLLM_ONE_SHOT:
        note = f"always NCCL with {n} ranks: its own kernel is for {', '.join(map(str, _VLLM_ONE_SHOT))}"
        return EngineRule(engine="vLLM", bands=_bands(), source=VLLM, note=note)
    return EngineRule(
        engine="vLLM",
        bands=_bands((_VLLM_ONE_SHOT[n], "one-shot"), (_VLLM_MOST, "two-shot")),
        source=VLLM,
        note="" if n == 2 else "with NVLink multicast it has one kernel more before NCCL",
    )


_SGLANG_ONE_SHOT: Mapping[int, Mapping[int, float]] = {
    9: {2: 128 * MIB, 3: 1.25 * MIB, 4: 384 * KIB, 5: 192 * KIB, 6: 128 * KIB, 7: 128 * KIB, 8: 128 * KIB},
    10: {2: 32 * MIB, 3: 4 * MIB, 4: 1.125 * MIB, 5: 1.5 * MIB, 6: MIB, 7: 0.625 * MIB, 8: 0.5 * MIB},
}
"""Major compute capability -> ranks -> largest message in one step, in a CUDA graph."""
_SGLANG_ONE_SHOT_ELSEWHERE = float(MIB)
_SGLANG_MOST = 16 * MIB
"""Default size of the kernels' workspace in bytes, to which all limits of the table are cut."""


def _sglang(capability: tuple[int, int], n: int) -> EngineRule:
    if n > 8:
        return EngineRule(engine="SGLang", bands=(), source=SGLANG, note=f"no threshold for {n} ranks on one host")
    major = capability[0]
    table = _SGLANG_ONE_SHOT.get(major)
    note = "its default for GPUs that nobody tuned it on" if table is None else ""
    if major == 9 and n > 5:
        note = "with NVLink multicast it has one kernel more for large messages"
    limit = _SGLANG_ONE_SHOT_ELSEWHERE if table is None else table[n]
    return EngineRule(  # its limits are the last sizes of their bands, ours the first beyond
        engine="SGLang",
        bands=_bands((min(limit, _SGLANG_MOST) + 1, "one-shot"), (_SGLANG_MOST + 1, "two-shot")),
        source=SGLANG,
        note=note,
    )


_TRTLLM_STEPS: Mapping[int, Mapping[int, Mapping[int, str]]] = {
    90: {
        2: {10: "111121211111", 11: "111112222112", 12: "12121111111", 13: "1122111111"},
        4: {10: "111112212122", 11: "11111112122", 12: "1112222122", 13: "111112122"},
        8: {10: "111111111222", 11: "11111112222", 12: "1111112222", 13: "111112222"},
    },
    100: {
        2: {10: "1112111111111", 11: "111111111111", 12: "11111111111", 13: "1121111111"},
        4: {10: "111111111111", 11: "11111111112", 12: "1111111112", 13: "111111112"},
        8: {10: "111111111122", 11: "11111111122", 12: "1111111122", 13: "111111122"},
    },
}
"""Architecture -> ranks -> binary logarithm of the width, rounded down -> number of steps for 1, 2, 4, 8, ... tokens;
NCCL from the next power of two on. The rows of a sum without a fusion."""
_TRTLLM_WORKSPACE = {2: 16_000_000, 4: 8_000_000, 8: 8_000_000}
_STEPS = {"1": "one-shot", "2": "two-shot"}


def _trtllm(capability: tuple[int, int], n: int, hidden: int) -> EngineRule:
    rows = _TRTLLM_STEPS[100 if capability[0] >= 10 else 90].get(n, {})
    steps = rows.get(hidden.bit_length() - 1)
    if steps is None:
        note = f"no entry for {n} ranks and a width of {hidden:,} (widths from 1,024 to 16,383 are listed here)"
        return EngineRule(engine="TensorRT-LLM", bands=(), source=TRTLLM, note=note)
    most = _TRTLLM_WORKSPACE[n] + 1
    limits = [(min(most, hidden * _BF16 << (power + 1)), _STEPS[step]) for power, step in enumerate(steps)]
    note = "" if capability[0] >= 9 else "its table of H100 stands for all older GPUs"
    return EngineRule(engine="TensorRT-LLM", bands=_bands(*limits), source=TRTLLM, note=note)
