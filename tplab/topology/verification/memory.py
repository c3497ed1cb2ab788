"""Bytes that a rank of any layout really allocates, beside the formula: shards built on the cluster's ranks.

A layout may have more places than the cluster has ranks: then each rank builds several places, one after the other. Its
weights and cache do not depend on where the others are. Counted is the storage of the tensors themselves, each once,
not what the modules say of their shapes; what the allocator and the process take on top is not in it.

Only ``measure_on_rank`` needs torch, and it runs on the ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from tplab.checks import check_count
from tplab.models.shards import Layout, kv_bytes, weight_bytes
from tplab.models.spec import ModelConfig

if TYPE_CHECKING:
    from tplab.cluster import Cluster, Provenance, Rank, Report, Run

_MOST_BYTES = 2e9
"""Most bytes of one place: shards are built to be looked at, not to fill the machine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardPlan:
    """What is built."""

    config: ModelConfig
    layouts: tuple[Layout, ...]
    """Layouts to build, each with all its places; replicas are alike, so one is built."""
    batch: int = 1
    """Number of sequences in the cache."""
    context: int = 16
    """Tokens of each sequence."""

    def __post_init__(self) -> None:
        for key in ("batch", "context"):
            check_count(key, getattr(self, key), least=1)
        if not self.layouts:
            raise ValueError("layouts must name at least one layout to build")
        for place in self.places:
            told = place.told_weight_bytes + place.told_kv_bytes
            if told > _MOST_BYTES:
                raise ValueError(
                    f"{place.layout} needs {told / 1e9:.3g} GB on stage {place.stage}, and shards are built up to "
                    f"{_MOST_BYTES / 1e9:g} GB: use a smaller model, batch or context"
                )

    @property
    def places(self) -> "list[Place]":
        """Every rank of every layout, with what the formulas say of it."""
        made = []
        for layout in self.layouts:
            for number in range(layout.gpus_per_replica):
                stage, index = layout.place(number)
                made.append(
                    Place(
                        layout=layout,
                        rank=number,
                        stage=stage,
                        index=index,
                        told_weight_bytes=weight_bytes(self.config, layout, stage, index),
                        told_kv_bytes=kv_bytes(
                            self.config, layout, stage, index, requests=self.batch, context=self.context
                        ),
                    )
                )
        return made


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """One rank of a layout, and the formula's bytes of it."""

    layout: Layout
    rank: int
    stage: int
    index: int
    """Place in the tensor-parallel group: rank = stage·t + index."""
    told_weight_bytes: float
    told_kv_bytes: float


def measure_shards(cluster: "Cluster", plan: ShardPlan, *, timeout: float | None = 60.0) -> pd.DataFrame:
    """Build every place of ``plan`` on the ranks and count; see :func:`shards_frame`."""
    __tracebackhide__ = True
    run = submit_shards(cluster, plan, timeout=timeout)
    run.result()
    return shards_frame(plan, run.reports, cluster.provenance)


def submit_shards(
    cluster: "Cluster", plan: ShardPlan, *, timeout: float | None = 60.0, **callbacks: Any
) -> "Run[None]":
    """Start building; :func:`shards_frame` makes the frame of what has been reported so far."""
    return cluster.submit(measure_on_rank, plan, timeout=timeout, **callbacks)


def shards_frame(plan: ShardPlan, reports: "Sequence[Report]", provenance: "Provenance") -> pd.DataFrame:
    """One row per place built: ``layout``, ``tp``, ``pp``, ``rank``, ``stage``, ``index``, ``layers``, ``built_on``
    (rank of the cluster), ``weight_bytes`` and ``kv_bytes`` as allocated, ``told_weight_bytes`` and ``told_kv_bytes``
    by the formula, ``kv_bytes_per_token``, ``exact`` (both equal); then the provenance."""
    built = {report.fields["place"]: report for report in list(reports) if "place" in report.fields}
    rows = []
    for number, place in enumerate(plan.places):
        if number not in built:
            continue
        found = built[number].fields
        rows.append(
            {
                "layout": str(place.layout),
                "tp": place.layout.tp,
                "pp": place.layout.pp,
                "rank": place.rank,
                "stage": place.stage,
                "index": place.index,
                "layers": place.layout.layers_of_stage[place.stage],
                "built_on": built[number].rank,
                "weight_bytes": found["weight_bytes"],
                "told_weight_bytes": int(place.told_weight_bytes),
                "kv_bytes": found["kv_bytes"],
                "told_kv_bytes": int(place.told_kv_bytes),
                "kv_bytes_per_token": found["kv_bytes"] / plan.batch / plan.context,
                "exact": found["weight_bytes"] == place.told_weight_bytes and found["kv_bytes"] == place.told_kv_bytes,
                **provenance.columns(),
            }
        )
    return pd.DataFrame(rows, columns=[*_COLUMNS, *provenance.columns()])


_COLUMNS = (
    *("layout", "tp", "pp", "rank", "stage", "index", "layers", "built_on"),
    *("weight_bytes", "told_weight_bytes", "kv_bytes", "told_kv_bytes", "kv_bytes_per_token", "exact"),
)


def measure_on_rank(rank: "Rank", plan: ShardPlan) -> None:
    """Builds this rank's share of the places, one at a time, and reports the bytes of each."""
    import torch

    from tplab.layers.comm import NullComm
    from tplab.models.checkpoint import torch_dtype
    from tplab.models.decoder import Stage

    def allocated(tensors: "Sequence[torch.Tensor]") -> int:
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
        return sum(storages.values())

    config, places = plan.config, plan.places
    mine = list(enumerate(places))[rank.index :: rank.world_size]
    for done, (number, place) in enumerate(mine):
        rank.report(phase="build", done=done, total=len(mine))
        comm = NullComm(place.index, place.layout.tp)
        stage = Stage(config, place.layout.spec(place.stage), comm, dtype=torch_dtype(config.dtype))
        for name, weight in list(stage.named_parameters()):
            if not (name == "head.weight" and stage.shares_table):
                stage.set(name, torch.empty(weight.shape, dtype=weight.dtype, device=rank.device).normal_(std=0.02))
        weights = list(stage.parameters())
        caches = stage.make_caches(plan.batch, plan.context)
        kept = [tensor for cache in caches for tensor in (cache.k_BGSE, cache.v_BGSE)]
        if any(tensor.device.type == "meta" for tensor in (*weights, *kept)):
            raise AssertionError("a tensor without memory was counted")
        rank.report(place=number, weight_bytes=allocated(weights), kv_bytes=allocated(kept))
    rank.report(phase="build", done=len(mine), total=len(mine))
