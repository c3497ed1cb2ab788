"""What one layout would do: time to the first token, time per token, throughput, memory, and what they are made of.

``predict`` answers for a named layout, ``predict_all`` for many at once (which is what ``advise`` ranks). Every number
comes with its terms, where each of them comes from, and an interval taken from how far such predictions have been from
published measurements that the constants had not seen (``interval``).

Why not one number: a term can be checked against a measurement of that term, a total only argued with.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from tplab.checks import ArgumentError
from tplab.models.shards import Layout
from tplab.models.spec import ModelSpec
from tplab.shown import amount, fixed
from tplab.topology.advisor.allreduce import OWN_KERNELS
from tplab.topology.advisor.calibration import Calibration
from tplab.topology.advisor.calibration_check import check_calibration
from tplab.topology.advisor.constants import DEFAULT, Constants
from tplab.topology.advisor.interval import Standing, shares_of
from tplab.topology.advisor.latency import Server
from tplab.topology.advisor.layouts import choice
from tplab.topology.advisor.memory import LayoutMemory, RankMemory
from tplab.topology.advisor.notes import notes_of
from tplab.topology.advisor.roofline import source
from tplab.topology.advisor.served import TERMS, TTFT_TERMS, Served
from tplab.topology.advisor.workload import Workload
from tplab.topology.machine.machine import Machine
from tplab.topology.machine.placement import Placement


@dataclass(frozen=True, kw_only=True, slots=True)
class Term:
    """A piece of the time per token, or to the first one."""

    name: str
    """One of ``served.TERMS`` or ``served.TTFT_TERMS``."""
    ms: float
    """Time that the term adds, in ms."""
    provenance: str
    """Source of the term: measured here, tables of kernels or of served models, spec sheet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """One layout under one workload."""

    model: str
    machine: str
    """Names of the model and the machine."""
    tp: int
    pp: int
    replicas: int
    ttft_ms: float
    """Mean time to the first token in ms, queueing included."""
    queue_ms: float
    """Part of ``ttft_ms`` spent waiting for capacity in the cache or for admission."""
    prefill_ms: float
    """Part of ``ttft_ms`` spent on the request's own prompt."""
    tpot_ms: float
    """Mean time per output token after the first, in ms."""
    output_tokens_per_s: float
    """Output tokens per second over all replicas; at an arrival rate no more than arrive."""
    requests_per_s: float
    """Requests per second over all replicas."""
    output_length: int
    """Tokens of a request (OSL)."""
    terms: tuple[Term, ...]
    """Terms of ``tpot_ms``, which they add up to."""
    ttft_terms: tuple[Term, ...]
    """Terms of ``ttft_ms``, which they add up to: ``served.TTFT_TERMS``."""
    concurrency: float
    """Requests in flight per replica, waiting ones included; a mean, so it may be below 1."""
    running: float
    """Requests that run at once: those that the cache has capacity for, that the engine's largest batch and its budget
    of tokens allow, and that keep the limit on the time per token."""
    admitted: int | None
    """Number of requests that keep that limit, where it bounds ``running``: what to set an engine to. Else None."""
    micro_batches: float
    """k: how many follow each other over the stages; 1 without a pipeline."""
    capacity_tokens: float
    """Tokens that the cache of one replica holds."""
    memory: RankMemory
    """The fullest rank, with the running requests at full length, as far as its capacity goes."""
    fits: bool
    """Whether a single request fits at all. If not, the times are those it would have."""
    reason: str | None
    """Why the layout does not fit, or cannot keep up with the request rate; None if neither."""
    binding: str
    """The constraint that a better machine or another layout would have to lift, in words: memory, the cache's
    capacity, the engine's largest batch or budget of tokens, or the largest term."""
    tpot_range_ms: tuple[float, float]
    """Interval of ``tpot_ms`` in which nine of ten such predictions have had their measurement."""
    standing: Standing
    """What of the question was checked and what is new, beside the nearest configuration whose predictions were."""
    notes: tuple[str, ...]
    """Approximations, to be shown with the result."""

    @property
    def num_gpus(self) -> int:
        """t·p·replicas."""
        return self.tp * self.pp * self.replicas

    @property
    def regime(self) -> str:
        """What of the question was checked and what is new; ``calibrated`` where all of it was measured here."""
        return self.standing.regime

    @property
    def output_tokens_per_s_per_gpu(self) -> float:
        """Throughput over the GPUs in use."""
        return self.output_tokens_per_s / self.num_gpus

    @property
    def e2e_ms(self) -> float:
        """Mean time of a whole request, queueing included."""
        return self.ttft_ms + (self.output_length - 1) * self.tpot_ms

    def term_ms(self, name: str) -> float:
        """Milliseconds of that term of the time per token. Raises ``ValueError`` for a name that is none."""
        found = [term.ms for term in self.terms if term.name == name]
        if not found:
            raise ValueError(f"no term is called {name!r}: use one of {', '.join(TERMS)}")
        return found[0]


