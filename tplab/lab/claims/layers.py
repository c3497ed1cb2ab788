"""Recipes for the article's layers, S1 to S4, in numpy on shards that are held side by side (see docs/article.md).

``tplab.layers.demonstrate(cluster)`` runs the same mistakes on ranks.
"""

import numpy as np

from tplab.lab.claims.findings import Finding, at_least, at_most, chosen, equal, said
from tplab.layers.cost import pipelined_us
from tplab.layers.plan import CANONICAL, plan_block

_RANKS, _TOKENS, _HIDDEN, _OUT = 4, 5, 12, 24


def column_split(tolerance: float) -> Finding:
    """S1: shards of a column-split linear, added up as the article does, and one after the other."""
    draw = np.random.default_rng(1)
    x, weight = draw.standard_normal((_TOKENS, _HIDDEN)), draw.standard_normal((_OUT, _HIDDEN))
    shards = [x @ part.T for part in np.split(weight, _RANKS)]  # (tokens, out/t) on each rank
    added, whole = sum(shards[1:], shards[0]), np.concatenate(shards, axis=1)
    return Finding(
        cases=(
            equal("width of the gathered output", added.shape[1], whole.shape[1], "features", tolerance),
            chosen(
                "first features beside one process",
                "the same",
                "the same" if np.allclose(added, (x @ weight.T)[:, : added.shape[1]]) else "other numbers",
            ),
        ),
        facts={"width": f"{added.shape[1]} of {whole.shape[1]}"},
    )


def named_overlap(tolerance: float) -> Finding:
    """S2: what a blocking call hides of an all-reduce, and what four chunks of the tokens do, for 30 ms and 24 ms."""
    compute, comm = 30.0, 24.0
    hidden = [100 * (1 - (pipelined_us([compute / k] * k, [comm / k] * k) - compute) / comm) for k in (1, 4)]
    return Finding(
        cases=(at_least("share of the all-reduce that a blocking call hides", 1, hidden[0], "%"),),
        facts={"chunked": said(hidden[1], "%")},
    )


def attention_layout(tolerance: float) -> Finding:
    """S3: over what the article's attention takes its softmax, whose columns rank 0 holds, which way ``out`` is cut."""
    b, s, heads, d = 2, 7, 4, 3
    q = np.zeros((b, s, heads, d))
    scores = np.einsum("bshd,bstd->bsht", q, q).shape  # without a transpose: heads against heads, inside a token
    right = np.einsum("bhsd,bhtd->bhst", q.transpose(0, 2, 1, 3), q.transpose(0, 2, 1, 3)).shape
    owner = np.repeat(["Q", "K", "V"], heads * d)
    first = np.split(owner, 2)[0]
    needed = {name: int((owner == name).sum() // 2) for name in "QKV"}
    held = {name: int((first == name).sum()) for name in "QKV"}
    by_column = plan_block({**CANONICAL, "out": "column"}, **_SHAPE)
    by_row = plan_block(CANONICAL, **_SHAPE)
    return Finding(
        cases=(
            chosen("shape of the scores", str(scores), str(right), "softmax"),
            *(equal(f"columns of {n} on rank 0 of 2", held[n], needed[n], "", tolerance, "fused QKV") for n in "QKV"),
            at_most(
                "collectives of the block, out cut by columns",
                by_row.num_collectives,
                by_column.num_collectives,
                "",
                "out",
            ),
        ),
        facts={"softmax": f"{scores[-1]} heads instead of {right[-1]} tokens"},
    )


_SHAPE = {
    "hidden": 8192,
    "intermediate": 28672,
    "num_heads": 64,
    "num_kv_heads": 8,
    "tokens": 1,
    "itemsize": 2,
    "n": 4,
}


def feed_forward(tolerance: float) -> Finding:
    """S4: what cutting the feed-forward network by columns, then rows, forces."""
    steps = plan_block(CANONICAL, **_SHAPE).steps
    of_mlp = [step.collective for step in steps[-4:] if step.collective]
    return Finding(cases=(equal("all-reduces of the feed-forward network", 1, len(of_mlp), "", tolerance),))
