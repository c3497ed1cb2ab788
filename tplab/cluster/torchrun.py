"""Ranks that ``torchrun`` started: on Kubernetes and in batch queues nobody can start them from a notebook.

``torchrun`` starts the processes and sets the environment; :func:`attached` makes the ``Rank`` of each out of it. Which
ranks share a host is asked of the hosts, not counted: they may have different numbers of ranks. The first fault of any
rank ends all of them, with its own words, whatever the others hang in: no new ranks can be started here.
"""

import json
import os
import platform
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from tplab.cluster import backends
from tplab.cluster.errors import ClusterError
from tplab.cluster.hosts.facts import describe, host_key, host_names
from tplab.cluster.hosts.networks import Interface, Network, choose, look
from tplab.cluster.provenance import Provenance
from tplab.moved import say_new_names

if TYPE_CHECKING:
    from tplab.cluster.rank import Rank

Store = Any
"""torch's, whose stubs do not have it."""
_STARTED_WITHIN = timedelta(minutes=5)
_LOOK_EACH_S = 0.5
_LET_GO_S = 0.2
_FAULT, _SAID = "tplab/fault", "tplab/said"
_SAID_WITHIN = timedelta(seconds=5)
_BROKEN = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
"""What gloo says on a rank whose neighbour's process has ended."""


def under_torchrun() -> bool:
    """Whether this process was started by ``torchrun`` (or anything that sets the same variables)."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"))


def speaks() -> bool:
    """Whether this process is the one that prints and writes: rank 0, or one that ``torchrun`` did not start."""
    return not under_torchrun() or os.environ["RANK"] == "0"


@dataclass(frozen=True, kw_only=True, slots=True)
class Attached:
    """This process as a rank among those that ``torchrun`` started."""

    rank: "Rank"
    """The rank's number, group and device. Reports of it go nowhere: each run is given a ``Rank`` of its own."""
    store: Store
    """Where all ranks meet."""
    placement: backends.RankDevices
    """Device and host of every rank."""
    share: backends.Share
    """The ranks of this host."""
    provenance: Provenance
    """The origin of what is measured on all ranks."""
    watch: "Watch"
    """Looks out for faults of the others."""


@contextmanager
def attached(backend: str = "auto") -> Iterator[Attached]:
    """Join the ranks that ``torchrun`` started, until the end of the block. A fault in it ends all ranks.

    Raises:
        ValueError: not started by torchrun.
        ClusterError: hosts that cannot work together: other versions, another backend, no interface.
        SystemExit: another rank failed; rank 0 says what it said.
    """
    if not under_torchrun():
        raise ValueError("RANK, WORLD_SIZE, LOCAL_RANK and MASTER_ADDR are not set: start this with torchrun")
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    index, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = next(rendezvous("env://", timeout=_STARTED_WITHIN))[0]
    watch = Watch(store, index, world_size)
    try:
        made = _join(store, index, world_size, backend, watch)
        yield made
    except BaseException as error:
        watch.fail(error)
    watch.end()
    dist.destroy_process_group()
    # Gloo's threads drop their last tensors with Python's lock in hand: one that still waits for it when Python ends
    # would abort the process.
    time.sleep(_LET_GO_S)


