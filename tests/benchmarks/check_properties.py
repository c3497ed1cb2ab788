"""The advisor's properties over random inputs: how many cases break each, and the simplest that does.

    python -m tests.benchmarks.check_properties --inputs 10000 --seed 1

From the root of the repository. Exits with 1 if any property is broken.
"""

import argparse
import time
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor
from itertools import islice

from tests.topology.advisor.inputs import Case, cases
from tests.topology.advisor.properties import Violation, shrunk, violations

CHUNK = 100
"""Inputs of one seed: a run's seeds are consecutive."""


def check(seed: int) -> list[tuple[Violation, int]]:
    """Of each property the worst violation among the inputs of that seed, and how many inputs break it."""
    counts: Counter[str] = Counter()
    worst: dict[str, Violation] = {}
    for case in islice(cases(seed), CHUNK):
        found = {each.property: each for each in sorted(violations(case), key=lambda each: each.amount)}
        found = {f"{name}{_kind(each.case)}": each for name, each in found.items()}
        counts.update(found.keys())
        for name, each in found.items():
            if name not in worst or each.amount > worst[name].amount:
                worst[name] = each
    return [(each, counts[name]) for name, each in worst.items()]


def _kind(case: Case) -> str:
    return ", pipeline" * (case.pp > 1) + ", calibrated" * (case.calibrated is not None)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--shown", type=int, default=2, help="cases shown of each property")
    asked = parser.parse_args()
    began, counts, found = time.monotonic(), Counter[str](), defaultdict[str, list[Violation]](list)
    num_chunks = -(-asked.inputs // CHUNK)
    with ProcessPoolExecutor(asked.processes) as pool:
        for some in pool.map(check, range(asked.seed * 100_000, asked.seed * 100_000 + num_chunks)):
            for each, count in some:
                name = f"{each.property}{_kind(each.case)}"
                counts[name] += count
                found[name].append(each)
        print(f"{num_chunks * CHUNK} inputs, {time.monotonic() - began:.0f} s, seed {asked.seed}")
        for name in sorted(found):
            print(
                f"  {name}: {counts[name]} inputs, at most {max(each.amount for each in found[name]):.2%}", flush=True
            )
        worst = [
            each for name in sorted(found) for each in sorted(found[name], key=lambda each: -each.amount)[: asked.shown]
        ]
        for line in dict.fromkeys(map(str, pool.map(shrunk, worst))):
            print(f"\n{line}")
    if not found:
        print("no property is broken")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
