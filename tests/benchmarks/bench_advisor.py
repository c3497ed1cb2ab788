"""The advisor against this machine: predicted beside measured time per token of a small Llama, over links that flip it.

    python tests/benchmarks/bench_advisor.py --ranks 2          both ranks compute
    python tests/benchmarks/bench_advisor.py --ranks 4          four wait as stages were timed (emulated compute)

For each link: calibrate and run every layout in turns, so that a busy spell of the machine meets both; then predict
from all calibrations and compare with all runs. On the fast link tensor parallelism is best, on the slow one pipelines
or copies: the advice must follow. On a machine that is busy with other work, part of the error is its own: the load
average is printed.
"""

import argparse
import os
import time

from tplab import Cluster
from tplab.cluster import Report
from tplab.collectives.emulated_link import EmulatedLink
from tplab.models.spec import ModelConfig
from tplab.topology import ModelSpec, Verification, Workload, submit_calibrate, submit_verify
from tplab.topology.calibration.assemble import calibration_of
from tplab.topology.calibration.plan import plan_calibration
from tplab.topology.verification.plan import ClusterFacts, plan_verify
from tplab.topology.verification.run import verification_of

LINKS = {
    "fast": EmulatedLink(latency_us=200, bandwidth_GBps=1.0),
    "slow": EmulatedLink(latency_us=10_000, bandwidth_GBps=0.05),
}
LAYOUTS = {
    2: ((2, 1), (1, 2), (1, 1, 2)),
    4: ((4, 1), (2, 2), (1, 4), (2, 1, 2), (1, 2, 2), (1, 1, 4)),
}
WORKLOAD = Workload(input_length=8, output_length=8, concurrency=8)


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


def measure(cluster: Cluster, link: EmulatedLink, turns: int, llama: ModelConfig) -> Verification:
    """Both in turns, put together at the end."""
    calibrated: list[Report] = []
    verified: list[Report] = []
    layouts = LAYOUTS[cluster.num_ranks]
    spec = ModelSpec.from_config(llama.to_hf())
    for _ in range(turns):
        calibrating = submit_calibrate(cluster, links=link, rounds=1, model=spec)
        calibration = calibrating.result()
        verifying = submit_verify(
            cluster, layouts, llama, WORKLOAD, calibration=calibration, links=link, rounds=1, repeats=1
        )
        verifying.result()
        assert calibrating.run is not None
        assert verifying.run is not None
        calibrated += calibrating.run.reports
        verified += verifying.run.reports
    plan = plan_calibration(cluster.provenance, links=link, rounds=1, model=spec)
    facts = ClusterFacts(
        provenance=cluster.provenance,
        calibration=calibration_of(plan, calibrated, cluster.provenance),
        free_bytes=(float("inf"),) * cluster.num_ranks,
        links=link,
    )
    planned = plan_verify(layouts, llama, WORKLOAD, cluster=facts)
    return verification_of(planned, verified, cluster.provenance)


def main() -> None:
    parser = argparse.ArgumentParser(description="predicted beside measured, over links that flip the best layout")
    parser.add_argument("--ranks", type=int, default=2, choices=LAYOUTS, help="default: 2")
    parser.add_argument("--turns", type=int, default=4, help="calibrations and runs of every layout (default: 4)")
    parser.add_argument("--hidden", type=int, default=2048, help="hidden size of the Llama (default: 2048)")
    parser.add_argument("--layers", type=int, default=4, help="its layers (default: 4)")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    print(f"{os.cpu_count()} cores; load average before: {os.getloadavg()[0]:.2f}")
    parts = []
    with Cluster(arguments.ranks, "gloo") as cluster:
        for name, link in LINKS.items():
            began = time.monotonic()
            parts.append(measure(cluster, link, arguments.turns, model(arguments.hidden, arguments.layers)))
            print(f"\n{name} link, {time.monotonic() - began:.0f} s, load {os.getloadavg()[0]:.2f}")
            print(parts[-1], flush=True)
    whole = Verification.joined(parts)
    print(f"\n{whole.choices().to_string(index=False)}")
    print(
        f"time per token {whole.mape_pct():.1f} % mean error, rank correlation {whole.spearman:.2f}, regret "
        f"{whole.regret_pct:.1f} %; load average after: {os.getloadavg()[0]:.2f}"
    )


if __name__ == "__main__":
    main()
