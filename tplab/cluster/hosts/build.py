"""From the arguments of a ``Cluster`` to its engine on hosts."""

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tplab
from tplab.checks import ArgumentError, check_count
from tplab.cluster.errors import ClusterError
from tplab.cluster.hosts.connect import Host, NoHosts, call_on, find_hosts, open_client
from tplab.cluster.hosts.engine import HostsEngine
from tplab.cluster.hosts.spread import Spread

MAX_RANKS = 1024
_ANSWER_S = 10.0


def engine_on_hosts(
    n: int | None,
    backend: str,
    *,
    client: Any,
    profile: str | None,
    cluster_file: str | Path | None,
    ranks_per_host: int | None,
    interface: str | Mapping[str, str] | None,
    start_timeout: float,
) -> HostsEngine:
    """The engine for ``Cluster(engine="ipyparallel", ...)``.

    Args:
        n, backend, client, profile, cluster_file, ranks_per_host, interface, start_timeout: as of ``Cluster``.
    """
    if n is not None:
        check_count("n", n, least=1, most=MAX_RANKS)
    given = {"client": client, "profile": profile, "cluster_file": cluster_file}
    opened, owned = open_client(**given)
    try:
        hosts = find_hosts(opened)
        check_alike(hosts)
        _check_interface(interface, hosts)
        spread = Spread(hosts, n, backend, ranks_per_host)
    except BaseException:
        if owned:
            opened.close()
        raise
    settings = {
        "n": n if n is not None else spread.num_ranks,
        "backend": spread.placement.backend,
        "ranks_per_host": ranks_per_host,
        "interface": interface,
        "start_timeout": start_timeout,
    }
    return HostsEngine(
        opened,
        (lambda: open_client(**given)[0]) if owned else None,
        hosts,
        spread,
        interface=interface,
        start_timeout=start_timeout,
        settings=settings,
    )


def remembered_settings(client: Any, profile: str | None, cluster_file: str | Path | None) -> dict[str, Any]:
    """What the agents of an ipyparallel cluster know of the last ``Cluster`` on it."""
    opened, owned = open_client(client, profile, cluster_file)
    try:
        hosts = find_hosts(opened)
        answers = call_on(opened, [host.engine_id for host in hosts], "remembered", timeout_s=_ANSWER_S)
    finally:
        if owned:
            opened.close()
    for host in hosts:
        if isinstance(settings := answers[host.engine_id], dict) and settings:
            each = settings["ranks_per_host"]
            fits = each is None or settings["n"] <= each * len(hosts)
            return settings if fits else settings | {"ranks_per_host": None}  # a host was lost meanwhile
    raise NoHosts(
        "no host of this ipyparallel cluster remembers ranks of an earlier kernel: start some with "
        "Cluster(n, engine='ipyparallel', ...)"
    )


def check_alike(hosts: Sequence[Host]) -> None:
    """Raise ``ClusterError`` where hosts have another Python or tplab than this kernel: functions travel as bytecode,
    and messages as tplab's own classes."""
    here = {"Python": _minor(platform.python_version()), "tplab": tplab.__version__}
    wrong = []
    for host in hosts:
        there = {"Python": _minor(host.facts["python"]), "tplab": host.facts["versions"]["tplab"]}
        wrong += [f"{name} {there[name]} on host {host.name}" for name in here if there[name] != here[name]]
    if wrong:
        raise ClusterError(
            f"hosts differ from this kernel, which has Python {here['Python']} and tplab {here['tplab']}: "
            f"{', '.join(wrong)}. Install the same on all of them (`tplab doctor --cluster` shows all versions)"
        )


def _check_interface(interface: Any, hosts: Sequence[Host]) -> None:
    """Raise ``ArgumentError`` for what names no interface, or no host."""
    given = [*interface, *interface.values()] if isinstance(interface, Mapping) else [interface]
    if interface is not None and not all(isinstance(name, str) and name for name in given):
        raise ArgumentError("interface", interface, "must be an interface's name, or a dict of host -> its interface")
    if isinstance(interface, Mapping) and (unknown := sorted({*interface} - {host.name for host in hosts})):
        known = ", ".join(sorted(host.name for host in hosts))
        raise ArgumentError("interface", unknown[0], f"must name hosts of the cluster, which are {known}")


def refuse_without_hosts(**given: object) -> None:
    """Raise ``ValueError`` for an argument that only ranks on hosts have."""
    for name, value in given.items():
        if value is not None:
            raise ArgumentError(name, value, "must be left out unless engine='ipyparallel'")


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])
