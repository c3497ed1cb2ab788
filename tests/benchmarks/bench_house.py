"""The house in numbers, before and after: files that a call walks through, lines per room, circles, double names, CPU.

    python tests/benchmarks/bench_house.py --before 833779b
    python tests/benchmarks/bench_house.py --files            and which files each walk enters

*Before* is a revision that git extracts into a temporary folder, *after* the checkout that this script lies in; the
same calls run on both, in processes of their own. Walks are warm (a first call has filled the caches) and count what
``sys.setprofile`` sees under ``tplab/``: of the kernel the thread that calls, and in brackets all its threads; of the
ranks the main thread of rank 0. A function is one with a name: no lambdas, no comprehensions.

A line of code holds a token of code, so docstrings, comments and blank lines do not count. A circle is a set of modules
that import each other, through others or not; a name that a package hands on counts for the module that defines it.
CPU seconds are those of the calling process, medians of calls that before and after made in turns.
"""

import argparse
import ast
import importlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import tokenize
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[2]
TURNS = 3
Entered = set[tuple[str, int]]
"""A file under ``tplab/``, and the line where the function begins."""

# Walks: in a process that imports the tree in question.


class Watch:
    """Which named functions under ``tplab/`` are entered, by which thread."""

    def __init__(self) -> None:
        self.home = str(Path(importlib.import_module("tplab").__file__ or "").parent) + os.sep
        self.of_thread: dict[int, Entered] = defaultdict(set)
        self.on = False

    def __call__(self, frame: Any, event: str, argument: object) -> None:
        code = frame.f_code
        if self.on and event == "call" and code.co_filename.startswith(self.home) and not code.co_name.startswith("<"):
            place = (code.co_filename.removeprefix(self.home), code.co_firstlineno)
            self.of_thread[threading.get_ident()].add(place)


def begin(rank: Any) -> None:
    watch = rank.store["watch"] = Watch()
    watch.on = True
    sys.setprofile(watch)


def end(rank: Any) -> list[tuple[str, int]]:
    sys.setprofile(None)
    return [*rank.store.pop("watch").of_thread[threading.get_ident()]]


def index_of(rank: Any) -> int:
    index: int = rank.index
    return index


def linear(rank: Any, index: int) -> Any:
    import torch

    return torch.nn.Linear(4, 4)


def walk(watch: Watch, call: Callable[[], object], cluster: Any = None) -> dict[str, list[tuple[str, int]]]:
    """By ``kernel``, ``threads`` (all of the kernel) and ``rank``."""
    call()
    if cluster is not None:
        cluster.run(begin)
    watch.of_thread.clear()
    watch.on = True
    sys.setprofile(watch)
    call()
    sys.setprofile(None)
    watch.on = False
    mine = watch.of_thread[threading.get_ident()]
    every: Entered = set().union(*watch.of_thread.values())
    return {"kernel": [*mine], "threads": [*every], "rank": cluster.run(end)[0] if cluster is not None else []}


def walks() -> dict[str, dict[str, list[tuple[str, int]]]]:
    watch = Watch()
    threading.setprofile(watch)  # for threads that the cluster starts
    import cloudpickle
    import torch

    from tplab import Cluster, Machine, ModelSpec, Workload, advise, generate, predict
    from tplab.lab.figures import gantt
    from tplab.models import ModelConfig
    from tplab.pipeline import Costs, build_schedule, run_schedule, simulate, validate

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    warnings.simplefilter("ignore")
    model, machine = ModelSpec.from_config("llama-3.1-70b"), Machine.preset("h100", gpus=8)
    workload = Workload(input_length=1024, output_length=256, concurrency=16)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 128}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    config = ModelConfig.from_hf({"model_type": "llama", "eos_token_id": None, **sizes, **heads})
    schedule, costs = build_schedule("1f1b", 2, 4), Costs.of_stages([1e-3, 1e-3])
    trace = simulate(schedule, costs)
    data = {"inputs": torch.ones(4, 4), "targets": torch.ones(4, 4), "loss": torch.nn.functional.mse_loss}
    walked = {
        "advise, 70B on 8 GPUs": walk(watch, lambda: advise(model, machine, workload)),
        "predict, one layout": walk(watch, lambda: predict(model, machine, workload, tp=4, pp=2)),
        "build_schedule": walk(watch, lambda: build_schedule("1f1b", 2, 4)),
        "validate": walk(watch, lambda: validate(schedule)),
        "simulate": walk(watch, lambda: simulate(schedule, costs)),
        "gantt": walk(watch, lambda: gantt(trace)),
        "all four": walk(watch, lambda: gantt(four(build_schedule, validate, simulate, costs))),
    }
    with Cluster(2, "gloo") as cluster:
        walked["cluster.run"] = walk(watch, lambda: cluster.run(index_of), cluster)
        walked["generate, TP 2"] = walk(
            watch, lambda: generate(cluster, config, [[1, 2, 3, 4]], tp=2, max_new_tokens=4), cluster
        )
        walked["run_schedule"] = walk(watch, lambda: run_schedule(cluster, schedule, linear, **data), cluster)
    return walked


