"""The model of exercise 08-repair: drawn, cut into parts for TP × PP, and computed whole, for comparison.

A decoder with rotary positions, attention and a gated MLP, norms without weights, everything in float64: sums in
another order then differ by 1e-15 or so, far below the margins that prompts are chosen for. The reference keeps no
cache, and computes the whole sequence for every token: nothing of it can go wrong as the exercise's decoder does.

Ranks import this; it imports torch. Letters: S tokens, D hidden size, V vocabulary, H heads of d numbers, t ranks that
share each layer.
"""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from tplab.cluster import Rank

NUM_LAYERS = 4
NUM_HEADS = 4
HEAD_DIM = 8
VOCAB = 67
"""Divided by no number of ranks."""
_HIDDEN = NUM_HEADS * HEAD_DIM
_INNER = 64
_THETA = 10_000.0
_MARGIN = 1e-6
"""Least distance between the largest logit and the next that a token of a prompt must have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """What a rank holds of a layer. Rows of q, k, v, gate and up, and columns of o and down, are cut over the ranks."""

    number: int
    """Which layer of the model this is, counted from 0."""
    q: torch.Tensor
    """Queries of this rank's heads, (H/t · d, D)."""
    k: torch.Tensor
    """Keys of them, (H/t · d, D)."""
    v: torch.Tensor
    """Values of them, (H/t · d, D)."""
    o: torch.Tensor
    """Output projection, (D, H/t · d)."""
    gate: torch.Tensor
    """Gate of the MLP, (I/t, D)."""
    up: torch.Tensor
    """What the gate multiplies, (I/t, D)."""
    down: torch.Tensor
    """Output of the MLP, (D, I/t)."""

    def cut(self, index: int, t: int) -> "Layer":
        """The share of rank ``index`` of t."""
        rows = {name: getattr(self, name).chunk(t, 0)[index] for name in ("q", "k", "v", "gate", "up")}
        columns = {name: getattr(self, name).chunk(t, 1)[index] for name in ("o", "down")}
        return Layer(number=self.number, **{name: part.clone() for name, part in (rows | columns).items()})

    def to(self, device: torch.device) -> "Layer":
        """The same on ``device``."""
        names = ("q", "k", "v", "o", "gate", "up", "down")
        return Layer(number=self.number, **{name: getattr(self, name).to(device) for name in names})


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """All weights, on the CPU."""

    layers: tuple[Layer, ...]
    """All layers, whole."""
    embedding: torch.Tensor
    """A row per token, (V, D)."""
    head: torch.Tensor
    """Rows that give each token its logit, (V, D)."""

    @classmethod
    def drawn(cls, generator: torch.Generator, *, ties: bool = False) -> "Model":
        """Random weights; with ``ties`` tokens n and n + 34 have exactly the same logit whatever is computed before:
        every row of the head has a single number."""

        def draw(*shape: int, scale: float) -> torch.Tensor:
            numbers = torch.randn(*shape, generator=generator, dtype=torch.float64)
            return numbers * (scale / math.sqrt(shape[-1]))

        layers = tuple(
            Layer(
                number=number,
                **{name: draw(_HIDDEN, _HIDDEN, scale=1.5) for name in ("q", "k")},  # attention that looks at few
                **{name: draw(_HIDDEN, _HIDDEN, scale=1.0) for name in ("v", "o")},
                **{name: draw(_INNER, _HIDDEN, scale=1.0) for name in ("gate", "up")},
                down=draw(_HIDDEN, _INNER, scale=1.0),
            )
            for number in range(NUM_LAYERS)
        )
        embedding, head = draw(VOCAB, _HIDDEN, scale=5.0), draw(VOCAB, _HIDDEN, scale=5.0)
        if ties:
            half = VOCAB // 2 + 1
            sizes = 1 + torch.rand(half, generator=generator, dtype=torch.float64)
            head = torch.zeros_like(head)
            head[torch.arange(half), torch.arange(half) % _HIDDEN] = sizes
            head[half:] = head[: VOCAB - half]
        return cls(layers=layers, embedding=embedding, head=head)

    def logits(self, ids: list[int], *, width: float = HEAD_DIM) -> torch.Tensor:
        """(S, V), without any cache. Pairs of numbers turn by position · 10,000^(-2i/width)."""
        x = self.embedding[ids]
        angles = torch.arange(len(ids)).double()[:, None] * _THETA ** (-torch.arange(0, HEAD_DIM, 2).double() / width)
        turns = torch.polar(torch.ones_like(angles), angles)  # (S, d/2)
        for layer in self.layers:
            h = F.rms_norm(x, (_HIDDEN,))
            q, k, v = (_heads(h @ weight.T) for weight in (layer.q, layer.k, layer.v))
            y = F.scaled_dot_product_attention(_turned(q, turns), _turned(k, turns), v, is_causal=True)
            x = x + y.transpose(0, 1).flatten(1) @ layer.o.T
            h = F.rms_norm(x, (_HIDDEN,))
            x = x + (F.silu(h @ layer.gate.T) * (h @ layer.up.T)) @ layer.down.T
        return F.rms_norm(x, (_HIDDEN,)) @ self.head.T

    def greedy(self, prompt: list[int], new_tokens: int) -> tuple[list[int], float]:
        """The likeliest tokens after ``prompt``, of equal ones the lowest; and the least margin of any."""
        ids, margin = list(prompt), float("inf")
        for _ in range(new_tokens):
            last = self.logits(ids)[-1]
            two = last.topk(2).values
            margin = min(margin, float(two[0] - two[1]))
            ids.append(int(last.argmax()))
        return ids[len(prompt) :], margin


