"""What a quantised all-reduce sends, how wrong it is, and how long it takes, beside bfloat16 and float32."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd

from tplab.collectives.emulated_link import check_backend
from tplab.measure import provenance_columns, samples_of

if TYPE_CHECKING:
    from tplab.cluster import Cluster, Rank
    from tplab.collectives.emulated_link import EmulatedLink

_ITERATIONS = 5


def compare_quantised(
    cluster: "Cluster",
    *,
    tokens: int = 256,
    hidden: int = 2048,
    scale_groups: Sequence[int] = (32, 64, 256),
    link: "EmulatedLink | None" = None,
) -> pd.DataFrame:
    """All-reduce the partial sums of a row-parallel layer in float32, bfloat16, int8, and int8 added up as int8.

    The partial sums are those of a random (4·hidden -> hidden) layer sharded over the ranks, whose inputs have some
    features ten times as large as the rest, as activations of language models do. Exact is their sum in float64.

    Args:
        cluster: at least two ranks.
        tokens, hidden: shape of the sums.
        scale_groups: elements per scale to try.
        link: emulated link between every two ranks; None for the backend's own.

    Returns one row per ``method``: ``sent_bytes`` (counted, by the rank that sends most), ``ratio_to_bf16``,
    ``error_pct`` (RMS of the error over RMS of the exact sum), ``worst_pct`` (largest error over the largest exact
    sum), ``worst_over_bound`` (largest error in units of its bound; only for int8, where at most 1 is promised),
    ``p50_us`` (medians of the slowest rank's samples; over ``link`` if given), ``same_bits`` (on all ranks), and the
    provenance. float32 and bfloat16 go by our ring, so that bytes can be counted.

    Raises ``ValueError`` for an emulated ``link`` on a cluster without gloo, and for a cluster of one rank.
    """
    n = cluster.num_ranks
    if n < 2:
        raise ValueError("cluster: one rank alone has nothing to reduce; use Cluster(2) or more")
    check_backend(link, cluster.backend)
    run = cluster.submit(_compare, tokens, hidden, tuple(scale_groups), link, timeout=180)
    per_rank, samples = run.result(), samples_of(run.reports, n)
    sent = {method: max(outcome[method]["sent"] for outcome in per_rank) for method in per_rank[0]}
    rows = []
    for method, first in per_rank[0].items():
        outcomes = [outcome[method] for outcome in per_rank]
        rows.append(
            {
                "method": method,
                "sent_bytes": sent[method],
                "ratio_to_bf16": sent[method] / sent["bfloat16"],
                "error_pct": 100 * first["error"],
                "worst_pct": 100 * first["worst"],
                "worst_over_bound": first.get("worst_over_bound"),
                "p50_us": samples[method].p50_us if method in samples else float("nan"),
                "same_bits": len({outcome["digest"] for outcome in outcomes}) == 1,
                **provenance_columns(cluster.provenance, link=link),
            }
        )
    return pd.DataFrame(rows)


def _compare(
    rank: "Rank", tokens: int, hidden: int, scale_groups: tuple[int, ...], link: "EmulatedLink | None"
) -> dict[str, dict[str, Any]]:
    import torch

    from tplab.collectives.counter import CommCounter
    from tplab.collectives.emulated import EmulatedGroup
    from tplab.collectives.quantised import int8_all_reduce, naive_int8_all_reduce
    from tplab.collectives.ring import ring_all_reduce
    from tplab.measure.sampler import collective_sampler

    addends = _partial_sums(rank.world_size, tokens, hidden)
    exact = torch.stack([addend.double() for addend in addends]).sum(0)
    mine = addends[rank.index].to(rank.device)
    group: Any = rank.group if link is None else EmulatedGroup(rank.group, link)
    methods: dict[str, tuple[torch.dtype, Callable[[torch.Tensor, Any], None]]] = {
        "float32": (torch.float32, ring_all_reduce),
        "bfloat16": (torch.bfloat16, ring_all_reduce),
    }
    for size in scale_groups:
        methods[f"int8, {size} per scale"] = (
            torch.bfloat16,
            lambda x, group, size=size: int8_all_reduce(x, group, scale_group=size),  # type: ignore[misc]
        )
    outcome: dict[str, dict[str, Any]] = {}
    for method, (dtype, reduce) in methods.items():
        start = mine.to(dtype)
        with CommCounter() as counter:
            reduce(start.clone(), rank.group)
        x = start.clone()
        sample = collective_sampler(rank, partial(reduce, x, group), before=partial(x.copy_, start))
        rank.report(samples={method: [sample() for _ in range(_ITERATIONS)]})
        outcome[method] = {"sent": counter.total("send").num_bytes, **_beside(x, exact)}
        if "int8" in method:
            worst = _worst(x.cpu().double() - exact, addends, int(method.split()[1]), dtype)
            outcome[method]["worst_over_bound"] = worst
    x = mine.clone()
    naive_int8_all_reduce(x, rank.group)
    # As a ring: one byte an element. gloo's own messages do not pass the counter.
    outcome["int8 added up as int8"] = {"sent": outcome["float32"]["sent"] // 4, **_beside(x, exact)}
    return outcome


def _partial_sums(n: int, tokens: int, hidden: int) -> list[Any]:
    """What each rank would bring: float32, (tokens · hidden,)."""
    import torch

    generator = torch.Generator().manual_seed(8)
    inner = 4 * hidden // n
    addends = []
    for _ in range(n):
        x = torch.randn(tokens, inner, generator=generator)
        x[:, :: max(1, inner // 16)] *= 10
        weight = torch.randn(hidden, inner, generator=generator) / (4 * hidden) ** 0.5
        addends.append((x @ weight.T).flatten())
    return addends


def _beside(x: Any, exact: Any) -> dict[str, Any]:
    """A result beside the exact one, and a digest of its bits."""
    import hashlib

    import torch

    error = x.cpu().double() - exact
    return {
        "error": float(error.square().mean().sqrt() / exact.square().mean().sqrt()),
        "worst": float(error.abs().max() / exact.abs().max()),
        "digest": hashlib.sha256(x.cpu().view(torch.uint8).numpy().tobytes()).hexdigest(),
    }


def _worst(error: Any, addends: list[Any], scale_group: int, dtype: Any) -> float:
    """Largest error in units of its bound, over all chunks. The addends were rounded to ``dtype`` first."""
    import torch

    from tplab.collectives.quantised import error_bound
    from tplab.collectives.volumes import chunk_lengths

    lengths = chunk_lengths(error.numel(), len(addends))
    split = [addend.split(lengths) for addend in addends]
    worst = 0.0
    for owner, part in enumerate(error.split(lengths)):
        chunk = [pieces[owner] for pieces in split]
        bound = error_bound([piece.to(dtype) for piece in chunk], owner, scale_group, dtype=dtype)
        bound = bound + sum(torch.abs(piece.double() - piece.to(dtype).double()) for piece in chunk)
        worst = max(worst, float((part.abs() / bound.clamp_min(1e-300)).max()))
    return worst
