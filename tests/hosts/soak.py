"""Very many runs over two hosts, faults among them, in one real kernel: is anything left of them in the end?

    python -m tests.hosts.soak --runs 500 --seed 0

Every run is a cell. Of four runs three are well or fail without harm to the ranks; the others lose ranks, now and then
a host. What there is, is counted after every tenth of the runs, each time with fresh ranks: processes,
sockets and descriptors of the kernel, the controller, the engines and the ranks together, files in shared memory that
are theirs, and the resident memory of those that live all the while. Exit code 1 if there is more in the end.
"""

import argparse
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field

import psutil

from tests.hosts.faults.beds import bed_of_hosts, eventually
from tests.hosts.faults.desk import Desk
from tests.hosts.faults.footprint import marked
from tests.hosts.faults.rows import restore

LIMIT_S = 2.0
SETTLE_S = 20.0
MORE_MIB = 30
"""So much more memory a process may have: allocators do not give back all that they have."""

# How often each is drawn, and what its error has to be; an empty name: none.
FAULTS = {
    "well": (40, "", 60),
    "talks": (10, "", 60),
    "raises_everywhere": (15, "RankError", 60),
    "returns_a_lock": (10, "RankError", 60),
    "raises": (5, "RankError", 60),
    "killed": (4, "RankDied", 60),
    "mismatched": (3, "RankDied RankError", LIMIT_S),
    "absent": (2, "RankTimeout", LIMIT_S),
    "stopped": (2, "RankTimeout", LIMIT_S),
    "short_of_memory": (2, "RankError", 60),
    "shares_memory": (3, "RankDied", 60),
    "interrupted": (3, "KeyboardInterrupt", 60),
    "host cut off": (0.6, "HostLost", 60),
    "agent killed": (0.6, "HostLost", 60),
}


@dataclass
class Soak:
    """The runs so far."""

    desk: Desk
    pids: set[int] = field(default_factory=set)
    """All processes that were seen."""
    ended: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How often each fault ended how."""
    wrong: list[str] = field(default_factory=list)

    def run(self, fault: str) -> None:
        """One run with a fault and the run after it."""
        _, expect, timeout = FAULTS[fault]
        self.pids |= set(marked(self.desk.bed.mark))
        makes: dict[str, Callable[[], None]] = {
            "interrupted": self.desk.kernel.manager.interrupt_kernel,
            "host cut off": lambda: self.desk.bed.hosts.link_down(self.desk.bed.hosts.beta),
            "agent killed": lambda: self.desk.bed.parallel.kill_engine(self.desk.bed.hosts.beta),
        }
        cell = self.desk.begin("hung" if fault in makes else fault, timeout)
        if fault in makes:
            self.desk.happened()
            time.sleep(0.2)
            makes[fault]()
        told = self.desk.told(self.desk.end(cell, 60))
        self.ended[fault, told["error"] or "value"] += 1
        if told["error"] not in (expect.split() or [""]):
            self.wrong.append(f"{fault}: {told['error']}: {told['text'][:500]}")
        well = self.desk.attempt("well", limit_s=120)
        values = well["values"] or [0.0]
        if values != [float(len(values))] * len(values):
            self.wrong.append(f"the run after {fault}: {well['error']}: {well['text'][:500]}")
        if fault in ("host cut off", "agent killed"):
            restore(self.desk)
            self.desk.kernel("cluster.restart() and None", 120)  # on both hosts again

    def footprint(self) -> dict[str, int]:
        """With ranks that are fresh; what comes to rest is waited for."""
        self.desk.kernel("cluster.restart(); import gc; gc.collect(); None", 120)
        self.desk.attempt("well")
        self.pids |= set(marked(self.desk.bed.mark))
        counts: list[dict[str, int]] = []

        def is_still() -> bool:
            counts.append(asdict(self.desk.footprint()))
            time.sleep(0.5)
            return len(counts) > 4 and counts[-1] == counts[-2] == counts[-3]

        eventually(is_still, SETTLE_S)
        return counts[-1] | {"files in shared memory": self.shared_files()} | self.memory()

    def shared_files(self) -> int:
        """Files in /dev/shm with the number of one of the processes in their name, which torch puts there."""
        words = [name.replace(".", "_").replace("-", "_").split("_") for name in os.listdir("/dev/shm")]
        theirs = set(map(str, self.pids))
        return sum(not theirs.isdisjoint(parts) for parts in words)

    def memory(self) -> dict[str, int]:
        """Resident memory of what lives all the while; beta's engine is killed now and then."""
        parallel = self.desk.bed.parallel
        lasting = {
            "kernel": self.desk.kernel.manager.provisioner.pid,
            "engine of alpha": parallel.engines["alpha"].pid,
            "controller": parallel.controller.pid,
        }
        return {f"MiB of the {name}": psutil.Process(pid).memory_info().rss >> 20 for name, pid in lasting.items()}


def more(early: dict[str, int], late: dict[str, int]) -> list[str]:
    """What there is more of in the end."""
    return [
        f"{name}: {early[name]} after a tenth, {late[name]} in the end"
        for name in early
        if late[name] > early[name] + MORE_MIB * name.startswith("MiB")
    ]


def soak(num_runs: int, seed: int, say: Callable[[str], None] = print) -> list[str]:
    """Run them; what is wrong."""
    weights = [weight for weight, *_ in FAULTS.values()]
    names = random.Random(seed).choices([*FAULTS], weights, k=num_runs)
    with bed_of_hosts() as bed:
        desk = Desk(bed, "ipyparallel", 2)
        try:
            desk.start()
            soaked, early, began = Soak(desk), {}, time.monotonic()
            for number, name in enumerate(names, 1):
                soaked.run(name)
                if number == num_runs or number % max(1, num_runs // 10) == 0:
                    counted = soaked.footprint()
                    early = early or counted
                    said = ", ".join(f"{what} {count}" for what, count in counted.items())
                    say(f"after {number} runs, {time.monotonic() - began:.0f} s: {said}")
            say("; ".join(f"{name}: {error} {count}" for (name, error), count in sorted(soaked.ended.items())))
        finally:
            with suppress(Exception):
                desk.close()
    return soaked.wrong + more(early, counted)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    wrong = soak(options.runs, options.seed, lambda text: print(text, flush=True))
    print("\n".join(wrong) or "nothing is left")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
