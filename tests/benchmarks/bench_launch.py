"""How long until ranks have all-reduced something, and how long each further call takes: tplab beside its peers.

    python tests/benchmarks/bench_launch.py --ranks 2 4 --rounds 5
    python tests/benchmarks/bench_launch.py --backend nccl --ranks 1 4     # bare and tplab only

Every launcher all-reduces the same 1024 floats over gloo on this machine and brings the result of every rank, 4 KiB
each, back to the caller, who checks it. Three numbers each:

import         what importing the launcher takes in a fresh caller; not part of the next number
first result   from before the ranks are started until the caller holds the values
later call     the same all-reduce once more. Launchers that end their ranks with every call start them again.

The launchers:

bare               the floor: ``python -c`` interpreters that import torch, form the group, all-reduce and print. They
                   stay, and every further line on their stdin is a further call. Rank 0 gets a socket that listens
                   already, as no rank then waits to retry a connection that came too early; and each rank leads a
                   session, as tplab's do, since Linux shares a busy machine's cores out by session.
tplab              ``Cluster(n).submit(fn).result()``
spawn              ``torch.multiprocessing.spawn``, joined, values through a queue; every call starts processes
elastic_launch     ``torch.distributed.launcher.api.elastic_launch``, which is behind torchrun, with the rendezvous of
                   ``torchrun --standalone``; every call starts processes
ipyparallel        a cluster of engines; the first call forms the process group in them
notebook_launcher  accelerate's, which forks the caller; every call starts processes

What is the same for all: each sample is a fresh caller interpreter, so that no launcher inherits another's state (fork
needs a caller that has run no threaded torch; spawn needs a real ``__main__``). The clock starts after that caller has
imported its launcher. spawn, elastic_launch and notebook_launcher need torch in the caller, so its import is done by
then, and notebook_launcher's forked ranks inherit it: its first result can come before bare's, whose ranks have yet to
import torch. The callers of bare, tplab and ipyparallel need no torch. OMP_NUM_THREADS=1, and gloo keeps to the
loopback interface. One all-reduce of each launcher before the first round is thrown away: it fills the page cache.

With NCCL, bare ranks take their GPU's context, form the group on it and all-reduce, as tplab's ranks do. Where ranks
share a GPU, both are told to look like hosts of their own (see ``tplab.cluster.backends``).

The rounds interleave: all launchers take turns within a round, in an order that shifts from round to round, so that a
busy spell of the machine hits all of them. Compare medians of one run of this program, not numbers of two runs.

tplab's later calls are also split: what the function took on the slowest rank, and the overhead on top of it, once as
``run.elapsed_s - max(run.rank_s)`` and once as the caller's own wall clock sees it.
"""

import argparse
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from array import array
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Light imports only: spawned ranks import this file again, and that is not the launcher's time.
if TYPE_CHECKING:
    import pandas as pd

NUM_ELEMENTS = 1024
LATER_CALLS_WARM = 30
LATER_CALLS_COLD = 1
SAMPLE_TIMEOUT_S = 120.0
_TAG = "TPLAB_BENCH_SAMPLE"
_BACKEND = "TPLAB_BENCH_BACKEND"


# What runs on the ranks.


def all_reduce(
    init_method: str | None = None, rank: int = -1, world_size: int = -1, num_elements: int = NUM_ELEMENTS
) -> bytes:
    """One all-reduce, in the group there is or a new one. It refers to no global: ipyparallel does not carry them."""
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group("gloo", init_method=init_method, rank=rank, world_size=world_size)
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    x = torch.full((num_elements,), dist.get_rank() + 1.0, device=device)
    dist.all_reduce(x)
    return x.cpu().numpy().tobytes()


def _tplab_rank(rank: Any) -> bytes:
    return all_reduce()


def _spawn_rank(rank: int, world_size: int, init_method: str, queue: Any) -> None:
    queue.put((rank, all_reduce(init_method, rank, world_size)))
    _leave_group()


def _elastic_rank() -> bytes:
    value = all_reduce("env://")
    _leave_group()
    return value


