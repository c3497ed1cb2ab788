"""Notebook 03: a tensor-parallel MLP and a tensor-parallel attention, from full weights and one all-reduce each.

Checked besides the values: that there is one collective and how many bytes it is handed, and that a rank multiplies its
share only. A function that computes everything on every rank is right and worth nothing.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tplab.cluster import Cluster, ClusterError
from tplab.lab.exercises.verdict import Verdict

if TYPE_CHECKING:
    from tplab.cluster import Rank

_MLP_SHAPES = ((2, 5, 24, 48), (1, 1, 36, 60), (3, 7, 12, 96))
"""Batch, sequence, hidden, intermediate."""
_ATTENTION_SHAPES = ((2, 5, 24, 4, 4), (1, 7, 48, 8, 2), (3, 1, 24, 4, 1))
"""Batch, sequence, hidden, heads, key-value heads."""
_TOLERANCE = 1e-4


def check_mlp(cluster: Cluster, mlp: Callable[..., Any], *, timeout: float = 20.0) -> Verdict:
    """``mlp(rank, x, gate, up, down)``: x (B, S, D); gate and up (I, D), down (D, I), all full, on every rank.

    It must return ``down(silu(gate(x)) * up(x))``, (B, S, D), on every rank, with a single all-reduce of the result and
    1/n of the multiplications per rank.
    """
    return _check(cluster, "mlp", mlp, _MLP_SHAPES, timeout)


def check_attention(cluster: Cluster, attention: Callable[..., Any], *, timeout: float = 20.0) -> Verdict:
    """``attention(rank, x, q, k, v, o, num_heads, num_kv_heads)``: x (B, S, D) and full weights on every rank.

    It must return causal self-attention, (B, S, D), on every rank, with a single all-reduce. There may be fewer
    key-value heads than ranks: then ranks share one.
    """
    return _check(cluster, "attention", attention, _ATTENTION_SHAPES, timeout)


def _check(
    cluster: Cluster, what: str, fn: Callable[..., Any], shapes: tuple[tuple[int, ...], ...], timeout: float
) -> Verdict:
    n = cluster.num_ranks
    if n not in (2, 4):
        raise ValueError(f"cluster: the checker's sizes are made for 2 or 4 ranks; this one has {n}")
    for shape in shapes:
        described = _described(what, shape)
        try:
            outcomes = cluster.run(_try, what, fn, shape, timeout=timeout)
        except ClusterError as error:
            return Verdict(False, f"With {described} the run failed: {error}")
        for rank, outcome in enumerate(outcomes):
            fault = _fault(outcome, n)
            if fault:
                return Verdict(False, f"With {described}, rank {rank}: {fault}")
    return Verdict(
        True, f"equal to one process on {len(shapes)} shapes, one all-reduce each, bytes as the formula says."
    )


def _described(what: str, shape: tuple[int, ...]) -> str:
    names = ("batch", "sequence", "hidden", *(("intermediate",) if what == "mlp" else ("heads", "key-value heads")))
    return ", ".join(f"{name} {size}" for name, size in zip(names, shape, strict=True))


def _fault(outcome: dict[str, Any], n: int) -> str | None:
    """What is wrong with one rank's try, and where to look; None if nothing is."""
    if "returned" in outcome:
        return f"it must return a tensor; it returned {outcome['returned']}."
    if outcome["shape"] != outcome["want_shape"]:
        return (
            f"the result has shape {outcome['shape']}, expected {outcome['want_shape']}. A sum keeps the width: "
            f"the last matrix must be cut along its input features."
        )
    if not outcome["error"] < _TOLERANCE:
        return (
            f"the result is off by {outcome['error']:.2g} of its largest element. Look at which rows and columns this "
            f"rank takes{outcome['hint']}."
        )
    kinds = outcome["kinds"]
    if kinds != ["all-reduce"]:
        counted = ", ".join(kinds) or "none"
        return f"expected exactly one collective, an all-reduce; counted: {counted}."
    if outcome["bytes"] != outcome["want_bytes"]:
        return (
            f"the all-reduce was handed {outcome['bytes']:,} bytes, expected {outcome['want_bytes']:,}: "
            f"batch · sequence · hidden · 4."
        )
    if outcome["flops"] > 1.01 * outcome["want_flops"]:
        return (
            f"right, but this rank multiplied {outcome['flops'] / outcome['want_flops']:.2g} times its share. Slice "
            f"the weights before the matmul, not the result after it; {n} ranks should share the work."
        )
    return None


def _try(rank: "Rank", what: str, fn: Callable[..., Any], shape: tuple[int, ...]) -> dict[str, Any]:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from tplab.collectives.counter import CommCounter
    from tplab.layers.plain import MLP, Attention
    from tplab.layers.shards import HeadShard

    torch.manual_seed(11)
    batch, seq, hidden, *rest = shape
    plain: Any
    layers: tuple[Any, ...]
    if what == "mlp":
        plain = MLP(hidden, rest[0])
        layers = (plain.gate_proj, plain.up_proj, plain.down_proj)
        extra: tuple[int, ...] = ()
        share = 1.0 / rank.world_size
        hint = ""
    else:
        plain = Attention(hidden, *rest)
        layers = (plain.q_proj, plain.k_proj, plain.v_proj, plain.o_proj)
        extra = (rest[0], rest[1])
        heads = HeadShard.of(rest[0], rest[1], rank.index, rank.world_size)
        share = (2 * heads.num_q + 2 * heads.num_kv) / (2 * rest[0] + 2 * rest[1])
        hint = ", that heads come before the sequence, (B, H, S, E), and that nobody sees later tokens"
    plain = plain.to(rank.device)
    x = torch.randn(batch, seq, hidden).to(rank.device)
    with torch.no_grad():
        want = plain(x)
        weights = [layer.weight.detach() for layer in layers]
        # Projections only: attention itself is counted or not by whether the fused kernel is used.
        full = sum(2 * batch * seq * weight.numel() for weight in weights)
        with CommCounter() as counter, FlopCounterMode(display=False) as flops:
            got = fn(rank, x.clone(), *weights, *extra)
    if not isinstance(got, torch.Tensor):
        return {"returned": repr(got)[:80]}
    same = got.shape == want.shape
    matmuls = flops.get_flop_counts().get("Global", {})
    return {
        "shape": tuple(got.shape),
        "want_shape": tuple(want.shape),
        "error": float((got - want).abs().max() / want.abs().max()) if same else float("inf"),
        "hint": hint,
        "kinds": [record.kind for record in counter.records],
        "bytes": counter.total().num_bytes,
        "want_bytes": want.numel() * 4,
        "flops": sum(count for op, count in matmuls.items() if op in (torch.ops.aten.mm, torch.ops.aten.addmm)),
        "want_flops": share * full,
    }
