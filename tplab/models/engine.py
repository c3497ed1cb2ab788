"""Prefill and decode on one rank: the same loop on all of them, each doing its stage's part.

The batch is cut into k micro-batches. Each goes through the stages, and its tokens come back from the last stage to all
others: to the first as its next input, to the rest because then every rank knows by itself which sequences have ended
and goes on with the same micro-batches, without a message about it. With k of them in flight stage 0 works on the next
while the tokens of this one are on their way: the decode ring, full when k is at least the number of stages.

Messages between two ranks keep their order and a receiver takes them in the order in which they are sent, so there are
no tags; sends are not waited for until their micro-batch comes round again, so no rank stands still with work to do.

Legend: B sequences of a micro-batch, S tokens of the longest prompt, D hidden, v rows of the vocabulary on this rank; k
micro-batches, p stages, t ranks each.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from tplab.collectives.transport import Handle, Transport
from tplab.layers.comm import Comm, RecordingComm
from tplab.layers.shards import VocabShard
from tplab.layers.strategies import Blocking
from tplab.layers.vocabulary import parallel_argmax, parallel_sample
from tplab.measure.clock import Recorder
from tplab.models.decoder import Padding
from tplab.models.loading import Loaded
from tplab.models.records import Activity, Request
from tplab.moved import say_new_names

if TYPE_CHECKING:
    from tplab.layers.core_attention import KVCache

_REPORT_EVERY_S = 0.2


class Sampler:
    """Chooses tokens for the sequences ``start`` to ``end`` of a request, the same whatever the layout.

    A sequence has a generator of its own, keyed by the seed and its place in the request: what it draws does not depend
    on which other sequences are in its micro-batch, nor on how many ranks or stages there are.

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


class SequencesAtWork:
    """A micro-batch of the sequences, on one rank.

    Args:
        loaded: the stage, and the ranks that share its layers.
        request: what is asked of the model.
        prompts: token ids of these sequences.
        start: number of the first of them in the request.
        device: the device for its tensors.
    """

    def __init__(self, loaded: Loaded, request: Request, prompts: list[list[int]], start: int, device: torch.device):
        stage = loaded.stage
        self.start = start
        self.prompts = prompts
        longest = max(map(len, prompts))
        self.max_length = longest + request.max_new_tokens - 1
        self.padding = Padding([len(prompt) for prompt in prompts], self.max_length, device)
        self.caches: list[KVCache] = stage.make_caches(len(prompts), self.max_length)
        self.sampler = (
            Sampler(request, start, start + len(prompts), stage.vocab, loaded.comm) if stage.spec.last else None
        )
        self.input_BS: torch.Tensor | None = self.padding.ids(prompts) if stage.spec.first else None
        """Next input of the first stage."""
        self.running = [True] * len(prompts)
        """Whether a sequence is still without a stop token."""
        self.sent: list[tuple[Handle, torch.Tensor]] = []
        """Messages of the last step, with their tensors: not to be overwritten yet."""


