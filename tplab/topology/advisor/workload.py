"""What is asked of the model, and how the engine goes about it."""

from dataclasses import dataclass, field

from tplab.checks import check_count, check_number, check_one_of

MOST = 10**9
"""Largest number of tokens, requests, requests per second and milliseconds: beyond every server, and far from where
times overflow."""
MOST_GUESSED = 64
"""Largest number of guessed tokens in a step."""
ALL_REDUCES = ("auto", "one-shot", "two-shot", "ring", "nccl", "measured")
PREFILL_POLICIES = ("auto", "mixed", "prefill-first", "static")
"""How prompts get their turn. ``mixed``: chunks of prompts share the decode steps, up to the engine's budget of tokens;
``prefill-first``: waiting prompts run in steps of their own before the next decode step; ``static``: a batch of
requests starts together and ends together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EnginePolicy:
    """How the serving engine runs a step. The same model on the same GPUs differs by 3-6 times with it at small
    batches."""

    name: str = "generic"
    """Which engine (``vllm``, ``sglang``, ``trtllm``, ...: a key of ``constants.Constants.engines``): host time,
    kernels and admission differ. ``generic``: one that nobody has measured."""
    cuda_graphs: bool = True
    """Whether decode steps are replayed from CUDA graphs. If not, every kernel pays its launch."""
    all_reduce: str = "auto"
    """Kernel of the tensor-parallel all-reduce: one of ``ALL_REDUCES``. ``auto``: the fastest that engines choose at
    that size on that link; ``nccl``: the library for every size; ``measured``: the calibration's own curve."""
    pp_micro_batches: int | None = None
    """How many micro-batches of a decode batch the engine keeps in flight over the stages; None: as many as it is known
    to fill (``pp_gather`` of its constants). 1: it does not split, stages take turns."""
    chunked_prefill: int | None = 8192
    """Most tokens in one step (vLLM's max_num_batched_tokens); None: prompts are prefilled whole, between steps."""
    gpu_memory_utilization: float = 0.9
    """Part of a GPU's memory that the engine may take for weights, workspace and cache (vLLM's default)."""
    prefill_policy: str = "auto"
    """How prompts get their turn: one of ``PREFILL_POLICIES``. ``auto``: as the engine does by default."""
    max_num_seqs: int | None = None
    """Most requests that one replica runs at once (vLLM's ``--max-num-seqs``, SGLang's ``--max-running-requests``,
    TensorRT-LLM's ``--max_batch_size``); None: the engine's default."""
    speculative_tokens: int = 0
    """k: tokens that a draft guesses in each step, which the model then checks at once; 0: no speculative decoding."""
    acceptance: float = 0.7
    """Probability that a guessed token is accepted, given that those before it were (with ``speculative_tokens``)."""
    draft_cost: float = 0.05
    """Time to guess one token, over the time of a decode step without guesses (with ``speculative_tokens``)."""

    def __post_init__(self) -> None:
        check_one_of("all_reduce", self.all_reduce, ALL_REDUCES)
        check_one_of("prefill_policy", self.prefill_policy, PREFILL_POLICIES)
        for key in ("pp_micro_batches", "chunked_prefill", "max_num_seqs"):
            if getattr(self, key) is not None:
                check_count(key, getattr(self, key), least=1)
        check_count("speculative_tokens", self.speculative_tokens, most=MOST_GUESSED)
        check_number("acceptance", self.acceptance, least=0, most=1)
        check_number("draft_cost", self.draft_cost, least=0, most=10)
        check_number("gpu_memory_utilization", self.gpu_memory_utilization, above=0, most=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """Requests as they come: so many tokens in, so many out, so many at a time."""

    input_length: int
    """Tokens of a prompt (ISL)."""
    output_length: int
    """Tokens generated for it (OSL), the first one included."""
    concurrency: int | None = None
    """Requests in flight, over all replicas. This or ``request_rate``."""
    request_rate: float | None = None
    """Requests per second that arrive, over all replicas. This or ``concurrency``."""
    cached_prefix: float = 0.0
    """Share of each prompt whose cache the engine still has from an earlier request with the same beginning: it is
    neither computed again nor kept twice. At least one token of a prompt is always computed."""
    ttft_limit_ms: float | None = None
    """Longest wait for the first token that is still acceptable."""
    tpot_limit_ms: float | None = None
    """Longest time per output token after the first that is still acceptable."""
    engine: EnginePolicy = field(default_factory=EnginePolicy)
    """Policy of the engine that runs it."""

    def __post_init__(self) -> None:
        for key in ("input_length", "output_length", "concurrency"):
            if key != "concurrency" or self.concurrency is not None:
                check_count(key, getattr(self, key), least=1, most=MOST)
        if (self.concurrency is None) == (self.request_rate is None):
            raise ValueError(
                f"give either concurrency (requests in flight) or request_rate (requests per second), got "
                f"concurrency={self.concurrency} and request_rate={self.request_rate}"
            )
        check_number("cached_prefix", self.cached_prefix, least=0, most=1)
        for key in ("request_rate", "ttft_limit_ms", "tpot_limit_ms"):
            if getattr(self, key) is not None:
                check_number(key, getattr(self, key), above=0, most=MOST)

    @property
    def context_length(self) -> int:
        """Tokens of a finished request: what its cache must hold at the end."""
        return self.input_length + self.output_length

    @property
    def mean_context(self) -> float:
        """Tokens in the cache of a request, averaged over its decode steps."""
        return self.input_length + self.output_length / 2