class Watch:
    """Ends this rank when another one has failed, and tells the others when it fails itself.

    The first fault is what the store has; those that follow from it, such as connections that broke, are not told.
    """

    def __init__(self, store: Store, index: int, world_size: int) -> None:
        self._store, self._index, self._world_size = store, index, world_size
        self.host = ""
        """This rank's, where there are several."""
        self._deadline: tuple[float, str] | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="tplab-watch", daemon=True)
        self._thread.start()

    def limit(self, seconds: float | None, what: str = "") -> None:
        """From now on ``what`` may take so many seconds; None: any time."""
        self._deadline = None if seconds is None else (time.monotonic() + seconds, f"{what} took over {seconds:g} s")

    def fail(self, error: BaseException, *, in_run: bool = False) -> NoReturn:
        """Tell the others and end this rank: rank 0 with the first fault's own words, the others without any.

        Args:
            error: this rank's fault.
            in_run: nothing may catch it and go on, since the ranks are no longer in step.
        """
        if self._over.is_set():  # it has been said, in the run
            raise error
        self.end()
        text = self._described(error)
        first = self._tell(text)
        if self._index or first is not None or in_run:
            self._say(self._store, first or text)
            raise SystemExit(1) from None
        raise error

    def end(self) -> None:
        """No more looking. Python must not end while the thread is inside torch's store."""
        self._over.set()
        self._thread.join()

    def _tell(self, text: str) -> str | None:
        """Put ``text`` where all look; what another rank has put there before."""
        with suppress(Exception):  # the host that keeps the store may be gone
            known = bytes(self._store.compare_set(_FAULT, "", text)).decode()
            return known if known != text else None
        return None

    def _described(self, error: BaseException) -> str:
        where = f" on host {self.host}" if self.host else ""
        text = "".join(traceback.format_exception_only(error)).strip()
        if any(each in text for each in _BROKEN):
            text += "\nA rank was killed, or its host is gone: what torchrun prints on that host says which."
        if not isinstance(error, (ValueError, ClusterError, OSError, KeyboardInterrupt)):
            text = f"{text}\n{''.join(traceback.format_tb(error.__traceback__)).rstrip()}"
        return f"rank {self._index} of {self._world_size}{where}: {text}"

    def _look(self) -> None:
        store = self._store.clone()  # of its own, since a call on the other one may wait
        while not self._over.wait(_LOOK_EACH_S):
            try:
                text = store.get(_FAULT).decode() if store.check([_FAULT]) else ""
            except Exception:
                text = "the store of torchrun is gone, and with it the host of rank 0"
            late = self._deadline
            if not text and late is not None and time.monotonic() > late[0]:
                text = self._tell(late[1]) or late[1]
            if text and not self._over.is_set():
                self._say(store, text)
                os._exit(1)  # the main thread may hang in a collective

    def _say(self, store: Store, text: str) -> None:
        """Rank 0 says it. The others wait until it has: torchrun ends all ranks of a host as soon as one has ended."""
        with suppress(Exception):  # the host that keeps the store may be gone
            if self._index:
                store.wait([_SAID], _SAID_WITHIN)
        if not self._index:
            print(f"tplab: {text}", file=sys.stderr, flush=True)
            with suppress(Exception):
                store.set(_SAID, "")


def _join(store: Store, index: int, world_size: int, backend: str, watch: Watch) -> Attached:
    told = _exchange(store, "host", index, world_size, _facts())
    hosts = host_names(told)
    watch.host = hosts[index] if len(set(hosts)) > 1 else ""
    _same_versions(told, hosts)
    local = [each for each in range(world_size) if hosts[each] == hosts[index]]
    own = backends.devices_of(len(local), backend)
    mine = {"backend": own.backend, "device": own.devices[local.index(index)]}
    placed = _exchange(store, "device", index, world_size, mine)
    if len(found := {each["backend"] for each in placed}) > 1:
        which = {each["backend"]: host for each, host in zip(placed, hosts, strict=True)}
        came_to = " and ".join(f"{kind} on {which[kind]}" for kind in sorted(found))
        raise ClusterError(f"backend {backend!r} came to {came_to}: ask for gloo")
    share = _share(told, hosts, index)
    _set_environment(share, index, shares_gpus=own.shares_gpus)

    import torch

    from tplab.cluster.rank import Rank
    from tplab.cluster.worker import device_name
    from tplab.cluster.worlds import join

    device = torch.device(mine["device"])
    if device.type == "cuda":
        torch.cuda.set_device(device)
    group = join(own.backend, store, index, world_size, device)
    placement = backends.RankDevices(
        backend=own.backend,
        devices=tuple(each["device"] for each in placed),
        hosts=tuple(hosts) if share.spans_hosts else (),
    )
    nccl = torch.cuda.nccl.version() if own.backend == "nccl" else ()  # type: ignore[no-untyped-call]
    return Attached(
        rank=Rank(index=index, world_size=world_size, group=group, device=device, send_report=lambda fields: None),
        store=store,
        placement=placement,
        share=share,
        provenance=Provenance(
            backend=placement.backend,
            num_ranks=world_size,
            device=device_name(device),
            num_devices=placement.num_devices,
            link=backends.describe_link(placement),
            num_cores=_num_cores(told),
            torch_version=str(torch.__version__),
            nccl_version=".".join(map(str, nccl)),
            python_version=platform.python_version(),
            num_hosts=placement.num_hosts,
            started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        ),
        watch=watch,
    )


