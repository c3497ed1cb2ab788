"""A stage at work on its rank, a module with autograd or one that only waits, and the micro-batches fed to it.

``ModuleStage`` keeps, per micro-batch, what the backward needs: its input as a leaf and its output with the graph.
``WaitingStage`` computes nothing: where ranks outnumber cores they would take the cores from each other, and the run
would show the machine's shortage instead of the schedule. It waits as long as the computation is declared to take.
"""

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from tplab.checks import check_length
from tplab.collectives.emulated import sleep_until
from tplab.moved import say_new_names
from tplab.pipeline.schedule import Action, Op
from tplab.pipeline.split_backward import WeightHalf, input_half

if TYPE_CHECKING:
    from tplab.cluster import Rank

Tensors = tuple[torch.Tensor, ...]


class RunnableStage(Protocol):
    """What the executor asks of a stage. Each call is one action."""

    def forward(self, micro_batch: int, inputs: Tensors) -> Tensors:
        """Output of the stage; the inputs require gradients where the sender's outputs do."""

    def backward(self, micro_batch: int, output_grads: Tensors, op: Op) -> Tensors:
        """B or I: gradients of those inputs that require them."""

    def weight_gradients(self, micro_batch: int) -> None:
        """W."""


class ModuleStage:
    """An ``nn.Module``, or any callable, with real gradients.

    Args:
        module: called with the tensors of the stage before, or with the pipeline's input; returns a tensor or a tuple
            of tensors. Where it has a parameter ``micro_batch``, the number is passed.
        loss: on the last stage, of the output and the micro-batch, to a scalar; backward starts there.
        training: whether the schedule has backwards.
    """

    def __init__(self, module: Any, loss: Callable[[Any, int], torch.Tensor] | None, *, training: bool) -> None:
        self.module = module
        self._loss = loss
        self._training = training
        self._tell = {"micro_batch"} & set(_parameters_of(module))
        self._weights = list(module.parameters()) if isinstance(module, nn.Module) else []
        self._held: dict[int, tuple[Tensors, Tensors]] = {}
        self._half_done: dict[int, WeightHalf] = {}
        self.losses: dict[int, torch.Tensor] = {}
        """Micro-batch -> its loss, not divided by the number of micro-batches."""

    def start_over(self) -> None:
        """Forget gradients, losses and micro-batches."""
        for weight in self._weights:
            weight.grad = None
        self.losses.clear()
        self._held.clear()
        self._half_done.clear()

    def gradients(self) -> dict[str, torch.Tensor]:
        """Name of a parameter -> its gradient, for those that have one."""
        if not isinstance(self.module, nn.Module):
            return {}
        return {name: w.grad for name, w in self.module.named_parameters() if w.grad is not None}

    def forward(self, micro_batch: int, inputs: Tensors) -> Tensors:
        told = {"micro_batch": micro_batch} if self._tell else {}
        with torch.set_grad_enabled(self._training):
            outputs = as_tensors(self.module(*inputs, **told))
            if not self._training:
                return outputs
            if self._loss is not None:
                loss = self._loss(outputs[0] if len(outputs) == 1 else outputs, micro_batch)
                if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
                    raise ValueError(f"loss must return one number as a tensor; it returned {loss!r}")
                self.losses[micro_batch] = loss.detach()
                self._held[micro_batch] = inputs, (loss.reshape(()),)
            else:
                self._held[micro_batch] = inputs, outputs
        return outputs

    def backward(self, micro_batch: int, output_grads: Tensors, op: Op) -> Tensors:
        inputs, ends = self._held.pop(micro_batch)
        ends = tuple(y for y in ends if y.requires_grad)
        if op is Op.B:
            if ends:
                torch.autograd.backward(ends, output_grads)
            found = [x.grad if x.requires_grad else None for x in inputs]
        else:
            # A loss that needs no gradient is handed one all the same.
            grads, half = input_half(ends, output_grads if ends else (), inputs, self._weights)
            self._half_done[micro_batch], found = half, list(grads)
        return tuple(
            torch.zeros_like(x) if gradient is None else gradient
            for x, gradient in zip(inputs, found, strict=True)
            if x.requires_grad
        )

    def weight_gradients(self, micro_batch: int) -> None:
        self._half_done.pop(micro_batch).run()