def _forked_rank(queue: Any) -> None:
    queue.put((int(os.environ["RANK"]), _elastic_rank()))


def _leave_group() -> None:
    import torch.distributed as dist

    dist.destroy_process_group()


_BARE_RANK = f"""
import sys
import torch
import torch.distributed as dist
from datetime import timedelta
rank, world_size, port, fd = map(int, sys.argv[1:5])
backend, device = sys.argv[5], torch.device("cpu")
if backend == "nccl":
    device = torch.device("cuda", rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
listen = dict(master_listen_fd=fd) if rank == 0 else dict()
store = dist.TCPStore("127.0.0.1", port, world_size=world_size, is_master=rank == 0, wait_for_workers=False,
                      timeout=timedelta(seconds=60), **listen)
dist.init_process_group(backend, store=store, rank=rank, world_size=world_size,
                        device_id=device if backend == "nccl" else None)
while True:
    x = torch.full(({NUM_ELEMENTS},), rank + 1.0, device=device)
    dist.all_reduce(x)
    print("value", x.cpu().numpy().tobytes().hex(), flush=True)
    if not sys.stdin.readline():
        break
"""


# The callers. Each is a generator: it imports what it needs and yields once; then it starts its ranks; then it yields
# the outcome of one call after the other; closed, it ends its ranks.


@dataclass(frozen=True, slots=True)
class Outcome:
    """One call, as the caller holds it."""

    values: Sequence[bytes]
    """What each rank returned."""
    function_s: float | None = None
    """tplab: what the function took on the slowest rank."""
    elapsed_s: float | None = None
    """tplab: from the hand-over to the ranks until the last answer."""


Caller = Generator[Outcome | None, None, None]


def bare(n: int) -> Caller:
    from tplab.cluster import backends  # light, and not part of the time

    placement = backends.devices_of(n, _backend())
    yield None
    with ExitStack() as stack:
        ranks = []
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            port, fd = listener.getsockname()[1], listener.fileno()
            for rank in range(n):
                command = [sys.executable, "-c", _BARE_RANK, *map(str, (rank, n, port, fd)), _backend()]
                pass_fds = [fd] if rank == 0 else []
                popen = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    pass_fds=pass_fds,
                    env=backends.rank_environment(placement, rank, f"bare-{port}"),
                    start_new_session=True,
                    text=True,
                )
                stack.callback(_end, popen)
                ranks.append(popen)
        while True:
            yield Outcome([_read_value(popen) for popen in ranks])
            for popen in ranks:
                popen.stdin.write("again\n")
                popen.stdin.flush()


def _backend() -> str:
    return os.environ.get(_BACKEND, "gloo")


def _read_value(popen: "subprocess.Popen[str]") -> bytes:
    for line in popen.stdout:
        if line.startswith("value "):  # gloo prints lines of its own
            return bytes.fromhex(line.split()[1])
    raise RuntimeError(f"a bare rank ended with code {popen.wait()}")


def _end(popen: "subprocess.Popen[str]") -> None:
    with popen:
        popen.kill()


def tplab(n: int) -> Caller:
    from tplab import Cluster

    yield None
    with Cluster(n, backend=_backend()) as cluster:
        while True:
            run = cluster.submit(_tplab_rank)
            values = run.result()
            assert run.rank_s is not None
            yield Outcome(values, function_s=max(run.rank_s), elapsed_s=run.elapsed_s)


def spawn(n: int) -> Caller:
    import torch.multiprocessing as mp

    yield None
    while True:
        queue = mp.get_context("spawn").SimpleQueue()  # holds 64 KiB: no rank waits for the caller to read
        mp.spawn(_spawn_rank, args=(n, _file_rendezvous(), queue), nprocs=n)
        yield Outcome(_in_rank_order(queue, n))


def elastic_launch(n: int) -> Caller:
    from torch.distributed.launcher import api

    yield None
    while True:
        config = api.LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=n,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            local_addr="127.0.0.1",
            max_restarts=0,
        )
        by_rank = api.elastic_launch(config, _elastic_rank)()
        yield Outcome([by_rank[rank] for rank in range(n)])


