"""A ``Calibration`` out of what ranks have reported. Pure."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from tplab.cluster import Provenance, Report
from tplab.measure import link_text, samples_of
from tplab.models.precision import PRECISIONS
from tplab.models.spec import ModelConfig
from tplab.topology.advisor.calibration import AllReduceTimes, Calibration, MatmulTimes, SendTimes
from tplab.topology.advisor.constants import DEFAULT
from tplab.topology.advisor.roofline import MATMULS_PER_BLOCK
from tplab.topology.calibration.plan import (
    BLOCK_CONTEXT,
    BLOCK_TOKENS,
    BLOCK_WIDTHS,
    DEEP,
    GPU_LAYERS,
    HEAD_DIM,
    SHALLOW,
    CalibrationPlan,
    llama,
    mean_params,
    narrow,
)

INSIDE = "inside one host"
"""What joins a group of ranks on one of several hosts, in words."""


def calibration_of(
    plan: CalibrationPlan, reports: Iterable[Report], provenance: Provenance, *, machine: str | None = None
) -> Calibration:
    """What the ranks have reported so far: of every sample the slowest rank's, then medians."""
    times = {key: samples.p50_us for key, samples in samples_of(reports).items()}
    precision = PRECISIONS[plan.dtype]
    matmuls = _matmuls(plan, times, precision)
    bare = Calibration(
        machine=machine or f"{plan.num_ranks} x {provenance.device}",
        device=provenance.device,
        backend=plan.backend,
        num_ranks=plan.num_ranks,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions={
            "torch": provenance.torch_version,
            "python": provenance.python_version,
            **({"nccl": provenance.nccl_version} if provenance.nccl_version else {}),
        },
        all_reduce=_all_reduces(plan, times, link_text(plan.links, provenance.link)),
        sends=_sends(plan, times),
        matmuls=matmuls,
        emulated_links=plan.links is not None,
        notes=plan.notes,
    )
    return _with_overheads(bare, plan, times, precision)


MedianTimes = dict[tuple[Any, ...], float]


def _all_reduces(plan: CalibrationPlan, times: MedianTimes, link: str) -> tuple[AllReduceTimes, ...]:
    made = []
    for ranks in plan.groups:
        for launch in plan.launches:
            if curve := _curve(times, plan.sizes, "all_reduce", ranks, launch):
                nodes = plan.nodes(ranks)
                whole = plan.links is not None or nodes == plan.nodes(range(plan.num_ranks))
                made.append(
                    AllReduceTimes(
                        num_ranks=len(ranks),
                        launch=launch,
                        link=link if whole else INSIDE,
                        gpus=ranks,
                        nodes=nodes,
                        **curve,
                    )
                )
    return tuple(made)


def _sends(plan: CalibrationPlan, times: MedianTimes) -> tuple[SendTimes, ...]:
    made = []
    for source, target in plan.pairs:
        if curve := _curve(times, plan.send_sizes, "send", source, target):
            made.append(SendTimes(source=source, target=target, nodes=plan.nodes((source, target)), **curve))
    return tuple(made)


def _curve(times: MedianTimes, sizes: Iterable[int], *what: Any) -> dict[str, Any]:
    """``nbytes`` and ``p50_us`` of the sizes that were measured; empty where none was."""
    found = {float(size): times[*what, size] for size in sizes if (*what, size) in times}
    return {"nbytes": tuple(found), "p50_us": tuple(found.values())} if found else {}


def _matmuls(plan: CalibrationPlan, times: MedianTimes, precision: str) -> tuple[MatmulTimes, ...]:
    """Times of one GEMM, the mean over a block's."""
    made = []
    order = sorted(range(len(plan.blocks)), key=lambda place: mean_params(plan.blocks[place]))
    for at_once in plan.computing:
        points = [
            (tokens, mean_params(plan.blocks[place]), times[key])
            for tokens in plan.tokens
            for place in order
            if (key := ("matmul", at_once, tokens, place)) in times
        ]
        per_tokens = [len([1 for t, _, _ in points if t == tokens]) for tokens in plan.tokens]
        if points and all(count >= 2 for count in per_tokens):
            tokens_, params_, us = zip(*points, strict=True)
            made.append(MatmulTimes(precision=precision, num_ranks=at_once, tokens=tokens_, params=params_, p50_us=us))
    return tuple(made)


