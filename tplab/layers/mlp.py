"""The MLP of a transformer block, sharded over ranks: column-parallel in, row-parallel out, one all-reduce.

Not two sharded layers that each gather: the activation works feature by feature, so what the first leaves sharded the
second takes as it is.

Legend: D hidden, I intermediate, T tokens; n ranks.
"""

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from tplab.layers.comm import Comm, Pending, as_comm
from tplab.layers.linear import MergedColumnParallelLinear, RowParallelLinear
from tplab.layers.plain import GATES, MLP
from tplab.layers.shards import Shard, even_range, load
from tplab.layers.strategies import Blocking

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class ParallelMLP(nn.Module):
    """SwiGLU, GeGLU or GELU with the intermediate features sharded over the ranks.

    ==================  ===============  ===================================================
    on rank r           shape            what
    ==================  ===============  ===================================================
    gate_up.weight      (2·I/n, D)       its rows of gate, then its rows of up (gated)
    gate_up.weight      (I/n, D)         its rows of up (GELU)
    gate_up.bias        as many          if the plain one has biases
    down.weight         (D, I/n)         its columns of down
    down.bias           (D,)             the full bias, added once
    x, y                (..., D)         the same on every rank (token shards under
                                         sequence parallelism)
    ==================  ===============  ===================================================

    Equation: ``y = sum over r of (silu(x G_r) * (x U_r)) D_r``, GeGLU with gelu; GELU: ``sum over r of
    gelu(x U_r) D_r``.

    Communication: forward one all-reduce of S = T·D·itemsize, backward another; see ``RowParallelLinear``.

    Args:
        hidden_size, intermediate_size: D and I of the full layer; n must divide I.
        group: process group or ``Comm``.
        activation: ``swiglu``, ``geglu`` or ``gelu``.
        bias: whether the matrices have biases.
        strategy: how the layer communicates; None: blocking.
        device, dtype: of the weights.

    Source: Shoeybi and others, "Megatron-LM" (2019), section 3; gate and up in one matmul as everywhere since.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        group: "ProcessGroup | Comm | None" = None,
        *,
        activation: str = "swiglu",
        bias: bool = False,
        strategy: Blocking | None = None,
        device: "torch.device | str | None" = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        plain = MLP(hidden_size, intermediate_size, activation=activation, bias=bias, device=device, dtype=dtype)
        self._shard(plain, as_comm(group), strategy)

    @classmethod
    def from_module(
        cls, module: MLP, group: "ProcessGroup | Comm | None", *, strategy: Blocking | None = None
    ) -> "ParallelMLP":
        """This rank's part of a plain ``MLP``. Raises ``ValueError`` unless n divides its intermediate size."""
        layer = cls.__new__(cls)
        layer._shard(module, as_comm(group), strategy)
        return layer

    def _shard(self, plain: MLP, comm: Comm, strategy: Blocking | None) -> None:
        super().__init__()
        self.activation = plain.activation
        up = plain.up_proj
        start, end = even_range("intermediate_size", up.out_features, comm.index, comm.size)
        names = ["gate_proj", "up_proj"] if plain.activation in GATES else ["up_proj"]
        plan = {
            kind: tuple(Shard(source=f"{name}.{kind}", dim=0, start=start, end=end) for name in names)
            for kind in ("weight", "bias")
            if getattr(up, kind) is not None
        }
        self.gate_up = MergedColumnParallelLinear(
            up.in_features, len(names) * up.out_features, plan, comm, like=plain, strategy=strategy
        )
        load(self.gate_up, plan, dict(plain.named_parameters()).__getitem__)
        self.down = RowParallelLinear.from_module(plain.down_proj, comm, strategy=strategy)

    @property
    def plan(self) -> dict[str, tuple[Shard, ...]]:
        """Every parameter's slices, by the names in the plain module."""
        return merged_plan(self, {"gate_up": "", "down": "down_proj."})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.finish(self.start(x))

    def start(self, x: torch.Tensor) -> Pending:
        """Compute, and start the sum; ``finish`` waits for it and gives what ``forward`` returns."""
        h = self.gate_up(x)
        if self.activation in GATES:
            gate, up = h.chunk(2, dim=-1)
            h = GATES[self.activation](gate) * up
        else:
            h = F.gelu(h)
        return self.down.start(h)

    def finish(self, pending: Pending) -> torch.Tensor:
        return self.down.finish(pending)


def merged_plan(module: nn.Module, prefixes: dict[str, str]) -> dict[str, tuple[Shard, ...]]:
    """The plans of children as one: parameter names get the child's name in front, sources the given prefix."""
    plan = {}
    for child, prefix in prefixes.items():
        for name, shards in getattr(module, child).plan.items():
            plan[f"{child}.{name}"] = tuple(
                Shard(
                    source=prefix + shard.source,
                    dim=shard.dim,
                    start=shard.start,
                    end=shard.end,
                    padding=shard.padding,
                )
                for shard in shards
            )
    return plan
