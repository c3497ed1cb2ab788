"""Time per token, time to the first one and throughput of many layouts at once, with the terms they are made of. Pure.

Every layout is a column: all arithmetic is on arrays of N layouts, so that all layouts of 64 GPUs take milliseconds.
What a token costs is a sum of named terms (``TERMS``); nothing is left over and nothing is scaled afterwards.

Serving is a closed loop: C requests are in flight, each waits for its first token (queue and prefill), then decodes.
While it decodes, the prompts of others are prefilled in between; a step that carries a chunk of prompt is *one* GEMM
over prompt and decode tokens, so the prompt costs what it adds to the step. Per token of one request that is

    (running - 1)/OSL prompts · what a prompt adds to a step

which from some 32 requests on matters as much as communication does. How many run at once is bounded by the cache: the
rest queues. A request's own prefill is in its time to first token, not here: hence the -1. Where the workload limits
the time per token, no more are admitted at once than keep it, as one would set an engine; the others queue.

Known to be wrong: preemption (an engine that admitted too many throws requests out and starts them again: 15 % where
the cache overflows by a quarter); speculative decoding and prefix caches, which are not modelled at all.

Letters: b sequences that decode at once, p stages, k micro-batches, t TP degree, ISL and OSL tokens in and out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tplab.models.spec import ModelSpec
from tplab.topology.advisor import pipeline_fill
from tplab.topology.advisor.admission import most_within
from tplab.topology.advisor.allreduce import Groups, Ints, all_reduce_us, hop_us
from tplab.topology.advisor.calibration import Calibration
from tplab.topology.advisor.constants import Constants, EngineConstants
from tplab.topology.advisor.roofline import Rates
from tplab.topology.advisor.workload import Workload

Floats = NDArray[np.float64]

TERMS = (
    "weights",
    "lm_head",
    "kv_cache",
    "activations",
    "kernels",
    "all_reduce",
    "hops",
    "host",
    "launch",
    "prefill",
    "bubble",
)
"""Terms of the time per token: the blocks' matmuls, the last one, reading the cache, reading and writing activations,
starting and draining kernels, tensor-parallel communication, pipeline communication, the engine's own work, launches
without CUDA graphs, the prompts of others in between, stages waiting for the slowest one."""


TTFT_TERMS = (
    "queue",
    "prompts ahead",
    "step under way",
    "weights",
    "attention",
    "activations",
    "kernels",
    "lm_head",
    "all_reduce",
    "hops",
    "host",
)
"""Terms of the time to the first token: waiting for capacity in the cache or for admission, for prompts that came at
the same time, for the step that is running; from ``weights`` on, the request's own prompt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layouts:
    """N layouts on one machine, as arrays."""

    tp: Ints
    pp: Ints
    replicas: Ints
    groups: Groups
    """All-reduce group of the slowest stage."""
    hop_family: Ints
    """Slowest link between two stages: family, bandwidth, latency."""
    hop_GBps: Floats
    hop_latency_us: Floats
    capacity_tokens: Floats
    """Tokens that the cache of one replica holds."""
    kv_heads: Floats
    """Number of distinct key-value heads per rank."""
    hop_pairs: tuple[frozenset[tuple[int, int]], ...] = ()
    """Pairs of GPUs that send to each other in each layout; empty if all pairs are alike."""

    def __len__(self) -> int:
        return len(self.tp)

    @classmethod
    def joined(cls, parts: "Sequence[Layouts]") -> "Layouts":
        """One after the other; all on GPUs of one kind, with one network."""

        def join(parts: Sequence[Any], kind: Any) -> Any:
            values = {}
            for key in (f.name for f in fields(kind)):
                column = [getattr(part, key) for part in parts]
                if isinstance(column[0], Groups):
                    values[key] = join(column, Groups)
                elif isinstance(column[0], np.ndarray):
                    values[key] = np.concatenate(column)
                elif isinstance(column[0], tuple):
                    values[key] = sum(column, ())
                else:
                    values[key] = column[0]
            return kind(**values)

        made = join(parts, cls)
        assert isinstance(made, cls), "join makes one of the kind it is given"
        return made


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """What came out, arrays of N (or of loads x N)."""

    tpot_us: Floats
    ttft_us: Floats
    queue_us: Floats
    """Part of ``ttft_us`` spent waiting for capacity in the cache or for admission."""
    prefill_us: Floats
    """Part of ``ttft_us`` spent on the request's own prompt."""
    requests_per_s: Floats
    """Requests per second over all replicas."""
    running: Floats
    """Requests per replica that are admitted and that the cache has capacity for."""
    admitted: Floats
    """How many of them may run at once, so that the limit on the time per token is kept; inf where nothing is capped:
    without a limit, where all keep it, where no number does, and where the others would wait past the limit on the
    first token for it, by more."""
    decoding: Floats
    """Mean number of running requests in the decode phase."""
    micro_batches: Floats
    terms: dict[str, Floats]
    """Name of ``TERMS`` -> us; they add up to ``tpot_us``."""
    ttft_terms: dict[str, Floats]
    """Name of ``TTFT_TERMS`` -> us; they add up to ``ttft_us``."""

    def e2e_us(self, output_length: int) -> Floats:
        """Mean time of a whole request of so many output tokens, queueing included."""
        return self.ttft_us + (output_length - 1) * self.tpot_us


