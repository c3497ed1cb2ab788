"""What ``verify`` runs: layouts, a model that fits, how often. Pure: made in the notebook kernel, the same on every
rank."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tplab.checks import check_count, check_one_of
from tplab.cluster import Provenance
from tplab.collectives.emulated_link import EmulatedLink, LinkTable
from tplab.measure import link_text
from tplab.models.precision import PRECISIONS
from tplab.models.shards import Layout, kv_bytes, weight_bytes
from tplab.models.spec import ModelConfig, ModelSpec
from tplab.topology.advisor.advice import Advice
from tplab.topology.advisor.calibration import Calibration
from tplab.topology.advisor.group_links import links_alike
from tplab.topology.advisor.layouts import groups_in_order
from tplab.topology.advisor.workload import Workload
from tplab.topology.machine.placement import place
from tplab.topology.verification.static_batch import (
    BatchTimes,
    machine_of,
    predict_batch,
    requests_by_replica,
    runnable,
)

COMPUTE_MODES = ("auto", "real", "emulated")
_SHARE_OF_MEMORY = 0.6
"""Share of the free memory for weights and caches: activations, buffers and the notebook need the rest."""
RankGroups = tuple[tuple[tuple[int, ...], ...], ...]
Target = Advice | Sequence[Layout | tuple[int, ...]]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterFacts:
    """The cluster that layouts are run on."""

    provenance: Provenance
    """Ranks, backend, cores and devices."""
    calibration: Calibration
    """What was measured on it, over the same links."""
    free_bytes: tuple[float, ...]
    """Free memory of each rank's device in bytes, for that rank alone."""
    links: LinkTable | EmulatedLink | None = None
    """Declared links between the ranks; None for the backend's own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LayoutRun:
    """One layout, and the ranks that it runs on."""

    layout: Layout
    """Layout of one replica, as the ranks build it."""
    sharding: Layout
    """Layout with its replicas, as the advisor has it."""
    groups: RankGroups
    """``groups[replica][stage]``: ranks that share that stage's layers."""
    batches: tuple[int, ...]
    """Number of requests of each replica that has any."""
    predicted: BatchTimes
    """Predicted times of the model that is run."""
    scale: float
    """Predicted time per token of the whole model over that of the layers that are run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyPlan:
    """Everything that the ranks must know."""

    config: ModelConfig
    """The model that is run."""
    model: ModelSpec
    """The model it stands for, in the precision in which it is run."""
    runs: tuple[LayoutRun, ...]
    input_length: int
    output_length: int
    micro_batches: int | None
    """Most micro-batches in flight; None for one per stage."""
    links: LinkTable | EmulatedLink | None
    """Declared links between the ranks; None for the backend's own."""
    emulated_compute: bool
    """Whether stages wait instead of computing."""
    cuda_graphs: bool
    """Whether decode steps are replayed from CUDA graphs."""
    rounds: int
    """Number of turns of every layout."""
    repeats: int
    """Generations in one turn, after one to warm up."""
    notes: tuple[str, ...]

    @property
    def parts_of_badge(self) -> tuple[str, ...]:
        """What a figure must say besides the cluster."""
        return (
            *(("emulated compute",) if self.emulated_compute else ()),
            *(("CUDA graphs",) if self.cuda_graphs else ()),
            *((link_text(self.links),) if self.links is not None else ()),
        )