def ipyparallel(n: int) -> Caller:
    import ipyparallel as ipp

    yield None
    cluster = ipp.Cluster(n=n)
    try:
        client = cluster.start_and_connect_sync()
        rendezvous = _file_rendezvous()
        joins = [client[rank].apply_async(all_reduce, rendezvous, rank, n) for rank in range(n)]
        yield Outcome([join.get() for join in joins])
        view = client[:]
        while True:
            yield Outcome(view.apply_sync(all_reduce))
    finally:
        cluster.stop_cluster_sync()


def notebook_launcher(n: int) -> Caller:
    import multiprocessing

    import accelerate

    yield None
    while True:
        queue = multiprocessing.get_context("fork").SimpleQueue()
        accelerate.notebook_launcher(_forked_rank, args=(queue,), num_processes=n, use_port=str(_free_port()))
        yield Outcome(_in_rank_order(queue, n))


def _in_rank_order(queue: Any, n: int) -> list[bytes]:
    return [value for _, value in sorted(queue.get() for _ in range(n))]


def _file_rendezvous() -> str:
    return f"file://{tempfile.gettempdir()}/{uuid.uuid4().hex}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True, slots=True)
class Launcher:
    caller: Callable[[int], Caller]
    keeps_ranks: bool
    """Whether a later call finds the ranks of the first."""


LAUNCHERS = {
    "bare": Launcher(bare, keeps_ranks=True),
    "tplab": Launcher(tplab, keeps_ranks=True),
    "spawn": Launcher(spawn, keeps_ranks=False),
    "elastic_launch": Launcher(elastic_launch, keeps_ranks=False),
    "ipyparallel": Launcher(ipyparallel, keeps_ranks=True),
    "notebook_launcher": Launcher(notebook_launcher, keeps_ranks=False),
}


# One sample: the clock in a fresh interpreter, and the parent that starts and ends it.


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """What one fresh caller measured, or why it did not."""

    launcher: str
    ranks: int
    round: int = 0
    import_s: float | None = None
    first_s: float | None = None
    later_ms: list[float] = field(default_factory=list)
    caller_has_torch: bool | None = None
    """Whether torch is imported in the caller in the end."""
    overhead_ms: list[float] = field(default_factory=list)
    """tplab: ``elapsed_s - max(rank_s)`` of each later call."""
    caller_overhead_ms: list[float] = field(default_factory=list)
    """tplab: the later call by the caller's clock, less ``max(rank_s)``."""
    error: str | None = None


def time_one(name: str, n: int, later_calls: int | None = None) -> Sample:
    """Time a launcher in this interpreter, which should be a fresh one."""
    launcher = LAUNCHERS[name]
    if later_calls is None:
        later_calls = LATER_CALLS_WARM if launcher.keeps_ranks else LATER_CALLS_COLD
    with closing(launcher.caller(n)) as caller:
        began = time.perf_counter()
        next(caller)
        import_s = time.perf_counter() - began
        first_s, _ = _timed_call(caller, n)
        later = [_timed_call(caller, n) for _ in range(later_calls)]
    split = [(seconds, out.elapsed_s, out.function_s) for seconds, out in later if out.elapsed_s and out.function_s]
    return Sample(
        launcher=name,
        ranks=n,
        import_s=import_s,
        first_s=first_s,
        later_ms=[seconds * 1e3 for seconds, _ in later],
        caller_has_torch="torch" in sys.modules,
        overhead_ms=[(elapsed_s - function_s) * 1e3 for _, elapsed_s, function_s in split],
        caller_overhead_ms=[(seconds - function_s) * 1e3 for seconds, _, function_s in split],
    )


def _timed_call(caller: Caller, n: int) -> tuple[float, Outcome]:
    began = time.perf_counter()
    outcome = next(caller)
    seconds = time.perf_counter() - began
    right = array("f", [n * (n + 1) / 2] * NUM_ELEMENTS).tobytes()
    if outcome is None or list(outcome.values) != [right] * n:
        raise RuntimeError("the all-reduce brought back wrong values")
    return seconds, outcome


