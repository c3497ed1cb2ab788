"""What to do if no layout of a machine can be: the layouts that would hold the model, on more or other GPUs or in fewer
bits."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace

from tplab.models.precision import ITEMSIZE
from tplab.models.shards import Layout, can_cut
from tplab.models.spec import ModelSpec
from tplab.shown import as_GB
from tplab.topology.advisor.layouts import Choice, all_choices, no_room_on
from tplab.topology.advisor.memory import fullest_rank
from tplab.topology.advisor.workload import Workload
from tplab.topology.machine.machine import Gpu, Machine
from tplab.topology.machine.spec_sheets import GPUS, OFFERED

_MOST_GPUS_TRIED = 4096
"""Most GPUs of a cluster that is tried for a model that does not fit."""
_USUAL_NODE = 8
"""GPUs of a node in most clusters."""


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
    everywhere = f" (up to {as_GB(best.missing_bytes * num)} over its {num} GPUs)" if num > 1 else ""
    return (
        f"{spec.name} ({as_GB(spec.weight_bytes)} of {spec.weight_precision} weights) does not fit on {machine.name} "
        f"({machine.num_gpus} x {as_GB(machine.gpu.memory_bytes)}): even {layout} needs {as_GB(rank.total)} on its "
        f"fullest GPU with one request of {workload.context_length} tokens, {as_GB(best.missing_bytes)} more than the "
        f"{as_GB(rank.usable)} that the engine may take{everywhere}. {_what_would_fit(spec, machine, workload)}"
        + (f" But {machine.doubt}." if machine.doubt else "")
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
        if not can_cut(spec, tp, 1):
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
        machine: only as its nodes allow, each layer inside one.
    """
    able = [tp for tp in range(1, _USUAL_NODE + 1) if can_cut(spec, tp, 1)]
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
            if machine is not None and (tp > machine.gpus_per_node or no_room_on(machine, tp, pp)):
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
            ways.append(f"{precision} weights ({as_GB(smaller.weight_bytes)}) on this machine as {plain}")
            break
    for gpu in sorted((GPUS[name] for name in OFFERED), key=lambda gpu: gpu.memory_GB):
        if gpu.memory_GB <= here.memory_GB or _is_older(gpu, here):
            continue
        found = usual_fit(spec, gpu, workload, most_gpus=max(machine.num_gpus, _USUAL_NODE))
        if found is not None and (more is None or found.gpus_per_replica < more.gpus_per_replica):
            ways.append(f"{found.gpus_per_replica} x {gpu.name} ({as_GB(gpu.memory_bytes)} each) as {found}")
            break
    return f"What would fit: {'; '.join(ways)}." if ways else "No number of such GPUs holds it: shorten the requests."


def _is_older(gpu: Gpu, than: Gpu) -> bool:
    """A GPU of an earlier generation or of the other maker, or that is slower, is no step up whatever it holds."""
    one, other = gpu.made, than.made
    if one and other and (one.maker != other.maker or one.year < other.year):
        return True
    return gpu.bf16_TFLOPS < than.bf16_TFLOPS or gpu.hbm_GBps < than.hbm_GBps
