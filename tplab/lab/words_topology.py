"""Sentences generated from predictions and measurements of memory, links and layouts."""

from itertools import combinations

import pandas as pd

from tplab.models.shards import Layout
from tplab.models.spec import ModelSpec
from tplab.shown import duration, fixed
from tplab.topology.advisor.advice import Advice
from tplab.topology.advisor.calibration import Calibration
from tplab.topology.advisor.fitting import smallest_fit
from tplab.topology.advisor.memory import max_requests
from tplab.topology.advisor.workload import Workload
from tplab.topology.machine.machine import Gpu, Link, Machine, slowest
from tplab.topology.machine.placement import Placement
from tplab.topology.verification.run import Verification

_MOST_TP = 8
"""GPUs that share layers in a usual node."""


def explain_memory(frame: pd.DataFrame, spec: ModelSpec, gpu: Gpu, workload: Workload, layout: Layout) -> str:
    """Whether a layout holds the batch, or why not and what would (``memory_frame`` of every rank).

    Args:
        frame: rows of ``memory_frame``.
        spec, gpu, workload, layout: what it was made from.
    """
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


def explain_links(machine: Machine) -> str:
    """What joins the GPUs of a machine, and what follows for groups that share layers."""
    pairs = list(combinations(range(machine.gpus_per_node), 2))
    what = "rank" if machine.gpu.kind == "cpu" else "GPU"
    if not pairs:
        text = f"One {what} a node: nothing to join."
    else:
        links = [machine.link(i, j) for i, j in pairs]
        fast, slow = max(links, key=lambda link: link.bandwidth_GBps), slowest(links)
        if fast.bandwidth_GBps == slow.bandwidth_GBps and fast.kind == slow.kind:
            text = (
                f"Every pair of {what}s has the same link: {_link(fast)}. Which of them share a layer does not matter."
            )
        else:
            ratio = fast.bandwidth_GBps / slow.bandwidth_GBps
            count = sum(link.bandwidth_GBps == fast.bandwidth_GBps for link in links)
            text = (
                f"{count} of {len(pairs)} pairs have the fastest link, {_link(fast)}; the slowest, {_link(slow)}, has "
                f"1/{ratio:.3g} of its bandwidth. A group that shares layers is as slow as its slowest pair, so it "
                f"matters which {what}s form one: see placement."
            )
    if machine.network is not None:
        text += f" Between nodes each {what} gets {machine.network.bandwidth_GBps:.3g} GB/s when all send at once."
    return " ".join([text, *(f"{_capital(note)}." for note in machine.notes)])


def explain_placement(machine: Machine, placement: Placement) -> str:
    """Slowest links of a placement, beside those of GPUs taken in order."""
    tp, pp = len(placement.groups[0][0]), len(placement.groups[0])
    words = []
    inside = placement.slowest_tp_link
    if inside is not None:
        words.append(f"The slowest link inside a group is {_link(inside)}")
        ring = placement.slowest_ring_link
        if ring is not None and ring.bandwidth_GBps > inside.bandwidth_GBps:
            words[-1] += f", which a ring goes around: its slowest is {_link(ring)}"
        chosen, order = placement.groups, range(0, machine.gpus_per_node - tp + 1, tp)
        in_order = slowest(
            link
            for first in list(order)[: len(chosen) * pp]
            if (link := machine.slowest_link(range(first, first + tp))) is not None
        )
        if in_order.bandwidth_GBps < inside.bandwidth_GBps:
            words[-1] += (
                f". GPUs in order (0-{tp - 1}, ...), as launchers take them, would have {_link(in_order)}: "
                f"{inside.bandwidth_GBps / in_order.bandwidth_GBps:.3g} times slower"
            )
    hop = placement.slowest_hop_link
    if hop is not None:
        words.append(f"The slowest hop between stages is {_link(hop)}")
    if placement.idle:
        words.append(f"Idle: {', '.join(map(str, placement.idle))}")
    if not placement.exact:
        words.append("Found by growing groups and swapping members; not every choice was tried")
    return " ".join(f"{text}." for text in words) or "One GPU does everything."


def explain_advice(advice: Advice) -> str:
    """The recommendation in sentences: what, how sure, what binds, what is too close to call."""
    best, made = advice.best, advice.best.prediction
    low, high = made.tpot_range_ms
    text = (
        f"{best.layout}: {fixed(made.tpot_ms)} ms per token ({fixed(low)} to {fixed(high)}), the first after "
        f"{duration(made.ttft_ms)}, {made.output_tokens_per_s:,.0f} tokens/s. Bound by {made.binding}."
    )
    if made.admitted is not None:
        text += f" The others wait, {duration(made.queue_ms)} on average."
    if best.misses:
        text += f" No layout is within the limits; this one misses least: {'; '.join(best.misses)}."
    if best.choice.idle:
        text += f" {best.choice.idle} of {advice.machine.num_gpus} GPUs stay idle."
    if advice.close:
        names = ", ".join(str(option.layout) for option in advice.close)
        text += f" Too close to call without a measurement: {names}."
    return text


def explain_flips(advice: Advice) -> str:
    """Where another layout takes over, along link bandwidth and along load."""
    if not advice.flips:
        return f"{advice.best.layout} stays the best at every link bandwidth and load tried."
    return " ".join(f"Along {flip.quantity}: {flip}." for flip in advice.flips)


def explain_verification(made: Verification) -> str:
    """How good predictions were, and what following them would have cost."""
    if made.frame.empty:
        return ""
    choices = made.choices()
    chosen = "; ".join(
        f"advised {row['advised']}, best {row['best']}"
        + (f" (over {str(row['setting']).split(' · ')[-1]})" if len(choices) > 1 else "")
        for row in choices.to_dict("records")
    )
    return (
        f"{len(made.frame)} layouts run: time per token off by {made.mape_pct():.0f} % on average, rank correlation "
        f"{made.spearman:.2f}, regret {made.regret_pct:.1f} %; {chosen}."
    )


def _link(link: Link) -> str:
    return f"{link.label or link.kind} with {link.bandwidth_GBps:.3g} GB/s"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def explain_calibration(made: Calibration) -> str:
    """What was measured, in a sentence or two."""
    words = []
    if made.sends:
        first = [sends.p50_us[0] for sends in made.sends]
        rates = [sends.nbytes[-1] / sends.p50_us[-1] / 1e3 for sends in made.sends]
        pairs = f"{len(made.sends)} pair{'s' * (len(made.sends) > 1)}"
        words.append(f"{pairs}: a small message takes {_range(first, 'µs')}, a large one gets {_range(rates, 'GB/s')}")
    if made.all_reduce:
        by_size = {sweep.num_ranks: sweep.p50_us[0] for sweep in made.all_reduce}
        listed = ", ".join(f"{us:,.0f} µs of {n}" for n, us in sorted(by_size.items()))
        words.append(f"A small all-reduce: {listed}")
    if made.block_overhead_us is not None and made.step_overhead_us is not None:
        by_width = made.block_overhead_per_width_us
        wider = f" and {by_width * 1024:.2g} µs per 1,024 of its width" if by_width else ""
        words.append(
            f"A block adds {made.block_overhead_us:,.0f} µs{wider} to its matmuls, a step "
            f"{made.step_overhead_us:,.0f} µs to its blocks"
        )
    return " ".join(f"{text}." for text in (*words, *made.notes))


def _range(values: list[float], unit: str) -> str:
    low, high = (f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" for value in (min(values), max(values)))
    return f"{low} {unit}" if low == high else f"{low} to {high} {unit}"
