"""All-reduces in one CUDA kernel over symmetric memory: every GPU reads and writes its peers' buffers over NVLink.

torch's own kernels, behind the lab's names. What they save is NCCL's protocol: for the messages of a decode step the
time is two or three NVLink round trips. Not the ``multimem`` ones, which need NVLink multicast: it stays off here.

Buffers must come from :func:`empty`, on every rank alike: the kernels find a place in a peer's memory by that in one's
own.
"""

from typing import TYPE_CHECKING, Any

import torch

from tplab.collectives.sweep_plan import OF_MESSAGES
from tplab.moved import say_new_names

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_ALIGNMENT = 16
"""Bytes that a rank's part must be a multiple of, as the kernels read four words at a time."""


def empty(num_elements: int, dtype: torch.dtype, device: torch.device, group: "ProcessGroup") -> torch.Tensor:
    """A row of memory that the peers in ``group`` can reach. A collective: all ranks must call it alike.

    Raises:
        RuntimeError: GPUs that cannot reach each other's memory, or several ranks on one.
    """
    import torch.distributed._symmetric_memory as symmetric_memory

    row = symmetric_memory.empty(num_elements, dtype=dtype, device=device)
    meet(row, group)
    return row


def meet(memory: torch.Tensor, group: "ProcessGroup") -> Any:
    """torch's handle of the memory of all ranks, each of which brings its own. A collective: all must call it alike.

    Raises:
        RuntimeError: GPUs that cannot reach each other's memory, or several ranks on one.
    """
    import torch.distributed._symmetric_memory as symmetric_memory

    try:
        return symmetric_memory.rendezvous(memory, group)
    except RuntimeError as error:
        raise RuntimeError(
            "these ranks cannot reach each other's GPU memory, which symmetric-* and pushed-* algorithms need: GPUs "
            f"without NVLink or peer access over PCIe, as two T4. {', '.join(OF_MESSAGES)} and library do without it."
        ) from error


def symmetric_one_shot(tensor: torch.Tensor, group: "ProcessGroup") -> None:
    """Sum ``tensor``, which begins a row of :func:`empty`, in place: every GPU reads all and adds up for itself.

    Reads (n-1)·S per GPU in one step: for small messages. The kernel writes elsewhere, and a copy follows.
    """
    _check(tensor, _ALIGNMENT)
    out: torch.Tensor = torch.ops.symm_mem.one_shot_all_reduce(tensor, "sum", group.group_name)
    tensor.copy_(out)


def symmetric_two_shot(tensor: torch.Tensor, group: "ProcessGroup") -> None:
    """Sum ``tensor``, which begins a row of :func:`empty`, in place: every GPU adds up its part and writes it to all.

    Moves 2(n-1)/n·S per GPU in two steps, with a barrier in between.
    """
    _check(tensor, _ALIGNMENT * group.size())
    torch.ops.symm_mem.two_shot_all_reduce_(tensor, "sum", group.group_name)


def _check(tensor: torch.Tensor, multiple: int) -> None:
    num_bytes = tensor.numel() * tensor.element_size()
    if num_bytes % multiple:
        raise ValueError(f"tensor must be a multiple of {multiple} bytes for this kernel; it has {num_bytes:,}")
    if tensor.dtype not in (torch.bfloat16, torch.float32):
        raise ValueError(f"tensor must be bfloat16 or float32 for this kernel; it is {tensor.dtype}")


say_new_names(__name__)
