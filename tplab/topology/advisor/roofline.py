"""What one transformer block costs a GPU by itself: streaming, multiplying, attention, and the small change. Pure.

A roofline with its corner rounded, plus a fixed time per kernel. Not the bare roofline at 100 %: that is 20-25 % too
fast at TP 1 and off by two at TP 8, where a block's dozen kernels take longer to start and drain than to stream.

  matmuls      ((params/t·e_w/(share·BW))^q + (2·Σ(m+m0)(n+n0)(k+k0)/(mfu·peak))^q)^(1/q)     one GEMM over all m tokens
  start-up     4 matmuls, attention, light kernels: a fixed time each, at any t
  attention    cached bytes/(t·share·BW) per sequence; prompts: 4·T·context·H·d/(t·share·peak)
  activations  bytes that norms, activations and conversions read and write per token: at TP 8 a tenth of prefill

m0, n0 and k0 are what 8-bit kernels lose at the edges of a product, in tokens, columns and rows: their tiles are
larger, and a GEMM that is cut over t GPUs ends in tiles that are partly empty. 0 for 16 bits. Weights in fewer bits
than a GPU multiplies are widened on the way in: they are streamed faster and multiplied no slower.

A calibration replaces start-up and rates with measured ones: ``fixed(m) + params/t·rate(m)``.

Letters: m tokens in a step, t TP degree, e_w bytes per weight, H·E width of the queries, T prompt tokens.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tplab.models.spec import ModelSpec
from tplab.topology.advisor.calibration import Calibration, MatmulCurve
from tplab.topology.advisor.constants import Constants, EngineConstants
from tplab.topology.machine.machine import Gpu

Floats = NDArray[np.float64]
NARROW = ("fp8", "int8", "fp4")
"""Precisions that GPUs multiply in, if they can, faster than in 16 bits."""
MATMULS_PER_BLOCK = 4
"""Number of GEMMs in a block: query-key-value, output, gate-up, down."""
_FEW = 16.0
"""Tokens for which 8-bit kernels have tiles of their own: ``m0`` comes in beyond them."""
_SMALL_BATCH = (16.0, 32.0)
"""Number of tokens from which ``small_batch_slowdown`` sets in, and at which it is whole."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """A block on this GPU, in microseconds per unit; one object per prediction, so that no formula asks twice."""

    params: float
    """Number of parameters of a block's GEMMs."""
    head_params: float
    """Number of parameters of the lm_head."""
    stream_us: float
    """Time to read one parameter of a block."""
    multiply_us: float
    """Time to multiply one parameter of a block with one token."""
    widened_us: float
    """The same with the weights widened to 16 bits."""
    head_stream_us: float
    """Time to read one parameter of the lm_head, which is not quantised."""
    head_multiply_us: float
    curves: tuple[MatmulCurve, ...]
    """Measured GEMMs in the place of both rates, for block and lm_head: one curve per number of ranks computing at
    once."""
    curve_of: NDArray[np.int64]
    """Index of the curve that each layout is computed with."""
    sharpness: float
    slowdown: tuple[tuple[float, float], ...]
    """Tokens of a step -> factor on the time to stream a block's weights, linear in between; empty: 1."""
    shapes: tuple[tuple[float, float, bool], ...]
    """Output and input features of a block's GEMMs, and whether t cuts the output (else the input)."""
    edges: tuple[float, float, float]
    """m0, n0, k0: tokens, output and input features that the GPU multiplies besides those of a GEMM."""
    kv_byte_us: float
    """Time to read one cached byte."""
    attention_us: float
    """Time of a prompt's attention per token, context token and unit of query width."""
    activation_us: float
    """Time per token of activations that are not split over t."""
    split_activation_us: float
    """Time per token of activations that are split over t."""
    startup_us: float
    """Fixed overhead of a block's kernels."""
    host_us: float
    """Host time to launch a block's kernels one by one."""
    step_us: float
    """Host work and sampling per step, in us."""
    handoff_us: float
    """Host work to hand a micro-batch to the next stage, in us."""
    provenance: dict[str, str]
    """Term -> where its rate comes from."""

    def block_us(self, tokens: ArrayLike, tp: ArrayLike) -> Floats:
        """Matmuls of one block on ``tokens`` tokens, start-up apart."""
        m, share = np.asarray(tokens, dtype=np.float64), self.params / np.asarray(tp, dtype=np.float64)
        if self.curves:
            return self._measured(m, share, MATMULS_PER_BLOCK)
        stream = np.asarray(share * self.stream_us)
        if self.slowdown:
            at, factors = np.array(self.slowdown).T
            stream = stream * np.interp(m, at, factors)
        m0, n0, k0 = self.edges
        size, t = share, np.asarray(tp, dtype=np.float64)
        if n0 or k0:
            each = (
                (n / t + n0) * (k + k0) if by_output else (n + n0) * (k / t + k0) for n, k, by_output in self.shapes
            )
            size = np.asarray(sum(each, np.zeros(1)), dtype=np.float64)
        # Where that is slower than widening the weights, engines widen them.
        wide = m - m0 * np.expm1(-m / _FEW)
        compute = np.minimum(wide * size * self.multiply_us, m * share * self.widened_us)
        return larger(stream, compute, self.sharpness)

    def head_us(self, tokens: ArrayLike, tp: ArrayLike) -> Floats:
        """The lm_head on one token of each sequence."""
        m, share = np.asarray(tokens, dtype=np.float64), self.head_params / np.asarray(tp, dtype=np.float64)
        if self.curves:
            return self._measured(m, share, 1)
        stream = np.asarray(self.head_stream_us, dtype=np.float64)
        return np.asarray(share * larger(stream, m * self.head_multiply_us, self.sharpness), dtype=np.float64)

    def _measured(self, m: Floats, params: Floats, products: int) -> Floats:
        times = [curve.time_us(m, params, products) for curve in self.curves]
        if len(times) == 1:
            return times[0]
        which, *each = np.broadcast_arrays(self.curve_of, *times)
        return np.asarray(np.choose(which, each), dtype=np.float64)

    def activations_us(self, tokens: ArrayLike, tp: ArrayLike) -> Floats:
        """Reading and writing a block's activations."""
        m = np.asarray(tokens, dtype=np.float64)
        return m * (self.activation_us + self.split_activation_us / np.asarray(tp, dtype=np.float64))

    def prompt_attention_us(self, tokens: ArrayLike, context: ArrayLike, tp: ArrayLike) -> Floats:
        """Attention of a block, of prompt tokens that each look at ``context`` tokens on average."""
        work = np.asarray(tokens, dtype=np.float64) * np.asarray(context, dtype=np.float64)
        return np.asarray(work * self.attention_us / np.asarray(tp, dtype=np.float64), dtype=np.float64)


