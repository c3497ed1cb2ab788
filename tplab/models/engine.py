"""Prefill and decode on one rank: the same loop on all of them, each doing its stage's part.

The batch is cut into k micro-batches. Each goes through the stages, and its tokens come back from the last stage to all
others: to the first as its next input, to the rest because then every rank knows by itself which sequences have ended
and goes on with the same micro-batches, without a message about it. With k of them in flight stage 0 works on the next
while the tokens of this one are on their way: the decode ring, full when k is at least the number of stages.

On a GPU a decode step is one CUDA graph wherever that works, and the host reads its tokens a step later; see
``tplab.models.graphed`` and ``reading``. Messages between stages stay outside of the graphs.

Messages between two ranks keep their order and a receiver takes them in the order in which they are sent, so there are
no tags; sends are not waited for until their micro-batch comes round again, so no rank stands still with work to do.

Legend: B sequences of a micro-batch, S tokens of the longest prompt, D hidden, v rows of the vocabulary on this rank; k
micro-batches, p stages, t ranks each.
"""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from tplab.checks import ArgumentError
from tplab.collectives.transport import Handle, Transport
from tplab.layers.comm import RecordingComm
from tplab.layers.strategies import Blocking
from tplab.measure.clock import Recorder, synchronize
from tplab.models.decoder import Padding
from tplab.models.graphed import DecodeStep, StepShape, why_no_graph
from tplab.models.loading import Loaded
from tplab.models.reading import TokenReader
from tplab.models.records import Activity, Request
from tplab.models.sampling import Sampler
from tplab.moved import say_new_names

if TYPE_CHECKING:
    from tplab.layers.core_attention import KVCache

_REPORT_EVERY_S = 0.2


