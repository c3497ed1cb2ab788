"""Every way to cut a model over a machine: which are possible, why the others are not, and what to do if none is.

A tensor-parallel group stays inside a node, where the fast links are; stages may follow each other over nodes. What
GPUs are left over after whole replicas is said, not hidden. Which of the possible layouts is best is not asked here.

Letters: t tensor-parallel degree, p stages, G GPUs of a node.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral

from tplab.models.shards import Layout, why_not
from tplab.models.spec import ITEMSIZE, ModelSpec
from tplab.topology.advisor.memory import LayoutMemory, RankMemory, fullest_rank
from tplab.topology.advisor.workload import Workload
from tplab.topology.machine.machine import Gpu, Machine
from tplab.topology.machine.presets import GPUS

_MOST_GPUS_TRIED = 4096
"""Most GPUs of a cluster that is tried for a model that does not fit."""
_USUAL_NODE = 8
"""GPUs of a node in most clusters."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """One layout, and whether it can be."""

    tp: int
    pp: int
    layout: Layout | None
    """The layout, with replicas and layers per stage; None if the model cannot be cut so."""
    idle: int
    """Number of GPUs left over."""
    reason: str | None
    """Why the layout cannot be; None if it can."""
    memory: LayoutMemory | None = None
    """What its ranks hold; None if the model cannot be cut so."""
    notes: tuple[str, ...] = ()
    """Sentences to be shown with the layout."""

    @property
    def fullest(self) -> RankMemory | None:
        """The rank with the least left at one request; None if the model cannot be cut so."""
        return self.memory.fullest(1) if self.memory else None

    @property
    def missing_bytes(self) -> float:
        """What the fullest rank lacks for a single request; 0 where nothing is missing or the model cannot be cut."""
        return max(0.0, -self.fullest.free) if self.fullest else 0.0

    @property
    def max_requests(self) -> int:
        """Capacity of one replica, in requests of full length."""
        return self.memory.max_requests if self.memory else 0

    @property
    def feasible(self) -> bool:
        return self.reason is None

    def __str__(self) -> str:
        what = str(self.layout) if self.layout else f"TP {self.tp} x PP {self.pp}"
        return f"{what}: {self.reason or f'{self.max_requests} requests a replica'}"


def all_choices(
    spec: ModelSpec,
    machine: Machine,
    workload: Workload,
    *,
    tp: Iterable[int] | None = None,
    pp: Iterable[int] | None = None,
) -> list[Choice]:
    """Every TP x PP of the machine, possible or not, by t and p.

    Args:
        tp, pp: only these degrees; by default all up to a node's GPUs, and up to the machine's.

    Raises:
        ValueError: no degree to choose from, or one that is no whole number of at least 1.
    """
    most = machine.gpus_per_node
    degrees = range(1, most + 1) if tp is None else _degrees("tp", tp)
    wanted = None if pp is None else _degrees("pp", pp)
    choices = []
    for t in degrees:
        stages = range(1, max(machine.nodes * (most // t), 1) + 1) if wanted is None else wanted
        choices += [choice(spec, machine, workload, tp=t, pp=p) for p in stages]
    return choices


def _degrees(name: str, given: Iterable[int]) -> list[int]:
    degrees = list(given) if isinstance(given, Iterable) else [given]
    if not degrees or any(not isinstance(d, Integral) or isinstance(d, bool) or d < 1 for d in degrees):
        raise ValueError(f"{name} must hold at least one degree, each a whole number of at least 1; got {degrees}")
    return [int(d) for d in degrees]  # numpy's own go no further


def choice(spec: ModelSpec, machine: Machine, workload: Workload, *, tp: int, pp: int) -> Choice:
    """Whether the model can run so on the machine, with at least one request of the workload.

    Args:
        spec, machine, workload: the model, where it runs, and what is asked.
        tp, pp: t and p; as many replicas as the machine holds.
    """
    cannot = why_not(spec, tp, pp) or _no_room_on(machine, tp, pp)
    if cannot:
        return Choice(tp=tp, pp=pp, layout=None, idle=machine.num_gpus, reason=str(cannot))
    groups = machine.nodes * (machine.gpus_per_node // tp)
    layout = Layout.of(spec, tp, pp, groups // pp)
    memory = LayoutMemory.of(spec, machine.gpu, workload, layout)
    fullest = memory.fullest(1)
    idle = machine.num_gpus - layout.num_gpus
    notes, kv = [], spec.num_kv_heads
    if tp % kv and kv % tp:  # split evenly, or copied evenly
        notes.append(f"vLLM, SGLang and TensorRT-LLM refuse tp={tp} with {kv} key-value heads; tplab.models runs it")
    if idle:
        notes.append(f"{idle} of {machine.num_gpus} GPUs are left over")
    if len(set(layout.layers_of_stage)) > 1:
        notes.append(f"stages of {'-'.join(map(str, layout.layers_of_stage))} layers: the longest sets the pace")
    if spec.tied_embeddings and pp > 1:
        notes.append("the tied embedding is on the first stage and on the last")
    return Choice(
        tp=tp,
        pp=pp,
        layout=layout,
        idle=idle,
        reason=_too_full(fullest) if fullest.free < 0 else None,
        memory=memory,
        notes=tuple(notes),
    )


def feasible_choices(spec: ModelSpec, machine: Machine, workload: Workload) -> list[Choice]:
    """The layouts that can be.

    Raises:
        ValueError: none can. Says how much memory is missing, and what would fit: more such GPUs, larger ones, or fewer
            bits; or which degrees divide the heads.
    """
    choices = all_choices(spec, machine, workload)
    feasible = [each for each in choices if each.feasible]
    if not feasible:
        raise ValueError(nothing_fits(spec, machine, workload, choices))
    return feasible


def nothing_fits(spec: ModelSpec, machine: Machine, workload: Workload, choices: Sequence[Choice]) -> str:
    """What to say when no layout of ``choices`` can be."""
    cut = [each for each in choices if each.fullest is not None]
    if not cut:
        return f"{spec.name} cannot be cut over {machine.name} in any way: {choices[0].reason}"
    best = min(cut, key=lambda each: (each.missing_bytes, each.tp * each.pp))
    rank, layout = best.fullest, best.layout
    assert rank is not None, "cut has only those with a fullest rank"
    assert layout is not None, "a fullest rank is one of a layout"
    num = layout.gpus_per_replica
    everywhere = f" (up to {_gb(best.missing_bytes * num)} over its {num} GPUs)" if num > 1 else ""
    return (
        f"{spec.name} ({_gb(spec.weight_bytes)} of {spec.weight_precision} weights) does not fit on {machine.name} "
        f"({machine.num_gpus} x {_gb(machine.gpu.memory_bytes)}): even {layout} needs {_gb(rank.total)} on its fullest "
        f"GPU with one request of {workload.context_length} tokens, {_gb(best.missing_bytes)} more than the "
        f"{_gb(rank.usable)} that the engine may take{everywhere}. {_what_would_fit(spec, machine, workload)}"
    )


def smallest_fit(
    spec: ModelSpec, gpu: Gpu, workload: Workload, *, most_tp: int, most_gpus: int = _MOST_GPUS_TRIED
) -> Layout | None:
    """The fewest GPUs of that kind, up to ``most_tp`` sharing a layer, that hold the model and one request; among
    equals the one of least p. None if no number up to ``most_gpus`` does.

    Args:
        spec, gpu, workload: the model, the card, and what is asked.
        most_tp: most GPUs that share a layer.
        most_gpus: most GPUs of a replica that are tried.
    """
    best: Layout | None = None
    for tp in range(min(most_tp, spec.num_heads), 0, -1):
        if why_not(spec, tp, 1):
            continue
        most_pp = min(spec.num_layers, most_gpus // tp)
        if best is not None:
            most_pp = min(most_pp, (best.gpus_per_replica - 1) // tp)
        found = _fewest_stages(spec, gpu, workload, tp, most_pp)
        best = found or best
    return best


def _fewest_stages(spec: ModelSpec, gpu: Gpu, workload: Workload, tp: int, most: int) -> Layout | None:
    def fits(pp: int) -> bool:
        return fullest_rank(spec, gpu, workload, Layout.of(spec, tp, pp)).free >= 0

    if most < 1:
        return None
    # From two stages on, more of them never leave less memory free: no need to try thousands one by one.
    pp = 1 if fits(1) else bisect_left(range(2, most + 1), True, key=fits) + 2
    return Layout.of(spec, tp, pp) if pp <= most else None


def usual_fit(
    spec: ModelSpec, gpu: Gpu, workload: Workload, *, most_gpus: int = _MOST_GPUS_TRIED, machine: Machine | None = None
) -> Layout | None:
    """The smallest of the numbers of GPUs that people buy, 1, 2, 4, 8 and whole nodes of 8, that holds the model and
    one request, with as many as possible of a node's GPUs sharing a layer. None if none up to ``most_gpus`` does.

    Args:
        machine: only as its nodes allow.
    """
    able = [tp for tp in range(1, _USUAL_NODE + 1) if not why_not(spec, tp, 1)]
    fewest = {
        tp: found.pp
        for tp in able
        if (found := _fewest_stages(spec, gpu, workload, tp, min(spec.num_layers, most_gpus // tp)))
    }
    for count in (1, 2, 4, *range(_USUAL_NODE, most_gpus + 1, _USUAL_NODE)):
        for tp in range(min(count, _USUAL_NODE), 0, -1):
            pp = count // tp
            if count > most_gpus or count % tp or not fewest.get(tp, pp + 1) <= pp <= spec.num_layers:
                continue
            if machine is not None and _no_room_on(machine, tp, pp):
                continue
            layout = Layout.of(spec, tp, pp)
            if fullest_rank(spec, gpu, workload, layout).free >= 0:
                return layout
    return None


def _what_would_fit(spec: ModelSpec, machine: Machine, workload: Workload) -> str:
    ways = []
    here, most_tp = machine.gpu, max(machine.gpus_per_node, _USUAL_NODE)
    more = usual_fit(spec, here, workload) or smallest_fit(spec, here, workload, most_tp=most_tp)
    if more is not None:
        ways.append(f"{more.gpus_per_replica} x {here.name} as {more}")
    for precision in ("fp8", "int4"):
        if ITEMSIZE[precision] >= spec.weight_itemsize:
            continue
        smaller = replace(spec, weight_precision=precision)
        found = usual_fit(smaller, here, workload, most_gpus=machine.num_gpus, machine=machine)
        if found is None:  # a node of 6 GPUs, or heads that only 7 can share
            able = [each.layout for each in all_choices(smaller, machine, workload) if each.feasible]
            found = min((one for one in able if one), key=lambda one: (one.gpus_per_replica, one.pp), default=None)
        if found is not None:
            plain = replace(found, replicas=1)
            ways.append(f"{precision} weights ({_gb(smaller.weight_bytes)}) on this machine as {plain}")
            break
    for gpu in sorted(GPUS.values(), key=lambda gpu: gpu.memory_GB):
        if gpu.memory_GB <= here.memory_GB or _is_older(gpu, here):
            continue
        found = usual_fit(spec, gpu, workload, most_gpus=max(machine.num_gpus, _USUAL_NODE))
        if found is not None and (more is None or found.gpus_per_replica < more.gpus_per_replica):
            ways.append(f"{found.gpus_per_replica} x {gpu.name} ({_gb(gpu.memory_bytes)} each) as {found}")
            break
    return f"What would fit: {'; '.join(ways)}." if ways else "No number of such GPUs holds it: shorten the requests."


def _is_older(gpu: Gpu, than: Gpu) -> bool:
    """Spec sheets have no year: a GPU that is slower, or lacks the other's fp8, is no step up whatever it holds."""
    lacks_fp8 = than.fp8_TFLOPS is not None and gpu.fp8_TFLOPS is None
    return lacks_fp8 or gpu.bf16_TFLOPS < than.bf16_TFLOPS or gpu.hbm_GBps < than.hbm_GBps


def _no_room_on(machine: Machine, tp: int, pp: int) -> str | None:
    most = machine.gpus_per_node
    if tp > most:
        return f"tp={tp} GPUs would have to share each layer, and a node has {most}: use tp of at most {most}"
    groups = machine.nodes * (most // tp)
    if pp > groups:
        return (
            f"pp={pp} stages of {tp} GPUs need {tp * pp} GPUs, and {machine.name} has room for {groups} groups of "
            f"{tp}: use pp of at most {groups}"
        )
    return None


def _too_full(rank: RankMemory) -> str:
    parts = (
        f"weights {_gb(rank.weights)}, one request's cache {_gb(rank.kv)}, activations {_gb(rank.activations)}, "
        f"workspace {_gb(rank.workspace)}"
    )
    return (
        f"does not fit: stage {rank.stage} needs {_gb(rank.total)} ({parts}), {_gb(-rank.free)} more than the "
        f"{_gb(rank.usable)} the engine may take"
    )


def _gb(nbytes: float) -> str:
    return f"{nbytes / 1e9:.3g} GB" if nbytes < 999.5e9 else f"{math.floor(nbytes / 1e9)} GB"
