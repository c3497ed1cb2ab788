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

A pipeline that decodes goes in *rounds*, in which every running sequence gets one token (``pipeline.formulas``): the
batch is cut into k micro-batches that follow one another over p stages, and the next token of a sequence cannot start
before its last one has come back to the first stage. Where that trip is longer than the slowest stage's work for all
k, the stages wait for each other. Not "p times the throughput": at concurrency 1 that is 144 to 645 % too much
(AIConfigurator's pull request 1459, PP 2-8), because with k = 1 the stages take turns. And weights are streamed once
per micro-batch, not once per batch.

Letters: b sequences that decode at once, p stages, k micro-batches, t TP degree, ISL and OSL tokens in and out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tplab.checks import ArgumentError
from tplab.models.spec import ModelSpec
from tplab.pipeline.formulas import decode_round, forward_makespan, micro_batches_in_flight, prefill_share
from tplab.topology.advisor.admission import LOADS_AT_ONCE, most_within
from tplab.topology.advisor.allreduce import Floats, Ints, all_reduce, hop
from tplab.topology.advisor.calibration import Calibration
from tplab.topology.advisor.constants import DEFAULT, Constants, EngineConstants
from tplab.topology.advisor.layouts import Layouts, layout_arrays
from tplab.topology.advisor.memory import LayoutMemory
from tplab.topology.advisor.roofline import Rates, rates
from tplab.topology.advisor.served import TERMS, Served, either
from tplab.topology.advisor.workload import Workload
from tplab.topology.machine.machine import Machine
from tplab.topology.machine.placement import Placement


@dataclass(frozen=True, kw_only=True)
class Server:
    """Everything but the load: one model, machine, engine."""

    model: ModelSpec
    workload: Workload
    layouts: Layouts
    rates: Rates
    engine: EngineConstants
    constants: Constants
    calibration: Calibration | None = None

    @classmethod
    def of(
        cls,
        machine: Machine,
        memories: Sequence[LayoutMemory],
        *,
        calibration: Calibration | None,
        constants: Constants = DEFAULT,
        placements: "Sequence[Placement | None] | None" = None,
        layouts: Layouts | None = None,
    ) -> "Server":
        """The server that runs these layouts on a machine.

        Args:
            machine: where the layouts run.
            memories: the layouts of one model under one workload, with what their ranks hold.
            calibration: of this machine; what of it holds for the engine is used.
            constants: of the latency model.
            placements: the layouts' GPUs, see ``layout_arrays``.
            layouts: the layouts as arrays, where they are made already.

        Raises:
            ValueError: an engine that is not known.
        """
        model, workload = memories[0].spec, memories[0].workload
        engine = engine_constants(workload.engine.name, constants)
        calibration = calibration.for_engine(workload.engine.name) if calibration else None
        if layouts is None:
            layouts = layout_arrays(machine, memories, engine, constants, placements, calibration is not None)
        groups = layouts.pp * layouts.replicas
        at_once = layouts.tp * np.minimum(groups, workload.concurrency or groups)
        return cls(
            model=model,
            workload=workload,
            layouts=layouts,
            rates=rates(model, machine.gpu, engine, constants, calibration, num_ranks=at_once),
            engine=engine,
            constants=constants,
            calibration=calibration,
        )

    def take(self, at: Ints) -> "Server":
        """The server with only the layouts at these places."""
        curves = self.rates.curve_of
        rates = replace(self.rates, curve_of=curves[at] if len(curves) == len(self.layouts) else curves)
        return replace(self, layouts=self.layouts.take(at), rates=rates)

    def asked(self) -> Served:
        """Serve the load that the workload asks for."""
        w = self.workload
        return self.serve(float(w.concurrency or 1)) if w.request_rate is None else self.at_rate(w.request_rate)

    def serve(self, requests: "Floats | float") -> Served:
        """Serve ``requests`` in flight over all replicas: a number, or an array that broadcasts against N layouts."""
        everything, w = self._serve(requests, np.inf), self.workload
        if w.tpot_limit_ms is None:
            return everything
        limit = 1e3 * w.tpot_limit_ms
        over = everything.tpot_us > limit
        if not over.any():
            return everything
        admitted = self._admitted(everything.running, over, limit)
        capped = self._serve(requests, admitted)
        if w.ttft_limit_ms is None:
            return capped
        # Keeping one limit by missing the other by more is no gain.
        waits, waits_capped = everything.ttft_us / (1e3 * w.ttft_limit_ms), capped.ttft_us / (1e3 * w.ttft_limit_ms)
        better = np.maximum(waits_capped, 1.0) <= np.maximum(waits, everything.tpot_us / limit)
        return capped if better.all() else either(better, capped, everything)

    def _admitted(self, running: Floats, over: "NDArray[np.bool_]", limit_us: float) -> Floats:
        def full_tpot_us(columns: Ints) -> Callable[[Floats], Floats]:
            server = self.take(columns)
            return lambda running: server._settled(running, True)[1]

        return most_within(full_tpot_us, running, over, limit_us)

    def _serve(self, requests: "Floats | float", admitted: "Floats | float") -> Served:
        w, lay = self.workload, self.layouts
        per_replica = np.maximum(1.0, np.asarray(requests, dtype=np.float64) / lay.replicas)
        busy = np.minimum(np.asarray(requests, dtype=np.float64), lay.replicas)  # replicas with anything to do
        held = w.context_length if self.engine.reserves else w.mean_context
        running = np.minimum(np.minimum(per_replica, np.maximum(1.0, lay.capacity_tokens / held)), admitted)
        # A backlog tops up every micro-batch.
        terms, tpot, k, ahead, under_way, decoding = self._settled(running, per_replica > running)
        prompt = self._prompt
        ttft = self._prefill_us + ahead + under_way
        total = ttft + max(w.output_length - 1, 0) * tpot
        rate = running / total  # per replica and microsecond
        queue = np.where(per_replica > running, (per_replica - running) / rate, 0.0)
        return Served(
            tpot_us=tpot,
            ttft_us=ttft + queue,
            e2e_us=total + queue,
            queue_us=queue,
            prefill_us=self._prefill_us * np.ones_like(tpot),
            requests_per_s=rate * busy * 1e6,
            running=running,
            admitted=admitted * np.ones_like(running),
            decoding=decoding,
            micro_batches=k,
            terms={name: np.broadcast_to(time, tpot.shape) for name, time in terms.items()},
            ttft_terms={"queue": queue, "prompts ahead": ahead, "step under way": under_way, **prompt},
        )

    def _settled(
        self, running: Floats, full: "NDArray[np.bool_] | bool"
    ) -> tuple[dict[str, Floats], Floats, Floats, Floats, Floats, Floats]:
        """Terms of a token, their sum, micro-batches, the wait for prompts ahead and for the step under way, and how
        many of ``running`` requests decode.

        How many decode depends on how long they prefill, and the other way round. Starting from all that run, both are
        computed in turns: four times, whether or not that has settled, and the number that decode is the one after the
        last turn, so a little ahead of the times.
        """
        w, prefill = self.workload, self._prefill_us
        decoding, steps = running, max(w.output_length - 1, 0)
        for _ in range(4):
            terms, k = self.token(decoding, full)
            tpot = sum(terms.values(), np.zeros(1))
            ahead = prefill / k * self.constants.first_wave * (running - 1) / 2  # when all arrive at once
            under_way = 0.5 * (tpot - terms["prefill"])
            decode = steps * tpot
            # No faster than prompts go through: the others wait their turn.
            least = running * np.maximum(prefill / k, self._least_per_prompt(tpot, k))
            ahead = np.maximum(ahead, least - decode - prefill - under_way)
            ttft = prefill + ahead + under_way
            decoding = np.maximum(1.0, running * decode / (decode + ttft)) if steps else np.ones_like(ttft)
        return terms, tpot, k, ahead, under_way, decoding

    def at_rate(self, requests_per_s: float, loads: int = 48, most: float = 65536.0) -> Served:
        """Serve so many requests arriving per second: the load at which as many leave, by Little's law.

        Tried at ``loads`` concurrencies and interpolated. Where the layout can serve fewer at most, queues grow without
        end and what is given is at ``most`` requests in flight.
        """
        grid = np.geomspace(1.0, most, loads)[:, None] * np.ones(len(self.layouts))
        cap, rate = np.full_like(grid[0], np.inf), np.full_like(grid, np.inf)
        if self.workload.tpot_limit_ms is not None:  # of a full server, for all loads alike: it costs as much as one
            full, limit = self._serve(grid[-1], np.inf), 1e3 * self.workload.tpot_limit_ms
            over = full.tpot_us > limit
            cap = self._admitted(full.running, over, limit) if over.any() else cap
        open_ = np.arange(len(self.layouts))
        for start in range(0, loads, LOADS_AT_ONCE):  # up, until as many leave of every layout
            part = slice(start, start + LOADS_AT_ONCE)
            rate[part, open_] = self.take(open_)._serve(grid[part, open_], cap[open_]).requests_per_s
            open_ = open_[rate[: start + LOADS_AT_ONCE, open_].max(axis=0) <= requests_per_s]
        rate = np.maximum.accumulate(rate, axis=0)
        x, y, wanted = np.log(rate), np.log(grid), np.log(requests_per_s)
        j = np.clip((x <= wanted).sum(axis=0) - 1, 0, loads - 2)
        (x0, x1), (y0, y1) = (np.take_along_axis(each, np.stack([j, j + 1]), axis=0) for each in (x, y))
        slope = np.divide(y1 - y0, x1 - x0, out=np.zeros_like(x0), where=x1 > x0)
        at = np.select([wanted <= x[0], wanted >= x[-1]], [y[0], y[-1]], slope * (wanted - x0) + y0)
        # Below one request, those that arrive find nobody there: as with one. What leaves is what arrives, if it can.
        leaving = np.minimum(requests_per_s, rate[-1])
        return replace(self.serve(np.exp(at)), requests_per_s=leaving, most_per_s=rate[-1])

    def token(self, decoding: Floats, full: "NDArray[np.bool_] | bool" = True) -> tuple[dict[str, Floats], Floats]:
        """Terms of one token with so many sequences decoding, and the micro-batches they are cut into."""
        w, lay, r, L = self.workload, self.layouts, self.rates, self.model.num_layers
        k = self._in_flight(decoding, full)
        b = decoding / k
        block = {
            "weights": r.block_us(b, lay.tp),
            "kv_cache": b * self._cache_us,
            "activations": r.activations_us(b, lay.tp),
            "kernels": np.asarray(r.startup_us),
            "all_reduce": self._reduce_us(b),
        }
        per_block = sum(block.values(), np.zeros(1))
        launch = np.zeros(1) if w.engine.cuda_graphs else np.maximum(0.0, r.host_us - per_block)
        head, host = r.head_us(b, lay.tp), self._host(b)
        hops = np.where(lay.pp > 1, lay.pp * self._hop_us(b), 0.0)
        most, last = np.ceil(L / lay.pp), np.floor(L / lay.pp)
        each = per_block + launch
        all_stages = L * each + head + host
        sampling = host if self.engine.samples_in_turn else 0.0
        slowest = np.maximum(most * each, last * each + head + sampling)
        round_time = decode_round(all_stages + hops, np.maximum(slowest, host), k)
        terms = {name: L * time for name, time in block.items()}
        terms |= {"launch": L * launch, "lm_head": head, "host": host, "hops": hops}
        terms["prefill"] = self._interference(decoding, b, k, terms)
        terms["bubble"] = round_time - all_stages - hops
        return {name: terms[name] for name in TERMS}, k

    def _in_flight(self, decoding: Floats, full: "NDArray[np.bool_] | bool" = True) -> Floats:
        """Micro-batches over the stages."""
        pp = self.layouts.pp
        fill = self.workload.engine.pp_micro_batches or np.where(full, pp, self.engine.pp_fill * pp)
        return micro_batches_in_flight(pp, decoding, fill)

    @cached_property
    def _cache_us(self) -> Floats:
        """Reading the cache of one sequence in one block."""
        model, context = self.model, self.model.kept_tokens(self.workload.mean_context)
        return 2 * model.head_dim * model.kv_itemsize * context * self.layouts.kv_heads * self.rates.kv_byte_us

    @cached_property
    def _reduce_us(self) -> Callable[[Floats], Floats]:
        """A block's all-reduces, as a function of the tokens."""
        model, engine = self.model, self.workload.engine
        time = all_reduce(
            self.layouts.groups,
            kernel=engine.all_reduce,
            graph=engine.cuda_graphs,
            custom=self.engine.all_reduce,
            constants=self.constants,
            calibration=self.calibration,
        )
        return lambda tokens: (
            model.all_reduces_per_block * time(tokens * (model.hidden_size * model.activation_itemsize))
        )

    @cached_property
    def _hop_us(self) -> Callable[[Floats], Floats]:
        """Hidden states to the next stage (tokens back to the first are small, and not cheaper), by the tokens."""
        lay = self.layouts
        wire = hop(
            lay.hop_family,
            lay.hop_GBps,
            lay.hop_latency_us,
            constants=self.constants,
            calibration=self.calibration,
            pairs=lay.hop_pairs,
            width=lay.groups.width,
        )
        each = self.engine.hop_tensors * self.model.hidden_size * self.model.activation_itemsize
        return lambda tokens: wire(each * tokens) + self.rates.handoff_us

    def _host(self, b: Floats) -> Floats:
        return self.rates.step_us + self.engine.sequence_us * b

    def _pass(self, tokens: Floats, prompt: Floats) -> dict[str, Floats]:
        """All blocks on ``tokens`` tokens, ``prompt`` of them of prompts; by term."""
        lay, r, L = self.layouts, self.rates, self.model.num_layers
        context = np.asarray(self.model.kept_tokens(self.workload.input_length / 2), dtype=np.float64)
        return {
            "weights": L * r.block_us(tokens, lay.tp),
            "attention": L * r.prompt_attention_us(prompt, context, lay.tp),
            "activations": L * r.activations_us(tokens, lay.tp),
            "all_reduce": L * self._reduce_us(tokens),
        }

    def _chunk(self) -> float:
        w = self.workload
        return float(w.engine.chunked_prefill or max(w.input_length, 1))

    def _least_per_prompt(self, tpot: Floats, k: Floats) -> Floats:
        """With chunks, a micro-batch's step takes one of them at most."""
        if self.workload.engine.chunked_prefill is None or self.workload.output_length == 1:
            return np.zeros(1)
        return tpot * self.workload.input_length / self._chunk() / k

    def _interference(self, decoding: Floats, b: Floats, k: Floats, decode: dict[str, Floats]) -> Floats:
        """Prompts of others, per token; ``decode``: what the step takes without them, by term."""
        w = self.workload
        prompts = np.maximum(decoding - 1, 0.0) / w.output_length * (1 - self.constants.first_wave / 2)  # per round
        chunk = np.minimum(np.maximum(prompts, 1.0) * w.input_length, self._chunk())
        chunks = prompts * w.input_length / chunk
        if w.engine.chunked_prefill is None:  # a step of its own: weights are streamed and kernels started once more
            mixed = sum(self._pass(chunk, chunk).values(), np.zeros(1))
            mixed = mixed + self.model.num_layers * self.rates.startup_us
        else:  # one GEMM over both, so it costs what it adds to the step
            chunks = np.minimum(chunks, k)
            mixed = sum(self._pass(chunk + b, chunk).values(), np.zeros(1))
            mixed = mixed - decode["weights"] - decode["activations"] - decode["all_reduce"]
        share = prefill_share(self.layouts.pp, k, chunks)
        return np.asarray(chunks * mixed * share, dtype=np.float64)

    @cached_property
    def _prompt(self) -> dict[str, Floats]:
        """One prompt on an idle machine, until its first token; by term."""
        w = self.workload
        size = min(float(w.input_length), self._chunk())
        chunks = np.full(len(self.layouts), np.ceil(w.input_length / size))
        return self._prefill(w.input_length / chunks, chunks, np.ones(1))

    @cached_property
    def _prefill_us(self) -> Floats:
        """``_prompt``, all terms."""
        return np.asarray(sum(self._prompt.values(), np.zeros(1)), dtype=np.float64)

    def _prefill(self, tokens: Floats, chunks: Floats, sampled: Floats) -> dict[str, Floats]:
        """``chunks`` passes of ``tokens`` prompt tokens that follow each other over the stages, the later ones looking
        back at no more than the first: known to be too fast for many."""
        lay, r = self.layouts, self.rates
        startup = self.model.num_layers * max(r.startup_us, 0.0 if self.workload.engine.cuda_graphs else r.host_us)
        one = self._pass(tokens, tokens)
        one |= {"kernels": startup * np.ones(len(lay)), "lm_head": r.head_us(sampled, lay.tp)}
        made = {name: forward_makespan(time, time / lay.pp, chunks) for name, time in one.items()}
        made["hops"] = np.where(lay.pp > 1, (lay.pp - 1) * self._hop_us(tokens), 0.0)
        made["host"] = self._host(sampled) * np.ones(len(lay))
        return made

    def generate_us(self, batch: "Floats | float") -> Floats:
        """One static batch, as a call of ``generate``: all prompts, then all tokens in step, nobody else in between."""
        step = without_prompts(self.token(np.ones(len(self.layouts)) * batch)[0])
        return np.asarray(self.prompts_us(batch) + (self.workload.output_length - 1) * step, dtype=np.float64)

    def prompts_us(self, batch: "Floats | float") -> Floats:
        """The prompts of a static batch, until all have their first token."""
        return np.asarray(sum(self.prompts_terms_us(batch).values(), np.zeros(1)), dtype=np.float64)

    def prompts_terms_us(self, batch: "Floats | float") -> dict[str, Floats]:
        """The same by term, names of ``served.TTFT_TERMS``."""
        size = np.ones(len(self.layouts)) * batch
        k = self._in_flight(size)
        return self._prefill(size * self.workload.input_length / k, k, size / k)


def without_prompts(terms: "dict[str, Floats]") -> Floats:
    """Time per token of a batch that is decoded in step, nobody's prompt in between: all terms but that one."""
    return np.asarray(sum((time for name, time in terms.items() if name != "prefill"), np.zeros(1)), dtype=np.float64)


def engine_constants(name: str, constants: Constants = DEFAULT) -> EngineConstants:
    """Constants of engine ``name``. Raises ``ValueError`` for a name that is not known."""
    if name not in constants.engines:
        known = ", ".join(sorted(constants.engines.keys() - {"generic"}))
        raise ArgumentError("engine", name, f"must be one of {known}, or generic for any other")
    return constants.engines[name]
