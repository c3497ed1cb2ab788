"""Which layout to run, why, how sure, and where that changes: the advisor's answer.

``advise`` predicts every layout the machine allows, ranks those that fit, and says of each other one why not. It ranks
by what the workload asks for: layouts within the limits on latency first, then most output tokens per second over the
whole machine, each with as many requests at once as keep the limit on the time per token (the others wait, which a
limit on the first token bounds); at a given arrival rate, layouts that keep up first, then the shortest time of a
request. With one request in flight that is the shortest latency, since replicas beyond the first have nothing to do.

Not a rule ("TP inside a node, PP between"): the rule is what comes out where the network is slow, and the terms say
why.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from tplab.models.shards import Layout
from tplab.models.spec import ModelSpec
from tplab.shown import duration, fixed
from tplab.topology.advisor.allreduce import Floats
from tplab.topology.advisor.calibration import Calibration
from tplab.topology.advisor.constants import DEFAULT, Constants
from tplab.topology.advisor.fitting import nothing_fits
from tplab.topology.advisor.flips import Flip, along_bandwidth, bandwidth_flips, concurrency_flips, latency_flips
from tplab.topology.advisor.group_links import links_alike
from tplab.topology.advisor.latency import Server
from tplab.topology.advisor.launch_commands import launch_commands
from tplab.topology.advisor.layouts import Choice, all_choices
from tplab.topology.advisor.prediction import Prediction, predictions_of, serve_all
from tplab.topology.advisor.served import TERM_NAMES, Served
from tplab.topology.advisor.workload import Workload
from tplab.topology.machine.machine import Machine
from tplab.topology.machine.placement import Placement, place

_FRONT_LOADS = 24


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """A layout that fits, with its prediction."""

    rank: int
    """Rank of the layout; 1 is best."""
    choice: Choice
    """The layout as ``layouts`` found it, with idle GPUs, capacity for requests and notes."""
    prediction: Prediction
    best: Prediction
    """Prediction of the best layout."""
    workload: Workload

    @property
    def layout(self) -> Layout:
        assert self.choice.layout is not None, "a layout that fits can be cut"
        return self.choice.layout

    @property
    def misses(self) -> tuple[str, ...]:
        """Limits that it misses, in words; empty if it keeps them all."""
        made, w = self.prediction, self.workload
        words = [made.reason] if made.reason else []
        for name, value, limit in (
            ("time per token", made.tpot_ms, w.tpot_limit_ms),
            ("time to first token", made.ttft_ms, w.ttft_limit_ms),
        ):
            if limit is not None and value > limit:
                words.append(f"{name} {duration(value)}, over the limit of {limit:g} ms")
        return tuple(words)

    @property
    def verdict(self) -> str:
        """Why it is not the best one: limits it misses, or how much it loses and by which terms; or that it is."""
        made, best, misses = self.prediction, self.best, "; ".join(self.misses)
        if self.rank == 1:
            return f"least far from the limits: {misses}" if misses else "recommended"
        if misses:
            return misses
        if self.workload.request_rate is None:
            loss = 100 * (1 - made.output_tokens_per_s / best.output_tokens_per_s)
            words = f"{loss:.0f} % fewer tokens/s"
        else:
            words = f"{100 * (made.e2e_ms / best.e2e_ms - 1):.0f} % longer requests"
        more = {term.name: term.ms - other.ms for term, other in zip(made.terms, best.terms, strict=True)}
        worst = max(more, key=more.__getitem__)
        waits = made.ttft_ms - best.ttft_ms
        tokens = max(self.workload.output_length - 1, 1)
        if waits / tokens > more[worst]:
            return f"{words}: {duration(waits)} longer to the first token"
        of = TERM_NAMES.get(worst, worst)
        return f"{words}: {fixed(more[worst])} ms more of {of} a token" if more[worst] > 0 else words


@dataclass(frozen=True, kw_only=True, slots=True)
class Advice:
    """The answer. ``str`` of it is a summary; frames and commands are for everything else."""

    model: ModelSpec
    machine: Machine
    workload: Workload
    options: tuple[Option, ...]
    """Layouts that fit, best first; at least one."""
    rejected: tuple[Choice, ...]
    """Layouts that cannot be, each with its reason."""
    close: tuple[Option, ...]
    """Layouts that differ from the best by less than the model's own error: measure before choosing."""
    find_placement: Callable[[], Placement]
    """Function that computes ``placement`` when first called."""
    find_flips: Callable[[], tuple[Flip, ...]]
    """Function that computes ``flips`` when first called."""
    find_front: Callable[[], pd.DataFrame]
    """Function that computes ``front`` when first called."""
    find_along: Callable[[Floats], pd.DataFrame]
    """Function that computes ``along_links``."""
    notes: tuple[str, ...]
    """Approximations and assumptions, to be shown with the result."""

    @property
    def best(self) -> Option:
        return self.options[0]

    @property
    def placement(self) -> Placement:
        """GPUs that the best layout takes."""
        return self.find_placement()

    @property
    def flips(self) -> tuple[Flip, ...]:
        """Where the best one changes: along the links' bandwidth and latency, then along concurrency. Takes tenths of a
        second once, with limits some seconds."""
        return self.find_flips()

    @property
    def front(self) -> pd.DataFrame:
        """Every layout at many loads: ``layout``, ``tp``, ``pp``, ``replicas``, ``concurrency``, ``tpot_ms``,
        ``ttft_ms``, ``tokens_per_s_per_gpu``, ``on_front`` (nothing is better in both time per token and throughput
        per GPU)."""
        return self.find_front()

    def along_links(self, factors: "Sequence[float] | Floats") -> pd.DataFrame:
        """Every layout with all links inside nodes ``factors`` times as wide: ``links`` (the factor), ``layout``,
        ``output_tokens_per_s``, ``tpot_ms``."""
        return self.find_along(np.asarray(factors, dtype=np.float64))

    @property
    def gpu_groups(self) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """``[replica][stage]``: GPUs that share the layers of that stage."""
        return self.placement.groups

    @property
    def commands(self) -> Mapping[str, tuple[str, ...]]:
        """Engine -> commands that start the best layout; see ``launch_commands`` for a checkpoint's path."""
        lay, workload, admitted = self.best.layout, self.workload, self.best.prediction.admitted
        if admitted is not None:
            fewer = replace(workload.engine, max_num_seqs=admitted)
            workload = replace(workload, engine=fewer)
        return launch_commands(self.model, self.machine, workload, lay, self.placement)

    def table(self) -> pd.DataFrame:
        """Every layout, best first, then those that cannot be with the reason.

        Columns: ``rank`` (0: cannot be), ``layout``, ``tp``, ``pp``, ``replicas``, ``idle_gpus``, ``tpot_ms``,
        ``tpot_low_ms``, ``tpot_high_ms``, ``ttft_ms``, ``output_tokens_per_s``, ``tokens_per_s_per_gpu``,
        ``running``, ``memory_GB``, ``free_GB``, ``binding``, ``verdict``.
        """
        rows = [_row(option) for option in self.options]
        rows += [
            {"rank": 0, "layout": f"TP {c.tp} × PP {c.pp}", "tp": c.tp, "pp": c.pp, "verdict": c.reason}
            for c in self.rejected
        ]
        return pd.DataFrame(rows, columns=_COLUMNS)

    def waterfall(self, option: Option | None = None) -> pd.DataFrame:
        """Time per token by term, of the best one by default: ``term``, ``ms``, ``share_pct``, ``provenance``."""
        made = (option or self.best).prediction
        return pd.DataFrame(
            {
                "term": [term.name for term in made.terms],
                "ms": [term.ms for term in made.terms],
                "share_pct": [100 * term.ms / made.tpot_ms for term in made.terms],
                "provenance": [term.provenance for term in made.terms],
            }
        )

    def __str__(self) -> str:
        best, made = self.best, self.best.prediction
        low, high = made.tpot_range_ms
        lines = [
            f"{self.model.name} on {self.machine.name}: {best.layout}"
            + (f", {best.choice.idle} GPUs idle" if best.choice.idle else ""),
            f"{fixed(made.tpot_ms)} ms per token (9 of 10 such predictions: {fixed(low)}-{fixed(high)}), first after "
            f"{duration(made.ttft_ms)}, {fixed(made.output_tokens_per_s)} tokens/s",
            f"Time per token bound by {made.binding}.",
            str(made.standing),
        ]
        if made.queue_ms > made.ttft_ms / 2:
            why = "room in the cache" if made.admitted is None else "admission"
            lines.append(f"Of the wait for the first token, {duration(made.queue_ms)} is for {why}.")
        lines += [f"Misses: {'; '.join(best.misses)}."] if best.misses else []
        if self.close:
            lines.append(f"Too close to call without a measurement: {', '.join(str(o.layout) for o in self.close)}.")
        lines += [f"Along {flip.quantity}: {flip}." for flip in self.flips]
        return "\n".join(lines)


