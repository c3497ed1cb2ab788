"""Notebook 01: bytes of keys and values that a token leaves on every rank.

Checked against tensors that ranks allocate for models and layouts which the learner has not seen: fewer key-value heads
than ranks, heads that straddle a cut, stages of different length, several precisions.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tplab.cluster import Cluster, ClusterError
from tplab.lab.exercises.answers import as_number, as_numbers
from tplab.lab.exercises.trial import check_cluster, check_function
from tplab.lab.exercises.verdict import NotYetError, Verdict, checker, not_yet_for
from tplab.models.precision import PRECISIONS, itemsize
from tplab.models.shards import Layout
from tplab.models.spec import ModelConfig
from tplab.shown import counted
from tplab.topology.verification.memory import ShardPlan, measure_shards

_BATCH, _CONTEXT = 2, 5


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheConfig:
    """What the cache's size follows from."""

    num_heads: int
    """H, query heads of the model."""
    num_kv_heads: int
    """K, key-value heads of the model; divides H."""
    head_dim: int
    """d, numbers in one head."""
    layers_of_stage: tuple[int, ...]
    """Layers of each pipeline stage; one entry without a pipeline."""
    bytes_per_number: int
    """2 for bf16, 4 for fp32."""


_CASES: Sequence[tuple[CacheConfig, int]] = tuple(
    (CacheConfig(num_heads=H, num_kv_heads=K, head_dim=d, layers_of_stage=stages, bytes_per_number=e), tp)
    for H, K, d, stages, e, tp in (
        (8, 8, 16, (4,), 2, 1),
        (8, 2, 16, (3,), 2, 2),
        (12, 4, 8, (4,), 4, 2),
        (8, 2, 16, (5, 2), 2, 2),  # stages of different length
        (8, 2, 8, (3,), 2, 4),  # more ranks than key-value heads
        (12, 1, 8, (1, 2, 1), 2, 4),  # one for all
        (6, 2, 8, (3,), 2, 3),  # the middle rank needs both
        (12, 4, 6, (2, 3), 4, 6),
        (20, 4, 4, (1, 1, 2), 2, 10),
    )
)


@checker("01-kv")
def check_kv_bytes(
    cluster: Cluster, kv_bytes_per_token: Callable[[CacheConfig, int], Sequence[float]], *, timeout: float = 60.0
) -> Verdict:
    """``kv_bytes_per_token(cfg, tp)``: a number for every rank, stage by stage (rank = stage · tp + place in it).

    ``cfg`` is a :class:`CacheConfig`. Compared with what the cluster's ranks allocate for 11 models and layouts, two of
    which are drawn anew each time. Lists, tuples, arrays and tensors will do, also one row per stage.
    """
    check_cluster(cluster)
    check_function(kv_bytes_per_token)
    for cfg, tp in (*_CASES, *_drawn(2)):
        described = (
            f"With {cfg.num_heads} query heads, {cfg.num_kv_heads} key-value heads of {cfg.head_dim}, stages of "
            f"{'-'.join(map(str, cfg.layers_of_stage))} layers, {cfg.bytes_per_number} bytes a number, tp={tp}"
        )
        try:
            got = kv_bytes_per_token(cfg, tp)
        except Exception as error:
            not_yet_for(error, kv_bytes_per_token, described)
        places = tp * len(cfg.layers_of_stage)
        mine = as_numbers(got)
        if mine is None:
            raise NotYetError(
                f"{described}: it must return a list with a number for each rank, here {places}; it returned "
                f"{got!r:.80}."
            )
        if len(mine) != places:
            raise NotYetError(
                f"{described} there are {places} ranks (tp · stages); it returned "
                f"{counted(len(mine), 'number')}: {mine!r:.80}."
            )
        try:
            want = allocated(cluster, cfg, tp, timeout=timeout)
        except ClusterError as error:
            raise NotYetError(f"{described} the ranks could not build the model: {error}") from None
        _compare(cfg, tp, mine, want, described)
    return Verdict(True, f"equal to what the ranks allocated for {len(_CASES) + 2} models and layouts, on every rank.")


