"""Sentences generated from predictions and measurements of memory, links and layouts."""

import pandas as pd

from tplab.topology.layouts import smallest_fit
from tplab.topology.machine import Gpu
from tplab.topology.memory import max_requests
from tplab.topology.model_spec import ModelSpec
from tplab.topology.sharding import Layout
from tplab.topology.workload import Workload

_MOST_TP = 8
"""GPUs that share layers in a usual node."""


def explain_memory(frame: pd.DataFrame, spec: ModelSpec, gpu: Gpu, workload: Workload, layout: Layout) -> str:
    """Whether a layout holds the batch, or why not and what would (``memory_frame`` of every rank)."""
    fullest = frame.iloc[int(frame["free_GB"].argmin())]
    batch, context = workload.concurrency or 1, workload.context_length
    most = max_requests(spec, gpu, workload, layout)
    requests = f"{batch:,} request{'s' * (batch > 1)} of {context:,} tokens"
    where = "The fullest rank" if layout.gpus_per_replica > 1 else "The card"
    if layout.pp > 1:
        where += f" (stage {fullest['stage']}, {fullest['layers']} layers)"
    if fullest["free_GB"] >= 0:
        text = (
            f"{where} holds {fullest['total_GB']:.3g} GB of the {fullest['usable_GB']:.3g} GB that an engine may "
            f"take with {requests}; {most:,} would fit."
        )
    else:
        parts = ", ".join(
            f"{name} {fullest[f'{key}_GB']:.3g}"
            for name, key in (
                ("weights", "weights"),
                ("KV cache", "kv"),
                ("activations", "activations"),
                ("workspace", "workspace"),
            )
        )
        text = (
            f"{where} needs {fullest['total_GB']:.3g} GB ({parts}) for {requests}, "
            f"{-fullest['free_GB']:.3g} GB more than the {fullest['usable_GB']:.3g} GB that an engine may take. "
        )
        text += f"{most:,} such requests would fit. " if most else "Not even one request fits. "
        text += _what_would(spec, gpu, workload, batch)
    return f"{text} {_what_is_cut(spec, layout)}"


def _what_would(spec: ModelSpec, gpu: Gpu, workload: Workload, batch: int) -> str:
    one = smallest_fit(spec, gpu, workload, most_tp=_MOST_TP, most_gpus=1024)
    if one is None:
        return f"No number of {gpu.name} holds one request of this length."
    text = f"The fewest {gpu.name} with room for one: {one.gpus_per_replica}, as {one}"
    if batch == 1:
        return f"{text}."
    for stages in range(1, 65):
        for tp in (1, 2, 4, 8):
            if spec.num_heads % tp or spec.intermediate_size % tp or stages > spec.num_layers:
                continue
            layout = Layout.of(spec, tp, stages)
            if max_requests(spec, gpu, workload, layout) >= batch:
                return f"{text}; for all {batch:,}: {layout}."
    return f"{text}."


def _what_is_cut(spec: ModelSpec, layout: Layout) -> str:
    """What TP and PP leave whole."""
    t, heads = layout.tp, spec.num_kv_heads
    words = []
    if t > heads:
        words.append(
            f"TP {t} has more ranks than the {heads} key-value heads: each is on {-(-t // heads)} ranks, and the cache "
            f"per rank is as large as with TP {heads}"
        )
    elif spec.kv_heads_per_rank(t) * t != heads:
        words.append(
            f"TP {t} does not divide the {heads} key-value heads evenly: some rank keeps "
            f"{spec.kv_heads_per_rank(t)} of them, more than {heads}/{t}"
        )
    if len(set(layout.layers_of_stage)) > 1:
        words.append(
            f"{spec.num_layers} layers over {layout.pp} stages: {'-'.join(map(str, layout.layers_of_stage))}, so the "
            f"ranks differ"
        )
    elif layout.pp > 1:
        words.append("The first stage has the embedding besides, the last the output head: PP does not cut those")
    return "".join(f"{text}. " for text in words).strip()


def explain_shards(frame: pd.DataFrame) -> str:
    """A sentence or two on shards that were built (``shards_frame``)."""
    if frame.empty:
        return ""
    wrong = int((~frame["exact"]).sum())
    last = frame[frame["layout"] == frame["layout"].iloc[-1]]
    per_token = last["kv_bytes_per_token"]
    text = (
        f"{len(frame)} shards built, weights and cache equal the formula, byte for byte"
        if not wrong
        else f"{wrong} of {len(frame)} shards DIFFER from the formula"
    )
    spread = f"{per_token.min():,.0f} to " if per_token.min() != per_token.max() else ""
    text += f". {last['layout'].iloc[0]}: a token takes {spread}{per_token.max():,.0f} bytes of cache on a rank"
    whole = frame[frame["tp"] * frame["pp"] == 1]
    if len(whole) and len(last) > 1:
        ratio = last["kv_bytes"].sum() / whole["kv_bytes"].iloc[0]
        text += f"; all {len(last)} together hold {ratio:.3g} times the cache of one rank alone"
    return text + "."