def plan_verify(
    target: Target,
    model: ModelSpec | ModelConfig | None = None,
    workload: Workload | None = None,
    *,
    cluster: ClusterFacts,
    compute: str = "auto",
    cuda_graphs: bool | None = None,
    layers: int | None = None,
    tokens: int = 16,
    rounds: int = 3,
    repeats: int = 2,
) -> VerifyPlan:
    """Plan the runs of layouts on a cluster.

    Args:
        target, model, workload: what is run, see ``verify``.
        cluster: where.
        compute, cuda_graphs, layers, tokens, rounds, repeats: how, see ``verify``.

    Raises:
        ValueError: a calibration of another cluster, layouts that it has no ranks for, a model that does not fit with
            as many layers as there are stages, or an argument that cannot be.
    """
    facts, calibration = cluster.provenance, cluster.calibration
    _check_settings(cluster, compute, cuda_graphs)
    for name, value, least in (("tokens", tokens, 2), ("rounds", rounds, 1), ("repeats", repeats, 1)):
        check_count(name, value, least)
    if isinstance(target, Advice):
        model, workload = model or target.model, workload or target.workload
    if model is None or workload is None:
        raise ValueError("model and workload must be given with a list of layouts; an Advice brings its own")
    spec, notes = in_precision(model, calibration)
    layouts = _layouts(target, spec, facts.num_ranks)
    requests_by_replica(workload, 1)
    if workload.output_length > tokens:
        notes.append(f"{tokens} of {workload.output_length} new tokens are generated")
        workload = replace(workload, output_length=tokens)
    depth, more = _depth(spec, layouts, workload, cluster.free_bytes, layers)
    busiest = max(one.tp * min(one.pp * one.replicas, workload.concurrency or 1) for one in layouts)
    too_busy = calibration.backend == "gloo" and busiest > facts.num_cores
    emulated = compute == "emulated" or (compute == "auto" and too_busy)
    if emulated:
        more.append(f"stages wait as long as they were timed alone: up to {busiest} ranks would compute at once")
    graphs = (facts.own_gpus if cuda_graphs is None else cuda_graphs) and not emulated
    return VerifyPlan(
        config=_runnable(spec, depth, workload),
        model=spec,
        runs=_runs(spec, depth, layouts, workload, calibration, alone=emulated, cuda_graphs=graphs),
        input_length=workload.input_length,
        output_length=workload.output_length,
        micro_batches=workload.engine.pp_micro_batches,
        links=cluster.links,
        emulated_compute=emulated,
        cuda_graphs=graphs,
        rounds=rounds,
        repeats=repeats,
        notes=(*notes, *more, *calibration.notes),
    )


def _check_settings(cluster: ClusterFacts, compute: str, cuda_graphs: bool | None) -> None:
    calibrated, num_ranks = cluster.calibration.num_ranks, cluster.provenance.num_ranks
    if calibrated != num_ranks:
        raise ValueError(
            f"the calibration is of {calibrated} ranks, the cluster has {num_ranks}: calibrate this one, or use "
            f"Cluster({calibrated})"
        )
    check_one_of("compute", compute, COMPUTE_MODES)
    if cuda_graphs and compute == "emulated":
        raise ValueError("cuda_graphs=True has nothing to replay with compute='emulated', where stages only wait")
    if cuda_graphs and not cluster.provenance.own_gpus:
        raise ValueError("cuda_graphs=True needs a GPU for every rank; leave it out to run eagerly where there is none")


def _runs(
    spec: ModelSpec,
    depth: int,
    layouts: Sequence[Layout],
    workload: Workload,
    calibration: Calibration,
    *,
    alone: bool,
    cuda_graphs: bool,
) -> tuple[LayoutRun, ...]:
    """Each layout with its ranks, and what ``predict_batch`` says of it."""
    machine, shallow = machine_of(calibration), spec.with_layers(depth)
    placements = None
    if not links_alike(machine):  # as advise judges them: on the ranks they would get
        placements = [place(machine, one.tp, one.pp, one.replicas) for one in layouts]
    groups = [at.groups for at in placements] if placements else [groups_in_order(one) for one in layouts]
    parts = [Layout.of(shallow, one.tp, one.pp, one.replicas) for one in layouts]
    of_run, of_all = (
        predict_batch(
            each,
            machine,
            workload,
            split,
            calibration=calibration,
            placements=placements,
            alone=alone,
            cuda_graphs=cuda_graphs,
        )
        for each, split in ((shallow, parts), (spec, layouts))
    )
    return tuple(
        LayoutRun(
            layout=replace(part, replicas=1),
            sharding=one,
            groups=where,
            batches=tuple(requests_by_replica(workload, one.replicas)),
            predicted=made,
            scale=whole.tpot_ms / made.tpot_ms,
        )
        for one, part, where, made, whole in zip(layouts, parts, groups, of_run, of_all, strict=True)
    )


