"""NVIDIA's AIConfigurator on the cells of published tables: the peer that ``tplab validate --beside`` sets us beside.

    python3 -m venv ~/aiconfigurator && ~/aiconfigurator/bin/pip install aiconfigurator==0.12.0
    python tests/benchmarks/bench_aiconfigurator.py FOLDER --python ~/aiconfigurator/bin/python --csv beside.csv
    tplab validate FOLDER --report docs/accuracy.md --beside beside.csv

It needs an environment of its own (some 900 MB, no GPU), for it pins versions of what we use as well; this program runs
in ours, reads the tables as ``tplab validate`` does, and asks a process of that environment. Each cell is one call of
its ``cli_estimate`` in the mode for in-flight batching, with TP, PP, lengths and requests as published: an estimate of
one point, not its search. The cache has the precision that we assume, fp8 where the weights are in 8 or 4 bits: with
its own default, bf16, it is farther off on those cells (15 % in time per token instead of 10 %, 32 % in saturated
throughput instead of 16 %). The tables of kernels are the newest that it has for the engine. Its models are our
presets' configurations, so that nothing is downloaded.

Saturated cells say no number of requests. They get the largest batch up to 2,048 (TensorRT-LLM's default) that its own
model of memory accepts. A cell that it refuses has its reason in the column ``failure``.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

SYSTEMS = {name: f"{name}_sxm" for name in ("a100", "h100", "h200", "b200", "b300")} | {
    "rtx-pro-6000": "rtx_pro_6000_server"
}
"""Names of GPUs that are others there; the rest have underscores."""
GEMM = {"fp8": "fp8", "bf16": "bfloat16", "fp16": "bfloat16", "fp4": "nvfp4", "int8": "int8_wo", "int4": "int4_wo"}
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mistral": "MistralForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
}
MOST = 2048
"""Largest batch that a saturated cell gets."""


def estimate(asked: dict[str, Any], folder: str) -> dict[str, Any]:
    """One cell, in the other environment: times in ms and output tokens per second, or the reason of its failure."""
    from aiconfigurator.cli.api import cli_estimate

    def at(batch: int) -> Any:
        return cli_estimate(**asked["arguments"], batch_size=batch)

    def fits(batch: int) -> bool:
        try:
            return at(batch).kv_cache_warning is None
        except RuntimeError as error:
            if "OOM" in str(error):
                return False
            raise

    try:
        batch = asked["batch"]
        if batch is None:  # saturated
            batch, too_many = 1, MOST + 1
            while too_many - batch > 1:
                middle = (batch + too_many) // 2
                batch, too_many = (middle, too_many) if fits(middle) else (batch, middle)
        made = at(batch)
    except Exception as error:  # whatever it is, it is the answer
        failure = " ".join(str(error).replace(folder, "").split()) or type(error).__name__
        return {"failure": failure.split(". ")[0][:300]}
    return {
        "predicted_tpot_ms": float(made.tpot),
        "predicted_ttft_ms": float(made.ttft),
        "predicted_tok_s": float(made.raw["tokens/s"]),
        "requests": batch,
        "engine_version": made.backend_version,
        "note": "more requests than its cache holds" if made.kv_cache_warning else "",
    }


def work() -> None:
    """The other environment's side: one JSON object per line in, one per line out."""
    import logging

    logging.disable(logging.CRITICAL)
    out, folder = sys.stdout, sys.argv[2]
    for line in sys.stdin:
        with contextlib.redirect_stdout(sys.stderr):
            answer = estimate(json.loads(line), folder)
        print(json.dumps(answer), file=out, flush=True)


def question(case: Any, folder: Path) -> dict[str, Any]:
    """What ``cli_estimate`` is asked for a case."""
    from tplab.models.presets import MODELS

    home = folder / case.model.name
    if case.model.name in MODELS and not home.exists():
        config = MODELS[case.model.name]
        home.mkdir()
        kind = {"architectures": [ARCHITECTURES.get(config["model_type"], config["model_type"])]}
        (home / "config.json").write_text(json.dumps(dict(config) | kind), "utf-8")
    return {
        "batch": None if case.kind == "saturated" else case.workload.concurrency,
        "arguments": {
            "model_path": str(home) if home.exists() else case.model.name,
            "system_name": SYSTEMS.get(case.gpu, case.gpu.replace("-", "_")),
            "backend_name": case.workload.engine.name,
            "isl": case.workload.input_length,
            "osl": case.workload.output_length,
            "tp_size": case.tp,
            "pp_size": case.pp,
            "gemm_quant_mode": GEMM[case.model.weight_precision],
            "kvcache_quant_mode": GEMM[case.model.kv_precision],
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="AIConfigurator's predictions of published cells, into a CSV file")
    parser.add_argument("folder", type=Path, help="published tables, as for tplab validate")
    parser.add_argument("--python", type=Path, required=True, help="interpreter of the environment that has it")
    parser.add_argument("--csv", type=Path, required=True, help="file to write: one row per cell")
    arguments = parser.parse_args()

    import pandas as pd

    from tplab.topology.published.tables import CELL, read_folder

    about = "import importlib.metadata as m; print(m.version('aiconfigurator'))"
    version = subprocess.run([arguments.python, "-c", about], capture_output=True, text=True, check=True).stdout.strip()
    cases = [case for case in read_folder(arguments.folder).cases if not case.static]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        command = [arguments.python, "-W", "ignore", __file__, "--work", f"{folder}/"]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as worker:
            assert worker.stdin is not None
            assert worker.stdout is not None
            for i, case in enumerate(cases):
                print(json.dumps(question(case, Path(folder))), file=worker.stdin, flush=True)
                rows.append(case.cell | {"source": f"AIConfigurator {version}"} | json.loads(worker.stdout.readline()))
                if sys.stderr.isatty():
                    print(f"\r{i + 1} of {len(cases)}", end="", file=sys.stderr)
            worker.stdin.close()
    frame = pd.DataFrame(rows)
    order = [*CELL, "source", "predicted_tpot_ms", "predicted_ttft_ms", "predicted_tok_s", "requests", "engine_version"]
    frame = frame.reindex(columns=[*order, "note", "failure"])
    frame.to_csv(arguments.csv, index=False)
    failed = Counter(frame["failure"].dropna())
    print(f"{len(frame)} cells, {sum(failed.values())} of them failed:")
    for reason, count in failed.most_common():
        print(f"  {count:5d}  {reason}")


if __name__ == "__main__":
    work() if "--work" in sys.argv else main()
