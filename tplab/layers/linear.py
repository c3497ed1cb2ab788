"""Linear layers sharded over ranks: by columns (output features) or by rows (input features).

The names follow the mathematics y = x A with A of shape (in, out); torch stores the transpose, ``weight`` (out, in), so
"column-parallel" cuts its dim 0. A column-parallel layer followed by a row-parallel one needs a single sum over the
ranks, at the end: what lies between them is sharded by features and never gathered.

Legend: B batch, S sequence, T tokens; I input features, O output features; n ranks.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

import torch
from torch import nn

from tplab.layers.comm import Comm, Pending, as_comm
from tplab.layers.regions import (
    SharedRows,
    column_matmul,
    copy_to_group,
    gather_from_group,
    split_to_group,
    start_row_matmul,
)
from tplab.layers.shards import Plan, Shard, even_range, load_from, rows_plan, same_kind
from tplab.layers.strategies import Blocking, as_strategy

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


Plain = TypeVar("Plain", bound=nn.Module)


class Sharded(nn.Module, Generic[Plain]):
    """A module that holds this rank's part of a plain one."""

    _shard: Callable[..., None]
    """``_shard(plain, comm, strategy, **how)`` takes the part; ``how`` is what only some modules are asked."""

    @classmethod
    def from_module(
        cls, module: Plain, group: "ProcessGroup | Comm | None", *, strategy: Blocking | None = None, **how: Any
    ) -> Self:
        """This rank's part of a plain module that is there already.

        Args:
            module: the plain module: an ``nn.Linear`` for a linear layer, an ``MLP`` for a ``ParallelMLP``.
            group: process group, ``Comm``, or None for a rank alone.
            strategy: how the layer communicates; None: blocking.
            how: the class's other arguments that are not of the plain module, such as ``gather_output``.

        Raises:
            ValueError: what the class raises; parameters of mixed dtypes or devices.
        """
        layer = cls.__new__(cls)
        layer._shard(module, as_comm(group), strategy, **how)
        return layer


