"""Notebook 03: a tensor-parallel MLP and attention, from one's part of the weights and with one all-reduce each.

The weights of other ranks are NaN on a rank: it holds its part only, as a rank that loaded its shard, so that nothing
right can come of multiplying with the rest, whatever operator does it. Which part is a rank's is the learner's choice
among those that people make (in order, from the last, dealt out in turns). Checked besides the values: one all-reduce
of the result, and that a rank multiplies its share only.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tplab.checks import ArgumentError
from tplab.cluster import Cluster
from tplab.lab.exercises import on_ranks
from tplab.lab.exercises.trial import Seen, Trial, check_cluster
from tplab.lab.exercises.verdict import NotYetError, Verdict, checker

if TYPE_CHECKING:
    import torch
    from torch import nn

    from tplab.cluster import Rank

_MLP_SHAPES = ((2, 5, 24, 48), (1, 1, 36, 60), (3, 7, 12, 96))
"""Batch, sequence, hidden, intermediate."""
_ATTENTION_SHAPES = ((2, 5, 24, 4, 4), (1, 7, 48, 8, 2), (3, 4, 24, 4, 1), (1, 7, 96, 16, 8))
"""Batch, sequence, hidden, heads, key-value heads. The last leaves a rank of four more than one key-value head, and
more than one query head to each: only there does it matter which ones share."""
_CUTS = ("in order", "from the last", "in turns")
"""Ways to deal out features or heads to ranks."""
_WHOLE = "everything"
"""No way to deal them out: every rank has all."""
_TOLERANCE = 1e-4
_MOST_ANYHOW = 1.5
"""Work over a rank's share that is accepted where products of elements count: everything on every rank is 2."""
_MODULES = ("torch.utils.flop_counter", "tplab.layers.plain")


@checker("03-mlp")
def check_mlp(cluster: Cluster, mlp: Callable[..., Any], *, timeout: float = 20.0) -> Verdict:
    """``mlp(rank, x, gate, up, down)``: x (B, S, D) on every rank; gate and up (I, D), down (D, I), of full shape.

    It must return ``down(silu(gate(x)) * up(x))``, (B, S, D), on every rank, with a single all-reduce of the result and
    1/n of the multiplications per rank. What belongs to other ranks is NaN.
    """
    return _check(cluster, "mlp", mlp, _MLP_SHAPES, timeout)


@checker("03-attention")
def check_attention(cluster: Cluster, attention: Callable[..., Any], *, timeout: float = 20.0) -> Verdict:
    """``attention(rank, x, q, k, v, o, num_heads, num_kv_heads)``: x (B, S, D) on every rank, weights of full shape.

    It must return causal self-attention, (B, S, D), on every rank, with a single all-reduce. There may be fewer
    key-value heads than ranks: then ranks share one. What belongs to other ranks is NaN.
    """
    return _check(cluster, "attention", attention, _ATTENTION_SHAPES, timeout)


def _check(
    cluster: Cluster, what: str, fn: Callable[..., Any], shapes: tuple[tuple[int, ...], ...], timeout: float
) -> Verdict:
    check_cluster(cluster)
    n = cluster.num_ranks
    if n not in (2, 4):
        raise ArgumentError("cluster", cluster, "must have 2 or 4 ranks, for which the checker's sizes are made")
    trial = Trial(cluster, fn, timeout=timeout, modules=_MODULES, meter=_flops)
    cut = _CUTS[0]
    for shape in shapes:
        described = _described(what, shape)
        seen = trial.run(_given, _compared, what, shape, cut, context=described)
        if _any_nan(seen) and shape == shapes[0]:
            for other in _CUTS[1:]:
                again = trial.run(_given, _compared, what, shape, other, context=described)
                if not _any_nan(again):
                    seen, cut = again, other
                    break
        if _any_nan(seen):  # with all weights there, what it computes can be told
            whole = trial.run(_given, _compared, what, shape, _WHOLE, context=described)
            seen = whole if any(_value_fault(rank) for rank in whole) else seen
        for rank in seen:
            fault = _value_fault(rank) or _cost_fault(rank, n)
            if fault:
                raise NotYetError(f"{described}, rank {rank.rank}: {fault}")
    return Verdict(
        True, f"equal to one process on {len(shapes)} shapes, one all-reduce each, bytes as the formula says."
    )


def _described(what: str, shape: tuple[int, ...]) -> str:
    names = ("batch", "sequence", "hidden", *(("intermediate",) if what == "mlp" else ("heads", "key-value heads")))
    return "With " + ", ".join(f"{name} {size}" for name, size in zip(names, shape, strict=True))


def _any_nan(seen: Sequence[Seen]) -> bool:
    return any(rank.value.get("nan") for rank in seen)


