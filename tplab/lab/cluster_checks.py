"""``tplab doctor --cluster``: the machines of an ipyparallel cluster, before a run on them hangs.

Every question has a time limit, because ipyparallel waits for ever for an engine that is stopped, and whoever does not
answer is a finding and is asked nothing more. What answers mean is said in ``cluster_findings``.
"""

import os
import stat
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tplab.checks import ArgumentError
from tplab.cluster.errors import ClusterError
from tplab.cluster.hosts import survey
from tplab.cluster.hosts.connect import (
    NO_ENGINE,
    WHEN_REGISTERED,
    Host,
    NoHosts,
    call_on,
    file_of_profile,
    group,
    open_client,
    start_on,
    where,
)
from tplab.cluster.hosts.facts import host_key
from tplab.cluster.hosts.networks import Network, choose
from tplab.cluster.hosts.reach import try_pairs
from tplab.cluster.naming import capital
from tplab.lab import cluster_findings as findings
from tplab.lab.cluster_findings import HERE, Trip
from tplab.lab.finding import Check
from tplab.lab.tried_ranks import first_line, try_ranks

if TYPE_CHECKING:
    from ipyparallel import Client

_FIRST_S = 20.0  # an engine that has just been started still imports
_ANSWER_S = 10.0
_TRIPS = 9
_READABLE = ("ipcontroller*.json", "cluster-*.json")


def cluster_preflight(
    cluster: str, *, interface: str | None = None, folder: str | None = None, ranks: bool = False
) -> list[Check]:
    """Look at the hosts of an ipyparallel cluster.

    Args:
        cluster: a profile's name, or the path of a file: ``ipcontroller-client.json`` or ``cluster-ID.json``.
        interface: the interface that ranks shall use on all hosts; None: as ``Cluster`` chooses.
        folder: the folder that should be the same on all hosts; None: the one in which this runs.
        ranks: also start a rank on each host, and let them all-reduce (some seconds).
    """
    given = where(cluster)
    try:
        file = Path(given["cluster_file"]).expanduser() if "cluster_file" in given else file_of_profile(cluster)
        client, _ = open_client(cluster_file=file)
    except NoHosts as error:
        cure = "Start it, or let this machine reach the address in its file: ipcontroller --ip=..., --location=..."
        return [Check(name="controller", found="not reached", status="problem", meaning=str(error), cure=cure)]
    try:
        checks = [*_connection(client, file.parent), *_Survey(client).checks(interface, folder)]
        return [*checks, _try_ranks(client, interface)] if ranks and client.ids else checks
    finally:
        client.close()