def predict(
    model: ModelSpec,
    machine: Machine,
    workload: Workload,
    tp: int,
    pp: int,
    *,
    replicas: int = 1,
    placement: Placement | None = None,
    calibration: Calibration | None = None,
    constants: Constants = DEFAULT,
) -> Prediction:
    """``tp`` x ``pp`` GPUs of ``machine``, times ``replicas`` that share the workload.

    A layout that does not fit in memory is predicted all the same, with ``fits`` False: what it would need is part of
    the answer.

    Args:
        model, machine, workload: what is run, where, and what is asked of it.
        tp, pp, replicas: t, p, and copies side by side.
        placement: the GPUs it takes, from ``place`` or ``placement_of``; by default the best.
        calibration: what was measured on this machine; replaces spec-sheet terms.
        constants: of the latency model.

    Raises:
        ValueError: heads or MLP that ``tp`` does not divide, more stages than layers, more GPUs than the machine has,
            a tensor-parallel group over parts of nodes (unless ``placement`` has it so), a placement of another
            layout, an engine that is not known, or a calibration of other GPUs.
    """
    layout = Layout.of(model, tp, pp, replicas)
    if layout.num_gpus > machine.num_gpus:
        raise ValueError(
            f"{layout} needs {layout.num_gpus} GPUs, {machine.name} has {machine.num_gpus}: use fewer, or more nodes"
        )
    if placement is not None:
        _check_placement(placement, layout, machine)
    elif pp * replicas > (groups := machine.room_for(tp)):
        raise ValueError(
            f"{layout} needs {pp * replicas} groups of {tp} GPUs, and {machine.name} has room for {groups}: none "
            f"lies over two nodes of {machine.gpus_per_node} unless it takes whole ones"
        )
    made = predict_all(
        model, machine, workload, [layout], calibration=calibration, constants=constants, placements=[placement]
    )
    return made[0]


def _check_placement(placement: Placement, layout: Layout, machine: Machine) -> None:
    sizes = len(placement.groups), len(placement.groups[0]), len(placement.groups[0][0])
    given = f"TP {sizes[2]} × PP {sizes[1]} × {sizes[0]}"
    if sizes != (layout.replicas, layout.pp, layout.tp):
        raise ArgumentError("placement", given, f"must be of the layout, {layout}")
    most = max(gpu for chain in placement.groups for group in chain for gpu in group)
    if most >= machine.num_gpus:
        raise ArgumentError("placement", f"one with GPU {most}", f"must be of {machine.name}, 0-{machine.num_gpus - 1}")


def predict_all(
    model: ModelSpec,
    machine: Machine,
    workload: Workload,
    layouts: Sequence[Layout],
    *,
    calibration: Calibration | None = None,
    constants: Constants = DEFAULT,
    placements: "Sequence[Placement | None] | None" = None,
) -> list[Prediction]:
    """Each of ``layouts``, computed together.

    Args:
        model, machine, workload: what is run, where, and what is asked of it.
        layouts: each a layout of this model.
        calibration, constants: as in ``predict``.
        placements: the layouts' GPUs; None, for all or one: the best are found.
    """
    if not layouts:
        return []
    memories = [LayoutMemory.of(model, machine.gpu, workload, layout) for layout in layouts]
    server, served = serve_all(machine, memories, calibration=calibration, constants=constants, placements=placements)
    return predictions_of(server, served, machine, memories)


