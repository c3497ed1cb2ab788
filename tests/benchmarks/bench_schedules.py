"""Simulating 1F1B with durations, hops and memory, beside torch's untimed insertion and dry run of the same table.

    python tests/benchmarks/bench_schedules.py --rounds 9

They take turns within a round. Ours starts from a table that nothing has been computed of (the arrays a schedule keeps
are made anew each time), and ends with the trace and the peak of activations per rank; torch's are `_add_send_recv` and
`_simulate_comms_compute`, which know neither times nor memory; copying the table for them is not counted. The last line
is a table too large for torch to be waited for.
"""

import argparse
import statistics
import time
from dataclasses import replace

import pandas as pd
from torch.distributed.pipelining import schedules as torch_schedules

from tplab.pipeline import Costs, Schedule, build_schedule, simulate, validate

COMPARED = ((4, 8), (8, 64), (16, 256))
LARGE = (64, 1024)


def costs_of(p: int) -> Costs:
    """Uneven stages, a hop of a tenth of a forward, a link that is busy for another tenth, bytes of activations."""
    return Costs.of_stages(
        [1.0 + 0.01 * rank for rank in range(p)],
        hop_s=0.1,
        message_bytes=1e6,
        bandwidth_Bps=1e7,
        activation_bytes=1e6,
    )


def time_ours(schedule: Schedule, costs: Costs) -> float:
    fresh = replace(schedule)
    began = time.perf_counter()
    trace = simulate(fresh, costs)
    peaks = trace.peak_activations_per_rank
    took = time.perf_counter() - began
    p, m = schedule.num_stages, schedule.num_micro_batches
    assert peaks == tuple(min(m, p - rank) for rank in range(p))
    return took


def time_torch(schedule: Schedule) -> tuple[float, float]:
    """Seconds of the insertion of messages, and of the dry run."""
    rows = {
        rank: [torch_schedules._Action.from_str(str(action)) for action in row]
        for rank, row in enumerate(schedule.ranks)
    }
    began = time.perf_counter()
    with_messages = torch_schedules._add_send_recv(rows, schedule.stage_to_rank, schedule.total_stages)
    inserted = time.perf_counter()
    torch_schedules._simulate_comms_compute(with_messages, schedule.stage_to_rank, schedule.total_stages)
    return inserted - began, time.perf_counter() - inserted


def time_building_and_validating(p: int, m: int) -> tuple[float, float]:
    began = time.perf_counter()
    schedule = build_schedule("1f1b", p, m)
    built = time.perf_counter()
    validate(schedule)
    return built - began, time.perf_counter() - built


def compare(p: int, m: int, rounds: int) -> dict[str, float]:
    """Medians over rounds; ``ratio`` is ours over torch's two together."""
    schedule, costs = build_schedule("1f1b", p, m), costs_of(p)
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(time_ours(schedule, costs))
        theirs.append(time_torch(schedule))
    inserting, running = (statistics.median(column) for column in zip(*theirs, strict=True))
    both = statistics.median(sum(pair) for pair in theirs)
    return {
        "p": p,
        "m": m,
        "actions": schedule.num_actions,
        "simulate_ms": statistics.median(ours) * 1e3,
        "torch_add_send_recv_ms": inserting * 1e3,
        "torch_simulate_ms": running * 1e3,
        "ratio": statistics.median(ours) / both,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    rows = [compare(p, m, rounds) for p, m in COMPARED]
    p, m = LARGE
    schedule, costs = build_schedule("1f1b", p, m), costs_of(p)
    times = [time_ours(schedule, costs) for _ in range(rounds)]
    rows.append({"p": p, "m": m, "actions": schedule.num_actions, "simulate_ms": statistics.median(times) * 1e3})
    print(pd.DataFrame(rows).round(2).to_string(index=False))
    building, validating = (
        statistics.median(column) * 1e3
        for column in zip(*(time_building_and_validating(p, m) for _ in range(3)), strict=True)
    )
    print(f"p={p}, m={m} besides: built in {building:.0f} ms, validated in {validating:.0f} ms")


if __name__ == "__main__":
    main()
