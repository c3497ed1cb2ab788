"""Where the notebooks of one table are: this machine alone, or two hosts with an engine of ipyparallel each."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.hosts.faults.footprint import MARK, marked
from tests.hosts.namespaces import Hosts, two_hosts
from tests.hosts.parallel import Parallel


def eventually(condition: Callable[[], object], within: float) -> bool:
    """Wait for it to come true."""
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@dataclass
class Bed:
    """A folder, and what the notebooks in it and all that they start are known by."""

    folder: Path
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    no_disk: str = ""
    """Why there is no small disk at ``disk``; empty: there is one."""
    parallel: Parallel | None = None
    """The cluster of engines, where there are hosts."""

    @property
    def disk(self) -> Path:
        """A folder on a disk of 64 KiB, which the hosts have, too."""
        return self.folder / "disk"

    @property
    def hosts(self) -> Hosts:
        assert self.parallel is not None
        return self.parallel.hosts

    def environment(self) -> dict[str, str]:
        """Of a notebook's kernel."""
        own = self.parallel.env if self.parallel else {"IPYTHONDIR": str(self.folder / "ipython")}
        known = {MARK: self.mark, "OMP_NUM_THREADS": "1", "TMPDIR": str(self.folder), "FAULTS_DISK": str(self.disk)}
        return os.environ | known | own

    def renew(self) -> None:
        """Cables in, and a new controller with new engines; without hosts whatever has the mark is ended."""
        if self.parallel is None:
            return self.end_all()
        self.hosts.reset()
        self.parallel.close()
        self.end_all()
        self.parallel.started.clear()
        self.parallel.engines.clear()
        return start(self.parallel)

    def end_all(self) -> None:
        """Kill whatever has the mark, a few times: who dies may have started another."""
        for _ in range(5):
            pids = list(marked(self.mark))
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if not pids:
                return
            time.sleep(0.1)


def start(parallel: Parallel) -> None:
    """Start a controller and an engine on each host."""
    parallel.start_controller()
    for host in parallel.hosts.members:
        parallel.start_engine(host)
    parallel.client().close()


@contextmanager
def local_bed() -> Iterator[Bed]:
    """On this machine alone."""
    bed = Bed(Path(tempfile.mkdtemp(prefix="faults-")))
    bed.disk.mkdir()
    size = ["-o", "size=64k,mode=777"]
    mounted = subprocess.run(["mount", "-t", "tmpfs", *size, "none", bed.disk], capture_output=True, text=True)
    bed.no_disk = f"no small disk can be mounted: {mounted.stderr.strip()}" if mounted.returncode else ""
    try:
        yield bed
    finally:
        bed.end_all()
        if not bed.no_disk:
            subprocess.run(["umount", "-l", bed.disk], check=True)
        shutil.rmtree(bed.folder, ignore_errors=True)


@contextmanager
def bed_of_hosts() -> Iterator[Bed]:
    """Beside alpha and beta. Raises ``NotAllowed`` where there can be no hosts."""
    with local_bed() as bed, two_hosts(bed.folder) as hosts:
        os.environ[MARK] = bed.mark  # of what is started from here; that this process has it is not seen outside
        folder = bed.folder / "ipython"
        folder.mkdir(mode=0o700)
        bed.parallel = Parallel(hosts, folder)
        try:
            start(bed.parallel)
            yield bed
        finally:
            del os.environ[MARK]
            bed.parallel.close()
            bed.end_all()
