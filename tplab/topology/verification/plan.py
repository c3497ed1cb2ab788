"""What ``verify`` runs: layouts, a model that fits, how often. Pure: made in the notebook kernel, the same on every
rank."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tplab.checks import check_count, check_one_of
from tplab.collectives.emulated_link import EmulatedLink, LinkTable
from tplab.measure import link_text
from tplab.models.precision import PRECISIONS
from tplab.models.shards import Layout, kv_bytes, weight_bytes
from tplab.models.spec import ModelConfig, ModelSpec
from tplab.topology.advisor.advice import Advice
from tplab.topology.advisor.calibration import Calibration
from tplab.topology.advisor.layouts import groups_in_order, links_alike
from tplab.topology.advisor.workload import Workload
from tplab.topology.machine.placement import place
from tplab.topology.verification.static_batch import (
    BatchTimes,
    machine_of,
    predict_batch,
    requests_by_replica,
    runnable,
)

COMPUTE = ("auto", "real", "emulated")
_SHARE_OF_MEMORY = 0.6
"""Share of the free memory for weights and caches: activations, buffers and the notebook need the rest."""
RankGroups = tuple[tuple[tuple[int, ...], ...], ...]
Target = Advice | Sequence[Layout | tuple[int, ...]]


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
    """Generations in one turn, after one to warm up, or ``graphed.WARM_UPS``."""
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
    calibration: Calibration,
    num_ranks: int,
    num_cores: int,
    free_bytes: Sequence[float],
    own_gpus: bool = False,
    links: LinkTable | EmulatedLink | None = None,
    compute: str = "auto",
    cuda_graphs: bool | None = None,
    layers: int | None = None,
    tokens: int = 16,
    rounds: int = 3,
    repeats: int = 2,
) -> VerifyPlan:
    """See ``verify`` for the arguments.

    Args:
        num_ranks, num_cores: of the cluster.
        free_bytes: memory of each rank's device, for it alone.
        own_gpus: whether each rank has a GPU of its own, over NCCL.

    Raises:
        ValueError: a calibration of another cluster, layouts that it has no ranks for, a model that does not fit with
            as many layers as there are stages, or an argument that cannot be.
    """
    if calibration.num_ranks != num_ranks:
        raise ValueError(
            f"the calibration is of {calibration.num_ranks} ranks, the cluster has {num_ranks}: calibrate this one, or "
            f"use Cluster({calibration.num_ranks})"
        )
    check_one_of("compute", compute, COMPUTE)
    if cuda_graphs and compute == "emulated":
        raise ValueError("cuda_graphs=True has nothing to replay with compute='emulated', where stages only wait")
    if cuda_graphs and not own_gpus:
        raise ValueError("cuda_graphs=True needs a GPU for every rank; leave it out to run eagerly where there is none")
    for name, value, least in (("tokens", tokens, 2), ("rounds", rounds, 1), ("repeats", repeats, 1)):
        check_count(name, value, least)
    if isinstance(target, Advice):
        model, workload = model or target.model, workload or target.workload
    if model is None or workload is None:
        raise ValueError("model and workload must be given with a list of layouts; an Advice brings its own")
    spec, notes = in_precision(model, calibration)
    layouts = _layouts(target, spec, num_ranks)
    machine = machine_of(calibration)
    placements = None
    if not links_alike(machine):  # as advise judges them: on the ranks they would get
        placements = [place(machine, one.tp, one.pp, one.replicas) for one in layouts]
    groups = [at.groups for at in placements] if placements else [groups_in_order(one) for one in layouts]
    requests_by_replica(workload, 1)
    if workload.output_length > tokens:
        notes.append(f"{tokens} of {workload.output_length} new tokens are generated")
        workload = replace(workload, output_length=tokens)
    depth, more = _depth(spec, layouts, workload, free_bytes, layers)
    notes += more
    requests = workload.concurrency or 1
    busiest = max(one.tp * min(one.pp * one.replicas, requests) for one in layouts)
    emulated = compute == "emulated" or (compute == "auto" and calibration.backend == "gloo" and busiest > num_cores)
    graphs = (own_gpus if cuda_graphs is None else cuda_graphs) and not emulated
    if emulated:
        notes.append(f"stages wait as long as they were timed alone: up to {busiest} ranks would compute at once")
    context = workload.input_length + workload.output_length
    config = runnable(spec, depth, context + 1, _DTYPE[spec.activation_precision])
    run_spec = spec.with_layers(depth)
    parts = [Layout.of(run_spec, one.tp, one.pp, one.replicas) for one in layouts]
    of_run, of_all = (
        predict_batch(
            each,
            machine,
            workload,
            split,
            calibration=calibration,
            placements=placements,
            alone=emulated,
            cuda_graphs=graphs,
        )
        for each, split in ((run_spec, parts), (spec, layouts))
    )
    runs = tuple(
        LayoutRun(
            layout=Layout.of(run_spec, one.tp, one.pp),
            sharding=one,
            groups=where,
            batches=tuple(requests_by_replica(workload, one.replicas)),
            predicted=made,
            scale=whole.tpot_ms / made.tpot_ms,
        )
        for one, where, made, whole in zip(layouts, groups, of_run, of_all, strict=True)
    )
    return VerifyPlan(
        config=config,
        model=spec,
        runs=runs,
        input_length=workload.input_length,
        output_length=workload.output_length,
        micro_batches=workload.engine.pp_micro_batches,
        links=links,
        emulated_compute=emulated,
        cuda_graphs=graphs,
        rounds=rounds,
        repeats=repeats,
        notes=(*notes, *calibration.notes),
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
        raise ValueError("there is no layout to verify: give at least one, such as (2, 1) for TP 2 x PP 1")
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
    if layers is not None and not least <= layers <= spec.num_layers:
        raise ValueError(
            f"layers must be {least} (the stages of the longest pipeline) to {spec.num_layers} (the model's); got "
            f"{layers}"
        )
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


def _bytes(spec: ModelSpec, depth: int, one: Layout, workload: Workload) -> float:
    context = workload.input_length + workload.output_length
    config = runnable(spec, depth, context + 1, _DTYPE[spec.activation_precision])
    layout = Layout.of(config, one.tp, one.pp)
    batch = requests_by_replica(workload, one.replicas)[0]
    places = [layout.place(rank) for rank in range(layout.gpus_per_replica)]
    return max(
        weight_bytes(config, layout, *place) + kv_bytes(config, layout, *place, requests=batch, context=context)
        for place in places
    )
