"""A notebook with its ranks, as one fault after the other is tried on it."""

import ast
import re
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty
from typing import Any

from tests.hosts.faults.beds import Bed, eventually
from tests.hosts.faults.footprint import Footprint, measure
from tests.hosts.faults.launchers import LAUNCHERS, Launcher
from tests.kernels import Kernel, Reply

FIRST_CELL = Path(__file__).with_name("in_notebook.py").read_text()
CALL_S = 40.0
"""Longest wait for a call of tplab's; its own limits are shorter."""
PEER_S = 12.0
"""After so long a call of a peer's is said to hang: the fault itself comes within a second."""
START_S = 120.0


class Hangs(Exception):
    """A cell did not end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """What the caller saw of a fault."""

    error: str
    """Name of the exception's type; empty: none."""
    seconds: float | None = None
    """From the fault to the error, by the machine's clock; None: there was no error."""
    rank: int | None = None
    num_ranks: int = 0
    host: str = ""
    text: str = ""
    note: str = ""
    """What else is to be said."""
    wrong: str = ""
    """What was not as it should be, where the row itself looked."""


class Desk:
    """One notebook in a bed, with a launcher of ranks.

    Args:
        bed: where it is.
        engine: name of the launcher.
        num_ranks: how many ranks it has.
    """

    def __init__(self, bed: Bed, engine: str, num_ranks: int) -> None:
        self.bed, self.engine, self.num_ranks = bed, engine, num_ranks
        self.launcher: Launcher = LAUNCHERS[engine]
        self.folder = Path(tempfile.mkdtemp(dir=bed.folder))
        self.limit_s = CALL_S if self.launcher.is_ours else PEER_S
        self.log = (self.folder / "log").open("ab")  # what the kernel itself writes, to the end: it may be restarted
        self.kernel = self.new_kernel()

    @property
    def options(self) -> dict[str, object]:
        """Arguments of ``Cluster``."""
        own = dict(self.launcher.options)
        if self.on_hosts:
            assert self.bed.parallel is not None
            own |= {"cluster_file": str(self.bed.parallel.cluster_file), "ranks_per_host": self.num_ranks // 2}
        return own | {"n": self.num_ranks}

    @property
    def on_hosts(self) -> bool:
        """Whether the ranks are on several hosts."""
        return self.engine == "ipyparallel"

    def new_kernel(self) -> Kernel:
        """A kernel that knows the faults and the launcher; it has no ranks yet."""
        environment = self.bed.environment() | {"FAULTS_FOLDER": str(self.folder)}
        kernel = Kernel.start(env=environment, stdout=self.log, stderr=self.log)
        self.define(kernel)
        return kernel

    def define(self, kernel: Kernel) -> None:
        """Execute the first cells."""
        for cell in (FIRST_CELL, f"OPTIONS = {self.options!r}\n{self.launcher.cell}"):
            kernel(cell)

    def start(self, how: str = "start()") -> float:
        """Start the ranks and let them meet; the seconds until the first value."""
        began = time.monotonic()
        self.kernel(how, START_S)
        told = self.attempt("well", limit_s=START_S)
        assert told["values"] == [float(self.num_ranks)] * self.num_ranks, told
        return time.monotonic() - began

    def begin(self, fault: str, timeout: float | None = 60) -> str:
        """Have the cell that runs a fault executed; its id."""
        (self.folder / "at").unlink(missing_ok=True)
        return self.kernel.send(f"told = attempt({fault}, {timeout})\ntold")

    def happened(self, within: float = 30.0) -> float:
        """Wait until the rank to blame has come to its fault; the time of it."""
        assert eventually((self.folder / "at").exists, within), "no rank came to the fault"
        return float((self.folder / "at").read_text())

    def end(self, cell: str, limit_s: float | None = None) -> Reply:
        """Wait for a cell's end. Raises ``Hangs``."""
        try:
            return self.kernel.wait(cell, limit_s or self.limit_s)
        except Empty:
            raise Hangs from None

    def attempt(self, fault: str, timeout: float | None = 60, limit_s: float | None = None) -> dict[str, Any]:
        """Run a fault on every rank; what its ``attempt`` tells. Raises ``Hangs``."""
        return self.told(self.end(self.begin(fault, timeout), limit_s))

    def told(self, reply: Reply) -> dict[str, Any]:
        """What a cell gave that ran ``attempt``, also where an interrupt came too late for it."""
        if reply.status == "ok":
            return dict(ast.literal_eval(reply.value))
        name, _, text = reply.error.partition(": ")
        return {"error": name, "text": text, "rank": None, "host": "", "values": None, "at": time.time()}

    def seen(self, told: dict[str, Any], since: float | None = None, **more: str) -> Seen:
        """What the caller saw, from the rank's time of the fault on, or from another."""
        rank = told["rank"]
        if since is None:
            with suppress(AssertionError):
                since = self.happened(0)
        if self.launcher.names and (named := re.search(self.launcher.names, told["text"])):
            rank = int(named[1])
        return Seen(
            error=told["error"],
            seconds=told["at"] - since if told["error"] and since else None,
            rank=rank,
            num_ranks=self.num_ranks,
            host=told["host"] or "",
            text=told["text"],
            **more,
        )

    def footprint(self) -> Footprint:
        return measure(self.bed.mark)

    def close(self) -> None:
        """End the notebook at once. What its launcher leaves behind is not ended."""
        self.log.close()
        self.kernel.client.stop_channels()
        if self.kernel.manager.has_kernel:
            self.kernel.manager.shutdown_kernel(now=True)