class WaitingStage:
    """Emulated compute: every action takes its declared time, and messages have their declared size.

    Args:
        durations: action -> seconds.
        outputs: what the forward of each micro-batch returns; where it requires a gradient, one is sent back.
        idle: called with the time at which the action ends, to use the wait for something useful.
    """

    def __init__(
        self,
        stage: int,
        durations: Mapping[Action, float],
        outputs: Sequence[torch.Tensor],
        idle: Callable[[float], None],
    ) -> None:
        self._stage = stage
        self._durations = durations
        self._outputs = outputs
        self._idle = idle
        self._held: dict[int, Tensors] = {}

    def forward(self, micro_batch: int, inputs: Tensors) -> Tensors:
        if self._outputs[micro_batch].requires_grad:
            self._held[micro_batch] = inputs
        self._wait(Op.F, micro_batch)
        return (self._outputs[micro_batch],)

    def backward(self, micro_batch: int, output_grads: Tensors, op: Op) -> Tensors:
        self._wait(op, micro_batch)
        return tuple(x.detach() for x in self._held.pop(micro_batch) if x.requires_grad)

    def weight_gradients(self, micro_batch: int) -> None:
        self._wait(Op.W, micro_batch)

    def _wait(self, op: Op, micro_batch: int) -> None:
        due = time.monotonic() + self._durations[Action(self._stage, op, micro_batch)]
        self._idle(due)
        sleep_until(round(due * 1e9))


class MicroBatchFeed:
    """Gives the tensors of a micro-batch, on the rank's device.

    Args:
        name: of the argument, for errors.
        source: a tensor, split along its first dimension; a sequence with a tensor (or tuple of tensors) for each
            micro-batch; or a function of rank and micro-batch that makes them where they are needed.
        uneven: whether the parts of a split may differ in length.

    Raises:
        ValueError: a tensor that does not divide, a sequence of another length, nothing where something is needed.
    """

    def __init__(self, name: str, source: Any, rank: "Rank", num_micro_batches: int, *, uneven: bool) -> None:
        self._name = name
        self._rank = rank
        m = num_micro_batches
        if isinstance(source, torch.Tensor):
            length = source.shape[0] if source.dim() else 0
            if length < m or (length % m and not uneven):
                raise ValueError(
                    f"{name} of shape {tuple(source.shape)} cannot be split into {m} micro-batches of equal length; "
                    f"make the first dimension a multiple of {m}, or pass one tensor for each micro-batch"
                )
            source = source.tensor_split(m)
        elif source is not None and not callable(source):
            check_length(name, source, m, "micro-batches")
        self._source = source

    def __call__(self, micro_batch: int) -> Tensors:
        if self._source is None:
            raise ValueError(f"{self._name} must be given: a tensor, one per micro-batch, or a function of them")
        found = self._source(self._rank, micro_batch) if callable(self._source) else self._source[micro_batch]
        return tuple(x.detach().to(self._rank.device) for x in as_tensors(found))


def other_dtypes(stage: RunnableStage, given: str) -> str:
    """`` (its weights are bfloat16)`` where ``given`` has none of their dtypes: torch's own message does not say whose
    is whose."""
    module = getattr(stage, "module", None)
    weights = module.parameters() if isinstance(module, nn.Module) else ()
    names = sorted({str(weight.dtype).removeprefix("torch.") for weight in weights})
    return f" (its weights are {' and '.join(names)})" if names and not {*names} & {*given.split()} else ""


def num_floats(num_bytes: int) -> int:
    """float32 elements that a declared message takes."""
    return -(-num_bytes // 4)


def as_tensors(value: object) -> Tensors:
    """What a stage returned, as a tuple of tensors."""
    values: Sequence[object] = value if isinstance(value, (tuple, list)) else (value,)
    for one in values:
        if not isinstance(one, torch.Tensor):
            raise ValueError(f"a stage must return a tensor or a tuple of tensors; got {type(one).__name__}")
    return tuple(values)  # type: ignore[arg-type]


def _parameters_of(module: Any) -> Sequence[str]:
    call = module.forward if isinstance(module, nn.Module) else module
    try:
        return list(inspect.signature(call).parameters)
    except (TypeError, ValueError):  # built in
        return []


say_new_names(__name__)