class _Survey:
    """Questions to the hosts of a cluster, and what came of them."""

    def __init__(self, client: "Client") -> None:
        self._client = client
        self._hosts: dict[str, Host] = {}
        """Those that answer, and can import tplab."""
        self._found: list[Check] = []

    def checks(self, interface: str | None, folder: str | None) -> list[Check]:
        """All findings, in the order in which one would mend what is wrong."""
        looks = self._first_look()
        if not looks:
            return self._found
        self._ask("clock")  # has the functions imported there
        trips = {host: self._trips(host) for host in self._hosts}
        if any(trips.values()):
            self._found += [findings.controller(trips)]
        self._compare(looks)
        if any(trips.values()):
            self._found += [findings.clocks(trips)]
        self._look_at(len(looks), interface, folder or os.getcwd())
        return self._found

    def _first_look(self) -> tuple[Host, ...]:
        """Which engines are on which hosts; text that needs no tplab there."""
        engines = list(self._client.ids)
        if not engines:
            cure = f"{capital(WHEN_REGISTERED)}. Without `ipcluster`, on each host: ipengine --file=FILE"
            meaning = f"{capital(NO_ENGINE)}."
            self._found.append(Check(name="engines", found="none", status="problem", meaning=meaning, cure=cure))
            return ()
        asked = call_on(self._client, engines, "tplab_first_look", timeout_s=_FIRST_S, source=survey.FIRST_LOOK)
        facts = {engine: said for engine, said in asked.items() if isinstance(said, Mapping)}
        hosts = group(facts, self._client._engines)
        for engine, said in asked.items():
            if engine not in facts:
                self._found.append(findings.no_answer(f"engine {engine}", "which host it is on", first_line(said)))
        on_host = {host.name: [e for e in facts if host_key(facts[e]) == host_key(host.facts)] for host in hosts}
        if hosts:
            self._found.append(_engines(on_host))
        for host in hosts:
            if host.facts["error"]:
                self._found.append(_cannot_import(host))
            else:
                self._hosts[host.name] = host
        return hosts

    def _compare(self, hosts: Sequence[Host]) -> None:
        own: dict[str, Any] = {}
        exec(survey.FIRST_LOOK, own)
        looks = {HERE: own["tplab_first_look"](), **{host.name: host.facts for host in hosts}}
        built = {HERE: survey.built_with(), **self._ask("built_with")}
        self._found += findings.versions(
            {
                name: {"Python": each["python"], **each["versions"], **built.get(name, {})}
                for name, each in looks.items()
            }
        )

    def _look_at(self, num_hosts: int, interface: str | None, folder: str) -> None:
        networks: dict[str, Network] = self._ask("look")
        if len(networks) > 1 or len(networks) == num_hosts:
            self._reach(networks, interface)
        if len(self._hosts) > 1 and (names := self._ask("own_name")):
            self._found.append(findings.own_names(names))
        if spaces := self._ask("capacity"):
            self._found += findings.capacity(spaces)
        views = self._ask("nccl_view")
        views = {host: view for host, view in views.items() if host in networks}
        if any(
            view["variables"] or view["devices"] or spaces.get(host, {}).get("gpus") for host, view in views.items()
        ):
            self._found += findings.nccl(views, networks)
        if said := self._ask("limits"):
            self._found += findings.limits(said, {host: view["devices"] for host, view in views.items()})
        self._share(folder)
        if jobs := self._ask("scheduler"):
            self._found.append(findings.scheduler(jobs))

    def _reach(self, networks: Mapping[str, Network], interface: str | None) -> None:
        try:
            addresses = choose(networks, interface)
        except (ArgumentError, ClusterError) as error:
            cure = "Name one that each host has with --interface, or set GLOO_SOCKET_IFNAME where engines are started."
            self._found.append(
                Check(name="network", found="no interface for ranks", status="problem", meaning=str(error), cure=cure)
            )
            return
        self._found += findings.interfaces(addresses, networks, try_pairs(self._send, addresses))

    def _share(self, folder: str) -> None:
        if not self._hosts:
            return
        writer = next(iter(self._hosts))
        written = self._ask("leave_token", folder, hosts=[writer], failed=False).get(writer)
        if written is None:  # that it does not answer is found
            return
        if isinstance(written, Exception):
            meaning = f"{writer} cannot write in {folder}: {first_line(written)}."
            cure = "Run this in a folder of a file system that all hosts mount, or name one with --folder."
            self._found.append(
                Check(name="shared folder", found="not written", status="note", meaning=meaning, cure=cure)
            )
            return
        name, text = written
        try:
            seen = self._ask("read_token", folder, name, hosts=[host for host in self._hosts if host != writer])
            seen[HERE] = survey.read_token(folder, name)
        finally:
            self._ask("remove_token", folder, name, hosts=[writer])
        self._found.append(findings.folder(folder, writer, {host: said == text for host, said in seen.items()}))

    def _ask(
        self, function: str, *args: Any, hosts: Sequence[str] | None = None, failed: bool = True
    ) -> dict[str, Any]:
        """What the hosts say. One that does not answer is a finding and is asked nothing more.

        Args:
            function: of ``hosts.remote``.
            args: what it is given.
            hosts: those that are asked; None: all.
            failed: whether an exception of the function is a finding, too; if not, it is the answer.
        """
        asked = {host: self._hosts[host].engine_id for host in (self._hosts if hosts is None else hosts)}
        if not asked:
            return {}
        answers = call_on(self._client, list(asked.values()), function, *args, timeout_s=_ANSWER_S)
        said = {host: answers[engine] for host, engine in asked.items()}
        for host, answer in list(said.items()):
            if isinstance(answer, TimeoutError) or (failed and isinstance(answer, Exception)):
                self._found.append(findings.no_answer(f"host {host}", function.replace("_", " "), first_line(answer)))
                del said[host]
                if isinstance(answer, TimeoutError):
                    del self._hosts[host]
        return said

    def _trips(self, host: str) -> list[Trip]:
        trips: list[Trip] = []
        with suppress(Exception):  # a host that stops answering is found by the next question
            for _ in range(_TRIPS + 1):
                began, at = time.perf_counter(), time.time()
                there = self._send(host, survey.clock).result(_ANSWER_S)
                seconds = time.perf_counter() - began
                trips.append(Trip(seconds, there - (at + seconds / 2)))
        return trips[1:]  # the first also connects

    def _send(self, host: str, function: Any, *args: Any) -> Any:
        """Call a function of ``hosts.remote`` on a host that has been asked before: a future."""
        return start_on(self._client, self._hosts[host].engine_id, function.__name__, *args)


