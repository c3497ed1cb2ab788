"""A matrix times few vectors, at the speed of the memory that the matrix is read from.

cuBLAS reaches some three quarters of it for one vector: its kernels are made for tiles. Here a program takes a few rows
and walks along them, the next piece on its way while this one is multiplied; sums are in float32.

Legend: B vectors (padded to 16), N rows (output features), K columns (input features), I intermediate features.
"""

import torch
import triton
import triton.language as tl

from tplab.layers.kernels.launch import dependents, num_warps_for, wait_for_previous


@triton.jit
def _tile(start, columns, have, K: tl.constexpr, EVEN: tl.constexpr):
    """A piece of some rows; nothing beyond the last column. Read once, so the caches are to forget it first."""
    if EVEN:
        return tl.load(start, mask=have, other=0.0, eviction_policy="evict_first")
    return tl.load(start, mask=have & (columns < K)[None, :], other=0.0, eviction_policy="evict_first")


@triton.jit
def _vector(x, columns, K: tl.constexpr, EVEN: tl.constexpr):
    """(1, BLOCK_K) float32: a piece of the vector."""
    if EVEN:
        return tl.load(x + columns).to(tl.float32)[None, :]
    return tl.load(x + columns, mask=columns < K, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _gemv_kernel(
    x, w, bias, y, num_rows, K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    HAS_BIAS: tl.constexpr, EVEN: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program per block of rows."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = tl.arange(0, BLOCK_K)
    have = (rows < num_rows)[:, None]
    start = w + rows.to(tl.int64)[:, None] * K + columns[None, :]
    dependents(PDL)
    piece = _tile(start, columns, have, K, EVEN)  # weights are of no earlier kernel: before the wait
    wait_for_previous(PDL)
    sums = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    for k in range(0, K, BLOCK_K):
        at = k + columns
        following = piece
        if k + BLOCK_K < K:
            following = _tile(start + k + BLOCK_K, at + BLOCK_K, have, K, EVEN)
        sums += _vector(x, at, K, EVEN) * piece.to(tl.float32)
        piece = following
    total = tl.sum(sums, axis=1)
    if HAS_BIAS:
        total += tl.load(bias + rows, mask=rows < num_rows, other=0.0).to(tl.float32)
    tl.store(y + rows, total.to(y.dtype.element_ty), mask=rows < num_rows)


@triton.jit
def _activated(gate, KIND: tl.constexpr):
    """silu for 0, gelu (tanh) for 1."""
    if KIND == 0:
        return gate / (1 + tl.exp(-gate))
    inner = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)
    return gate / (1 + tl.exp(-2 * inner))


@triton.jit
def _gate_up_kernel(
    x, w, bias, y, num_rows, K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    KIND: tl.constexpr, HAS_BIAS: tl.constexpr, EVEN: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """As above, with a row of gate and its row of up in the same program."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = tl.arange(0, BLOCK_K)
    have = (rows < num_rows)[:, None]
    gates = w + rows.to(tl.int64)[:, None] * K + columns[None, :]
    ups = gates + tl.cast(num_rows, tl.int64) * K
    dependents(PDL)
    gate_piece, up_piece = _tile(gates, columns, have, K, EVEN), _tile(ups, columns, have, K, EVEN)
    wait_for_previous(PDL)
    gate = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    up = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    for k in range(0, K, BLOCK_K):
        at = k + columns
        next_gate, next_up = gate_piece, up_piece
        if k + BLOCK_K < K:
            next_gate = _tile(gates + k + BLOCK_K, at + BLOCK_K, have, K, EVEN)
            next_up = _tile(ups + k + BLOCK_K, at + BLOCK_K, have, K, EVEN)
        values = _vector(x, at, K, EVEN)
        gate += values * gate_piece.to(tl.float32)
        up += values * up_piece.to(tl.float32)
        gate_piece, up_piece = next_gate, next_up
    gate_N, up_N = tl.sum(gate, axis=1), tl.sum(up, axis=1)
    if HAS_BIAS:
        gate_N += tl.load(bias + rows, mask=rows < num_rows, other=0.0).to(tl.float32)
        up_N += tl.load(bias + num_rows + rows, mask=rows < num_rows, other=0.0).to(tl.float32)
    tl.store(y + rows, (_activated(gate_N, KIND) * up_N).to(y.dtype.element_ty), mask=rows < num_rows)


@triton.jit
def _few_rows(
    x, start, num_vectors, have,
    B: tl.constexpr, K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    EVEN: tl.constexpr, EXACT: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """(BLOCK_N, B) float32, by the tensor cores: the vectors as the short side of a tile."""
    columns, b = tl.arange(0, BLOCK_K), tl.arange(0, B)
    sums = tl.zeros([BLOCK_N, B], tl.float32)
    for k in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        at = k + columns
        piece = _tile(start + k, at, have, K, EVEN)
        seen = (b < num_vectors)[None, :] & (at < K)[:, None]
        values = tl.load(x + b[None, :] * K + at[:, None], mask=seen, other=0.0)
        sums = tl.dot(piece, values, sums, input_precision="ieee" if EXACT else "tf32")
    return sums


@triton.jit(do_not_specialize=["num_vectors"])
def _few_kernel(
    x, w, bias, y, num_vectors, num_rows, K: tl.constexpr,
    B: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GATED: tl.constexpr, KIND: tl.constexpr, HAS_BIAS: tl.constexpr,
    EVEN: tl.constexpr, EXACT: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The same two for 2 to 16 vectors: multiplying each weight by every vector would take longer than reading it."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    have = (rows < num_rows)[:, None]
    start = w + rows.to(tl.int64)[:, None] * K + tl.arange(0, BLOCK_K)[None, :]
    dependents(PDL)
    wait_for_previous(PDL)
    sums = _few_rows(x, start, num_vectors, have, B, K, BLOCK_N, BLOCK_K, EVEN, EXACT, STAGES)
    if HAS_BIAS:
        sums += tl.load(bias + rows, mask=rows < num_rows, other=0.0).to(tl.float32)[:, None]
    if GATED:
        ups = start + tl.cast(num_rows, tl.int64) * K
        up = _few_rows(x, ups, num_vectors, have, B, K, BLOCK_N, BLOCK_K, EVEN, EXACT, STAGES)
        if HAS_BIAS:
            up += tl.load(bias + num_rows + rows, mask=rows < num_rows, other=0.0).to(tl.float32)[:, None]
        sums = _activated(sums, KIND) * up
    b = tl.arange(0, B)
    keep = (b < num_vectors)[None, :] & have
    tl.store(y + b[None, :] * num_rows + rows[:, None], sums.to(y.dtype.element_ty), mask=keep)


@triton.jit
def _silu_mul_kernel(h, y, size, KIND: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """One program per token and block of features."""
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = tl.program_id(0).to(tl.int64)
    here = at < size
    dependents(PDL)
    wait_for_previous(PDL)
    gate = tl.load(h + row * 2 * size + at, mask=here, other=0.0).to(tl.float32)
    up = tl.load(h + row * 2 * size + size + at, mask=here, other=0.0).to(tl.float32)
    tl.store(y + row * size + at, (_activated(gate, KIND) * up).to(y.dtype.element_ty), mask=here)


ACTIVATIONS = {"swiglu": 0, "geglu": 1}


def gemv(x: torch.Tensor, w_NK: torch.Tensor, bias_N: torch.Tensor | None = None) -> torch.Tensor:
    """``x @ w.T + bias`` for at most 16 vectors: (..., K) -> (..., N)."""
    return _multiply(x, w_NK, bias_N, None)


def gated_gemv(x: torch.Tensor, w_IIK: torch.Tensor, bias: torch.Tensor | None, activation: str) -> torch.Tensor:
    """``act(x @ gate.T) * (x @ up.T)`` for few vectors, (..., K) -> (..., I): gate's rows of ``w``, then up's."""
    return _multiply(x, w_IIK, bias, ACTIVATIONS[activation])


def _multiply(x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None, kind: int | None) -> torch.Tensor:
    """``kind``: of activation, for gate and up; None: there is none.

    Blocks of rows and columns, and warps, were found by trying on an H100: for one vector few rows and long pieces of
    them, 16 elements for each thread; for several the smallest tile of the tensor cores.
    """
    num_rows, size = w.shape[0] // (1 if kind is None else 2), w.shape[1]
    num_vectors = x.numel() // size
    y = x.new_empty((*x.shape[:-1], num_rows))
    flags = {"HAS_BIAS": bias is not None, "K": size}
    tensors = x, w, w if bias is None else bias, y
    if num_vectors == 1:
        rows = 2 if kind is None else 1
        columns = next((columns for columns in (2048, 1024) if size % columns == 0), 512)
        warps = rows * columns // 512
        kernel = _gemv_kernel if kind is None else _gate_up_kernel
        if kind is not None:
            flags["KIND"] = kind
        kernel[(triton.cdiv(num_rows, rows),)](
            *tensors, num_rows, BLOCK_N=rows, BLOCK_K=columns, EVEN=size % columns == 0,
            **flags, **num_warps_for(warps, x),
        )  # fmt: skip
        return y
    rows, columns, warps, stages = 16, 256, 2, 4
    _few_kernel[(triton.cdiv(num_rows, rows),)](
        *tensors, num_vectors, num_rows, B=16, BLOCK_N=rows, BLOCK_K=columns, GATED=kind is not None, KIND=kind or 0,
        EVEN=size % columns == 0, EXACT=x.dtype is torch.float32, STAGES=stages, **flags, **num_warps_for(warps, x),
    )  # fmt: skip
    return y


def gated(h: torch.Tensor, activation: str) -> torch.Tensor:
    """``act(gate) * up`` of a product with both side by side, (..., 2·I) -> (..., I)."""
    size = h.shape[-1] // 2
    y = h.new_empty((*h.shape[:-1], size))
    block = min(1024, triton.next_power_of_2(size))
    _silu_mul_kernel[(y.numel() // size, triton.cdiv(size, block))](
        h, y, size, KIND=ACTIVATIONS[activation], BLOCK=block, **num_warps_for(block // 256, h)
    )
    return y
