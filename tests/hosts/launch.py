"""``torchrun`` over alpha and beta, as somebody at two terminals starts it."""

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.hosts.namespaces import Hosts

PORT = "29511"


@dataclass(frozen=True)
class Launched:
    """How it went on each host."""

    codes: dict[str, int]
    output: dict[str, str]
    """What came to the terminal of each, errors among it."""
    seconds: float


def torchrun(
    hosts: Hosts,
    command: Sequence[str],
    *,
    ranks: tuple[int, int] = (1, 1),
    env: Mapping[str, str] | None = None,
    timeout: float = 150,
) -> Launched:
    """Run ``command`` (a module and its arguments) on so many ranks of alpha and of beta."""
    began, running = time.monotonic(), {}
    for number, (host, each) in enumerate(zip(hosts.members, ranks, strict=True)):
        argv = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={number}"]
        argv += [f"--nproc-per-node={each}", "--rdzv-backend=static"]
        argv += [f"--master-addr={hosts.alpha.address}", f"--master-port={PORT}", "-m", *command]
        running[host.name] = host.popen(
            argv,
            env={"OMP_NUM_THREADS": "1", **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    output = {}
    try:
        for name, process in running.items():
            output[name] = process.communicate(timeout=max(1, timeout - (time.monotonic() - began)))[0]
    finally:
        for process in running.values():
            process.kill()
            process.communicate()
    return Launched({name: one.returncode for name, one in running.items()}, output, time.monotonic() - began)