def _heads(x: torch.Tensor) -> torch.Tensor:
    return x.view(-1, NUM_HEADS, HEAD_DIM).transpose(0, 1)  # (H, S, d)


def _turned(x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    pairs = torch.complex(x[..., : HEAD_DIM // 2], x[..., HEAD_DIM // 2 :]) * turns
    return torch.cat([pairs.real, pairs.imag], -1)


def shard_of(token: int, t: int) -> tuple[int, int]:
    """Which of t ranks holds a token, and its place there: shards of ceil(V/t) tokens, the last one shorter."""
    return divmod(token, -(-VOCAB // t))


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """What one rank holds of the model, and how it talks to the others."""

    is_first: bool
    """Whether this rank's stage is the first."""
    is_last: bool
    """Whether it is the last."""
    num_heads: int
    """Heads of this rank, H/t."""
    head_dim: int
    """Numbers of a head, d."""
    hidden: int
    """Numbers of a token, D."""
    layers: tuple[Layer, ...]
    """This rank's share of its stage's layers."""
    embedding: torch.Tensor
    """(V, D), whole, on the first stage; of no rows elsewhere."""
    head: torch.Tensor
    """This rank's rows of the output head, (about V/t, D), on the last stage; of no rows elsewhere."""
    vocab_start: int
    """The token that the first row of ``head`` belongs to."""
    _device: torch.device = field(repr=False)
    """Where this rank's tensors are."""
    _tp: "ProcessGroup" = field(repr=False)
    """The ranks that share this stage's layers."""
    _pp: "ProcessGroup" = field(repr=False)
    """The same place on every stage."""

    @classmethod
    def of(cls, model: Model, rank: "Rank", tp: int) -> "Part":
        """This rank's. A collective call: the groups are made at the first one."""
        pp = rank.world_size // tp
        mesh = rank.mesh(tp, pp)
        stage, index = divmod(rank.index, tp)
        each = NUM_LAYERS // pp
        layers = model.layers[stage * each : (stage + 1) * each]
        first, last = stage == 0, stage == pp - 1
        start = index * -(-VOCAB // tp)
        return cls(
            is_first=first,
            is_last=last,
            num_heads=NUM_HEADS // tp,
            head_dim=HEAD_DIM,
            hidden=_HIDDEN,
            layers=tuple(layer.cut(index, tp).to(rank.device) for layer in layers),
            embedding=model.embedding[: VOCAB if first else 0].clone().to(rank.device),
            head=model.head[start : start + -(-VOCAB // tp) if last else start].clone().to(rank.device),
            vocab_start=start,
            _device=rank.device,
            _tp=mesh.get_group("tp"),
            _pp=mesh.get_group("pp"),
        )

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """The sum over the ranks that share this stage's layers."""
        x = x.contiguous()
        dist.all_reduce(x, group=self._tp)
        return x

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        """(t, ...): what each of the ranks that share this stage's layers holds, in their order."""
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size(self._tp))]
        dist.all_gather(parts, x.contiguous(), group=self._tp)
        return torch.stack(parts)

    def send(self, x: torch.Tensor) -> None:
        """Hidden states (S, D) to the next stage."""
        dist.send(x.contiguous(), self._stage(1), group=self._pp)

    def receive(self, num_tokens: int) -> torch.Tensor:
        """Hidden states (S, D) of so many tokens from the stage before."""
        x = torch.empty(num_tokens, self.hidden, dtype=torch.float64, device=self._device)
        dist.recv(x, self._stage(-1), group=self._pp)
        return x

    def from_last(self, token: int | None) -> int:
        """The token that the last stage passes in, on every stage."""
        said = torch.tensor([-1 if token is None else token], device=self._device)
        dist.broadcast(said, dist.get_process_group_ranks(self._pp)[-1], group=self._pp)
        return int(said)

    def _stage(self, step: int) -> int:
        """Rank of the stage so many further on."""
        return dist.get_process_group_ranks(self._pp)[dist.get_rank(self._pp) + step]


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """What to generate, such that one thing at a time can be wrong."""

    kind: str
    """``one token``, ``long prompt``, ``more tokens`` or ``ties``."""
    number: int
    """Which of its kind; of ``one token``: which rank of a group holds the token that is right."""
    tp: int
    """Ranks that share each layer."""

    def drawn(self, seed: int) -> tuple[Model, list[int], int]:
        """Model, prompt and number of new tokens. Prompts without near ties; long ones such that wrong angles show."""
        generator = torch.Generator().manual_seed(seed)
        model = Model.drawn(generator, ties=self.kind == "ties")
        length, new_tokens = {"one token": (1, 1), "ties": (1, 1), "long prompt": (9, 1), "more tokens": (6, 8)}[
            self.kind
        ]
        found: tuple[list[int], int] | None = None
        for _ in range(400):
            prompt = torch.randint(VOCAB, (length,), generator=generator).tolist()
            tokens, margin = model.greedy(prompt, new_tokens)
            if self.kind == "ties":
                return model, prompt, new_tokens
            if margin < _MARGIN:
                continue
            found = prompt, new_tokens
            if self.kind == "more tokens" and len(set(tokens)) < new_tokens // 2:
                continue  # the same again and again, which a wrong cache may give, too
            if self.kind == "one token" and shard_of(tokens[0], self.tp)[0] != self.number:
                continue
            wrong = model.logits(prompt, width=HEAD_DIM * 2)[-1].argmax() if self.kind == "long prompt" else None
            if wrong is None or int(wrong) != tokens[0]:
                break
        assert found is not None, "margins of random weights are far above rounding"
        return model, *found

    def part(self, rank: "Rank", seed: int) -> tuple[Part, list[int], int]:
        """What the decoder is called with."""
        model, prompt, new_tokens = self.drawn(seed)
        return Part.of(model, rank, self.tp), prompt, new_tokens

    def expected(self, seed: int) -> tuple[list[int], list[int]]:
        """The tokens that are right, and their places in their shards."""
        model, prompt, new_tokens = self.drawn(seed)
        tokens, _ = model.greedy(prompt, new_tokens)
        return tokens, [shard_of(token, self.tp)[1] for token in tokens]
