"""Time per token, time to the first one and throughput of many layouts at once, with the terms they are made of. Pure.

Every layout is a column: all arithmetic is on arrays of N layouts, so that all layouts of 64 GPUs take milliseconds.
What a token costs is a sum of named terms (``TERMS``); nothing is left over and nothing is scaled afterwards.

Serving is a closed loop: C requests are in flight, each waits for its first token (queue and prefill), then decodes.
How many run at once is bounded by the cache and by the engine's largest batch: the rest queues. What those that run do
to each other is ``closed_loop``'s, what a step takes ``steps``'s. Where the workload limits the time per token, no more
are admitted at once than keep it, as one would set an engine; the others queue.

Known to be wrong: preemption (an engine that admitted too many throws requests out and starts them again: 15 % where
the cache overflows by a quarter); requests of different lengths, which are taken at their mean.

Letters: C requests in flight, R of them run.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tplab.topology.advisor.admission import LOADS_AT_ONCE, most_within
from tplab.topology.advisor.allreduce import Floats, Ints
from tplab.topology.advisor.closed_loop import settle
from tplab.topology.advisor.served import TERMS, TTFT_TERMS, Served, either
from tplab.topology.advisor.steps import Steps, total


@dataclass(frozen=True, kw_only=True)
class Server(Steps):
    """A server under load: everything but the load itself."""

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
            return lambda running: total(settle(server, running, np.inf, server._in_step).token)

        return most_within(full_tpot_us, running, over, limit_us)

    @property
    def _in_step(self) -> bool:
        return self.workload.request_rate is None

    def _serve(self, requests: "Floats | float", admitted: "Floats | float") -> Served:
        w, lay = self.workload, self.layouts
        per_replica = np.maximum(1.0, np.asarray(requests, dtype=np.float64) / lay.replicas)
        busy = np.minimum(np.asarray(requests, dtype=np.float64), lay.replicas)  # replicas with anything to do
        room = np.maximum(1.0, np.minimum(self.room, np.minimum(self.max_num_seqs, self.most_in_budget)))
        running = np.minimum(np.minimum(per_replica, room), admitted)
        # Where admission is limited, there is a queue that tops up every micro-batch.
        settled = settle(self, running, np.where(np.isfinite(admitted), np.inf, per_replica), self._in_step)
        tpot, ttft = total(settled.token), total(settled.first)
        whole = ttft + max(w.output_length - 1, 0) * tpot
        queue = np.where(per_replica > running, (per_replica - running) / settled.requests_per_us, 0.0)
        first = {"queue": queue, **settled.first}
        return Served(
            tpot_us=tpot,
            ttft_us=ttft + queue,
            e2e_us=whole + queue,
            queue_us=queue,
            prefill_us=total(self.own_prompt) * np.ones_like(tpot),
            requests_per_s=settled.requests_per_us * busy * 1e6,
            running=running,
            admitted=admitted * np.ones_like(running),
            decoding=settled.requests_per_us * (whole - ttft),
            micro_batches=settled.micro_batches,
            terms={name: np.broadcast_to(settled.token[name], tpot.shape) for name in TERMS},
            ttft_terms={name: np.broadcast_to(first[name], tpot.shape) for name in TTFT_TERMS},
        )

    @property
    def most_in_budget(self) -> Floats:
        """Requests per replica that can decode in one round within the budget of tokens of all its micro-batches."""
        return self.layouts.pp * self.budget / self.tokens_per_sequence

    @property
    def room(self) -> Floats:
        """Requests per replica that the cache has room for; what all prompts begin with is kept once."""
        w = self.workload
        held = w.context_length if self.engine.reserves else w.mean_context
        common = w.input_length - self.prompt_tokens
        return (self.layouts.capacity_tokens - common) / (held - common)

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

    # --- without others -----------------------------------------------------------------------------------------------

    def token(self, batch: "Floats | float") -> tuple[dict[str, Floats], Floats]:
        """Terms of one token of a static batch, and the micro-batches that it is cut into."""
        size = np.ones(len(self.layouts)) * batch
        k = self.in_flight(size, np.inf)
        return {"prefill": np.zeros(1), **self.decode(size, k)[0]}, k

    def generate_us(self, batch: "Floats | float") -> Floats:
        """One static batch, as a call of ``generate``: all prompts, then all tokens in step, nobody else in between."""
        step = total(self.token(batch)[0])
        return np.asarray(self.prompts_us(batch) + (self.workload.output_length - 1) * step, dtype=np.float64)

    def prompts_us(self, batch: "Floats | float") -> Floats:
        """The prompts of a static batch, until all have their first token."""
        return total(self.prompts_terms_us(batch))

    def prompts_terms_us(self, batch: "Floats | float") -> dict[str, Floats]:
        """The same by term, names of ``served.TTFT_TERMS``."""
        size = np.ones(len(self.layouts)) * batch
        return self.prompt_terms(size, self.in_flight(size, np.inf))