class GenerationEngine:
    """One request on one rank, weights loaded.

    Args:
        loaded: the stage, its place in the layout, and the ranks that share its layers. request: what is asked of the
        model. prompts: token ids, checked. p2p: messages to the other stages. peers: the index in ``p2p`` of each place
        of the layout; by default the place itself. report: called with progress, and with tokens where the request
        wants them as they come; None: nothing is reported.
    """

    def __init__(
        self,
        loaded: Loaded,
        request: Request,
        prompts: list[list[int]],
        p2p: Transport,
        *,
        peers: Sequence[int] | None = None,
        report: Callable[..., None] | None = None,
    ) -> None:
        self._stage, self._request, self._p2p, self._report_to = loaded.stage, request, p2p, report
        layout = loaded.layout
        self._index, tp_index = layout.place(loaded.place)
        places = range(tp_index, layout.pp * layout.tp, layout.tp)
        self._peers = [place if peers is None else peers[place] for place in places]
        """The peer of each stage that this one exchanges messages with."""
        self._last = layout.pp - 1
        like = next(loaded.stage.parameters())
        self._dtype, self._device = like.dtype, like.device
        self._comm = loaded.comm
        self.micro_batches = [
            SequencesAtWork(loaded, request, prompts[start:end], start, self._device)
            for start, end in request.micro_batches()
        ]
        self.tokens: list[list[int]] = [[] for _ in prompts]
        self.margins: list[list[float]] = [[] for _ in prompts]
        self.token_s: list[list[float]] = [[] for _ in prompts]
        self._recorder = Recorder(self._device)
        self.start_s = 0.0
        self._stop = frozenset(request.stop_tokens)
        self._reported_s = 0.0

    @property
    def activities(self) -> list[Activity]:
        """What this rank did, and when."""
        return [Activity(kind, step, number, *times) for kind, (step, number), *times in self._recorder.spans()]

    @property
    def kv_bytes(self) -> int:
        """Bytes of all caches on this rank."""
        return sum(cache.num_bytes for each in self.micro_batches for cache in each.caches)

    @torch.inference_mode()
    def run(self) -> None:
        """All steps of all micro-batches."""
        stage, request, recorder = self._stage, self._request, self._recorder
        recording = self._comm if isinstance(self._comm, RecordingComm) else None
        if recording is not None:
            recording.recorder = recorder
        recorder.start()
        self.start_s = time.monotonic()
        try:
            stage.set_strategy(request.strategy or Blocking())
            for step in range(request.max_new_tokens + 1):
                if step == 1:
                    stage.set_strategy(Blocking())
                for number, micro_batch in enumerate(self.micro_batches):
                    if not any(micro_batch.running):
                        continue
                    if step and self._index != self._last:
                        recorder.at = step - 1, number
                        self._take(micro_batch, self._receive_tokens(micro_batch), None)
                        if not any(micro_batch.running):
                            continue
                    recorder.at = step, number
                    if step < request.max_new_tokens:
                        self._advance(micro_batch, "decode" if step else "prefill")
            for micro_batch in self.micro_batches:
                _wait(micro_batch.sent)
        finally:
            if recording is not None:
                recording.recorder = None
            stage.set_strategy(Blocking())

    def _advance(self, micro_batch: SequencesAtWork, kind: str) -> None:
        """One step of this stage for a micro-batch."""
        x = micro_batch.input_BS if self._stage.spec.first else self._receive_hidden(micro_batch, kind)
        assert x is not None
        start = self._recorder.mark()
        y = self._stage(x, padding=micro_batch.padding, caches=micro_batch.caches)
        if micro_batch.sampler is None:
            self._recorder.add(kind, start)
            _wait(micro_batch.sent)
            micro_batch.sent = [self._send(y.contiguous(), self._peers[self._index + 1])]
            return
        tokens_B, margins_B = micro_batch.sampler(y)
        self._recorder.add(kind, start)
        _wait(micro_batch.sent)
        micro_batch.sent = [self._send(tokens_B, peer) for peer in self._peers[:-1]]
        self._take(micro_batch, tokens_B, margins_B)

    def _take(self, micro_batch: SequencesAtWork, tokens_B: torch.Tensor, margins_B: torch.Tensor | None) -> None:
        """Write down the tokens of a step, and see which sequences have ended."""
        if micro_batch.input_BS is not None:
            micro_batch.input_BS = tokens_B[:, None]
        tokens = tokens_B.tolist()
        now = time.monotonic()
        margins = None if margins_B is None else margins_B.tolist()
        fresh = []
        for place, token in enumerate(tokens):
            if not micro_batch.running[place]:
                continue
            sequence = micro_batch.start + place
            self.tokens[sequence].append(token)
            self.token_s[sequence].append(now)
            if margins is not None:
                self.margins[sequence].append(margins[place])
            fresh.append((sequence, token))
            if token in self._stop:
                micro_batch.running[place] = False
        if self._report_to is not None:
            self._report(self._report_to, fresh, now)

    def _report(self, report: Callable[..., None], fresh: list[tuple[int, int]], now: float) -> None:
        if not self._request.stream and now - self._reported_s < _REPORT_EVERY_S:
            return
        self._reported_s = now
        done = sum(map(len, self.tokens))
        total = len(self.tokens) * self._request.max_new_tokens
        report(phase="generate", done=done, total=total, **({"tokens": fresh} if self._request.stream else {}))

    def _receive_hidden(self, micro_batch: SequencesAtWork, kind: str) -> torch.Tensor:
        seq = micro_batch.padding.longest if kind == "prefill" else 1
        shape = (len(micro_batch.prompts), seq, self._stage.config.hidden_size)
        hidden_BSD = torch.empty(shape, dtype=self._dtype, device=self._device)
        self._receive(hidden_BSD, self._peers[self._index - 1])
        return hidden_BSD

    def _receive_tokens(self, micro_batch: SequencesAtWork) -> torch.Tensor:
        tokens_B = torch.empty(len(micro_batch.prompts), dtype=torch.int64, device=self._device)
        self._receive(tokens_B, self._peers[self._last])
        return tokens_B

    def _receive(self, into: torch.Tensor, peer: int) -> None:
        start = self._recorder.mark()
        self._p2p.exchange([], [(into, peer)]).wait()
        self._recorder.add("wait", start)

    def _send(self, tensor: torch.Tensor, peer: int) -> tuple[Handle, torch.Tensor]:
        return self._p2p.exchange([(tensor, peer)], []), tensor


def _wait(sent: list[tuple[Handle, torch.Tensor]]) -> None:
    for work, _ in sent:
        work.wait()
    sent.clear()


say_new_names(__name__)
