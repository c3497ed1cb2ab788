"""Tensor parallelism done wrong, in the ways that tutorials do it: each mistake runs, and an equality test catches it.

For notebooks 03 and 04 and for the tests, never to be used. The mistakes are those of the article (its systems S1, S2
and S3, see docs/article.md; ``tplab.layers.article`` has what is right), written anew and as small as they can be. Most
have the right shapes, and some are right for one token or on one rank, which is why layers are compared with the
unsharded module on several tokens and several ranks.

Legend: B batch, S sequence, D hidden, H heads of this rank, E head dimension, O output features; n ranks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from tplab.layers.attention import ParallelAttention
from tplab.layers.comm import Comm, Done, Pending
from tplab.layers.linear import ColumnParallelLinear, RowParallelLinear
from tplab.layers.plain import Attention
from tplab.layers.strategies import Blocking

if TYPE_CHECKING:
    import pandas as pd

    from tplab.cluster import Cluster, Rank

_HIDDEN, _HEADS, _BATCH, _SEQ = 48, 12, 2, 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Mistake:
    """A wrong way to shard one plain module."""

    system: str
    """The article's system, by its code in docs/article.md; ``common`` for a mistake that others make."""
    name: str
    """Short name of what is done."""
    why: str
    """What is wrong with it, in a sentence."""
    plain: str
    """``linear`` or ``attention``: the module that is sharded."""
    run: Callable[[Any, torch.Tensor, Any], torch.Tensor]
    """``run(plain, x, group)``: what the mistake computes on this rank."""


def _part(weight: torch.Tensor, group: Any, dim: int) -> torch.Tensor:
    return weight.chunk(dist.get_world_size(group), dim)[dist.get_rank(group)]


def all_reduce_columns(plain: nn.Linear, x: torch.Tensor, group: Any) -> torch.Tensor:
    """Gathers a column-split output by all-reduce."""
    y = F.linear(x, _part(plain.weight, group, 0), _part(plain.bias, group, 0))  # (B, S, O/n)
    dist.all_reduce(y, group=group)
    return y


def bias_on_every_rank(plain: nn.Linear, x: torch.Tensor, group: Any) -> torch.Tensor:
    """Adds the bias of a row-split layer before the sum."""
    y = F.linear(_part(x, group, -1), _part(plain.weight, group, 1), plain.bias)  # (B, S, O)
    dist.all_reduce(y, group=group)
    return y


def attend_over_heads(plain: Attention, x: torch.Tensor, group: Any) -> torch.Tensor:
    """Never moves the heads in front of the sequence."""
    q, k, v = (_heads(_part(w.weight, group, 0), x, plain) for w in (plain.q_proj, plain.k_proj, plain.v_proj))
    y_BSHE = F.scaled_dot_product_attention(q, k, v)  # softmax over H, inside each token
    return _project(plain, y_BSHE.flatten(2), group)


def split_fused_qkv(plain: Attention, x: torch.Tensor, group: Any) -> torch.Tensor:
    """Cuts the stacked [Q | K | V] into n neighbouring parts and calls their thirds q, k and v."""
    stacked = torch.cat([plain.q_proj.weight, plain.k_proj.weight, plain.v_proj.weight])
    q, k, v = (_heads(third, x, plain).transpose(1, 2) for third in _part(stacked, group, 0).chunk(3))
    y_BHSE = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return _project(plain, y_BHSE.transpose(1, 2).flatten(2), group)


def no_causal_mask(plain: Attention, x: torch.Tensor, group: Any) -> torch.Tensor:
    """Lets every token see those after it."""
    q, k, v = (
        _heads(_part(w.weight, group, 0), x, plain).transpose(1, 2) for w in (plain.q_proj, plain.k_proj, plain.v_proj)
    )
    y_BHSE = F.scaled_dot_product_attention(q, k, v)
    return _project(plain, y_BHSE.transpose(1, 2).flatten(2), group)


def column_split_out_proj(plain: Attention, x: torch.Tensor, group: Any) -> torch.Tensor:
    """Cuts the output projection by columns, though its input features are what is sharded."""
    q, k, v = (
        _heads(_part(w.weight, group, 0), x, plain).transpose(1, 2) for w in (plain.q_proj, plain.k_proj, plain.v_proj)
    )
    y_BHSE = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    y = F.linear(y_BHSE.transpose(1, 2).flatten(2), _part(plain.o_proj.weight, group, 0))
    dist.all_reduce(y, group=group)
    return y


def _heads(weight: torch.Tensor, x: torch.Tensor, plain: Attention) -> torch.Tensor:
    y = F.linear(x, weight)
    return y.view(*y.shape[:-1], -1, plain.head_dim)  # (B, S, H, E)


def _project(plain: Attention, y: torch.Tensor, group: Any) -> torch.Tensor:
    y = F.linear(y, _part(plain.o_proj.weight, group, 1))
    dist.all_reduce(y, group=group)
    return y