class _ParallelLinear(Sharded[nn.Linear]):
    """What both kinds share: the local weight, the table of its slices, the checks."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    def _hold(
        self,
        comm: Comm,
        strategy: Blocking | None,
        features: tuple[int, int],
        shape: tuple[int, int],
        plan: Plan,
        plain: nn.Module,
    ) -> None:
        """Become the module that holds the slices in ``plan``.

        Args:
            comm: the ranks.
            strategy: how the layer communicates.
            features: input and output features of the full layer.
            shape: shape of the local weight; the bias has as many elements as that has rows.
            plan: what the weight and the bias consist of.
            plain: the module with the full tensors.
        """
        super().__init__()
        dtype, device = same_kind(plain)
        check_device(comm, device)
        self.comm, self.strategy, self.plan = comm, as_strategy(strategy), plan
        self.in_features, self.out_features = features
        self.weight = nn.Parameter(torch.empty(shape, dtype=dtype, device=device))
        self.bias = nn.Parameter(torch.empty(shape[0], dtype=dtype, device=device)) if "bias" in plan else None
        load_from(plain, self, plan)

    def _check(self, x: torch.Tensor, weight: torch.Tensor, features: int) -> None:
        """Says what does not fit. Asked once a matmul has refused ``x``: beforehand it would cost a decode step as much
        as a small matmul. (Beforehand where tokens are gathered first, for ranks must not send what does not fit; and
        on the meta device, which multiplies with any other.)"""
        if x.dtype is not weight.dtype or x.device != weight.device:
            raise ValueError(
                f"x is {x.dtype} on {x.device}, the weight {weight.dtype} on {weight.device}: bring one to the other"
            )
        if x.shape[-1] != features:
            raise ValueError(
                f"x has {x.shape[-1]} features, this rank's part of the layer takes {features} "
                f"(in_features={self.in_features}, {self.comm.size} ranks)"
            )

    def extra_repr(self) -> str:
        return (
            f"{self.in_features}, {self.out_features}, rank {self.comm.index} of {self.comm.size}, "
            f"bias={self.bias is not None}, {self.strategy}"
        )


class ColumnParallelLinear(_ParallelLinear):
    """y = x A + b with the columns of A sharded over the ranks: each computes its own output features.

    ==============  ===============  ====================================================
    on rank r       shape            what
    ==============  ===============  ====================================================
    weight          (O/n, I)         rows r·O/n .. of the full weight
    bias            (O/n,)           its part of the bias
    x               (..., I)         the same on every rank (a token shard under sequence
                                     parallelism: (T/n, I))
    y               (..., O/n)       its features; (..., O) with ``gather_output``
    ==============  ===============  ====================================================

    Equation: ``y_r = x A_r + b_r``.

    Communication, forward: none; with ``gather_output`` one all-gather of S = T·O·itemsize; under sequence parallelism
    an all-gather of the T·I input. Backward: one all-reduce of the input's gradient, S = T·I·itemsize (a
    reduce-scatter under sequence parallelism), under which the weight's gradient is computed.

    Args:
        in_features, out_features: I and O of the full layer; n must divide O.
        group: process group, ``Comm``, or None for a rank alone.
        gather_output: give every rank all O features.
        strategy: see ``tplab.layers.strategies``; here only sequence parallelism makes a difference.

    Weights are drawn as ``nn.Linear`` draws them, for the full layer: with the same seed on every rank, any number of
    ranks holds parts of the same matrix.

    Raises:
        ValueError: sizes that do not divide, a group this rank is not in, a device the group cannot reach; at the call,
            an ``x`` of another width, dtype or device.

    Source: Shoeybi and others, "Megatron-LM" (2019), section 3.
    """

    gather_output = False

    def __init__(
        self,
        in_features: int,
        out_features: int,
        group: "ProcessGroup | Comm | None" = None,
        *,
        bias: bool = True,
        gather_output: bool = False,
        strategy: Blocking | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        full = nn.Linear(in_features, out_features, bias=bias, device=device, dtype=dtype)
        self._shard(full, as_comm(group), strategy, gather_output=gather_output)

    def _shard(self, full: nn.Linear, comm: Comm, strategy: Blocking | None, *, gather_output: bool = False) -> None:
        start, end = even_range("out_features", full.out_features, comm.index, comm.size)
        plan = rows_plan([("", start, end)], bias=full.bias is not None)
        features = full.in_features, full.out_features
        self._hold(comm, strategy, features, (end - start, full.in_features), plan, full)
        self.gather_output = gather_output

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self._multiply(x, self.weight, self.bias)
        return gather_from_group(y, self.comm) if self.gather_output else y

    def _multiply(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if self.strategy.sequence_parallel or x.is_meta:
            self._check(x, weight, self.in_features)
        try:
            return column_matmul(x, weight, bias, self.comm, self.strategy)
        except RuntimeError:
            self._check(x, weight, self.in_features)
            raise


class MergedColumnParallelLinear(ColumnParallelLinear):
    """Several column-parallel layers with the same input as one matmul: gate and up, or q, k and v.

    Each is cut by itself, and a rank's weight is its part of the first, then of the second, and so on. (Cutting the
    stacked matrix instead gives rank 0 of two all of gate and rank 1 all of up: a mistake that still has the right
    shapes.)

    Args:
        plan: for ``weight`` and ``bias``, the slices by name of the full tensors.
        out_features: of the full layers together.
        shared: the rows that other ranks hold, too: key-value heads of ``ParallelAttention``.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        plan: Plan,
        comm: Comm,
        *,
        plain: nn.Module,
        strategy: Blocking | None = None,
        shared: SharedRows | None = None,
    ) -> None:
        rows = sum(shard.end - shard.start for shard in plan["weight"])
        self._hold(comm, strategy, (in_features, out_features), (rows, in_features), plan, plain)
        self.shared = shared

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight: torch.Tensor = self.weight
        bias: torch.Tensor | None = self.bias
        if self.shared is not None and torch.is_grad_enabled():
            weight = self.shared(weight, self.comm)
            bias = None if bias is None else self.shared(bias, self.comm)
        return self._multiply(x, weight, bias)