class SequencesAtWork:
    """A micro-batch of the sequences, on one rank.

    Args:
        loaded: the stage, and the ranks that share its layers.
        request: what is asked of the model.
        prompts: token ids of these sequences.
        start: number of the first of them in the request.
        step: their decode steps; None: they go through the stage as prompts do.
        reader: takes their tokens to the host.
        longest: tokens of the longest prompt of the request.
    """

    def __init__(
        self,
        loaded: Loaded,
        request: Request,
        prompts: list[list[int]],
        start: int,
        step: DecodeStep | None,
        reader: TokenReader,
        *,
        longest: int,
    ) -> None:
        self._stage = stage = loaded.stage
        device = next(stage.parameters()).device
        self.start, self.prompts, self.step, self.reader = start, prompts, step, reader
        length = step.shape.capacity if step is not None else most_in_caches(request, prompts)
        self.padding = Padding([len(prompt) for prompt in prompts], length, device, longest=longest)
        if step is not None:
            self.caches: list[KVCache] = step.caches
            self._sampler = step.sampler
        else:
            self.caches = stage.make_caches(len(prompts), length)
            end = start + len(prompts)
            self._sampler = Sampler(request, start, end, stage.vocab, loaded.comm, device) if stage.spec.last else None
        self.input_BS: torch.Tensor | None = self.padding.ids(prompts) if stage.spec.first else None
        """Next input of the first stage."""
        self.running = [True] * len(prompts)
        """Whether a sequence is still without a stop token, as far as its tokens were read."""
        self.sent: list[tuple[Handle, torch.Tensor]] = []
        """Messages of the last step, with their tensors: not to be overwritten yet."""

    def buffer(self, kind: str, dtype: torch.dtype) -> torch.Tensor:
        """Memory for the hidden states that a step other than the first stage's takes in."""
        if kind == "decode" and self.step is not None:
            return self.step.x
        shape = len(self.prompts), self.padding.longest if kind == "prefill" else 1, self._stage.config.hidden_size
        return torch.empty(shape, dtype=dtype, device=self.padding.device)

    def compute(self, kind: str, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Tokens (B,) and margins (B,) or None on the last stage, else hidden states."""
        if kind == "decode" and self.step is not None:
            return self.step()
        y = self._stage(x, padding=self.padding, caches=self.caches)
        return self._sampler(y) if self._sampler is not None else (y, None)

    def take_in(self, tokens_B: torch.Tensor, step: int) -> None:
        """The tokens of a step are the next one's input, on the first stage."""
        if self.step is None:
            self.input_BS = tokens_B[:, None]
            return
        if step == 0 or not self._stage.spec.last:  # else the step has written them there itself
            self.step.x.copy_(tokens_B[:, None])
        self.input_BS = self.step.x


class GenerationEngine:
    """One request on one rank, weights loaded. :meth:`prepare` and then :meth:`run` it once.

    Args:
        loaded: the stage, its place in the layout, and the ranks that share its layers.
        request: what is asked of the model.
        prompts: token ids, checked.
        p2p: messages to the other stages.
        peers: the index in ``p2p`` of each place of the layout; by default the place itself.
        report: called with progress, and with tokens where the request wants them as they come; None: nothing is
            reported.
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
        self._comm, self._kept = loaded.comm, loaded.kept
        self._recorder = Recorder(self._device)
        self.eager_because = why_eager(loaded, request)
        """Why decode steps are launched one by one, in words; None: they are replayed from CUDA graphs."""
        self.capture_s = 0.0
        """What capturing took; 0 where the graphs were there already."""
        parts = [(prompts[start:end], start) for start, end in request.micro_batches()]
        longest = max(map(len, prompts))
        self.micro_batches = [
            SequencesAtWork(
                loaded,
                request,
                part,
                start,
                step,
                TokenReader(self._recorder, self._device, len(part)),
                longest=longest,
            )
            for (part, start), step in zip(parts, self._steps(loaded, prompts), strict=True)
        ]
        self.tokens: list[list[int]] = [[] for _ in prompts]
        self.margins: list[list[float]] = [[] for _ in prompts]
        self.token_s: list[list[float]] = [[] for _ in prompts]
        self.start_s = 0.0
        self._stop = frozenset(request.stop_tokens)
        self._reported_s = 0.0

    def _steps(self, loaded: Loaded, prompts: list[list[int]]) -> "list[DecodeStep] | list[None]":
        """The decode steps of each micro-batch: kept ones where there are, on a stage that has any."""
        shapes = step_shapes(self._request, prompts)
        if loaded.stage.why_no_decode() is not None:
            return [None] * len(shapes)
        kept = loaded.kept.taken(shapes) if self.eager_because is None else None
        return kept or [DecodeStep(loaded.stage, loaded.comm, self._request, shape) for shape in shapes]

    @property
    def _to_capture(self) -> list[DecodeStep]:
        steps = [each.step for each in self.micro_batches if each.step is not None]
        return [] if self.eager_because is not None or all(step.is_captured for step in steps) else steps

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Steps that run before any is captured. All ranks that share a stage do it together, and a fault in here is
        one of the run: the others are in its collectives, and what fails here would fail eagerly as well."""
        if steps := self._to_capture:
            began = time.perf_counter()
            for step in steps:
                step.warm_up()
            self.capture_s += time.perf_counter() - began

    @torch.inference_mode()
    def prepare(self) -> None:
        """Capture what is to be replayed and is not kept from earlier. After :meth:`warm_up` no rank waits for another
        in here."""
        self.warm_up()
        if steps := self._to_capture:
            began = time.perf_counter()
            for step in steps:
                step.capture()
            self._kept.keep(steps)
            synchronize(self._device)
            self.capture_s += time.perf_counter() - began
        for each in self.micro_batches:
            if each.step is not None:
                each.step.restart(each.padding, self._request, each.start)

    def give_up_graphs(self, reason: str) -> None:
        """Launch decode steps one by one, whatever was captured. To be followed by :meth:`prepare`."""
        self.eager_because = reason
        self._kept.drop()
        for each in self.micro_batches:
            if each.step is not None:
                each.step.release()

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
                        self._take(micro_batch, step - 1, self._receive_tokens(micro_batch), None)
                        if not any(micro_batch.running):
                            continue
                    recorder.at = step, number
                    if step < request.max_new_tokens:
                        self._advance(micro_batch, step)
            for micro_batch in self.micro_batches:
                _wait(micro_batch.sent)
                self._read(micro_batch, behind=0)
        finally:
            if recording is not None:
                recording.recorder = None
            stage.set_strategy(Blocking())

    def _advance(self, micro_batch: SequencesAtWork, step: int) -> None:
        """One step of this stage for a micro-batch."""
        kind = "decode" if step else "prefill"
        x = micro_batch.input_BS if self._stage.spec.first else self._receive_hidden(micro_batch, kind)
        assert x is not None
        _wait(micro_batch.sent)  # a graph writes where it wrote before
        start = self._recorder.mark()
        made, margins_B = micro_batch.compute(kind, x)
        self._recorder.add(kind, start)
        if not self._stage.spec.last:
            micro_batch.sent = [self._send(made.contiguous(), self._peers[self._index + 1])]
            return
        micro_batch.sent = [self._send(made, peer) for peer in self._peers[:-1]]
        self._take(micro_batch, step, made, margins_B)

    def _take(
        self, micro_batch: SequencesAtWork, step: int, tokens_B: torch.Tensor, margins_B: torch.Tensor | None
    ) -> None:
        """The tokens of a step: the next one's input, and on their way to the host."""
        if self._stage.spec.first:
            micro_batch.take_in(tokens_B, step)
        micro_batch.reader.put(tokens_B, margins_B)
        self._read(micro_batch, behind=micro_batch.reader.lag)

    def _read(self, micro_batch: SequencesAtWork, behind: int) -> None:
        """Write down the tokens that the host may look at, and see which sequences have ended."""
        for tokens, margins, known_s in micro_batch.reader.read(behind):
            fresh = []
            for place, token in enumerate(tokens):
                if not micro_batch.running[place]:
                    continue
                sequence = micro_batch.start + place
                self.tokens[sequence].append(token)
                self.token_s[sequence].append(known_s)
                if margins is not None:
                    self.margins[sequence].append(margins[place])
                fresh.append((sequence, token))
                if token in self._stop:
                    micro_batch.running[place] = False
            if self._report_to is not None:
                self._report(self._report_to, fresh, known_s)

    def _report(self, report: Callable[..., None], fresh: list[tuple[int, int]], now: float) -> None:
        if not self._request.stream and now - self._reported_s < _REPORT_EVERY_S:
            return
        self._reported_s = now
        done = sum(map(len, self.tokens))
        total = len(self.tokens) * self._request.max_new_tokens
        report(phase="generate", done=done, total=total, **({"tokens": fresh} if self._request.stream else {}))

    def _receive_hidden(self, micro_batch: SequencesAtWork, kind: str) -> torch.Tensor:
        hidden_BSD = micro_batch.buffer(kind, self._dtype)
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


def step_shapes(request: Request, prompts: list[list[int]]) -> list[StepShape]:
    """What each micro-batch's decode steps are like."""
    parts = [prompts[start:end] for start, end in request.micro_batches()]
    return [StepShape.of(request, len(part), most_in_caches(request, part)) for part in parts]


def why_eager(loaded: Loaded, request: Request) -> str | None:
    """The reason why decode steps are not to be replayed from CUDA graphs, in words; the same on all ranks.

    Raises:
        ArgumentError: graphs that are asked for where they cannot be.
    """
    if request.cuda_graphs is False:
        return "asked for by cuda_graphs=False"
    reason = why_no_graph(loaded.stage, loaded.comm)
    if reason is not None and request.cuda_graphs:
        raise ArgumentError("cuda_graphs", True, f"cannot be here: {reason}")
    return reason


def most_in_caches(request: Request, prompts: list[list[int]]) -> int:
    """The last new token is no step's input."""
    return max(map(len, prompts)) + request.max_new_tokens - 1


def _wait(sent: list[tuple[Handle, torch.Tensor]]) -> None:
    for work, _ in sent:
        work.wait()
    sent.clear()


say_new_names(__name__)
