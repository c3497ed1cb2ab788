"""What crosses between the notebook kernel and the ranks: what is asked of which model, and what a rank sends back.

Pure: checked in the notebook kernel, used on the ranks.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tplab.checks import ArgumentError, check_count, check_flag, check_number, check_one_of
from tplab.models.hf import MODEL_TYPES
from tplab.models.spec import ModelConfig, ModelSpec

if TYPE_CHECKING:
    from tplab.layers.strategies import Blocking


class CheckpointError(ValueError):
    """A checkpoint that is not this model's, or cannot be read or written. Names the tensor or the file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One call of ``generate``, without the model.

    Raises:
        ValueError: a setting that cannot work, by name.
    """

    prompts: tuple[tuple[int, ...], ...] | tuple[str, ...]
    """Token ids of each sequence, or texts."""
    max_new_tokens: int
    """Most new tokens of a sequence, which ends earlier with a stop token."""
    temperature: float = 0.0
    """0 takes the likeliest token; more draws from the softmax of logits / temperature."""
    top_k: int | None = None
    """Draw only from so many of the likeliest tokens; None for all."""
    top_p: float | None = None
    """Draw only from the fewest tokens that together have this probability; None for all."""
    seed: int = 0
    """Seed of the draws; each sequence has one of its own from it, whatever batch it is in."""
    stop_tokens: tuple[int, ...] = ()
    """Tokens that end a sequence, as its last token."""
    num_micro_batches: int = 1
    """k: the batch goes through the stages in so many parts, each decoding while others are elsewhere."""
    margins: bool = False
    """Whether to return by how much the likeliest token beat the second, in logits."""
    stream: bool = False
    """Whether to report every token as it comes."""
    strategy: "Blocking | None" = None
    """How the layers communicate in prefill; decode steps are too short for anything but blocking."""
    cuda_graphs: bool | None = None
    """Whether decode steps are replayed from CUDA graphs; None: wherever that works."""

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ValueError("prompts must hold at least one prompt; it is empty")
        texts = [isinstance(prompt, str) for prompt in self.prompts]
        if any(texts) and not all(texts):
            raise ValueError("prompts must all be texts, or all lists of token ids; they are mixed")
        check_count("max_new_tokens", self.max_new_tokens, least=1)
        check_count("num_micro_batches", self.num_micro_batches, least=1, most=len(self.prompts))  # a prompt in each
        check_count("seed", self.seed, most=(1 << 63) - 1)
        check_number("temperature", self.temperature, least=0)
        if self.top_k is not None:
            check_count("top_k", self.top_k, least=1)
        if self.top_p is not None:
            check_number("top_p", self.top_p, above=0, most=1)
        if self.cuda_graphs is not None:
            check_flag("cuda_graphs", self.cuda_graphs)
        if self.margins and self.temperature:
            raise ValueError(f"margins are of the likeliest token: use temperature=0, not {self.temperature}")

    @classmethod
    def of(cls, prompts: Any, **settings: Any) -> "Request":
        """``prompts``: a text or a list of texts, token ids, or a list of lists of them (arrays will do)."""
        if isinstance(prompts, str):
            prompts = [prompts]
        if not isinstance(prompts, Sequence):
            prompts = prompts.tolist() if hasattr(prompts, "tolist") else list(prompts)
        if len(prompts) and all(isinstance(token, int) and not isinstance(token, bool) for token in prompts):
            prompts = [prompts]
        made = tuple(prompt if isinstance(prompt, str) else _token_ids(prompt) for prompt in prompts)
        return cls(prompts=made, **settings)  # type: ignore[arg-type]

    @property
    def is_text(self) -> bool:
        return isinstance(self.prompts[0], str)

    def micro_batches(self) -> list[tuple[int, int]]:
        """First sequence of each micro-batch, and the one after its last: the first ones are one longer."""
        each, longer = divmod(len(self.prompts), self.num_micro_batches)
        ends = [(part + 1) * each + min(part + 1, longer) for part in range(self.num_micro_batches)]
        return list(zip([0, *ends[:-1]], ends, strict=True))


def check_prompts(prompts: Sequence[Sequence[int]], config: ModelConfig, max_new_tokens: int) -> None:
    """Raises ``ValueError`` for a prompt that is empty, too long, or has tokens that there are not."""
    for place, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompt {place} is empty: a model needs a token to start from")
        low, high = min(prompt), max(prompt)
        if low < 0 or high >= config.vocab_size:
            wrong = low if low < 0 else high
            raise ValueError(f"prompt {place} has the token {wrong}; tokens are 0 to {config.vocab_size - 1}")
        total = len(prompt) + max_new_tokens
        if config.max_length is not None and total > config.max_length:
            raise ValueError(
                f"prompt {place} has {len(prompt)} tokens, with max_new_tokens={max_new_tokens} that makes {total}; "
                f"the model takes {config.max_length}: shorten the prompt, or ask for fewer"
            )


def _token_ids(prompt: Any) -> tuple[int, ...]:
    values = prompt.tolist() if hasattr(prompt, "tolist") else prompt
    try:
        return tuple(int(token) for token in values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"a prompt must be a text or a list of token ids; got {prompt!r}") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """The source of a model's weights. Made in the notebook kernel, used on the ranks."""

    folder: str | None = None
    """Folder of the checkpoint; None for random weights."""
    files: tuple[tuple[str, int, int], ...] = ()
    """Files of the checkpoint with bytes and time of change: one that was written anew is another one."""
    seed: int | None = None
    """Seed of random weights; None for a checkpoint."""

    @classmethod
    def of(cls, model: "str | Path | ModelConfig", seed: int = 0) -> "tuple[ModelConfig, Weights]":
        """A folder with a checkpoint, or a configuration whose weights are made up by ``seed``."""
        if isinstance(model, ModelConfig) and not isinstance(model, ModelSpec):  # that is for other engines
            _check_runs(model)
            return model, cls(seed=seed)
        if not isinstance(model, str | Path):
            raise ValueError(f"model must be the folder of a checkpoint, or a ModelConfig; got {model!r}")
        folder = Path(model)
        if not os.path.isdir(folder):  # not Path's, which raises for a name that is too long
            raise CheckpointError(f"model: there is no folder {folder}")
        config = ModelConfig.from_hf(folder)
        found = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".json"))
        try:
            stats = [(path.name, path.stat()) for path in found]
        except OSError as error:  # a link to nowhere
            raise CheckpointError(f"{error.filename} cannot be read: {error.strerror}") from None
        files = tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)
        return config, cls(folder=str(folder.resolve()), files=files)