def _compare(cfg: CacheConfig, tp: int, got: Sequence[Any], want: Sequence[float], described: str) -> None:
    """Raises ``NotYetError`` for the first rank whose number is another."""
    mine = [as_number(each) for each in got]
    for rank, (number, true) in enumerate(zip(mine, want, strict=True)):
        if number is None:
            raise NotYetError(f"{described}: what it returned for rank {rank} is no number: {got[rank]!r:.60}.")
        if abs(number - true) < 0.5:
            continue
        stage, place = divmod(rank, tp)
        stages = len(cfg.layers_of_stage)
        by_place = [want[at * tp + of] for of in range(tp) for at in range(stages)]
        if all(given is not None and abs(given - right) < 0.5 for given, right in zip(mine, by_place, strict=True)):
            look = "The numbers are right, in another order: first all places of stage 0, then those of stage 1."
        else:
            look = _hint(cfg, tp, stage, place, number, true)
        raise NotYetError(
            f"{described}: rank {rank} (stage {stage}, place {place}) allocated {true:,.0f} bytes a token, you say "
            f"{number:,.10g}. {look}"
        )


def allocated(cluster: Cluster, cfg: CacheConfig, tp: int, *, timeout: float = 60.0) -> list[float]:
    """What the ranks allocate, in bytes per token and rank."""
    dtype: Any = next(name for name in PRECISIONS if itemsize(name) == cfg.bytes_per_number)
    config = ModelConfig(
        model_type="llama",
        vocab_size=16,
        hidden_size=16,
        intermediate_size=4 * tp,
        num_layers=sum(cfg.layers_of_stage),
        num_heads=cfg.num_heads,
        num_kv_heads=cfg.num_kv_heads,
        head_dim=cfg.head_dim,
        max_positions=64,
        dtype=dtype,
    )
    layout = Layout.of(config, tp, len(cfg.layers_of_stage), layers_of_stage=cfg.layers_of_stage)
    plan = ShardPlan(config=config, layouts=(layout,), batch=_BATCH, context=_CONTEXT)
    built = measure_shards(cluster, plan, timeout=timeout)
    per_token: list[float] = built.sort_values("rank")["kv_bytes_per_token"].tolist()
    return per_token


def _drawn(count: int) -> Iterator[tuple[CacheConfig, int]]:
    draw = random.Random()
    for _ in range(count):
        tp, kv = draw.choice([2, 3, 4]), draw.choice([1, 2, 3, 6])
        group = draw.choice([g for g in (1, 2, 4, 6) if kv * g % tp == 0] or [tp])
        yield (
            CacheConfig(
                num_heads=kv * group,
                num_kv_heads=kv,
                head_dim=2 * draw.randint(1, 6),
                layers_of_stage=tuple(draw.randint(1, 4) for _ in range(draw.randint(1, 3))),
                bytes_per_number=draw.choice([2, 4]),
            ),
            tp,
        )


def _hint(cfg: CacheConfig, tp: int, stage: int, place: int, mine: float, true: float) -> str:
    """Where to look."""
    layers = cfg.layers_of_stage[stage]
    ratio = mine / true if true else 0.0
    if len(cfg.layers_of_stage) > 1 and abs(ratio - sum(cfg.layers_of_stage) / layers) < 1e-9:
        return f"A rank keeps the cache of its own stage's layers only, here {layers}."
    average = sum(cfg.layers_of_stage) / len(cfg.layers_of_stage)
    if layers != average and abs(ratio - average / layers) < 1e-9:
        return f"Stages differ: this one has {layers} layers, not the average."
    each, group = cfg.num_heads // tp, cfg.num_heads // cfg.num_kv_heads
    first, last = place * each // group, ((place + 1) * each - 1) // group
    if cfg.num_kv_heads % tp:
        return (
            f"This rank has query heads {place * each} to {(place + 1) * each - 1}, and every {group} of them share a "
            f"key-value head: it needs key-value heads {first} to {last}, whole."
        )
    if ratio == 0.5:
        return f"Half: there are keys and values, and a number takes {cfg.bytes_per_number} bytes."
    return "Per token: keys and values, of the stage's layers, of this rank's key-value heads, times bytes per number."
