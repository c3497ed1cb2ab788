"""Keys and values of the tokens seen so far, of this rank's heads.

Allocated once, at full length: shapes that grow would move memory at every step and cannot be captured in a CUDA graph.

Legend: B batch, G key-value heads of this rank, S sequence, E head dimension.
"""

import torch


class KVCache:
    """Keys and values (B, G, max_length, E), filled up to ``length``.

    Args:
        batch, num_kv_heads, max_length, head_dim: the shape; heads are this rank's.
    """

    def __init__(
        self,
        batch: int,
        num_kv_heads: int,
        max_length: int,
        head_dim: int,
        *,
        dtype: torch.dtype | None = None,
        device: "torch.device | str | None" = None,
    ) -> None:
        shape = (batch, num_kv_heads, max_length, head_dim)
        self.k_BGSE = torch.zeros(shape, dtype=dtype, device=device)
        self.v_BGSE = torch.zeros(shape, dtype=dtype, device=device)
        self.length = 0

    @property
    def batch(self) -> int:
        """Sequences."""
        return self.k_BGSE.shape[0]

    @property
    def max_length(self) -> int:
        """Capacity of the cache, in tokens."""
        return self.k_BGSE.shape[2]

    @property
    def num_bytes(self) -> int:
        """Memory of keys and values."""
        return 2 * self.k_BGSE.numel() * self.k_BGSE.element_size()

    def append(self, k_BGSE: torch.Tensor, v_BGSE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the keys and values of new tokens; returns all so far, views of the cache.

        Raises ``ValueError`` when they do not fit. Not differentiable: for inference.
        """
        self.check_room(k_BGSE.shape[2])
        end = self.length + k_BGSE.shape[2]
        if k_BGSE.shape[0] != self.k_BGSE.shape[0] or k_BGSE.shape[1] != self.k_BGSE.shape[1]:
            raise ValueError(
                f"the cache is for batch {self.k_BGSE.shape[0]} and {self.k_BGSE.shape[1]} key-value heads on this "
                f"rank; got batch {k_BGSE.shape[0]} and {k_BGSE.shape[1]} heads"
            )
        if k_BGSE.dtype is not self.k_BGSE.dtype:
            raise ValueError(
                f"the cache holds {self.k_BGSE.dtype}, the new keys and values are {k_BGSE.dtype}: make the cache with "
                f"dtype={k_BGSE.dtype}"
            )
        self.k_BGSE[:, :, self.length : end] = k_BGSE
        self.v_BGSE[:, :, self.length : end] = v_BGSE
        self.length = end
        return self.k_BGSE[:, :, :end], self.v_BGSE[:, :, :end]

    def check_room(self, num_tokens: int) -> None:
        """Raises ``ValueError`` unless the capacity suffices for ``num_tokens`` more."""
        if self.length + num_tokens > self.max_length:
            raise ValueError(
                f"the cache has room for {self.max_length} tokens; {self.length} are in it and {num_tokens} more "
                f"came: use a larger max_length, or shorter prompts"
            )

    def rows(self, start: int, end: int) -> "KVCache":
        """The sequences ``start`` to ``end`` of the batch, in the same memory, with a length of their own."""
        part = object.__new__(KVCache)
        part.k_BGSE, part.v_BGSE = self.k_BGSE[start:end], self.v_BGSE[start:end]
        part.length = self.length
        return part

    def reset(self) -> None:
        """Forget everything; the memory stays."""
        self.length = 0


class GrowingCache:
    """Past keys and values as a list that grows: differentiable, for parts of one sequence within one forward pass."""

    def __init__(self) -> None:
        self.length = 0
        self._k: list[torch.Tensor] = []
        self._v: list[torch.Tensor] = []

    def append(self, k_BGSE: torch.Tensor, v_BGSE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Add the keys and values of new tokens; returns all so far."""
        self._k.append(k_BGSE)
        self._v.append(v_BGSE)
        self.length += k_BGSE.shape[2]
        return torch.cat(self._k, dim=2), torch.cat(self._v, dim=2)
