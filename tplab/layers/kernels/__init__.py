"""Fused GPU kernels for inference, in Triton: what a decode step needs to run at the memory's speed.

A decode step reads every weight once and computes next to nothing: its limit is the memory, and each kernel more than
the GEMMs is time in which no weight is read. torch's own operations need some twenty per block, these need eight.

  norm        residual + RMSNorm
  gemv        a matrix times one to 16 vectors; with gate, activation and product where the MLP has them; these two
              for many tokens
  rotary      rotary positions (and the norms of queries and keys) + write into the cache
  attention   one query per sequence over a cache whose length is in the device's memory, so that a CUDA graph holds it
  launch      warps, and one kernel behind the other before the first has ended

Triton and not ``torch.compile`` of a block: that takes half a minute per shape and rank, and its matrix-vector products
are cuBLAS's. Every kernel has its slow twin in the layers, which runs wherever :func:`why_not` gives a reason.

With ``TRITON_INTERPRET=1`` the kernels run on the CPU, one program after another: for tests.
"""

import importlib.util
import os
from functools import cache

import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether Triton's interpreter runs the kernels, on any device. Triton, too, looks when it is imported."""
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """The reason why the kernels cannot run there, in words; None where they can."""
    if device.type != "cuda" and not (device.type == "cpu" and INTERPRETED):
        return f"the fused kernels need a GPU; this rank computes on {device}"
    if not _has_triton():
        return "the fused kernels need Triton, which is not installed"
    if dtype not in DTYPES:
        return f"the fused kernels compute in bfloat16, float16 or float32; the weights are {dtype}"
    return None


def most_vectors(dtype: torch.dtype) -> int:
    """Vectors up to which the product of a matrix and few vectors is faster than a GEMM. In float32, for which there
    are no tensor cores that do not round, only one."""
    return 1 if dtype is torch.float32 else 16


def usable(x: torch.Tensor) -> bool:
    """Whether the kernels can take ``x``: on a GPU, without gradients."""
    if x.device.type != "cuda" and not INTERPRETED:
        return False  # first, and fast: a decode step on the CPU asks some hundred times
    return not torch.is_grad_enabled() and why_not(x.device, x.dtype) is None and x.numel() > 0