def larger(one: ArrayLike, other: ArrayLike, q: float) -> Floats:
    """``(one^q + other^q)^(1/q)``: the larger of two, with the corner rounded."""
    high, low = np.maximum(one, other), np.minimum(one, other)
    ratio = np.divide(low, high, out=np.zeros_like(high), where=high > 0)
    return np.asarray(high * (1 + ratio**q) ** (1 / q), dtype=np.float64)


def multiplies_narrow(model: ModelSpec, gpu: Gpu) -> bool:
    """Whether the GPU multiplies in the weights' precision of 8 or 4 bits, with activations converted to it; if not,
    the weights are widened instead."""
    return model.weight_precision in NARROW and gpu.peak_TFLOPS(model.weight_precision) > gpu.bf16_TFLOPS


def light_kernels(model: ModelSpec, engine: EngineConstants, converts: bool) -> float:
    """Norms, rotation with cache write, activation and conversions of a block.

    Args:
        model, engine: what runs.
        converts: whether activations are converted to the weights' precision.
    """
    norms = model.norms_per_block - 2 + (engine.qk_norm_kernels if model.qk_norm else 0)
    return engine.light_kernels + norms + (engine.fp8_kernels if converts else 0)


def rates(
    model: ModelSpec,
    gpu: Gpu,
    engine: EngineConstants,
    constants: Constants,
    calibration: Calibration | None = None,
    num_ranks: ArrayLike = 1,
) -> Rates:
    """Rates of ``model`` on ``gpu``, as a calibration has them or from the spec sheet.

    Args:
        model, gpu, engine: what is run, on what, and by which engine.
        constants: of the latency model.
        calibration: its rates go before those of the spec sheet.
        num_ranks: ranks that compute at once, of each layout: on CPUs they share the memory.
    """
    k, c = replace(constants, **engine.kernels or {}), calibration
    scale = k.generation_scale.get(gpu.generation or "", 1.0)
    peak, head_peak = gpu.peak_TFLOPS(model.weight_precision), gpu.peak_TFLOPS(model.activation_precision)
    narrow = multiplies_narrow(model, gpu)
    widened = model.weight_precision in NARROW and not narrow
    mfu, head_mfu = engine.mfu["bf16" if widened else model.weight_precision], engine.mfu[model.activation_precision]
    us = {
        "copy_GBps": k.hbm_share * gpu.hbm_GBps,
        "kv_read_GBps": k.kv_share * gpu.hbm_GBps,
        "prompt_attention_TFLOPS": k.attention_share * head_peak,
        "attention_fixed_us": scale * k.attention_fixed_us,
        "light_kernel_us": scale * k.light_kernel_us,
        "launch_us": k.python_launch_us if engine.python else k.launch_us,
        "step_overhead_us": engine.step_us,
        "handoff_us": engine.handoff_us,
    }
    us |= c.measured() if c else {}
    at_once = np.atleast_1d(np.asarray(num_ranks, dtype=np.int64))
    distinct = {int(n): c.matmul_curve(model.weight_precision, int(n)) if c else None for n in np.unique(at_once)}
    curves = tuple(dict.fromkeys(curve for curve in distinct.values() if curve))
    curve_of = np.array([curves.index(distinct[int(n)]) if curves else 0 for n in at_once], dtype=np.int64)
    light = light_kernels(model, engine, narrow)
    overhead = us["attention_fixed_us"] + light * us["light_kernel_us"]
    if "block_overhead_us" in us:
        overhead = us["block_overhead_us"] + us.get("block_overhead_per_width_us", 0.0) * model.hidden_size
    stream, copy = 1e-3 / (k.hbm_share * gpu.hbm_GBps), 1e-3 / us["copy_GBps"]  # us per byte
    h, f, e = model.hidden_size, model.intermediate_size, model.activation_itemsize
    heads = model.q_size + model.num_kv_heads * model.head_dim
    normed = engine.qk_norm_kernels * 2 * heads * e if model.qk_norm else 0.0  # each reads and writes them
    convert = e + 1 if narrow else 0.0  # read wide, write narrow
    wide = engine.slowdown
    flops = 4 * 1e-6  # per query width, token and context token: scores and values, in us at 1 TFLOPS
    from_kernels = "spec sheet x share of bandwidth (kernel tables)"
    overheads = ("block_overhead_us", "light_kernel_us", "attention_fixed_us")
    return Rates(
        params=float(model.block_matmul_params),
        head_params=float(model.lm_head_params),
        stream_us=model.weight_itemsize * stream,
        multiply_us=2e-6 / (mfu * peak),
        widened_us=2e-6 / (engine.mfu["bf16"] * gpu.bf16_TFLOPS if narrow else mfu * peak),
        head_stream_us=model.activation_itemsize * stream,
        head_multiply_us=2e-6 / (head_mfu * head_peak),
        curves=curves,
        curve_of=curve_of,
        sharpness=k.sharpness,
        slowdown=tuple(zip(_SMALL_BATCH, (1.0, engine.small_batch_slowdown), strict=True)) if narrow else wide,
        shapes=(
            (model.q_size + 2 * model.num_kv_heads * model.head_dim, h, True),
            (h, model.q_size, False),
            ((model.mlp_matrices - 1) * f, h, True),
            (h, f, False),
        ),
        edges=k.narrow_edges if narrow else (0.0, 0.0, 0.0),
        kv_byte_us=1e-3 / us["kv_read_GBps"],
        attention_us=flops * model.q_size / us["prompt_attention_TFLOPS"],
        activation_us=((4 * model.norms_per_block * e) + 2 * convert) * h * copy,
        split_activation_us=(model.mlp_matrices * f * e + (model.q_size + f) * convert + normed) * copy,
        startup_us=(0.0 if curves else MATMULS_PER_BLOCK * scale * k.matmul_fixed_us) + overhead,
        host_us=(MATMULS_PER_BLOCK + 2 + light) * us["launch_us"],
        step_us=us["step_overhead_us"],
        handoff_us=us["handoff_us"],
        provenance={
            "weights": c.badge if c and curves else "spec sheet x share of bandwidth and peak (served models)",
            "kv_cache": source(c, from_kernels, "kv_read_GBps"),
            "kernels": source(c, "kernel tables", *overheads),
            "activations": source(c, from_kernels, "copy_GBps"),
            "launch": source(c, "assumption", "launch_us"),
            "attention": source(c, "spec sheet x share of peak (kernel tables)", "prompt_attention_TFLOPS"),
        },
    )


def source(calibration: Calibration | None, otherwise: str, *measured: str) -> str:
    """The calibration's badge if it has one of those fields, else where the number comes ``otherwise``."""
    if calibration and any(getattr(calibration, key) is not None for key in measured):
        return calibration.badge
    return otherwise
