"""How the kernels are launched: warps, and one behind the other before the first has ended.

Programmatic dependent launch (Hopper and later): the next kernel's programs may start while the last ones of this one
run, do what depends on none of its results, load their first weights, and then wait for it. In a decode step of some
250 kernels the gaps between them are a tenth of the time.
"""

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from tplab.layers.kernels import INTERPRETED


@triton.jit
def wait_for_previous(PDL: tl.constexpr):
    """Until the kernel before this one has written everything. Every kernel must pass here before it writes."""
    if PDL:
        gdc_wait()


@triton.jit
def dependents(PDL: tl.constexpr):
    """The next kernel may start once every program of this one has said so."""
    if PDL:
        gdc_launch_dependents()


@cache
def _overlaps(index: int | None) -> bool:
    return not INTERPRETED and torch.cuda.get_device_capability(index)[0] >= 9


def num_warps_for(wanted: int, like: torch.Tensor) -> dict[str, Any]:
    """Keyword arguments of a launch: 1 to 16 warps, and whether it overlaps with the one before."""
    overlaps = _overlaps(like.device.index)
    warps = max(1, min(16, triton.next_power_of_2(max(1, wanted))))
    return {"num_warps": warps, "PDL": overlaps, "launch_pdl": overlaps}