def _value_fault(seen: Seen) -> str | None:
    """What is wrong with one rank's result, and where to look; None if nothing is."""
    outcome = seen.value
    if "returned" in outcome:
        return f"it must return a tensor; it returned {outcome['returned']}."
    if outcome["shape"] != outcome["want_shape"]:
        return (
            f"the result has shape {outcome['shape']}, expected {outcome['want_shape']}. A sum keeps the width: "
            f"the last matrix must be cut along its input features."
        )
    if outcome["nan"]:
        return (
            f"the result is not a number. On a rank, the weights that belong to other ranks are NaN, as if they had "
            f"never been loaded, and your function multiplies with them: slice the weights first. This rank's part: "
            f"{outcome['part']}."
        )
    if not outcome["error"] < _TOLERANCE:
        look = outcome["mistake"] or f"Look at which rows and columns this rank takes{outcome['hint']}."
        if not seen.calls:
            look = (
                "No collective was counted: what a rank has after the last matrix is one term of a sum, and the terms "
                "of all ranks make the result."
            )
        return f"the result is off by {outcome['error']:.2g} of its largest element. {look}"
    return None


def _cost_fault(seen: Seen, n: int) -> str | None:
    """What is wrong with how a rank came to a right result; None if nothing is."""
    outcome, kinds = seen.value, [call.kind for call in seen.calls]
    if kinds != ["all-reduce"]:
        counted = ", ".join(kinds) or "none"
        return f"right, but expected exactly one collective, an all-reduce; counted: {counted}."
    if seen.num_bytes() != outcome["want_bytes"]:
        return (
            f"the all-reduce was handed {seen.num_bytes():,} bytes, expected {outcome['want_bytes']:,}: "
            f"batch · sequence · hidden · 4."
        )
    projections, batched, others = seen.metered
    own = outcome["flops"] + outcome["core_flops"]
    waste = max(projections / outcome["flops"], (projections + batched) / own)
    anyhow = (projections + batched + others) / own
    if waste > 1.01 or anyhow > _MOST_ANYHOW:
        waste = max(waste, anyhow) if anyhow > _MOST_ANYHOW else waste
        return (
            f"right, but this rank multiplied {waste:.3g} times its share; {n} ranks should share the work. Slice the "
            f"weights before the matmul, not the result after it{outcome['waste']}."
        )
    return None


@contextmanager
def _flops() -> Iterator[Callable[[], tuple[int, int, int]]]:
    """Multiplications and additions of plain matmuls, of batched ones, and of what else can be made a matmul:
    convolutions, and products of elements, of which activations and scales have a few as well. Attention's fused
    kernel is in none: it is counted by some backends and not by others."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    aten = torch.ops.aten

    def of_elements(*_: Any, out_shape: Any, **__: Any) -> int:
        return int(2 * math.prod(out_shape))

    with FlopCounterMode(display=False, custom_mapping={aten.mul: of_elements, aten.mul_: of_elements}) as mode:

        def read() -> tuple[int, int, int]:
            counts = mode.get_flop_counts().get("Global", {})
            kinds = (aten.mm, aten.addmm), (aten.bmm, aten.baddbmm), (aten.convolution, aten.mul, aten.mul_)
            plain, batched, others = (sum(counts.get(op, 0) for op in kind) for kind in kinds)
            return plain, batched, others

        yield read


def _dealt(count: int, rank: "Rank", cut: str) -> list[int]:
    """Which of ``count`` features or heads are the rank's."""
    if cut == _WHOLE:
        return list(range(count))
    if cut == "in turns":
        return list(range(rank.index, count, rank.world_size))
    place = rank.index if cut == "in order" else rank.world_size - 1 - rank.index
    each = count // rank.world_size
    return list(range(place * each, (place + 1) * each))


def _drawn(what: str, shape: tuple[int, ...], seed: int) -> "tuple[nn.Module, torch.Tensor]":
    """The layer in one piece, and its input."""
    import torch

    from tplab.layers.plain import MLP, Attention

    batch, seq, hidden, *rest = shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return (MLP if what == "mlp" else Attention)(hidden, *rest), torch.randn(batch, seq, hidden)