def sample(name: str, n: int, *, timeout: float = SAMPLE_TIMEOUT_S, later_calls: int | None = None) -> Sample:
    """Time a launcher in an interpreter of its own, which is over when this returns, with all it started."""
    command = [sys.executable, str(Path(__file__).resolve()), "--one", name, "--ranks", str(n)]
    if later_calls is not None:
        command += ["--later-calls", str(later_calls)]
    tag = uuid.uuid4().hex
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder:
        out, err = Path(folder, "out"), Path(folder, "err")  # files: a pipe stays open while any descendant holds it
        with out.open("w") as stdout, err.open("w") as stderr:
            popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                env=_environment(folder, tag),
                start_new_session=True,
            )
            try:
                popen.wait(timeout)
            except subprocess.TimeoutExpired:
                return Sample(launcher=name, ranks=n, error=f"took longer than {timeout:g} s")
            finally:
                _end_all(popen, tag)
        return _read_sample(name, n, popen.returncode, out.read_text(), err.read_text())


def _environment(folder: str, tag: str) -> dict[str, str]:
    return os.environ | {
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
        "TMPDIR": folder,
        "IPYTHONDIR": folder,
        _TAG: tag,
    }


def _end_all(popen: "subprocess.Popen[bytes]", tag: str) -> None:
    """Kill the caller and whatever descends from it. Descendants may have left its session and its family tree, as
    ipyparallel's do, but not the environment they were started with."""
    import psutil

    with suppress(ProcessLookupError):
        os.killpg(popen.pid, signal.SIGKILL)
    popen.wait()
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get(_TAG) == tag:
                process.kill()


def _read_sample(name: str, n: int, exit_code: int, out: str, err: str) -> Sample:
    if exit_code == 0:
        lines = [line for line in out.splitlines() if line.startswith('{"launcher":')]
        return Sample(**json.loads(lines[-1]))
    lines = [line.strip() for line in err.splitlines() if line.strip()]
    reasons = [line for line in lines if "Error" in line] or lines or [f"exit code {exit_code}"]
    return Sample(launcher=name, ranks=n, error=reasons[-1])


# All samples, and what they say.


def measure(
    names: Sequence[str],
    ranks: Sequence[int],
    rounds: int,
    *,
    timeout: float = SAMPLE_TIMEOUT_S,
    later_calls: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Sample]:
    """Sample each launcher once per round and number of ranks."""
    for name in names:
        sample(name, min(ranks), timeout=timeout, later_calls=0)  # fills the page cache
    samples = []
    for number in range(rounds):
        for n in ranks:
            shift = number % len(names)
            for name in [*names[shift:], *names[:shift]]:
                taken = sample(name, n, timeout=timeout, later_calls=later_calls)
                samples.append(Sample(**(asdict(taken) | {"round": number})))
                say(f"round {number + 1}, {n} ranks, {name}: {_in_words(taken)}")
    return samples


def _in_words(taken: Sample) -> str:
    if taken.first_s is None:
        return f"failed: {taken.error}"
    later = f", then {statistics.median(taken.later_ms):.1f} ms" if taken.later_ms else ""
    return f"{taken.first_s:.2f} s{later}"


def summarize(samples: Sequence[Sample]) -> "pd.DataFrame":
    """One row per number of ranks and launcher: medians and minima over the samples, and ratios to bare's medians."""
    import pandas as pd

    rows = []
    for n, name in dict.fromkeys((one.ranks, one.launcher) for one in sorted(samples, key=lambda one: one.ranks)):
        mine = [one for one in samples if (one.ranks, one.launcher) == (n, name)]
        first = pd.Series([one.first_s for one in mine if one.first_s is not None], dtype=float)
        later = pd.Series([ms for one in mine for ms in one.later_ms], dtype=float)
        rows.append(
            {
                "ranks": n,
                "launcher": name,
                "import, median s": pd.Series([one.import_s for one in mine], dtype=float).median(),
                "first, median s": first.median(),
                "first, min s": first.min(),
                "later, median ms": later.median(),
                "later, min ms": later.min(),
                "samples": len(first),
                "failed": len(mine) - len(first),
            }
        )
    table = pd.DataFrame(rows).set_index(["ranks", "launcher"]).sort_index(level="ranks", sort_remaining=False)
    for after, what in (("first, min s", "first, median s"), ("later, min ms", "later, median ms")):
        floor = {n: table[what].get((n, "bare"), float("nan")) for n in table.index.unique("ranks")}
        ratio = [value / floor[n] for (n, _), value in table[what].items()]
        table.insert(table.columns.get_loc(after) + 1, f"{what.split(',')[0]}, × bare", ratio)
    return table


