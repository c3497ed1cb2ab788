"""The advisor against this machine: predicted beside measured time per token of a small Llama, over links that flip it.

    python tests/benchmarks/bench_advisor.py                    two ranks compute; four wait (emulated compute)
    python tests/benchmarks/bench_advisor.py --ranks 2 --rounds 5

For each number of ranks and each link: calibrate over it, predict every layout, run every layout in turns, compare.
On the fast link tensor parallelism is best, on the slow one pipelines or copies: the advice must follow. A machine that
is busy with other work shows it in the errors; the last lines say how busy it was.
"""

import argparse
import os
import time

from tplab import Cluster
from tplab.collectives.emulated_link import EmulatedLink
from tplab.models.config import ModelConfig
from tplab.topology.calibrating import calibrate
from tplab.topology.verifying import Verification, verify
from tplab.topology.workload import Workload

LINKS = {
    "fast": EmulatedLink(latency_us=300, bandwidth_GBps=0.5),
    "slow": EmulatedLink(latency_us=10_000, bandwidth_GBps=0.05),
}
LAYOUTS = {
    2: ((2, 1), (1, 2), (1, 1, 2)),
    4: ((4, 1), (2, 2), (1, 4), (2, 1, 2), (1, 2, 2), (1, 1, 4)),
}
WORKLOAD = Workload(input_length=16, output_length=12, concurrency=8)


def model(hidden: int, layers: int) -> ModelConfig:
    return ModelConfig(
        model_type="llama",
        vocab_size=8000,
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_layers=layers,
        num_heads=hidden // 64,
        num_kv_heads=hidden // 256,
        head_dim=64,
        max_positions=512,
    )


def measure(num_ranks: int, rounds: int, hidden: int, layers: int) -> list[Verification]:
    made = []
    with Cluster(num_ranks, "gloo") as cluster:
        for name, link in LINKS.items():
            began = time.monotonic()
            calibration = calibrate(cluster, links=link)
            middle = time.monotonic()
            made.append(
                verify(
                    cluster,
                    LAYOUTS[num_ranks],
                    model(hidden, layers),
                    WORKLOAD,
                    calibration=calibration,
                    links=link,
                    rounds=rounds,
                )
            )
            print(f"{num_ranks} ranks, {name} link: calibrated in {middle - began:.0f} s, ", end="")
            print(f"verified in {time.monotonic() - middle:.0f} s")
            print(made[-1], flush=True)
            print(made[-1].choices().to_string(index=False), end="\n\n", flush=True)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description="predicted beside measured, over links that flip the best layout")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4], choices=LAYOUTS, help="default: 2 4")
    parser.add_argument("--rounds", type=int, default=3, help="turns of every layout (default: 3)")
    parser.add_argument("--hidden", type=int, default=2048, help="hidden size of the Llama (default: 2048)")
    parser.add_argument("--layers", type=int, default=6, help="its layers (default: 6)")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    print(f"{os.cpu_count()} cores; load average before: {os.getloadavg()[0]:.2f}")
    parts = [part for n in arguments.ranks for part in measure(n, arguments.rounds, arguments.hidden, arguments.layers)]
    whole = Verification.joined(parts)
    print(
        f"all: time per token {whole.mape_pct():.1f} % mean error, rank correlation {whole.spearman:.2f}, regret "
        f"{whole.regret_pct:.1f} %"
    )
    for n in arguments.ranks:
        some = Verification.joined([part for part in parts if part.frame["num_ranks"].iloc[0] == n])
        best = some.choices()["best"].tolist()
        print(f"{n} ranks: {some.mape_pct():.1f} %, {some.spearman:.2f}, {some.regret_pct:.1f} %; best {best}")
    print(f"load average after: {os.getloadavg()[0]:.2f}")


if __name__ == "__main__":
    main()
