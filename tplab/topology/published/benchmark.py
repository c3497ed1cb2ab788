"""One load on one server as a benchmark reports it, whichever program ran it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tplab.checks import ArgumentError
from tplab.topology.advisor.workload import EnginePolicy, Workload

_FULL = 0.9
"""Share of the most that may be in flight, from which on that limit and not the arrival rate sets the load."""
_KEPT_UP = 0.8
"""Share of the requests sent per second, until the last one's answer, that must be answered per second."""
_SPREAD = 0.25
"""Standard deviation of lengths over their mean, from which on one length does not stand for all."""
_UNNAMED = EnginePolicy().name


@dataclass(frozen=True, kw_only=True, slots=True)
class Benchmark:
    """What was asked of a server, and what came out."""

    name: str
    """Name of the file, and the number of the run where it holds several."""
    program: str = "vllm bench serve"
    """Program that ran the load."""
    engine: str = "vllm"
    """Engine of the server, as in ``EnginePolicy.name``; vLLM where the result does not say."""
    model_id: str
    """The model that the server was asked for; empty where the result does not say."""
    gpu: str = ""
    """The GPUs as the result calls them; empty where it does not say."""
    weight_precision: str = ""
    """Precision of the weights as the result calls it; empty where it does not say."""
    num_prompts: int | None
    """Number of requests sent."""
    completed: int | None
    """Number of requests that were answered completely."""
    max_concurrency: int | None
    """Most requests in flight; None without a limit."""
    request_rate: float | None
    """Requests sent per second; None: all at once, or as fast as ``max_concurrency`` allows."""
    load_is_said: bool = True
    """Whether the result says one of the two, or that there was neither."""
    input_length: float | None
    """Mean length of a prompt, in tokens."""
    output_length: float | None
    """Mean number of tokens generated per request."""
    input_std: float | None = None
    """Standard deviation of the prompts' lengths, in tokens, where the result tells."""
    output_std: float | None = None
    """The same of what was generated."""
    ttft_ms: float
    """Mean time to the first token, in ms."""
    tpot_ms: float
    """Mean time per output token after the first, in ms."""
    output_tokens_per_s: float
    requests_per_s: float | None
    medians_ms: Mapping[str, float] = field(default_factory=dict)
    """Medians in ms, of ``ttft`` and ``tpot``, where the file has them."""
    degrees: Mapping[str, int] = field(default_factory=dict)
    """Degrees ``tp``, ``pp`` and number of ``replicas``, where the file has them."""
    unpredicted: str = ""
    """Why nothing is predicted for it, such as a ramp, which is no steady load; empty where something is."""
    remarks: tuple[str, ...] = ()
    """What else is to be known of the figures."""

    @property
    def in_flight(self) -> float:
        """Mean number of requests in the server, by Little's law."""
        length = self.output_length or 1.0
        per_s = self.output_tokens_per_s / length if self.requests_per_s is None else self.requests_per_s
        return per_s * (self.ttft_ms + max(length - 1, 0) * self.tpot_ms) / 1e3

    def workload(self, engine: EnginePolicy | None = None) -> Workload:
        """What was asked of the server. With both a limit and a rate, the one that set the load; where the result says
        neither, the mean number in flight.

        Args:
            engine: how it runs; the usual way by default. A ``generic`` one takes the name of the result's engine.

        Raises:
            ValueError: a load that is ``unpredicted``, or lengths that the result does not have.
        """
        if self.unpredicted:
            raise ValueError(f"{self.name}: {self.unpredicted}")
        lengths = {"input_length": self.input_length, "output_length": self.output_length}
        for argument, length in lengths.items():
            if length is None:
                raise ArgumentError(argument, self.name, "must be given with a result that does not say it")
        sent = self.num_prompts or self.completed
        how: dict[str, Any] = {"concurrency": min(self.max_concurrency or sent or 1, sent or self.max_concurrency or 1)}
        limited = self.max_concurrency is not None and self.in_flight >= _FULL * self.max_concurrency
        if not self.load_is_said:
            how = {"concurrency": max(1, round(self.in_flight))}
        elif self.request_rate is not None and not limited:
            how = {"request_rate": self.request_rate}
        policy = EnginePolicy() if engine is None else engine
        return Workload(
            **{argument: max(1, round(length or 1)) for argument, length in lengths.items()},
            engine=replace(policy, name=self.engine) if policy.name == _UNNAMED else policy,
            **how,
        )

    def notes(self) -> list[str]:
        """What a reader of the comparison must know of the measurement."""
        notes = [self.unpredicted] if self.unpredicted else []
        failed = (self.num_prompts or 0) - (self.completed or 0)
        if self.completed is not None and failed > 0:
            notes.append(f"{failed} of {self.num_prompts} requests failed")
        if not self.load_is_said and not self.unpredicted:
            notes.append(
                f"the result says neither a limit nor a rate of requests: predicted for the {self.in_flight:.3g} in "
                f"flight that Little's law gives"
            )
        elif self.max_concurrency is None and self.request_rate is None and not self.unpredicted:
            notes.append("all requests were sent at once: no steady state to compare with")
        elif self.completed is not None and self.completed < 3 * (self.max_concurrency or 0):
            notes.append("fewer than three requests per place in flight: mostly filling and draining")
        if self.request_rate and self.max_concurrency is None and not self.unpredicted:
            notes += self._of_rate(self.request_rate)
        lengths = (("prompts", self.input_length, self.input_std), ("answers", self.output_length, self.output_std))
        spread = [
            f"{what} have {mean:.4g} tokens with a standard deviation of {std:.4g}"
            for what, mean, std in lengths
            if mean and std is not None and std > _SPREAD * mean
        ]
        if spread:
            notes.append(f"no load of one length, predicted for the mean: {', '.join(spread)}")
        return [*notes, *self.remarks]

    def _of_rate(self, rate: float) -> list[str]:
        """Whether requests at ``rate`` came to a steady state."""
        sent, served = self.num_prompts or self.completed, self.requests_per_s
        if not sent or served is None:
            return []
        answer_s = (self.output_length or 0.0) * self.tpot_ms / 1e3
        if sent / rate < answer_s:
            return [f"all {sent} requests were sent within the time of one: no steady state to compare with"]
        if served < _KEPT_UP * sent / (sent / rate + answer_s):
            return [f"{served:.3g} of {rate:g} requests/s were served: requests piled up, no steady state"]
        return []