def overheads(samples: Sequence[Sample]) -> "pd.DataFrame":
    """tplab's overhead per later call, in ms: one row per number of ranks."""
    import pandas as pd

    rows = []
    for n in sorted({one.ranks for one in samples if one.overhead_ms}):
        mine = [one for one in samples if one.ranks == n]
        inside = pd.Series([ms for one in mine for ms in one.overhead_ms])
        caller = pd.Series([ms for one in mine for ms in one.caller_overhead_ms])
        rows.append(
            {
                "ranks": n,
                "elapsed_s - max(rank_s), median ms": inside.median(),
                "90th percentile": inside.quantile(0.9),
                "by the caller's clock, median ms": caller.median(),
                "90th percentile ": caller.quantile(0.9),
            }
        )
    return pd.DataFrame(rows).set_index("ranks") if rows else pd.DataFrame()


def _machine() -> dict[str, Any]:
    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("tplab", "torch", "ipyparallel", "accelerate")},
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _show(samples: Sequence[Sample], loads: Sequence[float]) -> None:
    import pandas as pd

    pd.set_option("display.width", 200, "display.max_columns", 20, "display.float_format", "{:.2f}".format)
    print(f"\n{_machine()}\nload average (1 min) during the run: {min(loads):.2f} to {max(loads):.2f}\n")
    print(summarize(samples))
    if any(one.overhead_ms for one in samples):
        print(f"\ntplab's overhead per later call\n{overheads(samples)}")
    for one in samples:
        if one.error is not None:
            print(f"failed: {one.launcher}, {one.ranks} ranks, round {one.round + 1}: {one.error}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="tplab's launch and call times beside those of its peers")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4], help="numbers of ranks (default: 2 4)")
    parser.add_argument("--rounds", type=int, default=5, help="samples of each launcher (default: 5)")
    parser.add_argument(
        "--only", nargs="+", choices=LAUNCHERS, help="launchers (default: all with gloo, bare and tplab with nccl)"
    )
    parser.add_argument("--backend", choices=("gloo", "nccl"), default="gloo", help="what ranks speak (default: gloo)")
    parser.add_argument("--later-calls", type=int, help="later calls per sample")
    parser.add_argument("--timeout", type=float, default=SAMPLE_TIMEOUT_S, help="seconds a sample may take")
    parser.add_argument("--json", type=Path, help="also write every sample to this file")
    parser.add_argument("--one", choices=LAUNCHERS, help="time this launcher here, once, and print a line of JSON")
    return parser.parse_args()


def main() -> None:
    arguments = _arguments()
    if arguments.one is not None:
        print(json.dumps(asdict(time_one(arguments.one, arguments.ranks[0], arguments.later_calls))), flush=True)
        return
    from tplab.files import check_writable, write_text

    if arguments.json is not None:
        check_writable(arguments.json)
    loads = [os.getloadavg()[0]]

    def say(line: str) -> None:
        loads.append(os.getloadavg()[0])
        print(f"{line} (load {loads[-1]:.1f})", flush=True)

    os.environ[_BACKEND] = arguments.backend
    samples = measure(
        arguments.only or (list(LAUNCHERS) if arguments.backend == "gloo" else ["bare", "tplab"]),
        arguments.ranks,
        arguments.rounds,
        timeout=arguments.timeout,
        later_calls=arguments.later_calls,
        say=say,
    )
    _show(samples, loads)
    if arguments.json is not None:
        report = _machine() | {"load_1min": loads, "samples": [asdict(one) for one in samples]}
        write_text(arguments.json, json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
