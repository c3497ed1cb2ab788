"""What a generation gave and what it cost. Pure: made in the notebook kernel from what the ranks send."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Literal

from tplab.models.records import Activity, LoadReport, RankResult
from tplab.models.shards import Layout
from tplab.models.together import ANOTHER_RANK
from tplab.moved import say_new_names

if TYPE_CHECKING:
    import pandas as pd

    from tplab.pipeline.trace import Trace

KINDS = ("prefill", "decode", "collective", "wait")
"""Kinds of spans: a stage's work on a micro-batch, of which collectives between the ranks of the stage are a part; and
waiting for a message from another stage."""

GRAPHS = "CUDA graphs"


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """New tokens, and what they cost. Times are seconds; those of a step are the last stage's, which has the tokens."""

    tokens: list[list[int]]
    """New tokens of each sequence, its stop token included."""
    finish: list[Literal["stop", "length"]]
    """Why each sequence ended."""
    texts: list[str] | None
    """The new tokens as text, where the prompts were texts."""
    prompts: list[list[int]]
    """Prompts as token ids."""
    margins: list[list[float]] | None
    """Distance of each token's logit from the second likeliest's; None unless asked for."""
    ttft_s: list[float]
    """Seconds to each sequence's first token: from the start of the prefill, weights loaded, until the token is
    known."""
    tpot_s: list[float]
    """Seconds per output token of each sequence after its first; 0 where there is no second."""
    token_s: list[list[float]]
    """Seconds from the start until each token of each sequence was known."""
    total_s: float
    """Seconds from the start of the prefill to the last token."""
    start_s: float
    """The start, in seconds of the machine's monotonic clock, which ``spans`` are in, too."""
    layout: Layout
    num_micro_batches: int
    """k, micro-batches in flight."""
    spans: list[list[Activity]]
    """What each rank did, and when. Of a step in a CUDA graph only as a whole."""
    decode: str
    """How decode steps were launched: ``CUDA graphs``, or ``eager`` with the reason."""
    capture_s: float
    """Seconds that capturing the graphs took on the slowest rank, before the start; 0 where they were there."""
    loads: list[LoadReport]
    """What loading cost on each rank."""
    kv_bytes: list[int]
    """Bytes of keys and values on each rank."""
    badge: str
    """Badge that says where the numbers come from, as figures show it."""
    provenance: Mapping[str, str | int]
    """Columns of the run's provenance."""

    @classmethod
    def of(
        cls,
        results: Sequence[RankResult],
        *,
        layout: Layout,
        num_micro_batches: int,
        stop_tokens: Sequence[int],
        badge: str,
        provenance: Mapping[str, str | int],
    ) -> "Generation":
        """Put together what the ranks sent, in rank order.

        Args:
            results: what the ranks sent, in rank order.
            layout, num_micro_batches: how the model was cut, and k.
            stop_tokens: tokens that ended a sequence.
            badge, provenance: where the numbers come from.
        """
        first, last = results[0], results[-1]
        start = min(result.start_s for result in results)
        reasons = [result.eager_because for result in results if result.eager_because is not None]
        assert all(result.tokens == first.tokens for result in results), "ranks disagree on the tokens"
        return cls(
            tokens=first.tokens,
            finish=["stop" if tokens[-1] in stop_tokens else "length" for tokens in first.tokens],
            texts=first.texts,
            prompts=first.prompts,
            margins=last.margins,
            ttft_s=[times[0] - start for times in last.token_s],
            tpot_s=[(times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0.0 for times in last.token_s],
            token_s=[[time - start for time in times] for times in last.token_s],
            total_s=max(times[-1] for times in last.token_s) - start,
            start_s=start,
            layout=layout,
            num_micro_batches=num_micro_batches,
            spans=[result.spans for result in results],
            decode=f"eager: {min(reasons, key=lambda reason: ANOTHER_RANK in reason)}" if reasons else GRAPHS,
            capture_s=max(result.capture_s for result in results),
            loads=[result.load for result in results],
            kv_bytes=[result.kv_bytes for result in results],
            badge=badge,
            provenance=provenance,
        )

    @property
    def num_tokens(self) -> int:
        """New tokens of all sequences."""
        return sum(map(len, self.tokens))

    @property
    def output_tokens_per_s(self) -> float:
        """New tokens of all sequences over the whole time, prefill included."""
        return self.num_tokens / self.total_s

    @property
    def decode_tokens_per_s(self) -> float:
        """New tokens after the first of each sequence, over the time after the last sequence's first; 0 if none."""
        after = self.total_s - max(self.ttft_s)
        count = self.num_tokens - len(self.tokens)
        return count / after if count and after > 0 else 0.0

    @property
    def knows_collectives(self) -> bool:
        """Whether collectives of decode steps have times of their own: not inside CUDA graphs."""
        return self.decode != GRAPHS or self.layout.tp == 1

    def shares(self) -> list[dict[str, float]]:
        """Which part of the whole time each rank spent in ``collective`` (between the ranks of a stage, waiting
        for the slowest included), ``wait`` (for messages of other stages: bubbles and hops) and ``compute`` (its work
        less collectives). What is left of 1 is bookkeeping, and on a GPU whatever overlapped.

        Where several ranks replay a stage's steps from CUDA graphs, nobody sees the collectives in them: then
        ``graph`` is the share of those steps, computing and collectives together, and the other two are the
        prefill's. Elsewhere it is 0."""
        shares = []
        for spans in self.spans:
            time = dict.fromkeys(KINDS, 0.0)
            for span in spans:
                time[span.kind] += span.end_s - span.start_s
            graph = 0.0 if self.knows_collectives else time["decode"]
            compute = time["prefill"] + time["decode"] - graph - time["collective"]
            parts = {"compute": compute, "collective": time["collective"], "graph": graph, "wait": time["wait"]}
            shares.append({name: part / self.total_s for name, part in parts.items()})
        return shares

    @property
    def communication_share(self) -> float:
        """Collectives and waiting, mean over the ranks, as a part of the whole time; NaN where collectives are inside
        CUDA graphs."""
        if not self.knows_collectives:
            return float("nan")
        shares = self.shares()
        return sum(share["collective"] + share["wait"] for share in shares) / len(shares)

    def frame(self) -> "pd.DataFrame":
        """One row: ``tp``, ``pp``, ``micro_batches``, ``sequences``, ``prompt_tokens``, ``new_tokens``, ``ttft_ms`` and
        ``tpot_ms`` (medians), ``total_ms``, ``output_tokens_per_s``, ``decode_tokens_per_s``, ``communication_share``,
        ``weight_bytes`` and ``kv_bytes`` (of the rank that has most), ``load_s`` and ``capture_s`` (the slowest),
        ``decode`` (how its steps were launched), and the provenance."""
        import pandas as pd

        row = {
            "tp": self.layout.tp,
            "pp": self.layout.pp,
            "micro_batches": self.num_micro_batches,
            "sequences": len(self.tokens),
            "prompt_tokens": sum(map(len, self.prompts)),
            "new_tokens": self.num_tokens,
            "ttft_ms": median(self.ttft_s) * 1e3,
            "tpot_ms": median(self.tpot_s) * 1e3,
            "total_ms": self.total_s * 1e3,
            "output_tokens_per_s": self.output_tokens_per_s,
            "decode_tokens_per_s": self.decode_tokens_per_s,
            "communication_share": self.communication_share,
            "weight_bytes": max(load.weight_bytes for load in self.loads),
            "kv_bytes": max(self.kv_bytes),
            "load_s": max(load.load_s for load in self.loads),
            "capture_s": self.capture_s,
            "decode": self.decode,
            **self.provenance,
        }
        return pd.DataFrame([row])

    def memory_frame(self) -> "pd.DataFrame":
        """A row per rank: ``rank``, ``stage``, ``tp_index``, ``weight_bytes``, ``kv_bytes``, ``load_s``,
        ``read_bytes``, ``peak_bytes``."""
        import pandas as pd

        rows = []
        for rank, (load, kv) in enumerate(zip(self.loads, self.kv_bytes, strict=True)):
            stage, index = self.layout.place(rank)
            rows.append(
                {
                    "rank": rank,
                    "stage": stage,
                    "tp_index": index,
                    "weight_bytes": load.weight_bytes,
                    "kv_bytes": kv,
                    "load_s": load.load_s,
                    "read_bytes": load.read_bytes,
                    "peak_bytes": load.peak_bytes,
                }
            )
        return pd.DataFrame(rows)

    def trace(self) -> "Trace":
        """The stages' work as a pipeline trace: the first rank of each stage, micro-batches numbered as they came.

        Step s of micro-batch j takes in the token of its step s - 1: the back edge of a decode ring. The trace has that
        rank's ``collectives``, too, or none where those of decode steps are inside CUDA graphs: nobody sees them.
        """
        from tplab.pipeline.schedule import Action, MicroBatch, Op, Schedule
        from tplab.pipeline.trace import Trace

        work = [
            [span for span in self.spans[stage * self.layout.tp] if span.kind in ("prefill", "decode")]
            for stage in range(self.layout.pp)
        ]
        ids: dict[tuple[int, int], int] = {}
        micro_batches = []
        for span in work[0]:
            before = ids.get((span.step - 1, span.micro_batch))
            ids[span.step, span.micro_batch] = len(ids)
            phase: Literal["prefill", "decode"] = "decode" if span.step else "prefill"
            micro_batches.append(MicroBatch(phase=phase, kv_from=before, token_from=before))
        rows = [
            [Action(stage, Op.F, ids[span.step, span.micro_batch]) for span in spans]
            for stage, spans in enumerate(work)
        ]
        schedule = Schedule(
            name="generate",
            num_stages=self.layout.pp,
            num_micro_batches=len(ids),
            ranks=tuple(map(tuple, rows)),
            micro_batches=tuple(micro_batches),
        )
        spans = [
            (stage, stage, Op.F, ids[span.step, span.micro_batch], span.start_s, span.end_s)
            for stage, spans in enumerate(work)
            for span in spans
        ]
        trace = Trace.from_spans(schedule, spans, measured=True, badge=self.badge, provenance=self.provenance)
        zero = min((span[4] for span in spans), default=0.0)
        noted = [
            (stage, span.start_s - zero, span.end_s - zero)
            for stage in range(self.layout.pp)
            for span in self.spans[stage * self.layout.tp]
            if span.kind == "collective"
        ]
        return replace(trace, collectives=tuple(noted) if self.knows_collectives else ())


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """Greedy tokens beside a reference's: how far they agree, and how close the calls were where they part."""

    agreeing: int
    """Number of tokens before each sequence's first difference, over all sequences."""
    total: int
    """Number of tokens of the reference."""
    partings: list[tuple[int, int, float]]
    """First difference of each sequence that has one: (sequence, token, margin there in logits, else NaN)."""
    near_ties: int
    """Number of tokens whose margin is within ``tie``: another order of adding could have chosen otherwise."""
    tie: float
    """Largest margin of a near tie, in logits."""

    @property
    def share(self) -> float:
        return self.agreeing / self.total if self.total else 1.0


def compare(generation: Generation, reference: Sequence[Sequence[int]], *, tie: float) -> Agreement:
    """Set a greedy generation beside the tokens of another implementation or dtype.

    After its first difference a sequence is another text, so nothing behind it counts.

    Args:
        tie: a margin up to this counts as a near tie; twice the error that logits have in the dtype, say.

    Raises:
        ValueError: another number of sequences.
    """
    if len(reference) != len(generation.tokens):
        raise ValueError(f"reference has {len(reference)} sequences; the generation {len(generation.tokens)}")
    agreeing, partings = 0, []
    for place, (ours, theirs) in enumerate(zip(generation.tokens, reference, strict=True)):
        same = next(
            (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs))
        )
        agreeing += same
        if same < max(len(ours), len(theirs)):
            margins = generation.margins[place] if generation.margins is not None else []
            partings.append((place, same, margins[same] if same < len(margins) else float("nan")))
    margins_of: list[list[float]] = generation.margins or []
    near = sum(margin <= tie for margins in margins_of for margin in margins)
    total = sum(map(len, reference))
    return Agreement(agreeing=agreeing, total=total, partings=partings, near_ties=near, tie=tie)


say_new_names(__name__)