def advise(
    model: ModelSpec,
    machine: Machine,
    workload: Workload,
    *,
    calibration: Calibration | None = None,
    constants: Constants = DEFAULT,
    tp: Sequence[int] | None = None,
    pp: Sequence[int] | None = None,
) -> Advice:
    """The best layouts of ``model`` on ``machine`` for ``workload``.

    Args:
        calibration: what was measured on this machine; replaces spec-sheet terms.
        constants: of the latency model.
        tp, pp: only these degrees.

    Raises:
        ValueError: nothing fits (how much is missing, and what would fit), an engine that is not known, or a
            calibration of other GPUs.
    """
    choices = all_choices(model, machine, workload, tp=tp, pp=pp)
    fitting = [each for each in choices if each.feasible]
    if not fitting:
        raise ValueError(nothing_fits(model, machine, workload, choices))
    memories = [each.memory for each in fitting if each.memory]
    layouts = [memory.layout for memory in memories]
    # With unequal links a layout is judged on the GPUs it would get; placed once, for the columns and for the answer.
    placed = None if links_alike(machine) else [place(machine, one.tp, one.pp, one.replicas) for one in layouts]
    server, served = serve_all(machine, memories, calibration=calibration, constants=constants, placements=placed)
    order = np.argsort(-preference(served, workload), kind="stable")
    made = predictions_of(server, served, machine, memories, order)
    options = tuple(
        Option(rank=rank, choice=fitting[i], prediction=prediction, best=made[0], workload=workload)
        for rank, (i, prediction) in enumerate(zip(order, made, strict=True), start=1)
    )
    best, lay = options[0], options[0].layout
    return Advice(
        model=model,
        machine=machine,
        workload=workload,
        options=options,
        rejected=tuple(each for each in choices if not each.feasible),
        find_placement=cache(
            lambda: placed[order[0]] if placed else place(machine, lay.tp, lay.pp, lay.replicas),
        ),
        close=_close(options, workload),
        find_flips=cache(lambda: _flips(server, layouts, workload, int(order[0]))),
        find_front=cache(lambda: _front(server, layouts)),
        find_along=lambda factors: _along(server, layouts, factors),
        notes=tuple(dict.fromkeys([*best.prediction.notes, *best.choice.notes])),
    )