def _facts() -> dict[str, Any]:
    """What the others must know of this host, plain enough for JSON: nothing is unpickled from a store that anybody on
    the network may write to."""
    return {**describe(), "machine_cores": os.cpu_count() or 1, "reach": asdict(look())}


def _exchange(store: Store, what: str, index: int, world_size: int, mine: dict[str, Any]) -> list[dict[str, Any]]:
    """What every rank has to say, in rank order."""
    store.set(f"tplab/{what}/{index}", json.dumps(mine))
    return [json.loads(store.get(f"tplab/{what}/{each}")) for each in range(world_size)]


def _same_versions(told: Sequence[dict[str, Any]], hosts: Sequence[str]) -> None:
    for package in ("tplab", "torch"):
        found = {each["versions"][package]: host for each, host in zip(told, hosts, strict=True)}
        if len(found) > 1:
            which = " and ".join(f"{version} on {host}" for version, host in found.items())
            raise ClusterError(f"{package} must be the same on all hosts; it is {which}")


def _share(told: Sequence[dict[str, Any]], hosts: Sequence[str], index: int) -> backends.Share:
    """This host's ranks, and the interface that their data goes over."""
    networks = {host: _network(each["reach"]) for each, host in zip(told, hosts, strict=True)}
    several = len(networks) > 1
    return backends.Share(
        first_rank=hosts.index(hosts[index]),
        num_ranks=hosts.count(hosts[index]),
        world_size=len(hosts),
        num_hosts=len(networks),
        interface=choose(networks)[hosts[index]].interface if several else backends.LOOPBACK_INTERFACE,
    )


def _set_environment(share: backends.Share, index: int, *, shares_gpus: bool) -> None:
    """Which interface data goes over, unless the environment says it."""
    exact = f"={share.interface}" if share.spans_hosts else share.interface  # to NCCL eth0 is eth01, too
    for name, value in {**backends.NCCL_SETTINGS, "GLOO_SOCKET_IFNAME": share.interface}.items():
        os.environ.setdefault(name, value)
    if shares_gpus:
        os.environ.update(backends.shared_gpu_environment(os.environ["MASTER_PORT"], index, exact))
    os.environ.setdefault("NCCL_SOCKET_IFNAME", exact)


def _network(told: dict[str, Any]) -> Network:
    found = tuple(
        Interface(**{**each, "addresses": tuple(each["addresses"]), "networks": tuple(each["networks"])})
        for each in told["interfaces"]
    )
    return replace(Network(**{**told, "interfaces": ()}), interfaces=found)


def _num_cores(told: Sequence[dict[str, Any]]) -> int:
    """Of all hosts together; containers of one machine have no more than it has."""
    hosts = {host_key(each): each for each in told}
    of_machine: Counter[str] = Counter()
    for (_, boot, _), each in hosts.items():
        of_machine[boot] = min(of_machine[boot] + each["num_cores"], each["machine_cores"])
    return sum(of_machine.values())


say_new_names(__name__)
