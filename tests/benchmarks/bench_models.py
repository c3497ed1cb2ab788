"""Generation beside transformers: alone, and on two ranks; and what loading takes in time and memory.

    python tests/benchmarks/bench_models.py            all three
    python tests/benchmarks/bench_models.py load --gigabytes 1

*alone*: our generate and transformers' (greedy, static cache) in one process, on the same checkpoint and as many
threads, in turns. *tp*: both on two gloo ranks started by torchrun, ours with tp=2, transformers with
``tp_plan="auto"``, in turns in the same processes. *load*: a random checkpoint onto 1, 2 and 4 ranks of a cluster.

Tokens must be equal before anything is timed. Decode is the time of a long generation less that of one token: medians
of the rounds, of the slower rank. Ratios are above 1 where ours is faster: compare those of one run only.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle

from tplab import Cluster
from tplab.cluster import Rank
from tplab.models.shards import Layout, weight_bytes
from tplab.models.spec import ModelConfig

SIZES: dict[str, dict[str, int]] = {
    "small": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 8, "vocab_size": 4001},
    "medium": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 8, "vocab_size": 16001},
}
PROMPT, NEW, BATCHES = 32, 33, (1, 4)


def config_of(size: str) -> ModelConfig:
    return ModelConfig.from_hf(
        {
            "model_type": "llama",
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "max_position_embeddings": 512,
            "eos_token_id": None,
            **SIZES[size],
        }
    )


def prompts_of(batch: int) -> list[list[int]]:
    return [[(7 * place + 13 * row) % 4000 for place in range(PROMPT)] for row in range(batch)]


def ours(rank: Rank, folder: str, batch: int) -> Callable[[int], list[list[int]]]:
    """A function that generates so many tokens."""
    from tplab.models.generation import generate_on_rank
    from tplab.models.records import Request, Weights

    config, weights = Weights.of(folder)
    layout = Layout.of(config, rank.world_size)

    def call(num_tokens: int) -> list[list[int]]:
        request = Request.of(prompts_of(batch), max_new_tokens=num_tokens)
        return generate_on_rank(rank, config, weights, layout, request).tokens

    return call


def theirs(folder: str, batch: int, **how: Any) -> Callable[[int], list[list[int]]]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **how)
    ids = torch.tensor(prompts_of(batch))

    def call(num_tokens: int) -> list[list[int]]:
        with torch.inference_mode():
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=num_tokens,
                min_new_tokens=num_tokens,
                do_sample=False,
                cache_implementation="static",
                pad_token_id=0,
            )
        tokens: list[list[int]] = out[:, PROMPT:].tolist()
        return tokens

    return call


def take_turns(calls: dict[str, Callable[[int], list[list[int]]]], rounds: int, barrier: Callable[[], None]) -> Any:
    """Who -> (seconds for one token, seconds for NEW), one pair per round."""
    want = None
    for name, call in calls.items():
        for num_tokens in (1, NEW):
            got = call(num_tokens)
        want = want or got
        assert got == want, f"{name} has other tokens"
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for number in range(rounds):
        for name in [*calls][:: 1 if number % 2 else -1]:
            pair = []
            for num_tokens in (1, NEW):
                barrier()
                began = time.perf_counter()
                calls[name](num_tokens)
                pair.append(time.perf_counter() - began)
            times[name].append((pair[0], pair[1]))
    return times


def summary(per_rank: list[dict[str, list[tuple[float, float]]]], batch: int) -> dict[str, dict[str, float]]:
    """Who -> milliseconds to the first token, decode tokens per second, tokens per second: medians, slower rank."""
    rows = {}
    for name in per_rank[0]:
        rounds = zip(*(times[name] for times in per_rank), strict=True)
        pairs = [(max(pair[0] for pair in ranks), max(pair[1] for pair in ranks)) for ranks in rounds]
        first, whole = (statistics.median(pair[i] for pair in pairs) for i in (0, 1))
        decode = statistics.median(pair[1] - pair[0] for pair in pairs)
        rows[name] = {
            "first_ms": first * 1e3,
            "decode_tokens_per_s": batch * (NEW - 1) / decode,
            "tokens_per_s": batch * NEW / whole,
        }
    return rows


def on_one_process(folder: str, rounds: int) -> dict[int, dict[str, dict[str, float]]]:
    import torch

    rank = Rank(
        index=0,
        world_size=1,
        group=None,  # type: ignore[arg-type]
        device=torch.device("cpu"),
        send_report=lambda fields: None,
    )
    results = {}
    for batch in BATCHES:
        calls = {"tplab": ours(rank, folder, batch), "transformers": theirs(folder, batch)}
        results[batch] = summary([take_turns(calls, rounds, lambda: None)], batch)
    return results


def on_a_torchrun_rank(folder: str, rounds: int) -> None:
    """Rank 0 prints the result as one line of JSON."""
    import torch
    import torch.distributed as dist

    from tplab.cluster.torchrun import attached

    torch.set_num_threads(1)
    results = {}
    with attached("gloo") as ranks:
        rank = ranks.rank
        for batch in BATCHES:
            calls = {"tplab": ours(rank, folder, batch), "transformers": theirs(folder, batch, tp_plan="auto")}
            mine = take_turns(calls, rounds, lambda: dist.barrier())
            every: list[Any] = [None] * rank.world_size
            dist.all_gather_object(every, mine)
            results[batch] = summary(every, batch)
        if rank.index == 0:
            print("RESULT " + json.dumps(results), flush=True)


def on_two_ranks(folder: str, rounds: int) -> dict[int, dict[str, dict[str, float]]]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29611"]
    command += [__file__, "--rounds", str(rounds), "rank", "--folder", folder]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise RuntimeError(f"torchrun gave no result:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return {int(batch): rows for batch, rows in json.loads(lines[0].removeprefix("RESULT ")).items()}


def write(folder: Path, config: ModelConfig) -> None:
    from tplab.models.checkpoint import RandomWeights, save_checkpoint

    save_checkpoint(folder, config, RandomWeights(config, 1), max_shard_bytes=200 << 20)


def load_once(rank: Rank, folder: str, layout: Layout) -> Any:
    import torch

    from tplab.models.generation import ensure_loaded, unload
    from tplab.models.records import Weights

    torch.set_num_threads(1)
    config, weights = Weights.of(folder)
    report = ensure_loaded(rank, config, weights, layout)[1]
    unload(rank)
    return report


def loading(gigabytes: float, folder: Path, small: Path) -> list[dict[str, float]]:
    """A row per number of ranks. The file is in the page cache: what is timed is mapping, slicing and copying."""
    layers = max(1, round((gigabytes * 1e9 / 4 - 2 * 16001 * 1024) / (12.5 * 1024 * 1024)))
    config = ModelConfig.from_hf(
        config_of("medium").to_hf()
        | {"hidden_size": 1024, "head_dim": 128, "intermediate_size": 2816, "num_hidden_layers": layers}
    )
    write(folder, config)
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    rows = []
    for n in (1, 2, 4):
        layout, few = Layout.of(config, n), Layout.of(ModelConfig.from_hf(small), n)
        with Cluster(n, "gloo") as cluster:
            cluster.run(load_once, str(small), few, timeout=300)  # imports, and what is allocated once
            reports = [cluster.run(load_once, str(folder), layout, timeout=300) for _ in range(3)]
        rows.append(
            {
                "ranks": n,
                "checkpoint_bytes": config.weight_bytes,
                "load_s": statistics.median(max(report.load_s for report in each) for each in reports),
                "weight_bytes": max(weight_bytes(config, layout, 0, index) for index in range(n)),
                "peak_bytes": max(report.peak_bytes for each in reports for report in each),
            }
        )
    return rows


def print_generation(what: str, size: str, results: dict[int, dict[str, dict[str, float]]]) -> None:
    for batch, rows in results.items():
        mine, other = rows["tplab"], rows["transformers"]
        print(
            f"{what:6} {size:7} {batch:6} {mine['first_ms']:9.1f} {other['first_ms']:9.1f} "
            f"{mine['decode_tokens_per_s']:9.0f} {other['decode_tokens_per_s']:9.0f} "
            f"{mine['decode_tokens_per_s'] / other['decode_tokens_per_s']:7.2f} "
            f"{mine['tokens_per_s'] / other['tokens_per_s']:7.2f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", default="all", choices=["all", "alone", "tp", "load", "rank"])
    parser.add_argument("--rounds", type=int, default=7, help="samples per case (default: 7)")
    parser.add_argument("--sizes", nargs="+", default=[*SIZES], choices=[*SIZES])
    parser.add_argument("--gigabytes", type=float, default=1.0, help="of the checkpoint for load (default: 1)")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.what == "rank":
        on_a_torchrun_rank(arguments.folder, arguments.rounds)
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    print(f"{os.cpu_count()} cores; one thread per process; load average before: {os.getloadavg()[0]:.2f}")
    with tempfile.TemporaryDirectory() as temporary:
        folders = {size: Path(temporary) / size for size in {*arguments.sizes, "small"}}
        for size, folder in folders.items():
            write(folder, config_of(size))
        if arguments.what != "load":
            print("                       first token, ms       decode, tokens/s         ratio")
            print(f"{'':6} {'model':7} {'batch':>6} {'tplab':>9} {'transf.':>9} {'tplab':>9} {'transf.':>9} "
                  f"{'decode':>7} {'all':>7}")  # fmt: skip
        for size in arguments.sizes:
            if arguments.what in ("all", "alone"):
                print_generation("alone", size, on_one_process(str(folders[size]), arguments.rounds))
            if arguments.what in ("all", "tp"):
                print_generation("tp=2", size, on_two_ranks(str(folders[size]), arguments.rounds))
        if arguments.what in ("all", "load"):
            rows = loading(arguments.gigabytes, Path(temporary) / "large", folders["small"])
            print(f"{'ranks':>5} {'load s':>7} {'weights MB':>11} {'of 1 rank':>10} {'peak MB':>8} {'of 1 rank':>10}")
            for row in rows:
                print(
                    f"{row['ranks']:5} {row['load_s']:7.2f} {row['weight_bytes'] / 1e6:11.1f} "
                    f"{row['weight_bytes'] / rows[0]['weight_bytes']:10.3f} {row['peak_bytes'] / 1e6:8.1f} "
                    f"{row['peak_bytes'] / rows[0]['peak_bytes']:10.3f}"
                )
    print(f"load average after: {os.getloadavg()[0]:.2f}")


if __name__ == "__main__":
    main()
