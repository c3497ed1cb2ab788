"""Which of its network interfaces each host uses for the data of its ranks.

Left to themselves, gloo takes the interface that the hostname resolves to (on many systems loopback) and NCCL the first
that is up (sometimes a container bridge). So the choice is made here, once for all hosts, and the ranks are told.
:func:`look` runs on a host; :func:`choose` is pure.
"""

import ipaddress
import os
import socket
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tplab.checks import ArgumentError
from tplab.cluster.errors import ClusterError
from tplab.cluster.sockets import borrowed, ends_of, is_listening, is_on_loopback, own_sockets
from tplab.needs import Later

if TYPE_CHECKING:
    import psutil
else:
    psutil = Later("psutil", "tplab.cluster.hosts")

BRIDGES = ("docker", "virbr", "br-", "cni", "podman", "lxcbr", "lxdbr", "incusbr")
"""How the names of interfaces begin that lead to containers and virtual machines of the same host."""


class Unreachable(ClusterError):
    """Hosts cannot reach each other on the addresses that their ranks would use."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Interface:
    """A network interface of a host."""

    name: str
    """Name that the system gives it: ``eth0``."""
    addresses: tuple[str, ...]
    """IPv4 and IPv6, in the system's order: gloo takes the first."""
    networks: tuple[str, ...]
    """The network of each address: ``10.0.0.0/24``."""
    up: bool
    """Whether it is switched on."""
    loopback: bool
    """Whether it leads back to the host itself."""
    mtu: int
    """Size of the largest packet, in bytes."""
    speed_mbit: int | None
    """Megabits per second, as the driver says; None where it does not."""

    @property
    def usable(self) -> bool:
        """Whether ranks of other hosts may find this one there: gloo's address, the first, means something to them."""
        return self.up and not self.loopback and bool(self.addresses) and not _is_link_local(self.addresses[0])


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """What has to be known of a host to choose its interface."""

    interfaces: tuple[Interface, ...]
    """All of them, in the system's order."""
    address: str = ""
    """The address from which it reaches the controller; empty: over loopback, or not known."""
    asked: str = ""
    """What the environment asks for: ``GLOO_SOCKET_IFNAME``; empty: nothing."""
    default: str = ""
    """The address from which it would reach the world outside; empty where there is no way out."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a host's ranks listen."""

    interface: str
    """The interface's name: for ``GLOO_SOCKET_IFNAME``, and behind a ``=`` for ``NCCL_SOCKET_IFNAME``."""
    address: str
    """The address of it that gloo takes."""


def look() -> Network:
    """Look at this host. The controller is the peer of this process's own connections, as it is an engine's."""
    asked = os.environ.get("GLOO_SOCKET_IFNAME", "").split(",")[0].strip()
    return Network(interfaces=tuple(interfaces()), address=_used_address(), asked=asked, default=_default_address())


def interfaces() -> list[Interface]:
    """The network interfaces of this host."""
    states = psutil.net_if_stats()
    found = []
    for name, entries in psutil.net_if_addrs().items():
        own = [each for each in entries if each.family in (socket.AF_INET, socket.AF_INET6)]
        state = states.get(name)
        found.append(
            Interface(
                name=name,
                addresses=tuple(each.address.partition("%")[0] for each in own),
                networks=tuple(_network_of(each.address, each.netmask) for each in own),
                up=state is not None and state.isup,
                loopback=any(ipaddress.ip_address(each.address.partition("%")[0]).is_loopback for each in own),
                mtu=0 if state is None else state.mtu,
                speed_mbit=state.speed if state is not None and state.speed > 0 else None,
            )
        )
    return found


def choose(hosts: Mapping[str, Network], asked: str | Mapping[str, str] | None = None) -> dict[str, Address]:
    """Choose, by name of the host, the interface and address that its ranks use for data.

    In this order: what the user asks for; ``GLOO_SOCKET_IFNAME`` of the host; the interface by which it reaches the
    controller, unless that is a bridge to containers; one in the network of another host's address; one that leads
    outside; any that is no bridge; any. Never loopback, except for a host alone.

    Raises:
        ArgumentError: a host has no such interface as was asked for, or none that can be used.
        Unreachable: a host has no interface that leads anywhere.
    """
    if isinstance(asked, Mapping) and (unknown := set(asked) - set(hosts)):
        known = ", ".join(sorted(hosts))
        raise ArgumentError("interface", sorted(unknown)[0], f"must name hosts of the cluster, which are {known}")
    if len(hosts) == 1:
        [(name, network)] = hosts.items()
        back = next((each for each in network.interfaces if each.loopback), None)
        return {name: Address(back.name, back.addresses[0]) if back is not None else Address("lo", "127.0.0.1")}
    chosen = {}
    for host, network in hosts.items():
        wish = asked.get(host, "") if isinstance(asked, Mapping) else asked or ""
        others = [other.address for name, other in hosts.items() if name != host and other.address]
        named = wish or network.asked
        found = _wished(host, network, wish) if named else _likeliest(host, network, others)
        chosen[host] = Address(found.name, found.addresses[0])
    return chosen


def _wished(host: str, network: Network, wish: str) -> Interface:
    name = wish or network.asked
    for each in network.interfaces:
        if each.name == name and each.usable:
            return each
    usable = ", ".join(f"{each.name} ({each.addresses[0]})" for each in network.interfaces if each.usable) or "none"
    whose = "" if wish else f", as GLOO_SOCKET_IFNAME of {host} asks,"
    rule = f"must be{whose} an interface of every host that is up and has an address; {host} has {usable}"
    raise ArgumentError("interface", name, rule)


def _likeliest(host: str, network: Network, others: list[str]) -> Interface:
    def rank(each: Interface) -> tuple[bool, ...]:
        bridge = each.name.startswith(BRIDGES)
        return (
            network.address in each.addresses and not bridge,
            any(_holds(net, other) for net in each.networks for other in others),
            network.default in each.addresses,
            not bridge,
        )

    usable = [each for each in network.interfaces if each.usable]
    if not usable:
        raise Unreachable(
            f"host {host} has no network interface but loopback that is up and has an address: its ranks could not "
            "be reached from other hosts. Set one up, or leave this host out."
        )
    return max(usable, key=rank)  # the first of several that are equal


def _used_address() -> str:
    """The local address of most of this process's connections to other hosts; empty where there are none."""
    ends: Counter[str] = Counter()
    with suppress(OSError):  # no /proc: not Linux
        for fd in own_sockets().values():
            with suppress(OSError), borrowed(fd) as one:
                pair = None if is_listening(one) else ends_of(one)
                if pair is not None and not is_on_loopback(pair[0]):
                    ends[str(ipaddress.ip_address(pair[0][0]))] += 1
    return ends.most_common(1)[0][0] if ends else ""


def _default_address() -> str:
    """The source address of a packet to outside; none is sent."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.connect(("203.0.113.1", 9))  # of a network that is only for documents
        return str(one.getsockname()[0])
    return ""


def _network_of(address: str, netmask: str | None) -> str:
    plain = address.partition("%")[0]
    prefix = 0 if netmask is None else int(ipaddress.ip_address(netmask)).bit_count()
    full = ipaddress.ip_address(plain).max_prefixlen
    return str(ipaddress.ip_network(f"{plain}/{prefix or full}", strict=False))


def _holds(network: str, address: str) -> bool:
    return ipaddress.ip_address(address) in ipaddress.ip_network(network)


def _is_link_local(address: str) -> bool:
    return ipaddress.ip_address(address).is_link_local