def _own(rank: "Rank", what: str, shape: tuple[int, ...], cut: str) -> dict[str, tuple[int, list[int]]]:
    """Parameter -> the dimension that is cut, and the rows or columns that are the rank's."""
    if what == "mlp":
        mine = _dealt(shape[3], rank, cut)
        return {"gate_proj": (0, mine), "up_proj": (0, mine), "down_proj": (1, mine)}
    size, group = shape[2] // shape[3], shape[3] // shape[4]
    heads = _dealt(shape[3], rank, cut)
    keys = sorted({head // group for head in heads})
    q, kv = ([head * size + i for head in which for i in range(size)] for which in (heads, keys))
    return {"q_proj": (0, q), "k_proj": (0, kv), "v_proj": (0, kv), "o_proj": (1, q)}


def _given(rank: "Rank", seed: int, what: str, shape: tuple[int, ...], cut: str) -> tuple[Any, ...]:
    import torch

    plain, x = _drawn(what, shape, seed)
    weights = []
    for name, (dim, mine) in _own(rank, what, shape, cut).items():
        full = plain.get_parameter(f"{name}.weight").detach()
        index = torch.tensor(mine)
        part = torch.full_like(full, float("nan")).index_copy_(dim, index, full.index_select(dim, index))
        weights.append(part.to(rank.device))
    return (x.to(rank.device), *weights, *shape[3:][: 0 if what == "mlp" else 2])


def _compared(rank: "Rank", seed: int, got: Any, what: str, shape: tuple[int, ...], cut: str) -> dict[str, Any]:
    import torch

    plain, x = _drawn(what, shape, seed)
    got = on_ranks.as_tensor(got)
    if not isinstance(got, torch.Tensor):
        return {"returned": on_ranks.described(got)}
    got = got.detach().cpu().double()
    with torch.no_grad():
        want = plain(x).double()
    own = _own(rank, what, shape, cut)
    same = got.shape == want.shape
    tokens = 2 * shape[0] * shape[1]
    if what == "mlp":
        hint, core = "", 0
        rows = own["gate_proj"][1]
        part = f"rows {_range(rows)} of gate and up, and the same columns of down"
    else:
        size = shape[2] // shape[3]
        hint = ", that heads come before the sequence, (B, H, S, E), and which query heads share a key-value head"
        heads, keys = ([row // size for row in own[name][1][::size]] for name in ("q_proj", "k_proj"))
        part = f"query heads {_range(heads)} (rows of q, columns of o), key-value heads {_range(keys)} (rows of k, v)"
        core = 2 * tokens * shape[1] * len(heads) * size
    error = float((got - want).abs().max() / want.abs().max()) if same else float("inf")
    return {
        "shape": tuple(got.shape),
        "want_shape": tuple(want.shape),
        "nan": same and bool(got.isnan().any()),
        "error": error,
        "mistake": _mistake(what, plain, x, got) if same and not error < _TOLERANCE else "",
        "hint": hint,
        "waste": "" if what == "mlp" else ", and project a key-value head once, however many query heads share it",
        "part": part,
        "want_bytes": want.numel() * 4,
        "flops": sum(tokens * len(mine) * shape[2] for _, mine in own.values()),
        "core_flops": core,
    }


def _range(numbers: Sequence[int]) -> str:
    """``3 to 5``; ``1, 3, 5``; ``2``."""
    if len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers))


def _mistake(what: str, plain: Any, x: "torch.Tensor", got: "torch.Tensor") -> str:
    """Which well-known mistake gives just this result, in words; empty if none does."""
    import torch
    from torch.nn import functional as F

    with torch.no_grad():
        if what == "mlp":
            gate, up, down = plain.gate_proj, plain.up_proj, plain.down_proj
            candidates = {
                "gate and up are swapped: silu belongs to gate.": down(gate(x) * F.silu(up(x))),
                "The activation is missing: silu(gate(x)).": down(gate(x) * up(x)),
                "The activation is silu, not relu.": down(F.relu(gate(x)) * up(x)),
                "The activation is silu, not gelu.": down(F.gelu(gate(x)) * up(x)),
            }
        else:
            b, s, hidden = x.shape
            heads, kv_heads, size = plain.num_heads, plain.num_kv_heads, hidden // plain.num_heads
            q, k, v = (
                proj(x).view(b, s, count, size).transpose(1, 2)
                for proj, count in ((plain.q_proj, heads), (plain.k_proj, kv_heads), (plain.v_proj, kv_heads))
            )
            k, v = (t.repeat_interleave(heads // kv_heads, 1) for t in (k, v))

            def attend(**changes: Any) -> torch.Tensor:
                y = F.scaled_dot_product_attention(q, k, v, **({"is_causal": True} | changes))
                return plain.o_proj(y.transpose(1, 2).reshape(b, s, hidden))  # type: ignore[no-any-return]

            later = torch.ones(s, s, dtype=torch.bool).triu()
            candidates = {
                "The causal mask is missing: nobody sees later tokens.": attend(is_causal=False),
                "The mask is the wrong way round: a token sees itself and what came before.": attend(
                    is_causal=False, attn_mask=later
                ),
                "Scores are to be divided by the square root of a head's size, which is not done.": attend(scale=1.0),
                "Scores are divided by a head's size, not by its square root.": attend(scale=1.0 / size),
            }
    for words, wrong in candidates.items():
        if float((got - wrong.double()).abs().max()) < _TOLERANCE * float(wrong.abs().max()):
            return words
    return ""