def preference(served: Served, workload: Workload) -> Floats:
    """What layouts are ranked by: larger is better, along the last axis.

    Above 0 within all limits: output tokens per second, or at an arrival rate the inverse of a request's time. Below 0
    outside: the less, the further outside.
    """
    osl = workload.output_length
    value = served.requests_per_s * osl
    over = np.zeros_like(value)
    if workload.request_rate is not None:
        value = 1e9 / served.e2e_us
        over = np.maximum(over, workload.request_rate / served.requests_per_s - 1)
    if workload.tpot_limit_ms is not None:
        over = np.maximum(over, served.tpot_us / 1e3 / workload.tpot_limit_ms - 1)
    if workload.ttft_limit_ms is not None:
        over = np.maximum(over, served.ttft_us / 1e3 / workload.ttft_limit_ms - 1)
    return np.where(over > 0, -over, value)


def _close(options: Sequence[Option], workload: Workload) -> tuple[Option, ...]:
    """Neighbours in throughput, within half of the spread of the wider interval: errors of two layouts of one machine
    are in part the same, so the whole would be too much. None where all miss a limit: they are ranked by how far."""
    best = options[0].prediction
    near: list[Option] = []
    if options[0].misses:
        return ()
    for option in options[1:]:
        other = option.prediction
        if option.misses:
            continue
        ratio = other.output_tokens_per_s / best.output_tokens_per_s
        if workload.request_rate is not None:
            ratio = best.e2e_ms / other.e2e_ms
        spread = max(p.tpot_range_ms[1] / p.tpot_ms for p in (best, other))
        if ratio > 1 / np.sqrt(spread):
            near.append(option)
    return tuple(near)


