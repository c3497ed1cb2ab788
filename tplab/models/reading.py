"""New tokens on their way to the host, which on a GPU looks at them a step later. Runs on the ranks.

A host that waits for each token launches nothing meanwhile, and the GPU stands still until it has. So tokens are copied
to pinned memory behind their step, and looked at when the next one is launched: of what the host decides, only whether
a sequence has ended depends on them, and every rank knows that a step later alike.
"""

from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from tplab.measure.clock import Recorder


class Read(NamedTuple):
    """Tokens of one step that the host knows."""

    tokens: list[int]
    margins: list[float] | None
    known_s: float
    """When they were in the host's memory, in seconds of the machine's monotonic clock."""


class TokenReader:
    """The tokens of one micro-batch, step by step.

    Args:
        recorder: whose clock says when a token was there.
        device: of the tokens.
        batch: sequences.
    """

    def __init__(self, recorder: Recorder, device: torch.device, batch: int) -> None:
        self._recorder = recorder
        self.lag = 1 if device.type == "cuda" else 0
        """Steps whose tokens are not looked at yet when the next one is launched."""
        self._pinned = [
            tuple(torch.empty(batch, dtype=dtype, pin_memory=True) for dtype in (torch.int64, torch.float64))
            for _ in range(2 * self.lag)
        ]
        self._under_way: deque[tuple[torch.Tensor, torch.Tensor | None, Any]] = deque()
        self._num_put = 0

    def put(self, tokens_B: torch.Tensor, margins_B: torch.Tensor | None) -> None:
        """The tokens of the next step, which may be overwritten after it. At most ``lag`` steps may be unread."""
        if self._pinned:
            tokens, margins = self._pinned[self._num_put % len(self._pinned)]
            tokens_B = tokens.copy_(tokens_B, non_blocking=True)
            margins_B = None if margins_B is None else margins.copy_(margins_B, non_blocking=True)
        self._num_put += 1
        self._under_way.append((tokens_B, margins_B, self._recorder.mark()))

    def read(self, behind: int) -> Iterator[Read]:
        """All but the last ``behind`` steps; waits for them."""
        while len(self._under_way) > behind:
            tokens_B, margins_B, mark = self._under_way.popleft()
            known_s = self._recorder.seconds(mark)
            yield Read(tokens_B.tolist(), None if margins_B is None else margins_B.tolist(), known_s)