MISTAKES = (
    Mistake(
        system="S1",
        name="all-reduce of column shards",
        why="adds up output features that have nothing to do with each other, and the width stays O/n; gather them",
        plain="linear",
        run=all_reduce_columns,
    ),
    Mistake(
        system="common",
        name="bias before the sum",
        why="adds the bias n times; add it once, after the sum",
        plain="linear",
        run=bias_on_every_rank,
    ),
    Mistake(
        system="S3",
        name="attention over heads",
        why="without the transpose to (B, H, S, E) each token attends to its own heads, and never to another token",
        plain="attention",
        run=attend_over_heads,
    ),
    Mistake(
        system="S3",
        name="contiguous split of [Q | K | V]",
        why="rank 0 of two gets all of Q and half of K; each rank needs its own heads' rows of all three",
        plain="attention",
        run=split_fused_qkv,
    ),
    Mistake(
        system="S3",
        name="no causal mask",
        why="tokens see those after them: right for one token only",
        plain="attention",
        run=no_causal_mask,
    ),
    Mistake(
        system="S3",
        name="column-split output projection",
        why="its input features are sharded, so it must be cut by rows; cut by columns the shapes do not even match",
        plain="attention",
        run=column_split_out_proj,
    ),
)


def demonstrate(cluster: "Cluster") -> "pd.DataFrame":
    """Run every mistake beside the right layer on ``cluster``, and compare both with the unsharded module.

    Returns a row per mistake: ``system``, ``mistake``, ``wrong`` (what came out: the largest error in units of the
    largest element, a shape, or an exception), ``right_error`` (of the right layer), ``caught`` (whether the equality
    test fails for the mistake *and* passes for the right layer, on every rank), ``why``.
    """
    import pandas as pd

    rows = []
    for index, mistake in enumerate(MISTAKES):
        outcomes = cluster.run(_compare, index)
        rows.append(
            {
                "system": mistake.system,
                "mistake": mistake.name,
                "wrong": outcomes[0][0],
                "right_error": max(right for _, _, right in outcomes),
                "caught": all(fails and right < TOLERANCE for _, fails, right in outcomes),
                "why": mistake.why,
            }
        )
    return pd.DataFrame(rows)


def explain_mistakes(frame: "pd.DataFrame") -> str:
    """A sentence on what ``demonstrate`` gave: how many mistakes show by themselves, and what catches the others."""
    wrong = frame["wrong"]
    raises, shapes = int(wrong.str.startswith("raises").sum()), int(wrong.str.startswith("shape").sum())
    silent = len(frame) - raises - shapes
    text = (
        f"Of {len(frame)} mistakes: an error from torch {raises}, another shape {shapes}, wrong numbers of the right "
        f"shape and no complaint {silent}."
    )
    caught = int(frame["caught"].sum())
    if caught == len(frame):
        return f"{text} Comparing with the unsharded module catches all of them."
    return f"{text} Comparing with the unsharded module catches {caught} of them on so many ranks."


class WaitsAtOnce(Blocking):
    """The article's ``_all_reduce_with_overlap`` (S2), and that with the asynchronous call, which the article has in a
    comment only. Sums are right; nothing is hidden, since nothing independent is computed before the wait."""

    def reduce(self, partial: torch.Tensor, comm: Comm) -> Pending:
        return Done(self._all_reduce_with_overlap(partial, comm))

    def _all_reduce_with_overlap(self, partial: torch.Tensor, comm: Comm) -> torch.Tensor:
        pending = comm.start_all_reduce(partial)
        return pending.wait()  # all that could come in between needs the sum


TOLERANCE = 1e-5
"""Tolerance of the equality test, in units of the largest element: float32, sums in another order."""


def equality_test(got: torch.Tensor, want: torch.Tensor) -> tuple[bool, str]:
    """The test that catches them all: same shape, same numbers. Whether it passes, and what came out."""
    if got.shape != want.shape:
        return False, f"shape {tuple(got.shape)} instead of {tuple(want.shape)}"
    error = float((got - want).abs().max() / want.abs().max())
    if error < TOLERANCE:
        return True, "equal"
    return False, f"off by {100 * error:.{'0f' if error > 0.01 else '2g'}} %"  # NaN is off, too


def _compare(rank: "Rank", index: int) -> tuple[str, bool, float]:
    mistake = MISTAKES[index]
    torch.manual_seed(0)
    plain = nn.Linear(_HIDDEN, _HIDDEN) if mistake.plain == "linear" else Attention(_HIDDEN, _HEADS)
    plain = plain.to(rank.device)
    x = torch.randn(_BATCH, _SEQ, _HIDDEN).to(rank.device)
    with torch.no_grad():
        want = plain(x)
        right = _right(mistake, plain, rank.group)(x)
        try:
            passes, wrong = equality_test(mistake.run(plain, x, rank.group), want)
        except RuntimeError as error:
            passes, wrong = False, f"raises: {str(error).splitlines()[0]}"
    return wrong, not passes, float((right - want).abs().max() / want.abs().max())


def _right(mistake: Mistake, plain: nn.Module, group: Any) -> nn.Module:
    if isinstance(plain, Attention):
        return ParallelAttention.from_module(plain, group)
    assert isinstance(plain, nn.Linear)
    if mistake.run is bias_on_every_rank:
        return RowParallelLinear.from_module(plain, group, input_is_parallel=False)
    return ColumnParallelLinear.from_module(plain, group, gather_output=True)