def predictions_of(
    server: Server,
    served: Served,
    machine: Machine,
    memories: Sequence[LayoutMemory],
    order: "Sequence[int] | NDArray[np.int64] | None" = None,
) -> list[Prediction]:
    """Convert the arrays of ``serve_all`` into a ``Prediction`` per layout, in ``order`` if it is given.

    Args:
        server, served: what ``serve_all`` returned.
        machine, memories: what it was called with.
        order: indices of the layouts that are wanted, in that order; None for all.
    """
    shape = served.tpot_us.shape
    token = {name: np.broadcast_to(served.terms[name], shape).tolist() for name in TERMS}
    first = {name: np.broadcast_to(served.ttft_terms[name], shape).tolist() for name in TTFT_TERMS}
    notes = notes_of(server, machine)
    known = {tp: _provenance(server, machine, tp) for tp in {memory.layout.tp for memory in memories}}
    stand = {cut: _standing(server, machine, *cut) for cut in product((False, True), repeat=2)}
    shares = shares_of({name: np.broadcast_to(served.terms[name], shape) for name in TERMS})
    widths = {cut: np.exp(each.half_width(shares)).tolist() for cut, each in stand.items()}
    made = []
    for i in range(len(memories)) if order is None else order:
        sources = known[memories[i].layout.tp]
        terms, ttft_terms = (
            tuple(Term(name=name, ms=us[i] / 1e3, provenance=sources[name]) for name, us in of.items())
            for of in (token, first)
        )
        cut = memories[i].layout.tp > 1, memories[i].layout.pp > 1
        sure = stand[cut], widths[cut][i]
        made.append(_prediction(server, served, machine, memories[i], int(i), terms, ttft_terms, sure, notes))
    return made


def serve_all(
    machine: Machine,
    memories: Sequence[LayoutMemory],
    *,
    calibration: Calibration | None = None,
    constants: Constants = DEFAULT,
    placements: "Sequence[Placement | None] | None" = None,
) -> tuple[Server, Served]:
    """Serve the workload in all layouts of one model; both as arrays of N.

    Args:
        machine: where the layouts run.
        memories: the layouts of one model under one workload, with what their ranks hold.
        calibration, constants, placements: as in ``predict_all``.
    """
    if calibration is not None:
        check_calibration(calibration, machine)
    server = Server.of(machine, memories, calibration=calibration, constants=constants, placements=placements)
    return server, server.asked()


_IN_WORDS = {
    "lm_head": "the output head",
    "kv_cache": "memory bandwidth of the KV cache",
    "activations": "memory bandwidth of activations",
    "kernels": "start-up of kernels: too little work per GPU",
    "all_reduce": "all-reduce between the GPUs that share a layer",
    "hops": "hops between pipeline stages",
    "host": "the engine's host work per step",
    "launch": "launching kernels without CUDA graphs",
    "drafts": "guessing tokens",
    "prefill": "prefill of other requests",
    "bubble": "pipeline stages waiting for each other",
}


def _binding(server: Server, served: Served, terms: tuple[Term, ...], fits: bool, i: int) -> str:
    if not fits:
        return "memory: the weights leave no room for one request"
    asked = server.workload.concurrency or 0
    of = f" of {amount(asked / int(server.layouts.replicas[i]))}" if asked else ""
    if served.running[i] >= served.admitted[i]:
        return f"the limit per token: it admits {amount(float(served.admitted[i]))}{of} requests"
    if served.queue_us[i] > 0:
        runs = f"{amount(float(served.running[i]))}{of} requests"
        if served.running[i] < server.room[i]:
            by_number = server.max_num_seqs[i] <= server.most_in_budget[i]
            return f"the engine's {'largest batch' if by_number else 'budget of tokens a step'}: {runs}"
        return f"KV cache: room for {runs}"
    largest = max(terms, key=lambda term: term.ms).name
    if largest != "weights":
        return _IN_WORDS[largest]
    tokens = float(served.decoding[i] / served.micro_batches[i])
    by_arithmetic = not server.rates.curves and tokens * server.rates.multiply_us > server.rates.stream_us
    return "arithmetic of the weights" if by_arithmetic else "memory bandwidth of the weights"


