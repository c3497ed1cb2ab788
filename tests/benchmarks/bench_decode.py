"""Decode and prefill on a GPU beside their limits and beside transformers, on the same card in one run.

    python tests/benchmarks/bench_decode.py                       Llama-3.1-8B's shape, one GPU
    python tests/benchmarks/bench_decode.py --tp 2 --model llama-3.1-70b
    python tests/benchmarks/bench_decode.py --no-peer             without transformers

Weights are random: times do not depend on them. *limit*: the bytes that a step must read (all weights but the
embedding's table) at the speed of a device-to-device copy of 2 GiB, measured beside it. *prefill*: its floating-point
operations, 2·(block weights)·T + 2·L·h·T² (causal), over those of a matrix product of 8192 cubed beside it. With
several ranks: a rank's shard alone, and the all-reduces of a step alone, each in a CUDA graph; TP should take their
sum.

transformers: greedy, eager with its dynamic cache, and with its static cache, which compiles. A time per token is that
of 65 tokens less that of one, over 64; medians. Of prefills, ours and theirs, the least of four.
"""

import argparse
import statistics
import time
from dataclasses import replace
from itertools import pairwise
from typing import Any

from tplab import Cluster
from tplab.cluster import Rank
from tplab.models import ModelConfig, generate
from tplab.models.presets import MODELS

NEW, LENGTHS = 65, (128, 100, 128, 128)


def config_of(name: str) -> ModelConfig:
    return ModelConfig.from_hf({**MODELS[name], "torch_dtype": "bfloat16", "eos_token_id": None})


def prompts_of(config: ModelConfig, batch: int, length: int) -> list[list[int]]:
    return [[(7 * row + 13 * place) % config.vocab_size for place in range(length)] for row in range(batch)]


def ceilings(rank: Rank) -> tuple[float, float]:
    """Bytes per second of a copy, read and written; operations per second of a matrix product."""
    import torch

    def seconds(call: Any, times: int = 10) -> float:
        call()
        events = [torch.cuda.Event(enable_timing=True) for _ in range(times + 1)]
        for event in events[:-1]:
            event.record()
            call()
        events[-1].record()
        events[-1].synchronize()
        return statistics.median(a.elapsed_time(b) for a, b in pairwise(events)) / 1e3

    source = torch.empty(1 << 30, dtype=torch.bfloat16, device=rank.device).normal_()
    target = torch.empty_like(source)
    copy = 2 * 2 * source.numel() / seconds(lambda: target.copy_(source))
    a, b = (torch.randn(8192, 8192, device=rank.device).bfloat16() for _ in range(2))
    product = 2 * 8192**3 / seconds(lambda: a @ b)
    torch.cuda.empty_cache()
    return copy, product


def parts_alone(rank: Rank, config: ModelConfig, tp: int, length: int) -> tuple[float, float]:
    """Milliseconds per token of this rank's shard without any sum, and of a step's sums without any shard."""
    import torch
    import torch.distributed as dist

    from tplab.collectives.transport import NullTransport
    from tplab.layers.comm import NullComm
    from tplab.measure.sampler import collective_sampler
    from tplab.models.engine import GenerationEngine
    from tplab.models.loading import tensor_parallel_comm
    from tplab.models.precision import itemsize
    from tplab.models.records import Request
    from tplab.models.shards import Layout
    from tplab.topology.calibration.copies import load_random

    layout = Layout.of(config, tp)
    prompts = prompts_of(config, 1, length)
    request = Request.of(prompts, max_new_tokens=NEW)
    loaded = load_random(config, layout, rank.index, NullComm(rank.index, tp), device=rank.device)
    for _ in range(2):
        engine = GenerationEngine(loaded, request, prompts, NullTransport())
        engine.prepare()
        engine.run()
    times = engine.token_s[0]
    shard_ms = (times[-1] - times[0]) / (NEW - 1) * 1e3
    del engine, loaded
    torch.cuda.empty_cache()
    comm = tensor_parallel_comm(rank, layout)
    x = torch.ones(1, config.hidden_size, device=rank.device).bfloat16()
    assert itemsize("bfloat16") == x.element_size()
    num_sums = 2 * config.num_layers + 1

    def sums() -> None:
        for _ in range(num_sums):
            comm.all_reduce(x)

    dist.barrier(group=rank.group)
    sample = collective_sampler(rank, sums, before=lambda: x.fill_(0.0), graph=True)
    return shard_ms, statistics.median(sample() for _ in range(20)) / 1e3


