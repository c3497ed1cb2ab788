"""What goes wrong, and what becomes of it, in real kernels: every fault on every engine, beside tplab's peers.

    python -m tests.hosts.fault_matrix                      # both engines, 2 and 4 ranks
    python -m tests.hosts.fault_matrix --peers              # beside plain ipyparallel and notebook_launcher
    python -m tests.hosts.fault_matrix --engines local --ranks 2 --faults raise,interrupt

Each row makes one fault happen to a notebook whose ranks are warm: to the rank with the highest index, while all others
wait for it in an all-reduce. The peers are used as their documents do: plain ipyparallel runs the function on its
engines (``client[i].apply_async``), accelerate's ``notebook_launcher`` forks ranks for every call.

error        the type of the exception in the notebook's cell; "hangs": the cell had not ended after 12 s
rank         which rank (and host) the exception names
to error     seconds from the fault to the exception, a time limit of 2 s included where nothing else ends the run;
             where the kernel goes away: until its ranks and what they have started are gone
processes    how many more there are than before the fault, after the next run
sockets      the same, of all those processes together
next run     seconds of the run after it, for which the user does nothing; "no": it fails or hangs

All counted and measured in this run. The exit code is 1 if a cell of tplab's is not as it has to be.
"""

import argparse
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager

from tests.hosts.faults.beds import Bed, bed_of_hosts, local_bed
from tests.hosts.faults.cells import Cell, desks, examine
from tests.hosts.faults.launchers import LAUNCHERS
from tests.hosts.faults.rows import ROWS

HEADINGS = ("fault", "ranks", "engine", "error", "rank", "to error", "processes", "sockets", "next run", "")
WIDTHS = (25, 5, 17, 26, 9, 8, 9, 7, 8, 0)


def beds(engine: str) -> AbstractContextManager[Bed]:
    """Where the notebooks of an engine are tried."""
    return bed_of_hosts() if engine == "ipyparallel" else local_bed()


def examine_all(faults: Sequence[str], engines: Sequence[str], ranks: Sequence[int]) -> Iterator[Cell]:
    """Every fault on every engine with every number of ranks, one after the other."""
    for engine in engines:
        with beds(engine) as bed, desks(bed) as opened:
            for num_ranks in ranks:
                for fault in faults:
                    row = ROWS[fault]
                    if engine in row.engines and not (row.once and num_ranks != ranks[0]):
                        yield examine(opened, fault, engine, num_ranks)


def line(cell: Cell) -> str:
    """One line of the table."""
    seen = cell.seen
    if cell.skipped:
        words = (cell.fault, cell.num_ranks, cell.engine, "not tried", *[""] * 5, cell.skipped)
    else:
        words = (
            cell.fault,
            seen.num_ranks or cell.num_ranks,
            cell.engine,
            seen.error or "none",
            "" if seen.rank is None else f"{seen.rank} {seen.host}".strip(),
            "" if seen.seconds is None else f"{seen.seconds:.2f} s",
            cell.processes,
            cell.sockets,
            "no" if cell.next_s is None else f"{cell.next_s:.2f} s",
            verdict(cell),
        )
    return aligned(words)


def verdict(cell: Cell) -> str:
    """The last column: what is wrong, or what there is to say."""
    if not LAUNCHERS[cell.engine].is_ours:
        return cell.seen.note or cell.seen.wrong
    said = "; ".join(" ".join(problem.split()) for problem in cell.problems)
    return f"RED: {said}" if said else " ".join(filter(None, ("green", cell.seen.note)))


def aligned(words: Iterable[object]) -> str:
    return "  ".join(f"{word!s:<{width}}" for word, width in zip(words, WIDTHS, strict=True)).rstrip()


def listed(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", type=listed, default=[name for name in LAUNCHERS if LAUNCHERS[name].is_ours])
    parser.add_argument("--ranks", type=lambda text: [int(word) for word in listed(text)], default=[2, 4])
    parser.add_argument("--faults", type=listed, default=list(ROWS))
    parser.add_argument("--peers", action="store_true", help="plain ipyparallel and notebook_launcher, too")
    parser.add_argument("--messages", action="store_true", help="what the exceptions say, below each line")
    options = parser.parse_args(arguments)
    engines = options.engines + [name for name in LAUNCHERS if options.peers and not LAUNCHERS[name].is_ours]
    for name, known in [*((name, LAUNCHERS) for name in engines), *((name, ROWS) for name in options.faults)]:
        if name not in known:
            parser.error(f"{name!r} is none of {', '.join(known)}")
    print(aligned(HEADINGS), flush=True)
    red = tried = 0
    for cell in examine_all(options.faults, engines, options.ranks):
        print(line(cell), flush=True)
        if options.messages and cell.seen.text:
            print(textwrap.indent(cell.seen.text, "    "), flush=True)
        red += bool(cell.problems)
        tried += LAUNCHERS[cell.engine].is_ours and not cell.skipped
    print(f"\n{tried - red} of {tried} cells of tplab's are green")
    return 1 if red else 0


if __name__ == "__main__":
    sys.exit(main())