def _prediction(
    server: Server,
    served: Served,
    machine: Machine,
    of: LayoutMemory,
    i: int,
    terms: tuple[Term, ...],
    ttft_terms: tuple[Term, ...],
    sure: tuple[Standing, float],
    notes: tuple[str, ...],
) -> Prediction:
    model, workload, layout, most = server.model, server.workload, of.layout, served.most_per_s
    rate, tpot, running = float(served.requests_per_s[i]), float(served.tpot_us[i]) / 1e3, float(served.running[i])
    fits, reason = True, None
    # A cache whose pages are shared runs more requests, at their mean length, than it could hold at full length.
    memory = of.fullest(max(1, min(math.floor(running), of.max_requests)))
    if of.fullest(1).free < 0:
        verdict = choice(model, machine, workload, tp=layout.tp, pp=layout.pp)
        fits, reason = False, verdict.reason or "does not fit"
    asked = workload.concurrency or rate * float(served.e2e_us[i]) / 1e6
    if most is not None and workload.request_rate and most[i] < workload.request_rate:
        reason = reason or (
            f"cannot keep up: at most {fixed(float(most[i]))} of {amount(workload.request_rate)} requests per second; "
            f"its queue grows"
        )
    standing, width = sure
    return Prediction(
        model=model.name,
        machine=machine.name,
        tp=layout.tp,
        pp=layout.pp,
        replicas=layout.replicas,
        ttft_ms=float(served.ttft_us[i]) / 1e3,
        queue_ms=float(served.queue_us[i]) / 1e3,
        prefill_ms=float(served.prefill_us[i]) / 1e3,
        tpot_ms=tpot,
        output_tokens_per_s=rate * workload.output_length,
        requests_per_s=rate,
        output_length=workload.output_length,
        terms=terms,
        ttft_terms=ttft_terms,
        concurrency=asked / layout.replicas,
        running=running,
        admitted=int(running) if running >= served.admitted[i] else None,
        micro_batches=float(served.micro_batches[i]),
        capacity_tokens=float(server.layouts.capacity_tokens[i]),
        memory=memory,
        fits=fits,
        reason=reason,
        binding=_binding(server, served, terms, fits, i),
        tpot_range_ms=(tpot / width, tpot * width),
        standing=standing,
        notes=notes,
    )


def _standing(server: Server, machine: Machine, split: bool, pipeline: bool) -> Standing:
    """How layouts with or without shared layers and stages stand to what was checked. A calibration's products settle
    GPU, links and precision, with the engine's own time besides everything."""
    c, k, products = server.calibration, server.constants, bool(server.rates.curves)
    measured = ("GPU", "memory of the GPU", "precision", "links") if products else ()
    engine = server.workload.engine.name
    standing = Standing.of(
        k.checked, k.spread, server.model, machine.gpu, engine, split=split, pipeline=pipeline, measured=measured
    )
    return replace(standing, calibrated=c is not None and products and c.step_overhead_us is not None)


def _provenance(server: Server, machine: Machine, tp: int) -> dict[str, str]:
    """Source of every term, with ``tp`` ranks in a group."""
    c, known = server.calibration, server.rates.provenance
    reduced = f"formula on {machine.source} links (kernel tables)"
    over = tp > machine.gpus_per_node  # sweeps over nodes say nothing of groups inside one
    if c and (sweeps := [sweep for sweep in c.all_reduce if over or sweep.nodes == 1]):
        swept = tp == 1 or any(sweep.num_ranks == tp for sweep in sweeps)
        reduced = c.badge if swept else f"interpolated from other group sizes; {c.badge}"
        e, own = server.workload.engine, server.engine.all_reduce
        if tp > 1 and c.backend == "nccl" and own is not None and e.all_reduce in ("auto", *OWN_KERNELS):
            reduced = f"{e.name}'s kernels by formula where it has them; {reduced}"
    hops = f"formula on {machine.source} links (kernel tables)"
    if c and any(sent.nodes == 1 or machine.nodes > 1 for sent in c.sends):
        hops = source(c, f"{c.badge}; handing over as {server.workload.engine.name} does", "handoff_us")
    return {
        **known,
        "lm_head": known["weights"],
        "all_reduce": reduced,
        "hops": hops,
        "host": source(c, f"engine {server.workload.engine.name}", "step_overhead_us"),
        "prefill": known["weights"],
        "drafts": "given with the workload",
        **dict.fromkeys(("bubble", "queue", "prompts ahead", "step under way"), "follows from the other terms"),
    }