def _check_runs(model: ModelConfig) -> None:
    """Refuse what the advisor can size and the decoder does not compute; the reader of files has its own words."""
    check_one_of("model_type", model.model_type, MODEL_TYPES)
    for name, value in _COMPUTED.items():
        if getattr(model, name) != value:
            raise ArgumentError(name, getattr(model, name), f"must be {value} in a model that is to run here")
    if model.rope_scaling is not None:
        model.rope_scaling.check_computed(model.max_positions, model.head_dim)


_COMPUTED = {
    **{"gated_mlp": True, "parallel_residual": False, "norms_per_block": 2, "norm_bias": False},
    **{"num_positions": 0, "head_bias": False, "qk_norm_heads": False, "norm_weight": True, "outer_norms": 1},
    "embedding_width": None,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadReport:
    """What loading cost on one rank."""

    load_s: float
    """Seconds that loading took; 0 if the model was there already."""
    read_bytes: int
    """Bytes taken from the checkpoint, in its dtype; 0 if the model was there already."""
    weight_bytes: int
    """Bytes of the weights that the rank holds."""
    peak_bytes: int | None
    """Bytes by which the process grew at most while loading, mapped file pages included; on a GPU, bytes of the
    device's memory. None where the system does not report it."""


class Activity(NamedTuple):
    """Something a rank did, in seconds of the machine's monotonic clock."""

    kind: str
    step: int
    """Step s computes new token s of each sequence, counted from 0; step 0 is the prefill."""
    micro_batch: int
    start_s: float
    end_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class RankResult:
    """What one rank sends back."""

    tokens: list[list[int]]
    """New tokens of each sequence; the same on all ranks."""
    margins: list[list[float]] | None
    """Margins of the tokens in logits, from the last stage only; else None."""
    token_s: list[list[float]]
    """Time at which this rank knew each token, in seconds of the machine's monotonic clock."""
    start_s: float
    """Time at which the rank began, with weights loaded and caches made."""
    spans: list[Activity]
    eager_because: str | None
    """Why decode steps were launched one by one, in words; None: they were replayed from CUDA graphs."""
    capture_s: float
    """Seconds that capturing the graphs took, steps to warm up included; 0 where they were there already."""
    load: LoadReport
    kv_bytes: int
    """Bytes of the KV caches that the rank allocated."""
    prompts: list[list[int]]
    """Prompts as token ids."""
    texts: list[str] | None
    """New tokens as text, from rank 0 only, and only where the prompts were texts; else None."""
