"""A matrix times few vectors, at the speed of the memory that the matrix is read from.

cuBLAS reaches some three quarters of it for one vector: its kernels are made for tiles. Here a program takes a few rows
and walks along them, the next piece on its way while this one is multiplied; sums are in float32.

Legend: B vectors, N rows (output features), K columns (input features), I intermediate features.
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
def _vectors(x, columns, num_vectors, B: tl.constexpr, K: tl.constexpr):
    """(B, 1, BLOCK_K) float32: a piece of every vector."""
    b = tl.arange(0, B)
    seen = (b < num_vectors)[:, None] & (columns < K)[None, :]
    return tl.load(x + b[:, None] * K + columns[None, :], mask=seen, other=0.0).to(tl.float32)[:, None, :]


@triton.jit
def _store(y, sums, rows, num_vectors, num_rows, B: tl.constexpr):
    b = tl.arange(0, B)
    keep = (b < num_vectors)[:, None] & (rows < num_rows)[None, :]
    tl.store(y + b[:, None] * num_rows + rows[None, :], sums.to(y.dtype.element_ty), mask=keep)


@triton.jit
def _gemv_kernel(
    x, w, bias, y, num_vectors, num_rows, K: tl.constexpr,
    B: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
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
    sums = tl.zeros([B, BLOCK_N, BLOCK_K], tl.float32)
    for k in range(0, K, BLOCK_K):
        at = k + columns
        following = piece
        if k + BLOCK_K < K:
            following = _tile(start + k + BLOCK_K, at + BLOCK_K, have, K, EVEN)
        sums += _vectors(x, at, num_vectors, B, K) * piece.to(tl.float32)[None, :, :]
        piece = following
    total = tl.sum(sums, axis=2)
    if HAS_BIAS:
        total += tl.load(bias + rows, mask=rows < num_rows, other=0.0).to(tl.float32)[None, :]
    _store(y, total, rows, num_vectors, num_rows, B)


@triton.jit
def _activated(gate, KIND: tl.constexpr):
    """silu for 0, gelu (tanh) for 1."""
    if KIND == 0:
        return gate / (1 + tl.exp(-gate))
    inner = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)
    return gate / (1 + tl.exp(-2 * inner))


@triton.jit
def _gate_up_kernel(
    x, w, bias, y, num_vectors, num_rows, K: tl.constexpr,
    B: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
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
    gate = tl.zeros([B, BLOCK_N, BLOCK_K], tl.float32)
    up = tl.zeros([B, BLOCK_N, BLOCK_K], tl.float32)
    for k in range(0, K, BLOCK_K):
        at = k + columns
        next_gate, next_up = gate_piece, up_piece
        if k + BLOCK_K < K:
            next_gate = _tile(gates + k + BLOCK_K, at + BLOCK_K, have, K, EVEN)
            next_up = _tile(ups + k + BLOCK_K, at + BLOCK_K, have, K, EVEN)
        values = _vectors(x, at, num_vectors, B, K)
        gate += values * gate_piece.to(tl.float32)[None, :, :]
        up += values * up_piece.to(tl.float32)[None, :, :]
        gate_piece, up_piece = next_gate, next_up
    gates_BN, ups_BN = tl.sum(gate, axis=2), tl.sum(up, axis=2)
    if HAS_BIAS:
        gates_BN += tl.load(bias + rows, mask=rows < num_rows, other=0.0).to(tl.float32)[None, :]
        ups_BN += tl.load(bias + num_rows + rows, mask=rows < num_rows, other=0.0).to(tl.float32)[None, :]
    _store(y, _activated(gates_BN, KIND) * ups_BN, rows, num_vectors, num_rows, B)


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


def _blocks(num_columns: int, rows: int) -> tuple[int, int, int]:
    """Rows and columns of a program's tile, and warps: 16 elements for each thread. Found by trying on an H100: few
    rows and long pieces of them are best, whatever the matrix."""
    columns = next((size for size in (2048, 1024, 512) if num_columns % size == 0), 512)
    return rows, columns, rows * columns // 512


def gemv(x: torch.Tensor, w_NK: torch.Tensor, bias_N: torch.Tensor | None = None, *, blocks=None) -> torch.Tensor:
    """``x @ w.T + bias`` for at most :data:`MOST_VECTORS` vectors: (..., K) -> (..., N)."""
    num_rows, num_columns = w_NK.shape
    num_vectors = x.numel() // num_columns
    y = x.new_empty((*x.shape[:-1], num_rows))
    block_n, block_k, warps = blocks or _blocks(num_columns, 2)
    _gemv_kernel[(triton.cdiv(num_rows, block_n),)](
        x, w_NK, w_NK if bias_N is None else bias_N, y, num_vectors, num_rows, K=num_columns,
        B=triton.next_power_of_2(num_vectors), BLOCK_N=block_n, BLOCK_K=block_k,
        HAS_BIAS=bias_N is not None, EVEN=num_columns % block_k == 0, **num_warps_for(warps, x),
    )  # fmt: skip
    return y


def gated_gemv(
    x: torch.Tensor, w_IIK: torch.Tensor, bias: torch.Tensor | None, activation: str, *, blocks=None
) -> torch.Tensor:
    """``act(x @ gate.T) * (x @ up.T)`` for few vectors, (..., K) -> (..., I): gate's rows of ``w``, then up's."""
    num_rows, num_columns = w_IIK.shape[0] // 2, w_IIK.shape[1]
    num_vectors = x.numel() // num_columns
    y = x.new_empty((*x.shape[:-1], num_rows))
    block_n, block_k, warps = blocks or _blocks(num_columns, 1)
    _gate_up_kernel[(triton.cdiv(num_rows, block_n),)](
        x, w_IIK, w_IIK if bias is None else bias, y, num_vectors, num_rows, K=num_columns,
        B=triton.next_power_of_2(num_vectors), BLOCK_N=block_n, BLOCK_K=block_k, KIND=ACTIVATIONS[activation],
        HAS_BIAS=bias is not None, EVEN=num_columns % block_k == 0, **num_warps_for(warps, x),
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
