"""The article's two layers (S1 and S3, see docs/article.md), with its signatures and right results.

They take a rank and a world size where the lab's own layers take a group, and make their collectives on torch's default
process group unless ``group=`` is given. What the article's code did instead is in ``tplab.layers.mistakes``.
"""

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import nn

from tplab.layers.attention import ParallelAttention
from tplab.layers.comm import Comm, NullComm, as_comm
from tplab.layers.linear import ColumnParallelLinear
from tplab.layers.plain import Attention
from tplab.layers.strategies import Blocking

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class TensorParallelLinear(ColumnParallelLinear):
    """Column-split linear: this rank's ``out_features / t`` outputs, or all of them with ``gather_output``.

    ==============  ===============  ==============================================
    on rank r       shape            what
    ==============  ===============  ==============================================
    weight          (out/t, in)      rows r·out/t .. of the full weight
    bias            (out/t,)         its part of the bias
    x               (..., in)        the same on every rank
    y               (..., out)       the same on every rank; (..., out/t) without
                                     ``gather_output``
    ==============  ===============  ==============================================

    Equation: ``y = concat over r of x A_r + b_r``. The gathering is an all-gather, never an all-reduce: that would add
    up columns that have nothing to do with each other.

    Args:
        in_features, out_features: of the full layer; t must divide ``out_features``.
        tp_rank, tp_world_size: this rank's place and t, as in the group.
        gather_output: give every rank all outputs.
        group: process group or ``Comm``; torch's default group by default. With t = 1 none is needed.

    Raises:
        ValueError: a rank or world size that is not the group's; sizes that do not divide.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        tp_rank: int,
        tp_world_size: int,
        gather_output: bool = True,
        *,
        bias: bool = True,
        group: "ProcessGroup | Comm | None" = None,
        device: "torch.device | str | None" = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        comm = group_of(tp_rank, tp_world_size, group)
        full = nn.Linear(in_features, out_features, bias=bias, device=device, dtype=dtype)
        self._shard(full, comm, None, gather_output=gather_output)


class TensorParallelAttention(ParallelAttention):
    """Causal self-attention with its heads split over ranks: q, k and v by columns, the output projection by rows, one
    all-reduce. The table of tensors is :class:`ParallelAttention`'s.

    Args:
        hidden_size, num_heads: of the full layer; t must divide ``num_heads``.
        tp_rank, tp_world_size: this rank's place and t, as in the group.
        num_kv_heads: fewer key-value heads than query heads (GQA); as many by default.
        causal: whether a token sees only those before it.
        group: process group or ``Comm``; torch's default group by default. With t = 1 none is needed.

    ``forward(x, cache=...)``: (B, S, D) -> (B, S, D); ``make_cache`` for decoding.

    Raises:
        ValueError: as :class:`TensorParallelLinear`.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        tp_rank: int,
        tp_world_size: int,
        *,
        num_kv_heads: int | None = None,
        causal: bool = True,
        group: "ProcessGroup | Comm | None" = None,
        strategy: Blocking | None = None,
        device: "torch.device | str | None" = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        comm = group_of(tp_rank, tp_world_size, group)
        plain = Attention(hidden_size, num_heads, num_kv_heads, causal=causal, device=device, dtype=dtype)
        self._shard(plain, comm, strategy)


def group_of(tp_rank: int, tp_world_size: int, group: "ProcessGroup | Comm | None") -> Comm:
    """The group, or torch's default one, once it is certain that rank and world size are its own."""
    if tp_world_size < 1 or not 0 <= tp_rank < tp_world_size:
        raise ValueError(f"tp_rank must be 0 to tp_world_size - 1; got tp_rank={tp_rank} of {tp_world_size}")
    if group is None and tp_world_size == 1:
        return NullComm()
    if group is None and dist.is_initialized():
        group = dist.group.WORLD
    elif group is None:
        raise ValueError(
            f"tp_world_size={tp_world_size} needs a process group: call torch.distributed.init_process_group, run "
            f"inside tplab.Cluster, or pass group="
        )
    comm = as_comm(group)
    if (comm.index, comm.size) != (tp_rank, tp_world_size):
        raise ValueError(
            f"tp_rank={tp_rank} of tp_world_size={tp_world_size} is not this rank's place in the group, "
            f"{comm.index} of {comm.size}"
        )
    return comm
