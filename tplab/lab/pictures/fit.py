"""Will it fit? One GPU as a vessel that fills with weights and cache, and spills over.

The browser computes by itself (``modules/fitmodel.js``), over what is counted here for each model, degree of tensor
parallelism and GPU; a browser test compares it with :mod:`tplab.topology.advisor.memory`, which stays the model. Sizes
are those of an engine that nobody has measured (``generic``), with prompts in chunks.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import traitlets

from tplab.checks import ArgumentError, check_count, check_one_of
from tplab.lab.pictures.picture import Picture
from tplab.models.precision import ITEMSIZE
from tplab.models.presets import MODELS
from tplab.models.shards import Layout, can_cut, weight_bytes
from tplab.models.spec import ModelSpec
from tplab.topology.advisor.engine_memory import USUAL_ROWS, engine_memory
from tplab.topology.advisor.memory import max_requests, sampled_in_step, tokens_in_step
from tplab.topology.advisor.workload import Workload
from tplab.topology.machine.names import name_of
from tplab.topology.machine.spec_sheets import GPUS, OFFERED

MOST_TP, MOST_PP, MOST_BATCH, MOST_CONTEXT = 16, 16, 1024, 1 << 17
WEIGHTS, CACHES = ("bf16", "fp8", "int8", "int4"), ("bf16", "fp8")


class WillItFit(Picture):
    """A model on GPUs: what the fullest of them holds, how many requests fit, and what to change if they do not.

    ``ask(model="llama-3.1-70b", tp=4, ...)`` does what the controls do; ``max_requests`` is how many fit.

    Args:
        models: names of the models offered; by default all that tplab knows by name.
    """

    module = "fit"
    caption = "Will it fit?"

    model = traitlets.Unicode("llama-3.1-8b").tag(sync=True)
    gpu = traitlets.Enum(list(GPUS), "rtx-3090").tag(sync=True)
    weights = traitlets.Enum(WEIGHTS, "bf16").tag(sync=True)
    cache = traitlets.Enum(CACHES, "bf16").tag(sync=True)
    tp = traitlets.Int(1, min=1, max=MOST_TP).tag(sync=True)
    pp = traitlets.Int(1, min=1, max=MOST_PP).tag(sync=True)
    batch = traitlets.Int(8, min=1, max=MOST_BATCH).tag(sync=True)
    """Requests in flight."""
    context = traitlets.Int(4096, min=1, max=MOST_CONTEXT).tag(sync=True)
    """Tokens of a request at its end."""
    answer = traitlets.Unicode().tag(sync=True)
    """The sentence that the browser shows."""
    known = traitlets.Dict().tag(sync=True)
    """What was counted here, for the browser."""

    def __init__(self, models: Sequence[str] | None = None) -> None:
        names = tuple(MODELS) if models is None else tuple(models)
        for name in names:
            check_one_of("models", name, tuple(MODELS))
        if not names:
            raise ArgumentError("models", models, "must name at least one model")
        first = "llama-3.1-8b" if "llama-3.1-8b" in names else names[0]
        super().__init__(known=_known(names), model=first)

    def ask(self, **settings: Any) -> "WillItFit":
        """Set controls by name: ``model``, ``gpu``, ``weights``, ``cache``, ``tp``, ``pp``, ``batch``, ``context``.

        Raises ``ValueError`` for what is not offered, and for a model that cannot be cut so; nothing is changed then.
        """
        offered = {"model": tuple(self.known["models"]), "gpu": tuple(GPUS), "weights": WEIGHTS, "cache": CACHES}
        counts = {"tp": MOST_TP, "pp": MOST_PP, "batch": MOST_BATCH, "context": MOST_CONTEXT}
        for name, value in settings.items():
            if name in offered:
                check_one_of(name, value, offered[name])
            elif name in counts:
                check_count(name, value, least=1, most=counts[name])
            else:
                raise ArgumentError(name, value, f"is not a setting: there are {', '.join((*offered, *counts))}")
        wanted = {name: getattr(self, name) for name in ("model", "tp", "pp")} | settings
        Layout.of(ModelSpec.from_config(wanted["model"]), wanted["tp"], wanted["pp"])
        with self.hold_trait_notifications():
            for name, value in settings.items():
                setattr(self, name, value)
        return self

    @property
    def max_requests(self) -> int:
        """Requests of full length that fit beside the weights."""
        spec = ModelSpec.from_config(self.model, weight_precision=self.weights, kv_precision=self.cache)
        workload = Workload(input_length=max(1, self.context - 1), output_length=1, concurrency=self.batch)
        return max_requests(spec, GPUS[self.gpu], workload, Layout.of(spec, self.tp, self.pp))

    def __repr__(self) -> str:
        return self.answer or f"Will it fit? {name_of(self.model)} on {name_of(self.gpu)}, TP {self.tp} × PP {self.pp}"


@cache
def _known(models: tuple[str, ...]) -> dict[str, Any]:
    """What the browser needs of models, GPUs and engine, in JSON."""
    engine = engine_memory("generic")
    some = Workload(input_length=1, output_length=1, concurrency=1)
    gpus = {
        key: {
            "name": name_of(key),
            "memory": gpu.memory_bytes,
            "collectives": [[engine.collective_bytes(gpu, tp, pp) for pp in (1, 2)] for tp in (1, 2, 3)],
            "sampled": sampled_in_step(gpu, some, engine),
        }
        for key, gpu in GPUS.items()
    }
    return {
        "models": {name: _model(name) for name in models},
        "gpus": gpus,
        "offered": list(OFFERED),
        "itemsize": {name: ITEMSIZE[name] for name in WEIGHTS},
        "share": some.engine.gpu_memory_utilization,
        "tokens": tokens_in_step(some, engine),
        "runtime": engine.runtime_bytes,
        "row_bytes": engine.row_bytes,
        "further_row_bytes": engine.further_row_bytes,
        "usual_rows": USUAL_ROWS,
    }


def _model(name: str) -> dict[str, Any]:
    spec = ModelSpec.from_config(name)
    return {
        "name": name_of(name),
        "layers": spec.num_layers,
        "hidden": spec.hidden_size,
        "intermediate": spec.intermediate_size,
        "q_size": spec.q_size,
        "head_dim": spec.head_dim,
        "mlp_matrices": spec.mlp_matrices,
        "vocab": spec.vocab_size,
        "rotations": (spec.max_length or 0) * spec.head_dim * spec.activation_itemsize,
        "window": spec.sliding_window,
        "windowed": spec.windowed_layers / spec.num_layers,
        "cuts": {str(tp): _cut(spec, tp) for tp in range(1, MOST_TP + 1) if can_cut(spec, tp, 1)},
    }


def _cut(spec: ModelSpec, tp: int) -> dict[str, float]:
    """What a rank of ``tp`` holds of a block, and of the model's ends: parameters; the rank with the most heads."""
    index = max(range(tp), key=lambda each: spec.kv_heads_of_rank(each, tp))
    matmul, small = spec.block_params_of_rank(index, tp)

    def ends(pp: int, stage: int) -> float:
        layout = Layout.of(spec, tp, pp)
        blocks = layout.layers_of_stage[stage] * (matmul * spec.weight_itemsize + small * spec.activation_itemsize)
        return (weight_bytes(spec, layout, stage, index) - blocks) / spec.activation_itemsize

    return {
        "matmul": matmul,
        "small": small,
        "both": ends(1, 0),
        "first": ends(2, 0),
        "last": ends(2, 1),
        "kv_heads": spec.kv_heads_per_rank(tp),
    }
