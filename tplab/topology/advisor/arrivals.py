"""Percentiles of times to the first token and per token where requests come at random (Poisson), no closed loop.

``predict`` gives means. Limits are on percentiles, and how far those are from the mean depends on how requests happen
to come together: ``simulate_arrivals`` runs the engine's loop (``engine_loop``) on the *same* step times, one request
at a time. Arrivals before the queue has filled are dropped, and more arrive until the last request that counts has
ended. Replicas take turns.

In a closed loop its means are those of ``predict``, which takes a rate as the closed loop that lets as many leave. At
random arrivals they are longer where a few long prompts are the load, since how many are there at once then swings: 70B
in fp8 on four H100, 4096 tokens in and 64 out, at seven tenths of the most that can leave, 1.8 times as long per token.

Known to be wrong: what ``engine_loop`` says of itself; on a pipeline prompts follow one another as they happen to come,
where ``predict`` has all those of a benchmark do so (where prompts are most of the work, requests take up to 2.4 times
as long); a step's cache is of the workload's mean length, so that of long requests, which stay longer, is read too fast
where lengths vary.
"""

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tplab.checks import ArgumentError, check_count, check_number
from tplab.models.shards import Layout
from tplab.models.spec import ModelSpec
from tplab.pipeline.formulas import prefill_share
from tplab.shown import amount, duration
from tplab.topology.advisor.calibration import Calibration
from tplab.topology.advisor.constants import DEFAULT, Constants
from tplab.topology.advisor.engine_loop import EngineLoop, Floats, Requests, run_loop, tabulated
from tplab.topology.advisor.latency import Server
from tplab.topology.advisor.memory import LayoutMemory
from tplab.topology.advisor.prediction import Prediction, predict
from tplab.topology.advisor.steps import total
from tplab.topology.advisor.workload import Workload
from tplab.topology.machine.machine import Machine

MOST_REQUESTS = 200_000
"""Most requests that one run counts."""
PERCENTILES = (50, 90, 99)
_TIMES = {"ttft_ms": "first token", "tpot_ms": "each further token", "e2e_ms": "whole request"}
_DEVIATIONS = 4.0
"""A queue grows without end where it is longer at the end than before by so many standard deviations of one that only
just keeps up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Arrivals:
    """What happened to each request."""

    workload: Workload
    prediction: Prediction
    """The same layout under the same load, in the mean: ``predict``'s."""
    frame: pd.DataFrame
    """A row per request, in the order of arrival: ``replica``, ``arrival_s``, ``input_tokens``, ``output_tokens``,
    ``queue_ms`` (until it is admitted), ``ttft_ms``, ``tpot_ms`` (NaN with one token out), ``e2e_ms``."""
    reason: str | None
    """Why the times only say how long was looked: the queue grows without end. None if it does not."""

    @property
    def percentiles(self) -> pd.DataFrame:
        """A row for each of ``ttft_ms``, ``tpot_ms`` and ``e2e_ms``: ``mean``, ``p50``, ``p90``, ``p99``."""
        times = self.frame[[*_TIMES]]
        columns = {"mean": times.mean()} | {f"p{of}": times.quantile(of / 100) for of in PERCENTILES}
        return pd.DataFrame(columns)

    def __str__(self) -> str:
        rate = amount(self.workload.request_rate or 0)
        lines = [f"{len(self.frame):,} requests that arrive at random, {rate} per second:"]
        for word, row in zip(_TIMES.values(), self.percentiles.to_numpy().tolist(), strict=True):
            if np.isfinite(row).all():
                mean, *tops = map(duration, row)
                said = [f"{of} % within {top}" for of, top in zip(PERCENTILES, tops, strict=True)]
                lines.append(f"{word} {', '.join(said)} (mean {mean})")
        return "\n".join([*lines, *([f"{self.reason}."] if self.reason else [])])


def simulate_arrivals(
    model: ModelSpec,
    machine: Machine,
    workload: Workload,
    tp: int,
    pp: int,
    *,
    replicas: int = 1,
    num_requests: int = 2000,
    variation: float = 0.0,
    seed: int = 0,
    calibration: Calibration | None = None,
    constants: Constants = DEFAULT,
) -> Arrivals:
    """Requests that arrive at random at ``workload.request_rate``, served by one layout, replicas in turn.

    Args:
        model, machine, workload: what is run, where, and what is asked of it: a ``request_rate``.
        tp, pp, replicas: t, p, and copies side by side.
        num_requests: how many count, over all replicas.
        variation: standard deviation over mean of the lengths of prompts and of outputs, each log-normal around the
            workload's; 0: all alike.
        seed: of arrivals and lengths.
        calibration, constants: as in ``predict``.

    Raises:
        ValueError: what ``predict`` refuses, a workload without a request rate, or a layout that does not fit.
    """
    check_count("num_requests", num_requests, least=1, most=MOST_REQUESTS)
    check_number("variation", variation, least=0, most=10)
    check_count("seed", seed)
    if workload.request_rate is None:
        raise ArgumentError("request_rate", None, "must be given: requests per second that arrive at random")
    made = predict(model, machine, workload, tp, pp, replicas=replicas, calibration=calibration, constants=constants)
    if not made.fits:
        raise ValueError(f"TP {tp} × PP {pp} of {model.name} on {machine.name}: {made.reason}")
    memory = LayoutMemory.of(model, machine.gpu, workload, Layout.of(model, tp, pp, replicas))
    server = Server.of(machine, [memory], calibration=calibration, constants=constants)
    loop = engine_loop(server, made.admitted)

    # Before those that count, until the queue is as long as it gets; after them, until the last has ended.
    aside = min(num_requests, int(max(num_requests / 10, 3 * made.concurrency * replicas)))
    random, count = np.random.default_rng(seed), num_requests + 2 * aside
    requests = Requests(
        arrival_us=np.cumsum(random.exponential(1e6 / workload.request_rate, count)),
        input_tokens=_lengths(random, workload.input_length, variation, count),
        output_tokens=_lengths(random, workload.output_length, variation, count),
    )
    runs = [_served(loop, requests, replica, replicas) for replica in range(min(replicas, count))]
    reasons = [made.reason, *map(_growth, runs)]
    frame = pd.concat(runs).sort_index().iloc[aside : aside + num_requests].reset_index(drop=True)
    return Arrivals(
        workload=workload, prediction=made, frame=frame, reason=next((reason for reason in reasons if reason), None)
    )