def four(build_schedule: Any, validate: Any, simulate: Any, costs: Any) -> Any:
    schedule = build_schedule("1f1b", 2, 4)
    validate(schedule)
    return simulate(schedule, costs)


def cpu_seconds(rounds: int) -> dict[str, list[float]]:
    """Of ``advise`` over every layout of 64 GPUs, and then of its flips: without limits on latency, and with both."""
    from tplab import Machine, ModelSpec, Workload, advise

    model, machine = ModelSpec.from_config("llama-3.1-8b"), Machine.preset("h100", gpus=8, nodes=8)
    plain = Workload(input_length=1024, output_length=256, concurrency=64)
    limited = Workload(input_length=1024, output_length=256, concurrency=512, ttft_limit_ms=500.0, tpot_limit_ms=30.0)
    taken: dict[str, list[float]] = defaultdict(list)
    for case, workload in (("", plain), (", limits", limited)):
        for number in range(rounds + 1):
            began = time.process_time()
            advice = advise(model, machine, workload)
            advised = time.process_time()
            assert advice.flips is not None
            if number:  # the first fills caches
                taken[f"advise{case}"].append(advised - began)
                taken[f"flips{case}"].append(time.process_time() - advised)
    return taken


def on(root: Path, *what: str) -> Any:
    """The same script where ``tplab`` is the one under ``root``."""
    command = [sys.executable, str(Path(__file__).resolve()), *what, "--root", str(root)]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


# The source: read, not imported.