_DTYPE = {precision: dtype for dtype, precision in PRECISIONS.items()}


def in_precision(model: ModelSpec | ModelConfig, calibration: Calibration) -> tuple[ModelSpec, list[str]]:
    """The model in the precision that was calibrated, and a note where that is another one."""
    spec = model if isinstance(model, ModelSpec) else ModelSpec.from_config(model)
    wanted = calibration.matmuls[0].precision if calibration.matmuls else "fp32"
    changed = dict.fromkeys(("weight_precision", "kv_precision", "activation_precision"), wanted)
    notes = [] if spec.weight_precision == wanted else [f"run in {wanted} instead of {spec.weight_precision}"]
    return replace(spec, **changed), notes  # type: ignore[arg-type]


def _layouts(target: Target, spec: ModelSpec, num_ranks: int) -> list[Layout]:
    layouts = []
    for one in [option.layout for option in target.options] if isinstance(target, Advice) else target:
        layouts.append(one if isinstance(one, Layout) else Layout.of(spec, *_degrees(one)))
    if not layouts:
        raise ValueError("there is no layout to verify: give at least one, such as (2, 1) for TP 2 × PP 1")
    for layout in layouts:
        if layout.num_gpus > num_ranks:
            raise ValueError(
                f"{layout} needs {layout.num_gpus} ranks, the cluster has {num_ranks}: use "
                f"Cluster({layout.num_gpus}) and calibrate it, or fewer"
            )
    return layouts


def _degrees(one: tuple[int, ...]) -> tuple[int, int, int]:
    if not isinstance(one, tuple) or len(one) not in (2, 3):
        raise ValueError(f"a layout must be a Layout, (tp, pp) or (tp, pp, replicas); got {one!r}")
    return one[0], one[1], one[2] if len(one) == 3 else 1


def _depth(
    spec: ModelSpec, layouts: Sequence[Layout], workload: Workload, free_bytes: Sequence[float], layers: int | None
) -> tuple[int, list[str]]:
    """The most layers that fit on every rank in every layout, and notes on it."""
    least = max(one.pp for one in layouts)
    if layers is not None:
        check_count("layers", layers, least, spec.num_layers)  # a stage of the longest pipeline needs one
    room = min(free_bytes) * _SHARE_OF_MEMORY
    for depth in range(layers or spec.num_layers, least - 1, -1):
        most = max(_bytes(spec, depth, one, workload) for one in layouts)
        if most <= room:
            break
    else:
        raise ValueError(
            f"{spec.name} with {least} layers needs {most / 1e9:.2f} GB on a rank, {room / 1e9:.2f} GB may be used: "
            f"verify a narrower model, layouts with more tensor parallelism, or free memory"
        )
    if depth == spec.num_layers:
        return depth, []
    return depth, [f"{depth} of {spec.num_layers} layers are run, and times scaled up as the prediction scales"]


def runs_whole(spec: ModelSpec, layout: Layout, workload: Workload, free_bytes: Sequence[float]) -> bool:
    """Whether all of the model's layers can be run in this layout, with ``free_bytes`` as ``plan_verify`` has them."""
    return _bytes(spec, spec.num_layers, layout, workload) <= min(free_bytes) * _SHARE_OF_MEMORY


def _runnable(spec: ModelSpec, depth: int, workload: Workload) -> ModelConfig:
    return runnable(spec, depth, workload.context_length + 1, _DTYPE[spec.activation_precision])


def _bytes(spec: ModelSpec, depth: int, one: Layout, workload: Workload) -> float:
    config = _runnable(spec, depth, workload)
    layout = Layout.of(config, one.tp, one.pp)
    batch = requests_by_replica(workload, one.replicas)[0]
    load = {"requests": batch, "context": workload.context_length}
    places = [layout.place(rank) for rank in range(layout.gpus_per_replica)]
    return max(weight_bytes(config, layout, *place) + kv_bytes(config, layout, *place, **load) for place in places)