@dataclass(frozen=True, kw_only=True, slots=True)
class Server:
    """Everything but the load: one model, machine, engine."""

    model: ModelSpec
    workload: Workload
    layouts: Layouts
    rates: Rates
    engine: EngineConstants
    constants: Constants
    calibration: Calibration | None = None

    def serve(self, requests: "Floats | float") -> Served:
        """Serve ``requests`` in flight over all replicas: a number, or an array that broadcasts against N layouts."""
        everything, w = self._serve(requests, np.inf), self.workload
        if w.tpot_limit_ms is None:
            return everything
        limit = 1e3 * w.tpot_limit_ms
        over = everything.tpot_us > limit
        if not over.any():
            return everything
        admitted = np.where(over, self._admitted(requests, everything.running, limit), np.inf)
        capped = self._serve(requests, admitted)
        if w.ttft_limit_ms is None:
            return capped
        # Keeping one limit by missing the other by more is no gain.
        waits, waits_capped = everything.ttft_us / (1e3 * w.ttft_limit_ms), capped.ttft_us / (1e3 * w.ttft_limit_ms)
        better = np.maximum(waits_capped, 1.0) <= np.maximum(waits, everything.tpot_us / limit)
        return capped if better.all() else self._serve(requests, np.where(better, admitted, np.inf))

    def _admitted(self, requests: "Floats | float", running: Floats, limit_us: float) -> Floats:
        return most_within(lambda admitted: self._serve(requests, admitted).tpot_us, running, limit_us)

    def _serve(self, requests: "Floats | float", admitted: "Floats | float") -> Served:
        w, lay = self.workload, self.layouts
        per_replica = np.maximum(1.0, np.asarray(requests, dtype=np.float64) / lay.replicas)
        busy = np.minimum(np.asarray(requests, dtype=np.float64), lay.replicas)  # replicas with anything to do
        held = w.context_length if self.engine.reserves else w.mean_context
        running = np.minimum(np.minimum(per_replica, np.maximum(1.0, lay.capacity_tokens / held)), admitted)
        decoding, steps = running, max(w.output_length - 1, 0)
        full = per_replica > running  # a backlog tops up every micro-batch
        for _ in range(4):  # how many decode depends on how long they prefill, and the other way round
            terms, k = self._token(decoding, full)
            tpot = sum(terms.values(), np.zeros(1))
            prompt = self._prompt()
            prefill = sum(prompt.values(), np.zeros(1))
            ahead = prefill / k * self.constants.first_wave * (running - 1) / 2  # when all arrive at once
            under_way = 0.5 * (tpot - terms["prefill"])
            decode = steps * tpot
            # No faster than prompts go through: the others wait their turn.
            least = running * np.maximum(prefill / k, self._least_per_prompt(tpot, k))
            ahead = np.maximum(ahead, least - decode - prefill - under_way)
            ttft = prefill + ahead + under_way
            decoding = np.maximum(1.0, running * decode / (decode + ttft)) if steps else np.ones_like(ttft)
        total = ttft + decode
        rate = running / total  # per replica and microsecond
        queue = np.where(per_replica > running, (per_replica - running) / rate, 0.0)
        return Served(
            tpot_us=tpot,
            ttft_us=ttft + queue,
            queue_us=queue,
            prefill_us=prefill * np.ones_like(tpot),
            requests_per_s=rate * busy * 1e6,
            running=running,
            admitted=admitted * np.ones_like(running),
            decoding=decoding,
            micro_batches=k,
            terms=terms,
            ttft_terms={"queue": queue, "prompts ahead": ahead, "step under way": under_way, **prompt},
        )

    def at_rate(self, requests_per_s: float, loads: int = 48, most: float = 65536.0) -> tuple[Served, Floats]:
        """Serve so many requests arriving per second: the load at which as many leave, by Little's law.

        Tried at ``loads`` concurrencies and interpolated. The second value is what the layout can serve at most: where
        it is below the rate, queues grow without end and what is given is at ``most`` requests in flight.
        """
        grid = np.geomspace(1.0, most, loads)[:, None] * np.ones(len(self.layouts))
        cap: Floats | float = np.inf
        if self.workload.tpot_limit_ms is not None:  # of a full server, for all loads alike: it costs as much as one
            full = self._serve(grid[-1], np.inf)
            cap = self._admitted(grid[-1], full.running, 1e3 * self.workload.tpot_limit_ms)
        rate = np.maximum.accumulate(self._serve(grid, cap).requests_per_s, axis=0)
        at = np.array(
            [np.interp(np.log(requests_per_s), np.log(r), np.log(g)) for r, g in zip(rate.T, grid.T, strict=True)]
        )
        # Below one request, those that arrive find nobody there: as with one. What leaves is what arrives, if it can.
        served = replace(self.serve(np.exp(at)), requests_per_s=np.minimum(requests_per_s, rate[-1]))
        return served, rate[-1]

    def _token(self, decoding: Floats, full: "NDArray[np.bool_] | bool" = True) -> tuple[dict[str, Floats], Floats]:
        """Terms of one token with so many sequences decoding, and the micro-batches they are cut into."""
        model, w, lay, r = self.model, self.workload, self.layouts, self.rates
        k = self._in_flight(decoding, full)
        b = decoding / k
        L, p = model.num_layers, lay.pp
        block = self._block(b)
        per_block = sum(block.values(), np.zeros(1))
        launch = 0.0 if w.engine.cuda_graphs else np.maximum(0.0, r.host_us - per_block)
        head = r.head_us(b, lay.tp)
        host = self._host(b)
        hops = np.where(p > 1, p * self._hop(b), 0.0)
        most, last = np.ceil(L / p), np.floor(L / p)
        all_stages = L * (per_block + launch) + head + host
        sampling = host if self.engine.samples_in_turn else 0.0
        slowest = np.maximum(most * (per_block + launch), last * (per_block + launch) + head + sampling)
        round_time = pipeline_fill.round_us(all_stages, slowest, hops, k, host)
        terms = {name: L * time for name, time in block.items()}
        terms["launch"] = L * launch * np.ones_like(b)
        terms["lm_head"] = head
        terms["host"] = host
        terms["hops"] = hops * np.ones_like(b)
        terms["prefill"] = self._interference(decoding, b, k)
        terms["bubble"] = round_time - all_stages - hops
        return {name: terms[name] for name in TERMS}, k

    def _in_flight(self, decoding: Floats, full: "NDArray[np.bool_] | bool" = True) -> Floats:
        """Micro-batches over the stages."""
        pp = self.layouts.pp
        fill = self.workload.engine.pp_micro_batches or np.where(full, pp, self.engine.pp_fill * pp)
        return pipeline_fill.micro_batches(pp, decoding, fill)

    def _block(self, b: Floats) -> dict[str, Floats]:
        """A block's decode step, by term."""
        model, lay, r = self.model, self.layouts, self.rates
        context = model.kept_tokens(self.workload.mean_context)
        cached = 2 * model.head_dim * model.kv_itemsize * context * lay.kv_heads
        return {
            "weights": r.block_us(b, lay.tp),
            "kv_cache": b * cached * r.kv_byte_us,
            "activations": r.activations_us(b, lay.tp),
            "kernels": r.startup_us * np.ones_like(b),
            "all_reduce": self._reduce(b),
        }

    def _reduce(self, tokens: Floats) -> Floats:
        """A block's all-reduces on so many tokens."""
        model, engine = self.model, self.workload.engine
        time = all_reduce_us(
            tokens * model.hidden_size * model.activation_itemsize,
            self.layouts.groups,
            kernel=engine.all_reduce,
            graph=engine.cuda_graphs,
            custom=self.engine.all_reduce,
            constants=self.constants,
            calibration=self.calibration,
        )
        return model.all_reduces_per_block * time

    def _hop(self, tokens: Floats) -> Floats:
        """Hidden states to the next stage (tokens back to the first are small, and not cheaper)."""
        lay, c = self.layouts, self.calibration
        wire = hop_us(
            self.engine.hop_tensors * tokens * self.model.hidden_size * self.model.activation_itemsize,
            lay.hop_family,
            lay.hop_GBps,
            lay.hop_latency_us,
            constants=self.constants,
            calibration=c,
            pairs=lay.hop_pairs,
            width=lay.groups.width,
        )
        handoff = c.handoff_us if c and c.handoff_us is not None else self.engine.handoff_us
        return np.asarray(wire + handoff, dtype=np.float64)

    def _host(self, b: Floats) -> Floats:
        c = self.calibration
        step = c.step_overhead_us if c and c.step_overhead_us is not None else self.engine.step_us
        return step + self.engine.sequence_us * b

    def _pass(self, tokens: Floats, prompt: Floats, context: Floats) -> dict[str, Floats]:
        """All blocks on ``tokens`` tokens, ``prompt`` of them of prompts that look at ``context`` tokens; by term."""
        lay, r, L = self.layouts, self.rates, self.model.num_layers
        return {
            "weights": L * r.block_us(tokens, lay.tp),
            "attention": L * r.prompt_attention_us(prompt, context, lay.tp),
            "activations": L * r.activations_us(tokens, lay.tp),
            "all_reduce": L * self._reduce(tokens),
        }

    def _chunk(self) -> float:
        w = self.workload
        return float(w.engine.chunked_prefill or max(w.input_length, 1))

    def _least_per_prompt(self, tpot: Floats, k: Floats) -> Floats:
        """With chunks, a micro-batch's step takes one of them at most."""
        if self.workload.engine.chunked_prefill is None or self.workload.output_length == 1:
            return np.zeros(1)
        return tpot * self.workload.input_length / self._chunk() / k

    def _interference(self, decoding: Floats, b: Floats, k: Floats) -> Floats:
        """Prompts of others, per token."""
        w, lay = self.workload, self.layouts
        prompts = np.maximum(decoding - 1, 0.0) / w.output_length * (1 - self.constants.first_wave / 2)  # per round
        chunk = np.minimum(np.maximum(prompts, 1.0) * w.input_length, self._chunk())
        chunks = prompts * w.input_length / chunk
        if w.engine.chunked_prefill is not None:
            chunks = np.minimum(chunks, k)
        context = np.asarray(self.model.kept_tokens(w.input_length / 2), dtype=np.float64)
        nothing = np.zeros(1)
        if w.engine.chunked_prefill is None:  # a step of its own: weights are streamed and kernels started once more
            mixed = sum(self._pass(chunk, chunk, context).values(), nothing)
            mixed = mixed + self.model.num_layers * self.rates.startup_us
        else:  # one GEMM over both, so it costs what it adds to the step
            mixed = sum(self._pass(chunk + b, chunk, context).values(), nothing)
            mixed = mixed - sum(self._pass(b, nothing, nothing).values(), nothing)
        share = pipeline_fill.prefill_share(lay.pp, k, chunks)
        return np.asarray(chunks * mixed * share, dtype=np.float64)

    def _prompt(self) -> dict[str, Floats]:
        """One prompt on an idle machine, until its first token; by term."""
        w = self.workload
        size = min(float(w.input_length), self._chunk())
        chunks = np.full(len(self.layouts), np.ceil(w.input_length / size))
        return self._prefill(w.input_length / chunks, chunks, np.ones(1))

    def _prefill(self, tokens: Floats, chunks: Floats, sampled: Floats) -> dict[str, Floats]:
        """``chunks`` passes of ``tokens`` prompt tokens that follow each other over the stages."""
        w, lay, r = self.workload, self.layouts, self.rates
        context = np.asarray(self.model.kept_tokens(w.input_length / 2), dtype=np.float64)
        startup = self.model.num_layers * max(r.startup_us, 0.0 if w.engine.cuda_graphs else r.host_us)
        one = self._pass(tokens, tokens, context)
        one |= {"kernels": startup * np.ones(len(lay)), "lm_head": r.head_us(sampled, lay.tp)}
        made = {name: pipeline_fill.prefill_us(time * chunks, lay.pp, chunks, 0.0) for name, time in one.items()}
        made["hops"] = np.where(lay.pp > 1, (lay.pp - 1) * self._hop(tokens), 0.0)
        made["host"] = self._host(sampled) * np.ones(len(lay))
        return made

    def generate_us(self, batch: "Floats | float") -> Floats:
        """One static batch, as a call of ``generate``: all prompts, then all tokens in step, nobody else in between."""
        step = without_prompts(self._token(np.ones(len(self.layouts)) * batch)[0])
        return np.asarray(self.prompts_us(batch) + (self.workload.output_length - 1) * step, dtype=np.float64)

    def prompts_us(self, batch: "Floats | float") -> Floats:
        """The prompts of a static batch, until all have their first token."""
        size = np.ones(len(self.layouts)) * batch
        k = self._in_flight(size)
        made = self._prefill(size * self.workload.input_length / k, k, size / k)
        return np.asarray(sum(made.values(), np.zeros(1)), dtype=np.float64)


def without_prompts(terms: "dict[str, Floats]") -> Floats:
    """Time per token of a batch that is decoded in step, nobody's prompt in between: all terms but that one."""
    return np.asarray(sum((time for name, time in terms.items() if name != "prefill"), np.zeros(1)), dtype=np.float64)
