"""What one step of a serving engine takes, in many layouts at once, as a sum of named terms. Pure.

A step is one forward pass over everything that runs in it: one token of each decoding request (with speculative
decoding one more per guess), and whatever tokens of prompts the engine mixes in. It is *one* GEMM over all of them, so
a prompt costs what it adds to the step.

Decode steps are replayed from CUDA graphs if the engine has them; steps with prompts never are: no graph fits their
lengths. Those take at least the time that the host needs to launch their kernels, which is what prompts cost on many
fast GPUs. The engine's own work (scheduling, sampling, detokenising) either adds to a step or runs beside it
(``EngineConstants.overlaps``), and is then seen only where the GPU is the faster one.

A pipeline that decodes goes in *rounds*, in which every running sequence gets one token (``pipeline.formulas``): the
batch is cut into k micro-batches that follow one another over p stages, and the next token of a sequence cannot start
before its last one has come back to the first stage. Where that trip is longer than the slowest stage's work for all
k, the stages wait for each other. Not "p times the throughput": at concurrency 1 that is 144 to 645 % too much
(AIConfigurator's pull request 1459, PP 2-8), because with k = 1 the stages take turns. And weights are streamed once
per micro-batch, not once per batch.

How many micro-batches an engine keeps in flight follows from how requests come in. It puts all that is ready into the
next micro-batch, up to its budget of tokens: so a few requests all start in one and stay together, and only where there
are many do they spread over the stages (see ``in_flight``). Known to be wrong: prompts of a whole budget each spread
from the start. That is left out on purpose, since a longer prompt would then make a pipeline faster.

Letters: b sequences of a micro-batch, x prompt tokens in a step, g tokens per sequence in a step, p stages, k
micro-batches in flight, t TP degree, L layers, ISL and OSL tokens in and out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import numpy as np

from tplab.checks import ArgumentError
from tplab.models.spec import ModelSpec
from tplab.pipeline.formulas import decode_round, forward_makespan, prefill_share
from tplab.topology.advisor.allreduce import Floats, Ints, Times, all_reduce, hop
from tplab.topology.advisor.calibration import Calibration
from tplab.topology.advisor.constants import DEFAULT, Constants, EngineConstants
from tplab.topology.advisor.hardware_limits import check_engine
from tplab.topology.advisor.layouts import Layouts, layout_arrays
from tplab.topology.advisor.memory import LayoutMemory
from tplab.topology.advisor.roofline import Rates, larger, rates
from tplab.topology.advisor.workload import Workload
from tplab.topology.machine.machine import Machine
from tplab.topology.machine.placement import Placement

_Self = TypeVar("_Self", bound="Steps")


@dataclass(frozen=True, kw_only=True)
class Steps:
    """Everything but the load: one model, machine, engine, and N layouts."""

    model: ModelSpec
    workload: Workload
    layouts: Layouts
    rates: Rates
    engine: EngineConstants
    constants: Constants
    max_num_seqs: Floats
    """Most requests that a replica runs at once, by layout."""
    calibration: Calibration | None = None

    @classmethod
    def of(
        cls: type[_Self],
        machine: Machine,
        memories: Sequence[LayoutMemory],
        *,
        calibration: Calibration | None,
        constants: Constants = DEFAULT,
        placements: "Sequence[Placement | None] | None" = None,
        layouts: Layouts | None = None,
    ) -> _Self:
        """The steps of these layouts on a machine.

        Args:
            machine: where the layouts run.
            memories: the layouts of one model under one workload, with what their ranks hold.
            calibration: of this machine; what of it holds for the engine is used.
            constants: of the latency model.
            placements: the layouts' GPUs, see ``layout_arrays``.
            layouts: the layouts as arrays, where they are made already.

        Raises:
            ValueError: an engine that is not known, or that never ran on such GPUs.
        """
        model, workload = memories[0].spec, memories[0].workload
        check_engine(workload.engine.name, machine.gpu)
        engine = engine_constants(workload.engine.name, constants)
        calibration = calibration.for_engine(workload.engine.name) if calibration else None
        if layouts is None:
            layouts = layout_arrays(machine, memories, constants, placements, calibration is not None)
        groups = layouts.pp * layouts.replicas
        asked, usual = workload.engine.max_num_seqs, np.full(len(layouts), float(engine.largest_batch(machine.gpu)))
        at_once = layouts.tp * np.minimum(groups, workload.concurrency or groups)
        return cls(
            model=model,
            workload=workload,
            layouts=layouts,
            rates=rates(model, machine.gpu, engine, constants, calibration, num_ranks=at_once),
            engine=engine,
            constants=constants,
            max_num_seqs=np.full(len(layouts), float(asked)) if asked else usual * layouts.pp**engine.batch_per_stage,
            calibration=calibration,
        )

    def take(self: _Self, at: Ints) -> _Self:
        """The same with only the layouts at these places."""
        curves = self.rates.curve_of
        rates = replace(self.rates, curve_of=curves[at] if len(curves) == len(self.layouts) else curves)
        return replace(self, layouts=self.layouts.take(at), rates=rates, max_num_seqs=self.max_num_seqs[at])

    # --- the engine's policy ------------------------------------------------------------------------------------------

    @cached_property
    def policy(self) -> str:
        """One of ``workload.PREFILL_POLICIES`` but ``auto``."""
        asked = self.workload.engine.prefill_policy
        return self.engine.prefill_policy if asked == "auto" else asked

    @cached_property
    def prompt_tokens(self) -> float:
        """Tokens of a prompt that are computed: those that are not in the cache already, one at least."""
        w = self.workload
        return max(1.0, w.input_length * (1.0 - w.cached_prefix))

    @cached_property
    def budget(self) -> float:
        """Most tokens in a step. Prompts that are not cut run whole, however long they are."""
        chunk = self.workload.engine.chunked_prefill
        return float(chunk) if chunk else max(self.prompt_tokens, float(self.engine.max_num_tokens))

    @cached_property
    def tokens_per_sequence(self) -> float:
        """g: tokens of a sequence that a decode step computes."""
        return 1.0 + self.workload.engine.speculative_tokens

    @cached_property
    def accepted(self) -> float:
        """Mean tokens that a sequence gains in a step: the guesses up to the first wrong one, and the model's own."""
        e = self.workload.engine
        return float(sum(e.acceptance**i for i in range(e.speculative_tokens + 1)))

    @cached_property
    def decode_steps(self) -> float:
        """Steps of a request after its first token."""
        return (self.workload.output_length - 1) / self.accepted

    @cached_property
    def at_once(self) -> Floats:
        """Most micro-batches that the engine lets follow one another."""
        given = self.workload.engine.pp_micro_batches
        return self.layouts.pp if given is None else np.minimum(self.layouts.pp, given)

    def in_flight(self, decoding: Floats, asked: "Floats | float") -> Floats:
        """k, a mean: ``1 + (min(p, decoding) - 1)·(1 - e^-z)`` with ``z = asked/(p·pp_gather)``.

        Args:
            decoding: requests that decode.
            asked: requests in flight on the replica, those that wait included: a backlog tops up every micro-batch.
        """
        most = np.maximum(1.0, np.minimum(self.at_once, decoding))
        if self.engine.pp_gather and self.workload.engine.pp_micro_batches is None:
            z = np.asarray(asked, dtype=np.float64) / (self.layouts.pp * self.engine.pp_gather)
            most = 1 + (most - 1) * -np.expm1(-z)
        return np.asarray(most, dtype=np.float64)

    # --- one pass over all layers -------------------------------------------------------------------------------------

    def work(self, b: Floats, x: "Floats | float" = 0.0) -> dict[str, Floats]:
        """Terms of a pass over all layers, with one step of ``b`` sequences and ``x`` tokens of prompts; us.

        Its launches (``launch``) are what the host needs beyond the GPU where the pass is not a graph.
        """
        lay, r, L = self.layouts, self.rates, self.model.num_layers
        prompts = np.asarray(x, dtype=np.float64)
        tokens = b * self.tokens_per_sequence + prompts
        block = {
            "weights": r.block_us(tokens, lay.tp),
            "kv_cache": b * self._cache_us,
            "attention": r.prompt_attention_us(prompts, self._prompt_context, lay.tp),
            "activations": r.activations_us(tokens, lay.tp),
            "kernels": np.asarray(r.startup_us),
            "all_reduce": self._reduce_us(tokens),
        }
        per_block = sum(block.values(), np.zeros(1))
        graphs = self.workload.engine.cuda_graphs
        launched = np.maximum(0.0, r.host_us - per_block)
        # A few tokens of prompts on average mean a few such steps: the launches come in with the first tokens.
        block["launch"] = launched * (np.minimum(1.0, prompts) if graphs else 1.0)
        return {name: L * time for name, time in block.items()}

    def step(self, b: Floats, x: "Floats | float" = 0.0) -> dict[str, Floats]:
        """``work``, the lm_head, and the engine's own time (``host``) for one micro-batch; us."""
        terms = self.work(b, x)
        sampled = b * self.tokens_per_sequence + np.asarray(x, dtype=np.float64) / self.prompt_tokens
        terms["lm_head"] = self.rates.head_us(sampled, self.layouts.tp)
        gpu = sum(terms.values(), np.zeros(1))
        beside = self.engine.sequence_us * (b + np.asarray(x, dtype=np.float64) / self.prompt_tokens)
        host = larger(gpu, beside, self.constants.sharpness) - gpu if self.engine.overlaps else beside
        terms["host"] = self.rates.step_us + host
        return terms

    def decode(self, decoding: Floats, k: Floats) -> tuple[dict[str, Floats], Floats]:
        """Terms of a round in which every one of ``decoding`` sequences decodes once, and their sum; us.

        With the hops between the stages and the ``bubble`` in which they wait for each other, without prompts.
        """
        lay, L = self.layouts, self.model.num_layers
        b = decoding / k
        terms = self.step(b)
        head, host = terms["lm_head"], terms["host"]
        blocks = sum(terms.values(), np.zeros(1)) - head - host
        terms["drafts"] = self._drafts(b)
        terms["hops"] = np.where(lay.pp > 1, lay.pp * self._hop_us(b * self.tokens_per_sequence), 0.0)
        most, last = np.ceil(L / lay.pp), np.floor(L / lay.pp)
        at_end = head + terms["drafts"] + (host if self.engine.samples_in_turn else 0.0)
        slowest = np.maximum(most * blocks / L, last * blocks / L + at_end)
        trip = blocks + head + host + terms["drafts"]
        work = self.rates.step_us + self.engine.sequence_us * b  # the engine's, beside the GPU's or not
        around = decode_round(trip + terms["hops"], np.maximum(slowest, work), k)
        terms["bubble"] = np.where(lay.pp > 1, np.maximum(around - trip - terms["hops"], 0.0), 0.0)
        return terms, around

    def round(self, decoding: Floats, k: Floats, prompts: Floats, passes: Floats) -> tuple[dict[str, Floats], Floats]:
        """``decode`` with, on average, so many ``prompts`` mixed in (``prefill``), and the sum; us.

        They come at random: some micro-batches carry prompts, some none, none more than the budget. A mean of rounds
        without and with them, in which they take no time while the stages wait anyway. (Engines count the decoding
        tokens against the budget, too. They are few, and left out, so that a fuller batch is never slower.)

        Args:
            decoding: sequences that decode.
            k: micro-batches.
            prompts: per round.
            passes: passes with prompts that follow one another.
        """
        terms, around = self.decode(decoding, k)
        tokens, chunk = prompts * self.prompt_tokens / k, min(self.prompt_tokens, self.budget)
        carrying = np.minimum(1.0, np.maximum(-np.expm1(-tokens / chunk), tokens / self.budget))
        x = np.divide(tokens, carrying, out=chunk * np.ones_like(tokens), where=carrying > 0)
        trip = total(self.step(decoding / k, x)) + terms["drafts"] + terms["hops"]
        # No more than if every micro-batch were as slow.
        share = np.minimum(1.0, k * carrying * prefill_share(self.at_once, passes))
        terms["prefill"] = share * np.maximum(trip - around, 0.0)
        return terms, around + terms["prefill"]

    def mean_round(
        self, decoding: Floats, asked: "Floats | float", prompts: Floats, passes: Floats
    ) -> tuple[dict[str, Floats], Floats, Floats]:
        """``round`` with as many micro-batches as there are on average (``in_flight``), and that number.

        A mean of rounds with one micro-batch and with as many as stages, the second where they are faster: there are no
        rounds with two and a half.

        Args:
            decoding, prompts, passes: as for ``round``.
            asked: as for ``in_flight``.
        """
        one, given = np.ones_like(decoding), self.workload.engine.pp_micro_batches
        if given is not None or not self.engine.pp_gather or not (self.layouts.pp > 1).any():
            k = self.in_flight(decoding, asked)
            return *self.round(decoding, k, prompts, passes), k
        most = np.maximum(1.0, np.minimum(self.layouts.pp, decoding))
        (gathered, slow), (spread, fast) = (self.round(decoding, k, prompts, passes) for k in (one, most))
        share = np.divide(self.in_flight(decoding, asked) - 1, most - 1, out=np.zeros_like(most), where=most > 1)
        share = np.where(fast < slow, share, 0.0)
        terms = {name: (1 - share) * gathered[name] + share * spread[name] for name in gathered}
        return terms, (1 - share) * slow + share * fast, 1 + share * (most - 1)

    def _drafts(self, b: Floats) -> Floats:
        e = self.workload.engine
        if not e.speculative_tokens:
            return np.zeros(1)
        plain = replace(self, workload=replace(self.workload, engine=replace(e, speculative_tokens=0)))
        alone = sum(plain.work(b).values(), np.zeros(1)) + plain.rates.head_us(b, self.layouts.tp)
        return np.asarray(e.speculative_tokens * e.draft_cost * alone * np.minimum(b, 1.0), dtype=np.float64)

    @cached_property
    def prompt_in_passes(self) -> Floats:
        """A prompt's part of a pass as large as the budget allows, by time on all layers: small ones take more than
        their tokens."""
        none = np.zeros(len(self.layouts))
        x = min(self.prompt_tokens, self.budget)
        return self.prompt_tokens / x * total(self.work(none, x)) / total(self.work(none, self.budget))

    # --- prompts by themselves ----------------------------------------------------------------------------------------

    def prompt_terms(self, prompts: "Floats | float", k: "Floats | float" = 1.0) -> dict[str, Floats]:
        """Terms of ``prompts`` prompts, until all have their first token; us.

        In as few passes as the budget allows (at least k), which follow each other over the stages.
        """
        n, lay = np.asarray(prompts, dtype=np.float64) * np.ones(len(self.layouts)), self.layouts
        tokens = n * self.prompt_tokens
        passes = np.maximum(np.asarray(k, dtype=np.float64), np.maximum(1.0, tokens / self.budget))
        one = self.step(np.zeros_like(n), tokens / passes)
        host = one.pop("host")
        terms = {name: forward_makespan(time, time / self.at_once, passes) for name, time in one.items()}
        terms["hops"] = np.where(lay.pp > 1, (lay.pp - 1) * self._hop_us(tokens / passes), 0.0)
        terms["host"] = host * passes
        return terms

    def prompts(self, prompts: "Floats | float") -> Floats:
        """``prompt_terms``, all together."""
        return total(self.prompt_terms(prompts))

    @cached_property
    def own_prompt(self) -> dict[str, Floats]:
        """``prompt_terms`` of one prompt alone."""
        return self.prompt_terms(1.0)

    @cached_property
    def _prompt_context(self) -> float:
        """Tokens that a prompt's token looks back at, on average."""
        w = self.workload
        cached = w.input_length - self.prompt_tokens
        return float(self.model.kept_tokens(cached + self.prompt_tokens / 2))

    # --- parts of a pass ----------------------------------------------------------------------------------------------

    @cached_property
    def _cache_us(self) -> Floats:
        """Reading the cache of one sequence in one block."""
        model, context = self.model, self.model.kept_tokens(self.workload.mean_context)
        return 2 * model.head_dim * model.kv_itemsize * context * self.layouts.kv_heads * self.rates.kv_byte_us

    @cached_property
    def all_reduce_us(self) -> Times:
        """One all-reduce in each layout's group, as a function of its bytes."""
        engine = self.workload.engine
        return all_reduce(
            self.layouts.groups,
            kernel=engine.all_reduce,
            graph=engine.cuda_graphs,
            custom=self.engine.all_reduce,
            constants=self.constants,
            calibration=self.calibration,
        )

    @property
    def bytes_per_token(self) -> float:
        """Of what an all-reduce sums."""
        return self.model.hidden_size * self.model.activation_itemsize

    def _reduce_us(self, tokens: Floats) -> Floats:
        """A block's all-reduces."""
        return self.model.all_reduces_per_block * self.all_reduce_us(tokens * self.bytes_per_token)

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


def total(terms: dict[str, Floats]) -> Floats:
    """The sum of all terms."""
    return np.asarray(sum(terms.values(), np.zeros(1)), dtype=np.float64)


def engine_constants(name: str, constants: Constants = DEFAULT) -> EngineConstants:
    """Constants of engine ``name``. Raises ``ValueError`` for a name that is not known."""
    if name not in constants.engines:
        known = ", ".join(sorted(constants.engines.keys() - {"generic"}))
        raise ArgumentError("engine", name, f"must be one of {known}, or generic for any other")
    return constants.engines[name]
