"""The answer to *does my model fit, and on what?*: in a sentence, in numbers, and what to change.

In numbers of the GPU that is fullest. Where a family is not known here, its weights may be (from the headers of its
files): then it is said whether those fit, and what is left, and nothing is guessed of the cache.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from tplab.models.found.named import FoundModel
from tplab.shown import as_GB, counted, number
from tplab.topology.advisor.memory import RankMemory
from tplab.topology.capacity.question import Question
from tplab.topology.machine.machine import Gpu
from tplab.topology.machine.names import name_of

_NODE = 8
"""GPUs of a usual node."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One thing to change, after which the model fits."""

    kind: str
    """``context``, ``users``, ``utilization``, ``kv``, ``weights``, ``gpus``, ``gpu``, ``both`` (weights, GPUs)."""
    words: str
    """The middle of a sentence: *in fp8 on 2 GPUs*."""
    flag: str
    """The engine's own words for it, where there are any: ``--max-model-len 4096``."""
    settings: Mapping[str, Any]
    """Arguments of ``fits``."""
    needs: str = ""
    """What no flag says: *needs a checkpoint already in int4*, *not TP 2, which lacks 0.4 GB on each GPU*."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Whether a model fits on GPUs, with how many users, and what to change."""

    found: FoundModel
    gpu: Gpu
    gpus: int
    """GPUs that were asked about."""
    tp: int
    pp: int
    """Degrees of the layout that is answered for: on ``tp`` x ``pp`` GPUs, of the layouts that hold the users the one
    with the fewest stages, and of these the one that holds most; or, if none does, the one of all GPUs."""
    context: int
    """Tokens of a user's request at its end, prompt and answer."""
    users: int
    """Requests in flight."""
    engine: str
    gpu_memory_utilization: float
    fits: bool | None
    """None: the weights fit, and the cache of this family is not known."""
    rank: RankMemory
    """What the fullest GPU holds, in bytes. Without a description only weights and workspace are counted."""
    question: Question | None
    """The memory model, asked so; None without a description."""
    notes: tuple[str, ...]
    """Assumptions and doubts, one sentence each."""
    change: "Callable[..., Fit]"
    """``fits`` of the same model with other arguments."""
    find_changes: "Callable[[Fit], tuple[Change, ...]]"
    """What looks for changes."""

    @property
    def model(self) -> str:
        """Name of the model as people write it."""
        return name_of(self.found.name)

    @property
    def where(self) -> str:
        """*one H100*, *8 x H100 (TP 8)*."""
        return on_gpus(self.gpu, self.tp, self.pp)

    @cached_property
    def max_users(self) -> int | None:
        """Most users of that context; None if not known."""
        return None if self.question is None else self.question.max_users(self.tp, self.pp)

    @cached_property
    def max_context(self) -> int | None:
        """Longest context with these users, in tokens; None if not known."""
        return None if self.question is None else self.question.max_context(self.tp, self.pp)

    @cached_property
    def max_tokens(self) -> int | None:
        """Tokens that the cache holds over all users; None if not known."""
        return None if self.question is None else self.question.max_tokens(self.tp, self.pp)

    @cached_property
    def changes(self) -> tuple[Change, ...]:
        """What to change, each by itself enough, the cheapest first; none if it fits, its weights are all that is known
        and they fit, or nothing helps."""
        return self.find_changes(self) if self.fits is False else ()

    def again(self, **settings: Any) -> "Fit":
        """The same question with other arguments of ``fits``, such as a change's ``settings``."""
        return self.change(**settings)

    @cached_property
    def sentence(self) -> str:
        """The whole answer in a sentence."""
        if self.question is None:
            return self._of_weights()
        if self.fits:
            room = f"room for {counted(self.max_users or 0, 'user')} at {self.context:,} tokens"
            longest = f"{self.max_context:,} tokens"
            alone = f"one user may have up to {longest}" if self.users == 1 else f"{self.users:,} up to {longest} each"
            return f"{self._who} fits on {self.where}: {room}; {alone}."
        return f"{self._who} does not fit on {self.where}: {self._reason}{self._way_out()}."

    @property
    def _who(self) -> str:
        if self.found.spec is None:
            return self.model
        weights, cache = self.found.spec.weight_precision, self.found.spec.kv_precision
        usual = self.found.spec.activation_precision
        return f"{self.model} in {weights}" + (f" with its cache in {cache}" if cache != usual else "")

    @property
    def _reason(self) -> str:
        rank, each = self.rank, " on each GPU" if self.tp * self.pp > 1 else ""
        own = f"{as_GB(rank.usable)} of the {as_GB(self.gpu.memory_bytes)} that the GPU has"
        if rank.weights > rank.usable:
            return f"weights alone are {as_GB(rank.weights)}{each}, and {self.engine_name} may take {own}"
        if self.max_users:
            return f"there is room for {counted(self.max_users, 'user')} at {self.context:,} tokens, not {self.users:,}"
        room = rank.usable - rank.weights - rank.activations - rank.workspace
        if room <= 0 or not self.max_tokens:
            return (
                f"weights are {as_GB(rank.weights)}{each}, the engine's buffers "
                f"{as_GB(rank.activations + rank.workspace)}, and {self.engine_name} may take {own}: nothing is left "
                f"for a cache"
            )
        return f"beside the weights there is room for {self.max_tokens:,} tokens, not for {self.context:,}"

    @property
    def engine_name(self) -> str:
        """Name of the engine as people write it."""
        return name_of(self.engine) if self.engine != "generic" else "the engine"

    def _way_out(self) -> str:
        best = self.best_change
        if best is None:
            return "; nothing that is known here would help"
        if best.kind in ("context", "users"):
            return f"; {best.words} it does"
        if self.question is None:
            return f"; {best.words} they do, and what a token takes of the cache is not known here"
        then = self.again(**best.settings)
        room = "" if then.max_users is None else f", with room for {counted(then.max_users, 'user')}"
        other = next((each.words for each in self.changes if best.kind == "weights" and each.kind == "gpus"), "")
        return f"; {best.words} it does{room}" + (f", or as it is {other}" if other else "")

    @cached_property
    def best_change(self) -> Change | None:
        """The change that the sentence names: of the settings if those are enough, else of precision, then of GPUs, but
        rather of other GPUs than of more than a node of these."""
        usual = (change for change in self.changes if change.settings.get("gpus", 0) <= _NODE)
        return next(usual, self.changes[0] if self.changes else None)

    def _of_weights(self) -> str:
        rank = self.rank
        if self.fits is False:
            return f"{self.model} does not fit on {self.where}: {self._reason}{self._way_out()}."
        return (
            f"The weights of {self.model} fit on {self.where}, {as_GB(rank.weights)} of {as_GB(rank.usable)} on each "
            f"GPU, which leaves {as_GB(rank.free)} for the cache; what a token takes of it is not known here: "
            f"{self.found.unknown}."
        )

    def as_dict(self) -> dict[str, Any]:
        """The numbers, for JSON: sizes in bytes, of the fullest GPU."""
        rank, spec = self.rank, self.found.spec
        return {
            "model": self.found.name,
            "source": self.found.source,
            "fits": self.fits,
            "sentence": self.sentence,
            "gpu": self.gpu.name,
            "gpus": self.gpus,
            "tp": self.tp,
            "pp": self.pp,
            "context": self.context,
            "users": self.users,
            "engine": self.engine,
            "weight_precision": spec.weight_precision if spec else None,
            "kv_precision": spec.kv_precision if spec else None,
            "per_gpu_bytes": {
                "memory": self.gpu.memory_bytes,
                "usable": rank.usable,
                "weights": rank.weights,
                "kv_cache": rank.kv if spec else None,
                "activations": rank.activations if spec else None,
                "workspace": rank.workspace,
                "free": rank.free,
            },
            "max_users": self.max_users,
            "max_tokens": self.max_tokens,
            "max_context": self.max_context,
            "changes": [asdict(each) for each in self.changes],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        return self.sentence

    def __repr__(self) -> str:
        return self.sentence


def on_gpus(gpu: Gpu, tp: int, pp: int) -> str:
    """*one H100*, *8 x H100 (TP 8)*, *16 x H100 (TP 8 x PP 2)*."""
    if tp * pp == 1:
        return f"one {name_of(gpu.name)}"
    degrees = [f"TP {tp}"] * (tp > 1) + [f"PP {pp}"] * (pp > 1)
    return f"{tp * pp} × {name_of(gpu.name)} ({' × '.join(degrees)})"


def memory_text(gpu: Gpu) -> str:
    """*85.0 GB (79.2 GiB)*: as CUDA shows it."""
    return f"{gpu.memory_GB:.1f} GB ({number(gpu.memory_bytes / 2**30)} GiB)"
