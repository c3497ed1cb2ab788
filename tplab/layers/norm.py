"""A norm whose weights all ranks have, each applying them to something else: its own tokens, or its own heads."""

import torch
from torch import nn

from tplab.layers.comm import Comm
from tplab.layers.regions import copy_to_group


def share_norm(norm: nn.Module, x: torch.Tensor, comm: Comm) -> torch.Tensor:
    """``norm(x)``; backward sums the gradients of its parameters over the ranks, of which each has seen its part."""
    if comm.size == 1 or not torch.is_grad_enabled():
        return norm(x)  # type: ignore[no-any-return]
    shared = {name: copy_to_group(parameter, comm) for name, parameter in norm.named_parameters()}
    out: torch.Tensor = torch.func.functional_call(norm, shared, (x,))
    return out