def engine_loop(server: Server, admitted: int | None = None) -> EngineLoop:
    """The loop of one replica of a server of one layout, on its step times.

    Args:
        admitted: requests that keep the limit on the time per token; None: not limited.
    """
    w, (capacity,) = server.workload, server.layouts.capacity_tokens
    most = min(float(server.max_num_seqs[0]), admitted or math.inf)
    batches = float(server.in_flight(np.array([most]), math.inf)[0])
    ends = {"largest_batch": min(most, capacity), "most_tokens": batches * server.budget}
    return EngineLoop(
        step=tabulated(partial(_shared, server), **ends),
        prefill=tabulated(partial(_alone, server), **ends),
        policy=server.policy,
        token_budget=server.budget,
        micro_batches=batches,
        tokens_per_sequence=server.tokens_per_sequence,
        largest_batch=most,
        capacity_tokens=capacity - (w.input_length - server.prompt_tokens),  # what is cached is kept once
        reserves=server.engine.reserves,
        cached_prefix=w.cached_prefix,
        tokens_per_step=server.accepted,
    )


def _shared(server: Server, decoding: Floats, prompt: Floats, waiting: int) -> tuple[Floats, Floats]:
    """``StepTimes`` of a round in which requests decode and prompts are computed in the same steps.

    Through a pipeline the prompts' own trip may take longer than the round: their tokens come that much later."""
    prompts, seen = prompt / server.prompt_tokens, np.maximum(decoding, 1.0)
    asked, passes = seen + prompts + waiting, np.full_like(seen, math.inf if waiting else 1.0)
    terms, around, k = server.mean_round(seen, asked, prompts, passes)
    trip = total(server.step(seen / k, prompt / k)) + terms["drafts"]
    if server.layouts.pp[0] == 1:
        around = trip  # so many prompts, not so many on average
    alone, lag = _alone(server, decoding, prompt, waiting)
    return np.where(decoding > 0, around, alone), np.where(decoding > 0, np.maximum(trip - around, 0.0), lag)


def _alone(server: Server, decoding: Floats, prompt: Floats, waiting: int) -> tuple[Floats, Floats]:
    """``StepTimes`` of a pass of prompts alone, for which those that decode wait: where others follow, no longer than
    they are at a stage."""
    through = np.where(prompt > 0, server.prompts(prompt / server.prompt_tokens), 0.0)
    share = prefill_share(server.at_once, math.inf if waiting else 1.0)
    return share * through, (1 - share) * through


def _lengths(random: np.random.Generator, mean: int, variation: float, count: int) -> NDArray[np.int64]:
    """Whole numbers, log-normal with this mean and standard deviation over mean."""
    spread = np.log1p(variation**2)
    drawn = random.lognormal(np.log(mean) - spread / 2, np.sqrt(spread), count)
    return np.maximum(1, np.round(drawn)).astype(np.int64)


def _served(loop: EngineLoop, requests: Requests, replica: int, replicas: int) -> pd.DataFrame:
    """The requests of one replica, every ``replicas``-th; the index is their number over all."""
    mine = slice(replica, None, replicas)
    arrival, inputs, out = (
        np.asarray(each)[mine] for each in (requests.arrival_us, requests.input_tokens, requests.output_tokens)
    )
    times = run_loop(loop, Requests(arrival_us=arrival, input_tokens=inputs, output_tokens=out))
    with np.errstate(invalid="ignore"):
        tpot = np.where(out > 1, (times.last - times.first) / (out - 1), np.nan)
    return pd.DataFrame(
        {
            "replica": replica,
            "arrival_s": arrival / 1e6,
            "input_tokens": inputs,
            "output_tokens": out,
            "queue_ms": (times.start - arrival) / 1e3,
            "ttft_ms": (times.first - arrival) / 1e3,
            "tpot_ms": tpot / 1e3,
            "e2e_ms": (times.last - arrival) / 1e3,
        },
        index=np.arange(np.size(requests.arrival_us))[mine],
    )


def _growth(served: pd.DataFrame) -> str | None:
    """Says that the queue of a replica grows without end, if it does: in the last quarter it is longer than in the
    second one by more than chance would make a queue that just keeps up."""
    arrival = served["arrival_s"].to_numpy()
    started = arrival + served["queue_ms"].to_numpy() / 1e3  # ascending: first come, first served
    waiting = np.arange(len(served)) - np.searchsorted(started, arrival, side="right")
    quarter = len(served) // 4
    if not quarter:
        return None
    before, after = waiting[quarter : 2 * quarter].mean(), waiting[-quarter:].mean()
    if after - before <= _DEVIATIONS * np.sqrt(len(served) / 2):
        return None
    return f"cannot keep up: {before:,.0f} wait on a replica, later {after:,.0f}; its queue grows"
