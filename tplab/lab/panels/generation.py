"""Notebook 08's panel: a real model generates on the pool's ranks, in any layout."""

import re
from typing import Any

import ipywidgets as widgets
import pandas as pd

from tplab.cluster import Cluster
from tplab.lab.choice import Choice
from tplab.lab.figures.generation import layouts_figure
from tplab.lab.figures.pipeline import gantt
from tplab.lab.panels import html
from tplab.lab.panels.base import Drawing, RunPanel, Submitted
from tplab.lab.panels.controls import Settings, wide
from tplab.lab.panels.pool import Pool
from tplab.lab.panels.run_state import Work
from tplab.measure import joined_badge
from tplab.models.generation import GenerationRun, submit_generate
from tplab.models.result import Generation
from tplab.models.spec import ModelConfig
from tplab.shown import counted

_SIZES: dict[str, dict[str, int]] = {
    "tiny (4 layers of 256)": {"hidden_size": 256, "intermediate_size": 768, "num_layers": 4, "num_heads": 8},
    "small (8 layers of 512)": {"hidden_size": 512, "intermediate_size": 1536, "num_layers": 8, "num_heads": 8},
    "middle (4 layers of 2048)": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_layers": 4,
        "num_heads": 32,
        "num_kv_heads": 8,
    },
    "wide (4 layers of 4096)": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_layers": 4,
        "num_heads": 32,
        "num_kv_heads": 8,
    },
}
"""Sizes that a CPU, a GPU that ranks share and a GPU for each rank have an answer for; the weights of the widest are
drawn in some five seconds."""
_FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": True},
}
_TP = (1, 2, 4, 8)
_TOKENS_SHOWN = 24


