"""The next token from logits sharded over ranks, the same whatever the layout.

A sequence has a generator of its own, keyed by the seed and its place in the request: what it draws does not depend on
which other sequences are in its micro-batch, nor on how many ranks or stages there are.

Legend: B sequences of a micro-batch, v rows of the vocabulary on this rank, n ranks.
"""

import hashlib

import torch

from tplab.layers.comm import Comm
from tplab.layers.shards import VocabShard
from tplab.layers.vocabulary import parallel_argmax, parallel_sample
from tplab.models.request import Request


class Sampler:
    """Chooses tokens for the sequences ``start`` to ``end`` of a request.

    Args:
        request: how tokens are chosen, and the seed.
        start, end: numbers of the sequences in the request.
        vocab: which tokens this rank has the logits of.
        comm: the ranks that share the vocabulary.
    """

    def __init__(self, request: Request, start: int, end: int, vocab: VocabShard, comm: Comm) -> None:
        self._request, self._vocab, self._comm = request, vocab, comm
        self._generators = (
            [_generator(request.seed, place) for place in range(start, end)] if request.temperature else []
        )

    def __call__(self, logits_Bv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Tokens (B,), the same on every rank of the stage; and the margins (B,) if the request wants them."""
        request = self._request
        if request.margins:
            return argmax_and_margin(logits_Bv, self._vocab, self._comm)
        if not request.temperature:
            return parallel_argmax(logits_Bv, self._vocab, self._comm), None
        tokens = parallel_sample(
            logits_Bv,
            self._vocab,
            self._comm,
            generator=self._generators,
            temperature=request.temperature,
            top_k=request.top_k,
            top_p=request.top_p,
        )
        return tokens, None


@torch.no_grad()
def argmax_and_margin(logits_Bv: torch.Tensor, vocab: VocabShard, comm: Comm) -> tuple[torch.Tensor, torch.Tensor]:
    """The likeliest token (B,), the lowest where several tie, and by how much its logit beats the next (B,) float64.

    One all-gather of 32 bytes per sequence and rank: each rank's two largest logits and their tokens. A vocabulary of
    one token has a margin of infinity.
    """
    local = logits_Bv[..., : vocab.end - vocab.start]
    pairs = torch.full((*local.shape[:-1], 2, 2), -torch.inf, dtype=torch.float64, device=local.device)
    # The first of a tie, as max has it: topk promises no order.
    scores = local.double()
    for rank in range(min(2, local.shape[-1])):
        best, place = scores.max(-1)
        pairs[..., rank, 0], pairs[..., rank, 1] = best, (place + vocab.start).double()
        scores = scores.scatter(-1, place.unsqueeze(-1), -torch.inf)
    every_nB22 = comm.start_all_gather(pairs.unsqueeze(0).contiguous()).wait()
    every = every_nB22.movedim(0, -3).flatten(-3, -2)  # (B, 2n, 2), in order of tokens where they tie across ranks
    best, winner = every[..., 0].max(-1, keepdim=True)
    rest = every[..., 0].scatter(-1, winner, -torch.inf).amax(-1)
    return every[..., 1].gather(-1, winner).squeeze(-1).long(), best.squeeze(-1) - rest


def _generator(seed: int, place: int) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{place}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