def _with_overheads(bare: Calibration, plan: CalibrationPlan, times: MedianTimes, precision: str) -> Calibration:
    more: dict[str, float] = {}
    for key, us in times.items():
        if key[0] == "copy":
            more["copy_GBps"] = key[1] / us / 1e3
    cached = sorted((key[1], us) for key, us in times.items() if key[0] == "attention")
    if len(cached) == 2:
        (few, short), (many, long) = cached
        more["attention_fixed_us"] = short
        more["kv_read_GBps"] = (many - few) / max(long - short, 1e-3) / 1e3
    prompt = times.get(("prompt attention", plan.prompt_tokens))
    if prompt is not None:
        width = plan.cache_shape[2] * HEAD_DIM
        more["prompt_attention_TFLOPS"] = 2e-6 * plan.prompt_tokens**2 * width / prompt  # half of the pairs are seen
    if ("light",) in times:
        more["light_kernel_us"] = times[("light",)]
    made = replace(bare, **more)  # type: ignore[arg-type]
    return replace(made, **_engine(made, plan, times, precision))  # type: ignore[arg-type]


def _engine(bare: Calibration, plan: CalibrationPlan, times: MedianTimes, precision: str) -> dict[str, float]:
    """Overheads: from the narrow models' times per token, or a GPU's from its blocks."""
    more: dict[str, float] = {}
    kernels = MATMULS_PER_BLOCK + 2 + DEFAULT.engines["lab"].light_kernels
    if ("block launches",) in times:
        more["launch_us"] = times[("block launches",)] / kernels
    if plan.cuda_graphs:
        return more | _engine_on_gpu(bare, plan, times, precision)
    if ("step", SHALLOW) not in times or ("step", DEEP) not in times:
        return more
    shallow, deep = times[("step", SHALLOW)], times[("step", DEEP)]
    block = max(0.0, (deep - shallow) / (DEEP - SHALLOW))
    ends = max(0.0, shallow - SHALLOW * block)
    curve = bare.matmul_curve(precision)
    config = narrow(SHALLOW, plan.dtype)
    if plan.backend != "nccl" and curve is not None:
        more["launch_us"] = 0.0  # a CPU's block is launched and run by the same thread
        more["block_overhead_us"] = max(
            0.0, block - float(curve.time_us(1, config.block_matmul_params, MATMULS_PER_BLOCK))
        )
        ends = max(0.0, ends - float(curve.time_us(1, config.vocab_size * config.hidden_size)))
    more["step_overhead_us"] = ends
    return more | _handoff(bare, times, DEEP, config.hidden_size * 4)


def _engine_on_gpu(bare: Calibration, plan: CalibrationPlan, times: MedianTimes, precision: str) -> dict[str, float]:
    """Overheads on a GPU: from blocks in CUDA graphs, and from a model of many blocks."""
    more: dict[str, float] = {}
    curve = bare.matmul_curve(precision)
    if curve is None or any(("block", width) not in times for width in BLOCK_WIDTHS):
        return more
    models = [llama(GPU_LAYERS, width, plan.dtype) for width in BLOCK_WIDTHS]
    matmuls = [float(curve.time_us(BLOCK_TOKENS, model.block_matmul_params, MATMULS_PER_BLOCK)) for model in models]
    caches = [_cache_us(bare, model) for model in models]
    low, high = (
        times[("block", width)] - products - cache
        for width, products, cache in zip(BLOCK_WIDTHS, matmuls, caches, strict=True)
    )
    by_width = max(0.0, high - low) / (BLOCK_WIDTHS[1] - BLOCK_WIDTHS[0])
    more["block_overhead_us"] = max(0.0, low - by_width * BLOCK_WIDTHS[0])
    more["block_overhead_per_width_us"] = by_width
    if ("step", GPU_LAYERS) in times:
        blocks = GPU_LAYERS * times[("block", BLOCK_WIDTHS[0])]
        head = float(curve.time_us(BLOCK_TOKENS, models[0].vocab_size * models[0].hidden_size))
        more["step_overhead_us"] = max(0.0, times[("step", GPU_LAYERS)] - blocks - head)
    return more | _handoff(bare, times, GPU_LAYERS, BLOCK_TOKENS * BLOCK_WIDTHS[0] * 2)


def _handoff(bare: Calibration, times: MedianTimes, layers: int, nbytes: int) -> dict[str, float]:
    """Two hops are what two stages take longer than one, each a message of ``nbytes`` and a hand-over."""
    if ("pipeline", layers) not in times or ("step", layers) not in times:
        return {}
    wire = bare.send_us(float(nbytes), [(0, 1)])
    hop = (times[("pipeline", layers)] - times[("step", layers)]) / 2
    # Below nothing where two hosts launch half a model each while the other's GPU works: then a hop is its message.
    return {"handoff_us": max(0.0, hop - (float(wire) if wire is not None else 0.0))}


def _cache_us(bare: Calibration, model: ModelConfig) -> float:
    """Reading the cache in one of those blocks; nothing where that rate was not measured."""
    nbytes = 2 * BLOCK_TOKENS * BLOCK_CONTEXT * model.num_kv_heads * model.head_dim * 2
    return nbytes / bare.kv_read_GBps / 1e3 if bare.kv_read_GBps else 0.0
