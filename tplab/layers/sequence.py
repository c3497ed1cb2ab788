"""Tokens sharded over ranks, for sequence parallelism: in and out.

Flat: batch and sequence together are T tokens, padded with zeros to a multiple of n; rank r holds the r-th part. A
sequence dimension of its own would need a copy around every collective (they cut dim 0), and could not share 17 tokens.

Legend: B batch, S sequence, D hidden; T = B·S tokens; n ranks.
"""

import torch
from torch.nn import functional as F

from tplab.layers.comm import Comm
from tplab.layers.regions import gather_from_group, split_to_group


def padded_tokens(tokens: int, n: int) -> int:
    """The next multiple of n."""
    return -(-tokens // n) * n


def pad_tokens(x_TD: torch.Tensor, n: int) -> torch.Tensor:
    """Append zeros up to a multiple of n tokens."""
    missing = padded_tokens(x_TD.shape[0], n) - x_TD.shape[0]
    return F.pad(x_TD, (0, 0, 0, missing)) if missing else x_TD


def scatter_tokens(x_BSD: torch.Tensor, comm: Comm) -> torch.Tensor:
    """(B, S, D), the same on every rank -> this rank's (ceil(T/n), D). Backward: all-gather."""
    return split_to_group(pad_tokens(x_BSD.flatten(0, 1), comm.size), comm, dim=0)


def gather_tokens(x_tD: torch.Tensor, comm: Comm, shape: tuple[int, int]) -> torch.Tensor:
    """The reverse of :func:`scatter_tokens`: (ceil(T/n), D) -> (B, S, D), for ``shape`` = (B, S)."""
    batch, seq = shape
    every = gather_from_group(x_tD, comm, dim=0)
    check_shape(shape, every.shape[0], comm.size)
    return every[: batch * seq].view(batch, seq, x_tD.shape[1])


def check_shape(shape: tuple[int, int], held: int, n: int) -> None:
    """Raises ``ValueError`` unless ``held``, the tokens in the shards of all n ranks, fits ``shape`` = (B, S)."""
    tokens = shape[0] * shape[1]
    if held != padded_tokens(tokens, n):
        raise ValueError(
            f"shape={shape} has {tokens} tokens, {padded_tokens(tokens, n)} with padding; the shards of {n} ranks hold "
            f"{held}"
        )
