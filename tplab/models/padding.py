"""Prompts of different lengths in one batch: padding on the left, positions and masks that make it invisible.

On the left, because then all sequences write their next token at the same place of the cache: one slice, static shapes,
and the last position of a prefill is every prompt's last token. (On the right, each sequence would write elsewhere.) It
costs nothing in exactness: positions count from a prompt's own first token, and a masked key has the weight exp(-inf) =
0 exactly, so padding adds zeros to the sums of attention. What remains is the order in which kernels (of CPU or GPU)
add, as between any two batch sizes.

Legend: B batch, S sequence, T places of the cache.
"""

from collections.abc import Sequence

import torch


class Padding:
    """Where the prompts of a batch begin.

    Args:
        lengths: tokens of each prompt.
        max_length: places in the cache.
    """

    def __init__(self, lengths: Sequence[int], max_length: int, device: torch.device) -> None:
        self.lengths = tuple(lengths)
        self.longest = max(lengths)
        self.device = device
        self.padded = min(lengths) < self.longest
        self.start_B = torch.tensor([self.longest - length for length in lengths], device=device)
        self._places_T = torch.arange(max_length, device=device)
        self._real_BT = self._places_T >= self.start_B[:, None]

    def ids(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """(B, S): the prompts with zeros in front. Any token would do; 0 is in every vocabulary."""
        rows = [[0] * (self.longest - len(prompt)) + list(prompt) for prompt in prompts]
        return torch.tensor(rows, dtype=torch.int64, device=self.device)

    def positions(self, past: int, seq: int) -> torch.Tensor:
        """(S,), or (B, S) where there is padding: of the tokens in places ``past`` to ``past + seq``."""
        places_S = self._places_T[past : past + seq]
        return (places_S - self.start_B[:, None]).clamp_min(0) if self.padded else places_S.clone()

    def mask(self, past: int, seq: int, window: int | None) -> torch.Tensor | None:
        """(B, 1, S, past + S) bool: what each token sees. None where attention knows by itself: without padding.

        A padding token sees itself: a row without any key would be NaN, and NaN times zero is NaN for everybody.
        """
        if not self.padded:
            return None
        total = past + seq
        real_B1T = self._real_BT[:, None, :total]
        if seq == 1 and (window is None or window >= total):
            return real_B1T[:, None]
        key_T, query_S1 = self._places_T[:total], self._places_T[past:total, None]
        seen_ST = key_T <= query_S1
        if window is not None:
            seen_ST = seen_ST & (key_T > query_S1 - window)
        return ((seen_ST & real_B1T) | (key_T == query_S1))[:, None]