def example_model(family: str = "llama", size: str = "tiny (4 layers of 256)", **changes: Any) -> ModelConfig:
    """A model to run here, in the shape of a family: 1,003 tokens, 2 key-value heads in those for a CPU; random weights
    by seed."""
    made: dict[str, Any] = {
        "model_type": family,
        "vocab_size": 1003,
        "num_kv_heads": 2,
        "max_positions": 2048,
        **_SIZES[size],
        **_FAMILIES[family],
        **changes,
    }
    return ModelConfig(head_dim=made["hidden_size"] // made["num_heads"], **made)


def example_prompts(num_sequences: int, length: int, vocab_size: int = 1003) -> list[list[int]]:
    """Token ids, of ``length`` for the first sequence and a token fewer for each after it, at least one."""
    return [
        [(7919 * (row + 1) * (place + 1)) % vocab_size for place in range(max(1, length - row))]
        for row in range(num_sequences)
    ]


def layouts_frame(generations: list[Generation]) -> pd.DataFrame:
    """One row per generation, as ``Generation.frame`` gives it, with ``compute_share``, ``collective_share``,
    ``graph_share`` and ``wait_share``: means over the ranks."""
    rows = []
    for generation in generations:
        shares = pd.DataFrame(generation.shares()).mean()
        rows.append(generation.frame().assign(**{f"{name}_share": value for name, value in shares.items()}))
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()


def layouts_badge(frame: pd.DataFrame) -> str:
    """``LIVE gloo · 1, 2 and 4 ranks, 4 sharing 2 cores``: of a frame with several sizes of cluster."""
    sizes = sorted(set(frame["num_ranks"].tolist()))
    listed = str(sizes[0]) if len(sizes) == 1 else f"{', '.join(map(str, sizes[:-1]))} and {sizes[-1]}"
    badge = f"LIVE {frame['backend'].iloc[0]} · {listed} rank{'s' * (sizes[-1] > 1)}"
    cores = int(frame["num_cores"].iloc[0])
    if frame["backend"].iloc[0] == "gloo" and sizes[-1] > cores:
        badge += f", {sizes[-1]} sharing {cores} cores"
    return joined_badge(badge, "CUDA graphs" if (frame["launch_mode"] == "graph").all() else "")


def shares_in_words(row: Any) -> str:
    """Where the time of a row of :func:`layouts_frame` went: ``62 % computing, 30 % in collectives, 8 % waiting for
    another stage``; collectives inside CUDA graphs have no times of their own, and are named together with them."""
    if row.graph_share:
        return (
            f"{100 * row.graph_share:.0f} % in CUDA graphs (computing and collectives, which have no times of their "
            f"own there), {100 * (row.compute_share + row.collective_share):.0f} % in the prefill, "
            f"{100 * row.wait_share:.0f} % waiting for another stage"
        )
    return (
        f"{100 * row.compute_share:.0f} % computing, {100 * row.collective_share:.0f} % in collectives, "
        f"{100 * row.wait_share:.0f} % waiting for another stage"
    )


class GenerationPanel(RunPanel):
    """Family, size, TP (the rest of the pool's ranks are stages), micro-batches, prompts; tokens as they come, times,
    and where they went.

    ``generation`` is the last result, ``frame`` one row for each layout that ran, the newest of each.
    """

    def __init__(self, pool: Pool) -> None:
        look = wide(96)
        named = {
            "family": widgets.Dropdown(options=list(_FAMILIES), description="Family", **look),
            "size": widgets.Dropdown(options=list(_SIZES), description="Size", **look),
            "tp": widgets.Dropdown(options=_TP, value=2, description="TP", **look),
            "micro_batches": widgets.Dropdown(options=(1, 2, 4), description="Micro-batches", **look),
            "sequences": widgets.Dropdown(options=(1, 2, 4, 8), value=4, description="Sequences", **look),
            "prompt_tokens": widgets.Dropdown(options=(8, 32, 128, 512), value=32, description="Prompt", **look),
            "new_tokens": widgets.Dropdown(options=(8, 16, 32, 64, 256), value=16, description="New tokens", **look),
            "dtype": widgets.Dropdown(options=("float32", "bfloat16"), description="Dtype", **look),
        }
        self._handle: GenerationRun | None = None
        self._runs: dict[tuple[Any, ...], Generation] = {}
        super().__init__(pool, title="Generate", named=named, views=("Timeline", "Layouts"), height=300)

    def suit(self, choice: Choice) -> None:
        size = choice.pick(
            cpu="tiny (4 layers of 256)", shared="middle (4 layers of 2048)", own="wide (4 layers of 4096)"
        )
        self._named.put({"size": size, "dtype": "bfloat16" if choice.on_gpus else "float32"})

    @property
    def generation(self) -> Generation | None:
        """The last result."""
        done = self._handle is not None and self._handle.done() and self._handle.exception() is None
        return self._handle.result() if done and self._handle is not None else None

    @property
    def frame(self) -> pd.DataFrame:
        """A row per layout, see :func:`layouts_frame`: of the last model, dtype and prompts."""
        return layouts_frame(list(self._runs.values()))

    def submit(self, cluster: Cluster, settings: Settings) -> Submitted:
        tp = settings["tp"]
        if cluster.num_ranks % tp:
            raise ValueError(
                f"TP {tp} does not divide the pool's {cluster.num_ranks} ranks: choose another TP, or start a pool of "
                f"another size"
            )
        work = tuple(settings[name] for name in ("family", "size", "sequences", "prompt_tokens", "new_tokens", "dtype"))
        self._handle = submit_generate(
            cluster,
            example_model(settings["family"], settings["size"]),
            example_prompts(settings["sequences"], settings["prompt_tokens"]),
            tp=tp,
            pp=cluster.num_ranks // tp,
            max_new_tokens=settings["new_tokens"],
            num_micro_batches=min(settings["micro_batches"], settings["sequences"]),
            dtype=settings["dtype"],
            stop_tokens=(),
            on_token=lambda _sequence, _token: None,
            on_report=self.on_report,
        )
        key = (work, cluster.backend), tp, cluster.num_ranks // tp, settings["micro_batches"]
        return self._handle.run, (self._handle, key)

    def draw(self, work: Work) -> Drawing:
        handle, key = work.plan
        if not handle.done() or handle.exception() is not None:
            return None, _tokens(handle)
        generation: Generation = handle.result()
        if self._runs and next(iter(self._runs))[0] != key[0]:
            self._runs.clear()  # another model or other prompts: nothing to compare with
        self._runs[key] = generation
        if self._look.value == "Layouts":
            return layouts_figure(self.frame, badge=layouts_badge(self.frame)), _tokens(handle)
        name = f"TP {generation.layout.tp} × PP {generation.layout.pp}"
        if generation.layout.pp > 1:
            name += f", {counted(generation.num_micro_batches, 'micro-batch', 'micro-batches')} in flight"
        trace = generation.trace()
        figure = gantt(trace, title=f"{name}: {_at_work(generation)}", names=["measured"], lane="stage")
        return figure, _summary(generation) + _tokens(handle)


def _tokens(handle: GenerationRun) -> str:
    """What has come so far, of every sequence."""
    rows = [
        (str(row), " ".join(map(str, tokens[:_TOKENS_SHOWN])) + (" …" if len(tokens) > _TOKENS_SHOWN else ""))
        for row, tokens in enumerate(handle.tokens)
    ]
    return html.table(("sequence", "new tokens"), rows)


def _at_work(generation: Generation) -> str:
    if not generation.knows_collectives:
        return "stages at work, their collectives inside CUDA graphs"
    return "stages at work" + (", and their collectives" if generation.layout.tp > 1 else "")


def _summary(generation: Generation) -> str:
    row = generation.frame().iloc[0]
    share = 100 * row["communication_share"]
    cells = (
        f"{row['ttft_ms']:.1f} ms",
        f"{row['tpot_ms']:.2f} ms",
        f"{row['output_tokens_per_s']:,.0f}",
        "inside the graphs" if share != share else f"{share:.0f} %",
        f"{row['weight_bytes'] / 1e6:.1f} MB",
        f"{row['kv_bytes'] / 1e6:.2f} MB",
        generation.decode + (f", captured in {generation.capture_s:.1f} s" if generation.capture_s else ""),
    )
    header = (
        *("first token", "per token", "tokens/s", "communication and waiting"),
        *("weights per rank", "KV per rank", "decode steps"),
    )
    return html.table(header, [[re.sub(r"(?<=\d) (?=[mM])", "\xa0", cell) for cell in cells]])
