"""Which ranks run on which hosts. Pure: from what the hosts say of themselves."""

import math
from collections.abc import Sequence
from itertools import chain

from tplab.checks import ArgumentError, check_count, check_one_of
from tplab.cluster.backends import BACKENDS, RankDevices
from tplab.cluster.errors import ClusterError
from tplab.cluster.hosts.connect import Host


class Spread:
    """The places of a cluster's ranks, host by host in rank order; asked anew before each start.

    Args:
        hosts: that answer now.
        num_ranks: how many ranks; None: ``ranks_per_host`` on each.
        backend: ``auto``, ``gloo`` or ``nccl``.
        ranks_per_host: None: evenly, or without ``num_ranks`` one for each GPU, and one where there are no GPUs.

    Raises ``ValueError`` for what these hosts cannot hold.
    """

    def __init__(self, hosts: Sequence[Host], num_ranks: int | None, backend: str, ranks_per_host: int | None) -> None:
        check_one_of("backend", backend, BACKENDS)
        gpus = [host.facts["num_gpus"] for host in hosts]
        self._backend = "nccl" if backend == "auto" and all(gpus) else backend.replace("auto", "gloo")
        if self._backend == "nccl" and not all(gpus):
            without = ", ".join(host.name for host in hosts if not host.facts["num_gpus"])
            raise ArgumentError(
                "backend", backend, f"must be gloo or auto where hosts have no GPU for torch: {without}"
            )
        if ranks_per_host is not None:
            check_count("ranks_per_host", ranks_per_host, least=1)
        if num_ranks is None:
            each = [ranks_per_host or (have if self._backend == "nccl" else 1) for have in gpus]
            num_ranks = sum(each)
        elif ranks_per_host is not None and num_ranks > ranks_per_host * len(hosts):
            room = ranks_per_host * len(hosts)
            raise ArgumentError(
                "n", num_ranks, f"must be at most {room}: ranks_per_host={ranks_per_host} on {len(hosts)} hosts"
            )
        self.num_ranks = num_ranks
        self._ranks_per_host = ranks_per_host
        self.used: dict[str, RankDevices] = {}
        """Name of each host that has ranks -> their backend and devices, in rank order."""
        self.over(hosts)

    @property
    def placement(self) -> RankDevices:
        """Of all ranks."""
        return RankDevices(
            backend=self._backend,
            devices=tuple(chain.from_iterable(devices.devices for devices in self.used.values())),
            hosts=tuple(name for name, devices in self.used.items() for _ in devices.devices),
        )

    def over(self, hosts: Sequence[Host]) -> str:
        """Spread the ranks over these hosts; returns a sentence where that is otherwise than before, else nothing."""
        if self._backend == "nccl":
            hosts = [host for host in hosts if host.facts["num_gpus"]]
        if not hosts:
            raise ClusterError("no host that answers has a GPU for the ranks: their backend is nccl")
        before = self.used
        self.used = {  # at once: any thread may ask where the ranks are
            host.name: RankDevices(backend=self._backend, devices=self._devices(host, n))
            for host, n in zip(hosts, self._counts(hosts), strict=True)
            if n
        }
        if not before or _in_words(before) == _in_words(self.used):
            return ""
        return f"the ranks are on other hosts than before: {_in_words(self.used)} (before: {_in_words(before)})."

    def _counts(self, hosts: Sequence[Host]) -> list[int]:
        """How many ranks each host gets."""
        each = self._ranks_per_host
        if each is not None and each * len(hosts) >= self.num_ranks:
            return [max(0, min(each, self.num_ranks - each * index)) for index in range(len(hosts))]
        own = [host.facts["num_gpus"] for host in hosts]
        if self._backend == "nccl" and sum(own) == self.num_ranks:
            return own  # a GPU for each rank, however many there are on a host
        return [
            math.ceil((self.num_ranks - index) / len(hosts)) if index < self.num_ranks else 0
            for index in range(len(hosts))
        ]

    def _devices(self, host: Host, num_ranks: int) -> tuple[str, ...]:
        if self._backend == "gloo":
            return ("cpu",) * num_ranks
        gpus = host.facts["num_gpus"]
        return tuple(f"cuda:{index * gpus // max(num_ranks, gpus)}" for index in range(num_ranks))


def _in_words(used: dict[str, RankDevices]) -> str:
    return ", ".join(f"{devices.num_ranks} on {name}" for name, devices in used.items())