def peer(rank: Rank, values: dict[str, Any], prefill: int) -> list[str]:
    """transformers' times, as lines."""
    import torch
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM

    lines = [f"transformers {transformers.__version__}, torch {torch.__version__}"]
    torch.set_default_dtype(torch.bfloat16)
    try:
        with rank.device, torch.no_grad():
            config = AutoConfig.for_model(**{key: value for key, value in values.items() if key != "name"})
            model = AutoModelForCausalLM.from_config(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)

    def run(ids: torch.Tensor, new: int, **how: Any) -> float:
        torch.cuda.synchronize()
        began = time.perf_counter()
        model.generate(ids, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0, **how)
        torch.cuda.synchronize()
        return (time.perf_counter() - began) * 1e3

    def both(length: int, **how: Any) -> str:
        ids = torch.randint(0, config.vocab_size, (1, length), device=rank.device)
        first, whole = run(ids, 1, **how), run(ids, NEW, **how)
        return f"first token {first:.1f} ms, then {(whole - first) / (NEW - 1):.2f} ms per token"

    with torch.no_grad():
        lines += [f"eager, {length} in: {both(length)}" for length in LENGTHS]
        ids = torch.randint(0, config.vocab_size, (1, prefill), device=rank.device)
        times = []
        for _ in range(4):
            torch.cuda.synchronize()
            began = time.perf_counter()
            model(ids, logits_to_keep=1)
            torch.cuda.synchronize()
            times.append((time.perf_counter() - began) * 1e3)
        lines.append(f"prefill of {prefill}: {min(times):.1f} ms")
        for _ in range(3):
            lines.append(f"static cache, compiled: {both(128, cache_implementation='static')}")
    return lines


def ours(cluster: Any, config: ModelConfig, tp: int, batch: int, length: int, new: int, **how: Any) -> Any:
    prompts = prompts_of(config, batch, length)
    return generate(cluster, config, prompts, tp=tp, max_new_tokens=new, stop_tokens=(), **how)


def decode(cluster: Any, config: ModelConfig, tp: int, batches: list[int], copy: float) -> float:
    """Print times per token; those of the first batch, in milliseconds, come back."""
    began = time.perf_counter()
    first = ours(cluster, config, tp, 1, LENGTHS[0], NEW)
    print(f"loaded in {time.perf_counter() - began:.0f} s, captured in {first.capture_s:.2f} s", flush=True)
    table = config.vocab_size * config.hidden_size * (not config.tied_embeddings)
    read = max(load.weight_bytes for load in first.loads) - 2 * table / tp
    limit, tpots = read / copy * 1e3, []
    for batch in batches:
        runs = [ours(cluster, config, tp, batch, length, NEW) for length in (128, 100, 128)]
        tpots.append(statistics.median(statistics.median(run.tpot_s) for run in runs) * 1e3)
        share = limit / tpots[-1]
        print(f"batch {batch}: {tpots[-1]:.3f} ms per token, {share:.3f} of the limit {limit:.3f} ms", flush=True)
    for length in LENGTHS:
        made = ours(cluster, config, tp, 1, length, NEW, cuda_graphs=False)
        ttft, tpot = made.ttft_s[0] * 1e3, made.tpot_s[0] * 1e3
        print(f"eager, {length} in: first token {ttft:.1f} ms, then {tpot:.2f} ms per token", flush=True)
    return tpots[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llama-3.1-8b", choices=sorted(MODELS))
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 2, 4, 8])
    parser.add_argument("--layers", type=int, help="fewer layers, for a model that does not fit")
    parser.add_argument("--prefill", type=int, default=8192, help="tokens; 0: none")
    parser.add_argument("--alone", action="store_true", help="also on one of the GPUs")
    parser.add_argument("--no-peer", action="store_true")
    asked = parser.parse_args()
    config = config_of(asked.model)
    if asked.layers:
        config = replace(config, num_layers=asked.layers)
    with Cluster(asked.tp, "nccl") as cluster:
        print(cluster.badge, cluster.provenance.device, f"torch {cluster.provenance.torch_version}", flush=True)
        copy, product = cluster.run(ceilings, timeout=120)[0]
        print(f"copy {copy / 1e12:.3f} TB/s, 8192 cubed {product / 1e12:.0f} TFLOP/s", flush=True)
        tpot = decode(cluster, config, asked.tp, asked.batches, copy)
        if asked.prefill:
            seconds = min(ours(cluster, config, asked.tp, 1, asked.prefill, 1).ttft_s[0] for _ in range(4))
            length = asked.prefill
            work = 2 * config.num_layers * (config.block_matmul_params * length + config.hidden_size * length**2)
            done = work / asked.tp / seconds / product
            print(f"prefill of {length}: {seconds * 1e3:.1f} ms, {done:.3f} of the product's", flush=True)
        if asked.tp > 1:
            both = cluster.run(parts_alone, config, asked.tp, LENGTHS[0], timeout=300)
            shard, sums = (max(column) for column in zip(*both, strict=True))
            ratio = tpot / (shard + sums)
            print(f"shard alone {shard:.3f} ms + sums alone {sums:.3f} ms; TPOT {ratio:.3f} of both", flush=True)
        if asked.tp > 1 and asked.alone:
            alone = cluster.resized(1)
            print(alone.badge)
            decode(alone, config, 1, asked.batches, copy)
    if not asked.no_peer:
        with Cluster(1, "nccl") as cluster:
            print("\n".join(cluster.run(peer, dict(MODELS[asked.model]), asked.prefill, timeout=300)[0]))


if __name__ == "__main__":
    main()