def _flips(server: Server, layouts: Sequence[Layout], workload: Workload, best: int) -> tuple[Flip, ...]:
    groups, hops = server.layouts.groups, server.layouts
    if groups.size[best] > 1:
        at, links = best, (groups.bandwidth_GBps, groups.latency_us)
    elif layouts[best].pp > 1:
        at, links = best, (hops.hop_GBps, hops.hop_latency_us)
    else:
        at, links = int(np.argmax(groups.bandwidth_GBps)), (groups.bandwidth_GBps, groups.latency_us)
    bandwidth, latency = (float(of[at]) for of in links)

    def prefer(served: Served) -> Floats:
        return preference(served, workload)

    if len(layouts) < 2:
        return ()
    along = bandwidth_flips(server, layouts, prefer, bandwidth)
    if server.calibration is None:  # what was measured has its links' latency in it
        along += latency_flips(server, layouts, prefer, latency)
    if workload.request_rate is None:
        along += concurrency_flips(server, layouts, prefer)
    return tuple(along)


def _along(server: Server, layouts: Sequence[Layout], factors: Floats) -> pd.DataFrame:
    served = along_bandwidth(server, factors)
    return pd.DataFrame(
        {
            "links": np.repeat(factors, len(layouts)),
            "layout": [str(layout) for layout in layouts] * len(factors),
            "output_tokens_per_s": served.requests_per_s * server.workload.output_length,
            "tpot_ms": served.tpot_us / 1e3,
        }
    )


def _front(server: Server, layouts: Sequence[Layout]) -> pd.DataFrame:
    loads = np.unique(np.round(np.geomspace(1, 4096, _FRONT_LOADS)))
    unlimited = replace(server, workload=replace(server.workload, tpot_limit_ms=None))
    served = unlimited.serve(loads[:, None])
    gpus = np.array([layout.num_gpus for layout in layouts])
    tpot, ttft = served.tpot_us / 1e3, served.ttft_us / 1e3
    throughput = served.requests_per_s * server.workload.output_length / gpus
    shown = list(layouts) * len(loads)
    rows = pd.DataFrame(
        {
            "layout": [str(layout) for layout in shown],
            "tp": [layout.tp for layout in shown],
            "pp": [layout.pp for layout in shown],
            "replicas": [layout.replicas for layout in shown],
            "concurrency": np.repeat(loads, len(layouts)).astype(int),
            "tpot_ms": tpot.ravel(),
            "ttft_ms": ttft.ravel(),
            "tokens_per_s_per_gpu": throughput.ravel(),
        }
    )
    return rows.assign(on_front=on_front(rows["tpot_ms"].to_numpy(), rows["tokens_per_s_per_gpu"].to_numpy()))


def on_front(cost: Floats, value: Floats) -> "np.ndarray[Any, np.dtype[np.bool_]]":
    """Which points with a cost and a value are on the front: no other point is better in one and no worse in the
    other."""
    order = np.lexsort((-value, cost))
    best = np.maximum.accumulate(np.concatenate([[-np.inf], value[order][:-1]]))
    made = np.zeros(len(cost), dtype=np.bool_)
    made[order] = value[order] > best
    return made


_COLUMNS = [
    "rank", "layout", "tp", "pp", "replicas", "idle_gpus", "tpot_ms", "tpot_low_ms", "tpot_high_ms", "ttft_ms",
    "output_tokens_per_s", "tokens_per_s_per_gpu", "running", "memory_GB", "free_GB", "binding", "verdict",
]  # fmt: skip


def _row(option: Option) -> dict[str, Any]:
    made = option.prediction
    return {
        "rank": option.rank,
        "layout": str(option.layout),
        "tp": made.tp,
        "pp": made.pp,
        "replicas": made.replicas,
        "idle_gpus": option.choice.idle,
        "tpot_ms": made.tpot_ms,
        "tpot_low_ms": made.tpot_range_ms[0],
        "tpot_high_ms": made.tpot_range_ms[1],
        "ttft_ms": made.ttft_ms,
        "output_tokens_per_s": made.output_tokens_per_s,
        "tokens_per_s_per_gpu": made.output_tokens_per_s_per_gpu,
        "running": made.running,
        "memory_GB": made.memory.total / 1e9,
        "free_GB": made.memory.free / 1e9,
        "binding": made.binding,
        "verdict": option.verdict,
    }
