"""Tokens from logits, as a request wants them chosen, the same on every rank of the stage. Runs on the ranks.

Nothing is read back from the device: what is drawn is keyed by seed, sequence and step, see ``tplab.layers.noise``, so
a CUDA graph of a decode step holds the choice, too.

Legend: B sequences, v rows of the vocabulary on this rank, n ranks.
"""

import torch

from tplab.layers.comm import Comm
from tplab.layers.noise import NoiseByPlace, key_of
from tplab.layers.shards import VocabShard
from tplab.layers.vocabulary import parallel_argmax, parallel_sample
from tplab.models.records import Request


class Sampler:
    """Chooses tokens for the sequences ``start`` to ``end`` of a request, the same whatever the layout.

    What a sequence draws depends on the seed, its place in the request and how many tokens it has: not on which other
    sequences are in its micro-batch, nor on how many ranks or stages there are, nor on the device.

    Args:
        request: how tokens are chosen, and the seed.
        start, end: numbers of the sequences in the request.
        vocab: which tokens this rank has the logits of.
        comm: the ranks that share the vocabulary.
        device: of the logits.
    """

    def __init__(
        self,
        request: Request,
        start: int,
        end: int,
        vocab: VocabShard,
        comm: Comm,
        device: "torch.device | str" = "cpu",
    ) -> None:
        self._request, self._vocab, self._comm = request, vocab, comm
        self._noise = NoiseByPlace(_keys(request, start, end), device) if request.temperature else None

    def restart(self, request: Request, start: int) -> None:
        """For as many sequences from ``start`` on of a request that chooses alike, from their first tokens on."""
        if self._noise is not None:
            self._noise.restart(_keys(request, start, start + self._noise.num_rows))

    def __call__(self, logits_Bv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Tokens (B,), the same on every rank of the stage; and the margins (B,) if the request wants them."""
        request = self._request
        if request.margins:
            return argmax_and_margin(logits_Bv, self._vocab, self._comm)
        if self._noise is None:
            return parallel_argmax(logits_Bv, self._vocab, self._comm), None
        tokens = parallel_sample(
            logits_Bv,
            self._vocab,
            self._comm,
            generator=self._noise,
            temperature=request.temperature,
            top_k=request.top_k,
            top_p=request.top_p,
        )
        return tokens, None


def _keys(request: Request, start: int, end: int) -> list[int]:
    return [key_of(request.seed, place) for place in range(start, end)]


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
