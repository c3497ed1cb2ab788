"""Inputs and targets of a run, one micro-batch at a time."""

from typing import TYPE_CHECKING, Any

import torch

from tplab.pipeline.stages import Tensors, as_tensors

if TYPE_CHECKING:
    from tplab.cluster import Rank


class Feed:
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
        elif source is not None and not callable(source) and len(source) != m:
            raise ValueError(f"{name} must have one entry for each of the {m} micro-batches; got {len(source)}")
        self._source = source

    def __call__(self, micro_batch: int) -> Tensors:
        if self._source is None:
            raise ValueError(f"{self._name} must be given: a tensor, one per micro-batch, or a function of them")
        found = self._source(self._rank, micro_batch) if callable(self._source) else self._source[micro_batch]
        return tuple(x.detach().to(self._rank.device) for x in as_tensors(found))
