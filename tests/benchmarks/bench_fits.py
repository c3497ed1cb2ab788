"""How long `tplab fits` takes as a command, beside an empty Python and what it does without.

    python tests/benchmarks/bench_fits.py

Seconds of the wall clock: the least and the median of ten runs in turns, files in the system's cache.
"""

import statistics
import subprocess
import sys
import time

TURNS = 10
CASES = {
    "an empty Python": ["-c", "pass"],
    "tplab --version": ["-m", "tplab.cli", "--version"],
    "tplab fits llama-3.1-70b --gpu h100": ["-m", "tplab.cli", "fits", "llama-3.1-70b", "--gpu", "h100"],
    "tplab fits llama-3.1-70b": ["-m", "tplab.cli", "fits", "llama-3.1-70b"],
    "import numpy": ["-c", "import numpy"],
    "import pandas": ["-c", "import pandas"],
    "import torch": ["-c", "import torch"],
}


def seconds(words: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *words], check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    taken: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(TURNS):
        for name, words in CASES.items():
            taken[name].append(seconds(words))
    for name, times in taken.items():
        print(f"{name:<40} {min(times):.2f} s, median {statistics.median(times):.2f}")


if __name__ == "__main__":
    main()
