"""Layouts of a model, run for real on the ranks: a batch prefilled and decoded by the lab's engine. Runs on the ranks.

Layouts take turns and each is made anew for its turn: one at a time is held, whatever the memory, and a busy spell of
the machine does not fall on one layout alone.
"""

from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from tplab.cluster import Rank
from tplab.collectives.transport import Transport
from tplab.layers.comm import Comm, NullComm
from tplab.measure.clock import timed
from tplab.models.decoder import Padding
from tplab.models.engine import GenerationEngine
from tplab.models.loading import Loaded
from tplab.models.records import Request
from tplab.models.sampling import Sampler
from tplab.topology.calibration.copies import (
    StageTimes,
    comm_of,
    load_random,
    p2p_of,
    waiting,
)

if TYPE_CHECKING:
    from tplab.topology.verification.plan import LayoutRun, VerifyPlan

_DECODE_STEPS = 7


def run_layouts(rank: Rank, plan: "VerifyPlan") -> None:
    """Every layout of the plan in every round. Every rank that holds a part reports of every generation when it started
    and when the rank knew the first and the last token: keys ``(row, "start")``, ``(row, "first")``, ``(row, "last")``,
    in microseconds of the machine's clock."""
    total = plan.rounds * len(plan.runs)
    for turn in range(plan.rounds):
        for row, run in enumerate(plan.runs):
            _run(rank, plan, run, row)
            rank.report(phase="layouts", done=turn * len(plan.runs) + row + 1, total=total)


def _run(rank: Rank, plan: "VerifyPlan", run: "LayoutRun", row: int) -> None:
    comms: dict[int, Comm] = {}
    seat: tuple[int, int, int] | None = None
    for replica, stages in enumerate(run.groups):  # every rank makes every group: that is a collective
        for stage, ranks in enumerate(stages):
            comm = comm_of(rank, ranks, plan.links)
            if comm is not None:
                comms[replica], seat = comm, (replica, stage, sorted(ranks).index(rank.index))
    replica, stage, index = seat if seat is not None else (-1, 0, 0)
    mine = replica >= 0 and replica < len(run.batches)
    place = stage * run.layout.tp + index
    loaded: Loaded | None = None
    if mine and not plan.emulated_compute:
        loaded = _load(rank, plan, run, place, comms[replica])
    elif plan.emulated_compute:
        times = _timed_stages(rank, plan, run, seat)
        if mine:
            bare = _load(rank, plan, run, place, NullComm(index, run.layout.tp), meta=True)
            loaded = waiting(bare, times[stage], comms[replica], rank.device)
    # Sorted like the groups: a rank's index in its group is its place in the stage.
    ranks_of_place = [each for ranks in run.groups[replica] for each in sorted(ranks)] if mine else []
    p2p = p2p_of(rank, plan.links)
    for repeat in range(-1, plan.repeats):
        dist.barrier(group=rank.group)
        if loaded is None:
            continue
        engine = _generate(plan, loaded, run.batches[replica], p2p, ranks_of_place)
        if repeat < 0:
            continue
        first_s, last_s = (max(known[place] for known in engine.token_s) for place in (0, -1))
        moments = {"start": engine.start_s, "first": first_s, "last": last_s}
        rank.report(samples={(row, what): seconds * 1e6 for what, seconds in moments.items()})
    dist.barrier(group=rank.group)


def _load(rank: Rank, plan: "VerifyPlan", run: "LayoutRun", place: int, comm: Comm, *, meta: bool = False) -> Loaded:
    """``meta``: shapes only."""
    return load_random(
        plan.config,
        run.layout,
        place,
        comm,
        device=torch.device("meta") if meta else rank.device,
    )


def _generate(
    plan: "VerifyPlan", loaded: Loaded, batch: int, p2p: Transport, ranks_of_place: list[int]
) -> GenerationEngine:
    prompts = [[(7 * i + j) % plan.config.vocab_size for j in range(plan.input_length)] for i in range(batch)]
    in_flight = min(loaded.layout.pp, batch, plan.micro_batches or batch)
    request = Request.of(
        prompts,
        max_new_tokens=plan.output_length,
        num_micro_batches=in_flight,
        cuda_graphs=plan.cuda_graphs,
    )
    engine = GenerationEngine(loaded, request, prompts, p2p, peers=ranks_of_place)
    engine.prepare()
    engine.run()
    return engine


def _timed_stages(rank: Rank, plan: "VerifyPlan", run: "LayoutRun", seat: tuple[int, int, int] | None) -> list[Any]:
    """What each stage takes, timed alone on the first rank that holds it while all others wait; known to all."""
    mine: StageTimes | None = None
    for stage in range(run.layout.pp):
        dist.barrier(group=rank.group)
        if seat == (0, stage, 0):
            mine = _alone(rank, plan, run, stage)
    every: list[Any] = [None] * rank.world_size
    dist.all_gather_object(every, (seat, mine), group=rank.group)
    found = {where[1]: times for where, times in every if where is not None and times is not None}
    return [found[stage] for stage in range(run.layout.pp)]


@torch.inference_mode()
def _alone(rank: Rank, plan: "VerifyPlan", run: "LayoutRun", stage: int) -> StageTimes:
    loaded = _load(rank, plan, run, stage * run.layout.tp, NullComm(0, run.layout.tp))
    module, config = loaded.stage, plan.config
    batch = -(-run.batches[0] // min(run.layout.pp, run.batches[0], plan.micro_batches or run.batches[0]))
    prompts = [[i % config.vocab_size for i in range(plan.input_length)]] * batch
    request = Request.of(prompts, max_new_tokens=_DECODE_STEPS + 2)
    sampler = Sampler(request, 0, batch, module.vocab, loaded.comm) if module.spec.last else None

    def step(x: torch.Tensor, padding: Padding, caches: Any) -> None:
        y = module(x, padding=padding, caches=caches)
        if sampler is not None:
            sampler(y)

    def input_of(length: int) -> torch.Tensor:
        if module.spec.first:
            return torch.zeros(batch, length, dtype=torch.int64, device=rank.device)
        like = next(module.parameters())
        return like.new_zeros(batch, length, config.hidden_size)

    prefills, decodes = [], []
    for _ in range(3):
        length = plan.input_length + _DECODE_STEPS + 1
        padding = Padding([plan.input_length] * batch, length, rank.device)
        caches = module.make_caches(batch, length)
        lengths = [plan.input_length] + [1] * _DECODE_STEPS
        first, _, *rest = (
            timed(partial(step, input_of(new), padding, caches), rank.device)[0] / 1e6 for new in lengths
        )
        prefills.append(first)
        decodes += rest
    return StageTimes(prefill_s=median(prefills[1:]), decode_s=median(decodes))