class RowParallelLinear(_ParallelLinear):
    """y = x A + b with the rows of A sharded over the ranks: each computes a partial product, and an all-reduce adds
    them.

    ==============  ===============  ====================================================
    on rank r       shape            what
    ==============  ===============  ====================================================
    weight          (O, I/n)         columns r·I/n .. of the full weight
    bias            (O,)             the full bias, added once, after the sum
    x               (..., I/n)       its features, as a column-parallel layer leaves them
    y               (..., O)         the same on every rank (a token shard under sequence
                                     parallelism: (T/n, O))
    ==============  ===============  ====================================================

    Equation: ``y = sum over r of x_r A_r, + b``.

    Communication, forward: one all-reduce of S = T·O·itemsize, by the strategy (a reduce-scatter under sequence
    parallelism). Backward: none (an all-gather under sequence parallelism).

    Args:
        in_features, out_features: I and O of the full layer; n must divide I.
        group: process group, ``Comm``, or None for a rank alone.
        input_is_parallel: False: ``x`` is (..., I), the same on every rank, which then takes its part.
        strategy: how the sum is made; see ``tplab.layers.strategies``.

    Raises:
        ValueError: as :class:`ColumnParallelLinear`, and what the strategy raises.

    Source: Shoeybi and others, "Megatron-LM" (2019), section 3.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        group: "ProcessGroup | Comm | None" = None,
        *,
        bias: bool = True,
        input_is_parallel: bool = True,
        strategy: Blocking | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        full = nn.Linear(in_features, out_features, bias=bias, device=device, dtype=dtype)
        self._shard(full, as_comm(group), strategy, input_is_parallel=input_is_parallel)

    def _shard(self, full: nn.Linear, comm: Comm, strategy: Blocking | None, *, input_is_parallel: bool = True) -> None:
        start, end = even_range("in_features", full.in_features, comm.index, comm.size)
        plan = {"weight": (Shard(source="weight", dim=1, start=start, end=end),)}
        if full.bias is not None:
            plan["bias"] = (Shard(source="bias"),)
        features = full.in_features, full.out_features
        self._hold(comm, strategy, features, (full.out_features, end - start), plan, full)
        self.local_features = end - start
        self.input_is_parallel = input_is_parallel

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.finish(self.start(x))

    def start(self, x: torch.Tensor) -> Pending:
        """Multiply, and start the sum; ``finish`` waits for it and adds the bias."""
        weight: torch.Tensor = self.weight
        if not self.input_is_parallel:
            self._check(x, weight, self.in_features)
            x = split_to_group(x, self.comm)
        if x.is_meta:
            self._check(x, weight, self.local_features)
        try:
            return start_row_matmul(x, weight, self.comm, self.strategy)
        except RuntimeError:
            self._check(x, weight, self.local_features)
            raise

    def finish(self, pending: Pending) -> torch.Tensor:
        """What ``forward`` returns, from what ``start`` returned."""
        y = pending.wait()
        if self.bias is None:
            return y
        bias: torch.Tensor = self.bias
        if self.strategy.sequence_parallel:
            bias = copy_to_group(bias, self.comm)  # each rank adds it to its own tokens
        return y + bias if torch.is_grad_enabled() else y.add_(bias)


def check_device(comm: Comm, device: torch.device) -> None:
    """Raises ``ValueError`` for parameters where the group's collectives cannot reach them."""
    if comm.device_types and device.type not in comm.device_types and device.type != "meta":
        raise ValueError(
            f"module is on {device}, but this group's collectives need {' or '.join(sorted(comm.device_types))}: move "
            f"it with .to({sorted(comm.device_types)[0]!r}) first, or make the layer with device="
        )
