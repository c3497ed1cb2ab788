"""Two hosts with two ranks each: how long until they have all-reduced, and how long a further call takes; tplab beside
ipyparallel alone and torchrun alone.

    python tests/benchmarks/bench_hosts.py --rounds 5

The hosts are two network namespaces of this machine (tests/hosts), so all share its cores: compare within one run. Each
launcher all-reduces the same 1024 floats over gloo and brings every rank's result back to the caller, who checks it.

hosts ready    from nothing until the launcher could start ranks: controller and engines of ipyparallel (one engine per
               host under tplab, one per rank alone). torchrun needs nothing
first result   from then until the caller holds the values. ipyparallel's engines have torch to import, as tplab's
               ranks have; the rank's process group is made in it
later call     the same all-reduce once more, median of ``--calls``. torchrun starts its processes again for each
empty call     a function that does nothing: what a call itself takes. None for torchrun

``tplab, attached`` is ``Cluster.attach``, with the agents of an earlier kernel still there: first result only.
"""

import argparse
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.hosts.namespaces import Hosts, two_hosts, why_not
from tests.hosts.parallel import Parallel, parallel
from tplab import Cluster

RANKS = 4
SCRIPT = """
import os, torch, torch.distributed as dist
dist.init_process_group("gloo")
x = torch.full((1024,), float(dist.get_rank() + 1))
dist.all_reduce(x)
if dist.get_rank() == 0:
    print(x[0].item(), flush=True)
dist.destroy_process_group()
"""


def all_reduce(rank: int) -> float:
    import torch
    import torch.distributed as dist

    x = torch.full((1024,), float(rank + 1))
    dist.all_reduce(x)
    return x[0].item()


def nothing(rank: int) -> int:
    return int(rank)


def join(rank: int, address: str, port: int) -> float:
    """What an engine of ipyparallel's does first, alone."""
    import os

    import torch
    import torch.distributed as dist

    os.environ["GLOO_SOCKET_IFNAME"] = "eth0"
    dist.init_process_group("gloo", init_method=f"tcp://{address}:{port}", rank=rank, world_size=4)
    x = torch.full((1024,), float(rank + 1))
    dist.all_reduce(x)
    return x[0].item()


def timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    values = call()
    seconds = time.perf_counter() - began
    assert values is None or set(values) == {10.0}, values  # type: ignore[call-overload]
    return seconds


def median_ms(call: Callable[[], object], calls: int) -> float:
    return statistics.median(timed(call) for _ in range(calls)) * 1e3


def of_tplab(made: Parallel, calls: int) -> dict[str, float]:
    found = {}
    began = time.perf_counter()
    cluster = Cluster(RANKS, "gloo", engine="ipyparallel", cluster_file=made.cluster_file)
    cluster.run(all_reduce)
    found["first result, s"] = time.perf_counter() - began
    found["later call, ms"] = median_ms(lambda: cluster.run(all_reduce), calls)
    found["empty call, ms"] = median_ms(lambda: cluster.run(nothing) and None, calls)
    cluster.close()
    return found


def of_attached(made: Parallel) -> dict[str, float]:
    began = time.perf_counter()
    with Cluster.attach(cluster_file=made.cluster_file) as cluster:
        cluster.run(all_reduce)
        return {"first result, s": time.perf_counter() - began}


def of_ipyparallel(hosts: Hosts, made: Parallel, calls: int) -> dict[str, float]:
    client = made.client(engines=RANKS)
    view = client[:]
    port, order = free_port(), [*client.ids]
    first = client[order[0]].apply_sync(socket.gethostname)
    address = next(host.address for host in hosts.members if host.name == first)
    began = time.perf_counter()
    sent = [client[engine].apply_async(join, rank, address, port) for rank, engine in enumerate(order)]
    values = [each.get(timeout=100) for each in sent]
    found = {"first result, s": time.perf_counter() - began}
    assert set(values) == {10.0}

    def again() -> list[float]:
        return [each.get() for each in [client[e].apply_async(all_reduce, r) for r, e in enumerate(order)]]

    found["later call, ms"] = median_ms(again, calls)
    found["empty call, ms"] = median_ms(lambda: view.apply_sync(nothing, 0) and None, calls)
    client.close()
    return found


def of_torchrun(hosts: Hosts, script: Path) -> dict[str, float]:
    port = free_port()

    def launch() -> list[float]:
        started = [
            host.popen(
                [
                    *(sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=2"),
                    *("--rdzv-backend=static", f"--master-addr={hosts.alpha.address}", f"--master-port={port}"),
                    *(f"--node-rank={index}", script),
                ],
                env={"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "eth0"},
                stdout=-1,
                stderr=-3,
            )
            for index, host in enumerate(hosts.members)
        ]
        said = [process.communicate(timeout=120)[0] for process in started]
        return [float(said[0])]

    first = timed(launch)
    return {"first result, s": first, "later call, ms": timed(launch) * 1e3}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("", 0))
        return int(one.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calls", type=int, default=50)
    options = parser.parse_args()
    if reason := why_not():
        sys.exit(reason)
    os.environ["OMP_NUM_THREADS"] = "1"
    samples: dict[str, dict[str, list[float]]] = {}

    def add(who: str, found: dict[str, float]) -> None:
        for what, value in found.items():
            samples.setdefault(who, {}).setdefault(what, []).append(value)

    with tempfile.TemporaryDirectory() as name, two_hosts(Path(name)) as hosts:
        script = Path(name) / "reduce.py"
        script.write_text(SCRIPT)
        for round_ in range(options.rounds):
            began = time.perf_counter()
            with parallel(hosts, Path(name) / f"tplab-{round_}") as made:
                add("tplab", {"hosts ready, s": time.perf_counter() - began})
                add("tplab", of_tplab(made, options.calls))
                add("tplab, attached", of_attached(made))
            began = time.perf_counter()
            with parallel(hosts, Path(name) / f"alone-{round_}") as made:
                for host in hosts.members:
                    made.start_engine(host)
                made.client(engines=RANKS).close()
                add("ipyparallel", {"hosts ready, s": time.perf_counter() - began})
                add("ipyparallel", of_ipyparallel(hosts, made, options.calls))
            add("torchrun", of_torchrun(hosts, script))
    columns = ["hosts ready, s", "first result, s", "later call, ms", "empty call, ms"]
    print(f"medians of {options.rounds} rounds; 2 hosts x 2 ranks, gloo, {os.cpu_count()} cores in all")
    print(f"{'':16}" + "".join(f"{column:>18}" for column in columns))
    for who, found in samples.items():
        cells = (f"{statistics.median(found[c]):18.2f}" if c in found else f"{'-':>18}" for c in columns)
        print(f"{who:16}" + "".join(cells))
    ratio = [statistics.median(samples[who]["later call, ms"]) for who in ("tplab", "ipyparallel")]
    print(f"a later call of tplab's takes {ratio[0] / ratio[1]:.2f} times ipyparallel's")


if __name__ == "__main__":
    main()