def sources(root: Path) -> dict[str, Path]:
    """Module -> its file."""
    found = {}
    for path in sorted((root / "tplab").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def lines_of_code(path: Path) -> int:
    text = path.read_text("utf-8")
    empty = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in empty:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines -= {*range(node.lineno, (node.end_lineno or node.lineno) + 1)}
    return len(lines)


def room_of(path: Path, root: Path) -> str:
    """The folder under ``tplab/``; of topology the folder under that."""
    folders = path.relative_to(root / "tplab").parts[:-1]
    return "/".join(folders[: 2 if folders[:1] == ("topology",) else 1]) or "(no room)"


def sizes_of_rooms(root: Path) -> dict[str, int]:
    rooms: dict[str, int] = defaultdict(int)
    for path in sources(root).values():
        rooms[room_of(path, root)] += lines_of_code(path)
    return rooms


def imports_of(tree: ast.AST, how: str = "import") -> Iterator[tuple[str, str, str | None, str]]:
    """How (``import`` when the module loads, ``typing`` for type checkers, ``function`` when one runs), from where,
    what (None: the module itself), and as what."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((how, name.name, None, name.asname or name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None
            assert node.level == 0, "the house imports by whole names"
            yield from ((how, node.module, name.name, name.asname or name.name) for name in node.names)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from imports_of(node, "function")
        elif isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            yield from imports_of(ast.Module(body=node.body, type_ignores=[]), "typing")
        else:
            yield from imports_of(node, how)


def arrows(root: Path) -> dict[tuple[str, str], set[str]]:
    """(importing, imported) module -> how."""
    files = sources(root)
    found = {module: [*imports_of(ast.parse(path.read_text("utf-8")))] for module, path in files.items()}
    handed_on = {
        module: {alias: (where, what) for _, where, what, alias in found[module] if what is not None}
        for module, path in files.items()
        if path.name == "__init__.py"
    }

    def home(where: str, what: str | None) -> str:
        if what is None:
            return where
        if f"{where}.{what}" in files:
            return f"{where}.{what}"
        return home(*handed_on[where][what]) if what in handed_on.get(where, {}) else where

    hows: dict[tuple[str, str], set[str]] = defaultdict(set)
    for module, imports in found.items():
        for how, where, what, _ in imports:
            target = home(where, what)
            if target in files and target != module:
                hows[module, target].add(how)
    return hows


def circles(hows: dict[tuple[str, str], set[str]], kinds: set[str]) -> list[tuple[str, ...]]:
    """Sets of modules of which each reaches each, by imports of these kinds."""
    after: dict[str, set[str]] = defaultdict(set)
    for (module, target), how in hows.items():
        if how & kinds:
            after[module].add(target)

    def reached(module: str) -> set[str]:
        seen, left = set(), [module]
        while left:
            for target in after[left.pop()] - seen:
                seen.add(target)
                left.append(target)
        return seen

    from_ = {module: reached(module) for module in [*after]}
    members = [module for module in from_ if module in from_[module]]
    return sorted(
        {tuple(sorted(other for other in members if other in from_[module] and module in from_[other]))
         for module in members}
    )  # fmt: skip


def double_names(root: Path) -> dict[str, list[str]]:
    """Public class or function -> the modules that define it, where they are two or more."""
    homes: dict[str, list[str]] = defaultdict(list)
    for module, path in sources(root).items():
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.name[0] != "_":
                homes[node.name].append(module)
    return {name: where for name, where in sorted(homes.items()) if len(where) > 1}


# What is printed.


def print_walks(before: Any, after: Any, files: bool) -> None:
    print(f"{'walk':24} {'where':8} {'files before':>14} {'after':>9} {'functions before':>17} {'after':>10}")
    for name, walked in after.items():
        for where in ("kernel", "rank", "together"):
            if where != "kernel" and not walked["rank"]:
                continue
            cells = [cells_of(each[name], where) for each in (before, after)]
            print(f"{name:24} {where:8} {cells[0][0]:>14} {cells[1][0]:>9} {cells[0][1]:>17} {cells[1][1]:>10}")
            if files and where != "together":
                for which, each in (("before", before), ("after", after)):
                    print(f"    {which}: {' '.join(sorted({file for file, _ in each[name][where]}))}")


def cells_of(walked: Any, where: str) -> tuple[str, str]:
    """Files and functions, as they are printed."""
    entered = {tuple(place) for part in ("kernel", "rank") if where in (part, "together") for place in walked[part]}
    counts = [f"{len({file for file, _ in entered})}", f"{len(entered)}"]
    if where == "kernel" and walked["rank"]:
        every = {tuple(place) for place in walked["threads"]}
        counts = [f"{counts[0]} ({len({file for file, _ in every})})", f"{counts[1]} ({len(every)})"]
    return counts[0], counts[1]


def print_rooms(before: dict[str, int], after: dict[str, int]) -> None:
    totals = [sum(rooms.values()) for rooms in (before, after)]
    print(f"{'room':24} {'lines before':>14} {'%':>5} {'after':>8} {'%':>5} {'change':>8}")
    for room in sorted({*before, *after}):
        lines = [rooms.get(room, 0) for rooms in (before, after)]
        shares = [100 * count / total for count, total in zip(lines, totals, strict=True)]
        print(f"{room:24} {lines[0]:14} {shares[0]:5.1f} {lines[1]:8} {shares[1]:5.1f} {lines[1] - lines[0]:+8}")
    print(f"{'all':24} {totals[0]:14} {'':5} {totals[1]:8} {'':5} {totals[1] - totals[0]:+8}")


def print_circles(root: Path) -> None:
    hows = arrows(root)
    loading = circles(hows, {"import"})
    every = circles(hows, {"import", "typing", "function"})
    print(f"  when modules load: {len(loading)}; with imports for type checkers and inside functions: {len(every)}")
    for members in every:
        inside = {kind for pair, how in hows.items() if pair[0] in members and pair[1] in members for kind in how}
        print(f"  {' - '.join(name.removeprefix('tplab.') for name in members)}  ({', '.join(sorted(inside))})")


def print_doubles(root: Path) -> None:
    doubles = double_names(root)
    print(f"  {len(doubles)}")
    for name, modules in doubles.items():
        print(f"  {name}: {', '.join(module.removeprefix('tplab.') for module in modules)}")


def compare(before: Path, rounds: int, files: bool) -> None:
    print_walks(on(before, "walks"), on(HERE, "walks"), files)
    print("\nLines of code without docstrings and comments")
    print_rooms(sizes_of_rooms(before), sizes_of_rooms(HERE))
    for title, show in (("Circles of imports", print_circles), ("Public names defined twice or more", print_doubles)):
        for which, root in (("before", before), ("after", HERE)):
            print(f"\n{title}, {which}")
            show(root)
    taken: dict[str, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for _ in range(TURNS):
        for which, root in enumerate((before, HERE)):
            for what, seconds in on(root, "cpu", "--rounds", str(rounds)).items():
                taken[what][which].extend(seconds)
    print("\nCPU time, warm, all layouts of Llama 8B on 64 GPUs, ms")
    print(f"{'':16} {'before':>8} {'after':>8}")
    for what, both in taken.items():
        print(f"{what:16} " + " ".join(f"{statistics.median(times) * 1e3:8.1f}" for times in both))
    print(f"load average: {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", default="all", choices=["all", "walks", "cpu"], help=argparse.SUPPRESS)
    parser.add_argument(
        "--before", default="833779b", metavar="REV", help="revision to compare with (default: 833779b)"
    )
    parser.add_argument("--rounds", type=int, default=7, help="samples of CPU time per turn (default: 7)")
    parser.add_argument("--files", action="store_true", help="name the files that each walk enters")
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.what != "all":
        imported = Path(importlib.import_module("tplab").__file__ or "").parents[1]
        assert imported == arguments.root.resolve(), f"tplab came from {imported}, not from {arguments.root}"
        print(json.dumps(walks() if arguments.what == "walks" else cpu_seconds(arguments.rounds)))
        return
    with tempfile.TemporaryDirectory() as folder:
        command = ["git", "-C", str(HERE), "archive", "--format=tar", arguments.before, "tplab"]
        archive = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
        subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
        compare(Path(folder).resolve(), arguments.rounds, arguments.files)


if __name__ == "__main__":
    main()