def _engines(on_host: Mapping[str, Sequence[int]]) -> Check:
    said = []
    for host, engines in on_host.items():
        if len(engines) == 1:
            said.append(f"{host}: {engines[0]}")
        else:
            said.append(f"{host}: {', '.join(map(str, engines))}, of which {min(engines)} is the agent")
    if len(on_host) > 1:
        return Check(name="engines", found=f"{'; '.join(said)} ({len(on_host)} hosts, one agent on each)")
    meaning = "All engines are on one host: Cluster(n) without ipyparallel does the same there."
    cure = "Start an engine on each further host, for example ipcluster start --engines=ssh or slurm."
    return Check(name="engines", found=f"{said[0]} (1 host)", status="note", meaning=meaning, cure=cure)


def _cannot_import(host: Host) -> Check:
    return Check(
        name=f"tplab on {host.name}",
        found="cannot be imported",
        status="problem",
        meaning=f"{host.facts['executable']} on {host.name}: {host.facts['error']}.",
        cure='Start the engines with a Python that has it, or there: pip install "tplab[run,multinode]".',
    )


def _connection(client: "Client", folder: Path) -> list[Check]:
    """Whether who speaks is authenticated, whether others can read along, and who may read the keys."""
    if client.curve_serverkey:  # in place of signatures
        check = Check(name="connection", found="authenticated and encrypted (CurveZMQ)")
    elif client.session.key:
        check = Check(
            name="connection",
            found="authenticated, not encrypted",
            status="note",
            meaning="Who can listen on the network between the hosts reads code, values and output.",
            cure="Start it with ipcontroller --IPController.enable_curve=True.",
        )
    else:
        check = Check(
            name="connection",
            found="not authenticated",
            status="problem",
            meaning="The controller has no key: whoever reaches its ports runs code as you on every host.",
            cure="Start the controller anew with --IPController.enable_curve=True, or let it make its key.",
        )
    return [check, _who_reads(folder)]


def _who_reads(folder: Path) -> Check:
    """The files that hold the keys."""
    files = sorted({found for pattern in _READABLE for found in folder.glob(pattern)})
    states = {each.name: each.stat() for each in files}
    closed = not stat.S_IMODE(folder.stat().st_mode) & 0o011  # nobody else gets to what is in it
    readable = [name for name, state in states.items() if stat.S_IMODE(state.st_mode) & 0o066 and not closed]
    foreign = [name for name, state in states.items() if state.st_uid != os.getuid()]
    if not readable and not foreign:
        return Check(name="connection files", found=f"{len(files)}, which nobody else may read")
    what = "may be read by others" if readable else "belongs to another user"
    return Check(
        name="connection files",
        found=f"{', '.join(readable or foreign)} {what}",
        status="problem",
        meaning="Who has read one can run code as you on every host.",
        cure=f"chmod 600 {folder}/*.json, and start controller and engines anew: their keys may be known.",
    )


def _try_ranks(client: "Client", interface: str | None) -> Check:
    """A rank on each host."""
    from tplab.cluster import Cluster

    return try_ranks(
        "a rank on each host",
        lambda: Cluster(engine="ipyparallel", client=client, ranks_per_host=1, interface=interface),
        "Install the same torch on all hosts",
    )
