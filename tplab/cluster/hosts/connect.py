"""An ipyparallel cluster, and which of its engines are the agents: one on each host."""

import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tplab import needs
from tplab.checks import ArgumentError
from tplab.cluster.errors import ClusterError
from tplab.cluster.hosts.facts import host_names

if TYPE_CHECKING:
    from ipyparallel import AsyncResult, Client

_CONTROLLER_S = 10.0
_ANSWER_S = 20.0  # an engine that has just been started still imports
_STRAGGLERS_S = 1.0
_MODULE = "_tplab"
_START_ONE = (
    "Start one with an engine on each host (`ipcluster start --profile=NAME`; docs/clusters.md has settings for SSH, "
    "Slurm and MPI), and name its profile, or its file ipcontroller-client.json"
)
NO_ENGINE = "the ipyparallel controller answers, but no engine has registered"
WHEN_REGISTERED = (
    "after `ipcluster start` this takes 10 to 30 s: then try again. If it stays so, look at the engines' logs"
)
# Text and no pickled function: a host with another Python can read it, too.
_PREPARE = f"import tplab.cluster.hosts.remote as {_MODULE}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Host:
    """A machine, by the engine on it that is the agent."""

    name: str
    """The hostname; where two have the same, the second is ``name-2``."""
    engine_id: int
    """ipyparallel's number of the engine, the lowest on this host."""
    uuid: str
    """What messages find that engine by."""
    facts: Mapping[str, Any]
    """What it says of itself (see ``facts.describe``)."""
    num_engines: int = 1
    """How many engines there are on the host; only one is used."""


class NoHosts(ClusterError):
    """The ipyparallel cluster cannot be reached, or has no engine that could start ranks."""


def open_client(client: Any = None, profile: str | None = None, cluster_file: Any = None) -> tuple["Client", bool]:
    """A client of the ipyparallel cluster, and whether it was made here (and is to be closed by whoever asked).

    Args:
        client: an ``ipyparallel.Client``, or an ``ipyparallel.Cluster`` that was started; used as it is.
        profile: name of an IPython profile.
        cluster_file: path of ``ipcontroller-client.json``, or of the file ``cluster-ID.json`` of ipyparallel's Cluster.

    Without any of them it is the default profile. Raises ``ValueError`` for more than one, and :class:`NoHosts` where
    no controller answers.
    """
    needs.check("Cluster(engine='ipyparallel')", "ipyparallel")
    import ipyparallel

    given = {"client": client, "profile": profile, "cluster_file": cluster_file}
    given = {name: value for name, value in given.items() if value is not None}
    if len(given) > 1:
        raise ArgumentError(*next(iter(given.items())), f"must be given alone; got also {', '.join([*given][1:])}")
    if isinstance(client, ipyparallel.Client):
        return client, False
    if client is not None and not isinstance(client, ipyparallel.Cluster):
        raise ArgumentError("client", client, "must be an ipyparallel.Client, or a started ipyparallel.Cluster")
    options: dict[str, Any] = {"timeout": _CONTROLLER_S}
    of_cluster = False
    if cluster_file is not None:
        path = Path(cluster_file).expanduser()
        if not path.is_file():
            raise ArgumentError("cluster_file", cluster_file, "must be a file: ipcontroller-client.json of the cluster")
        of_cluster = path.name.startswith("cluster-")
        if not of_cluster:
            options["connection_info"] = str(path)
    elif client is None:
        options["connection_info"] = str(file_of_profile(profile or "default"))
    try:
        if client is not None:
            made = _made_apart(lambda: client.connect_client_sync(**options))
        elif of_cluster:
            made = _made_apart(lambda: ipyparallel.Cluster.from_file(str(path)).connect_client_sync(**options))
        else:
            made = _made_apart(lambda: ipyparallel.Client(**options))
    except (OSError, TimeoutError, ValueError, TypeError, KeyError, RuntimeError, AttributeError) as error:
        which = next((f"{name}={str(value)!r}" for name, value in given.items()), "the default profile")
        raise NoHosts(
            f"no ipyparallel controller could be reached by {which}: {_in_one_line(error).rstrip('.')}. {_START_ONE}"
        ) from error
    _hear_own(made)
    return made, True


def topic(session: str) -> bytes:
    """What the messages of agents to the client of this session begin with."""
    return f"tplab.{session}".encode()


def _hear_own(client: "Client") -> None:
    """Have the controller send this client no messages of agents but its own. ipyparallel's clients take everybody's,
    and for one that is stopped the controller keeps them, without limit."""

    def subscribe() -> None:
        for wanted in (b"engine.", topic(client.session.session)):
            client._iopub_socket.subscribe(wanted)
        client._iopub_socket.unsubscribe(b"")

    client._io_loop.add_callback(subscribe)  # whose thread owns the socket


def _made_apart(connect: "Callable[[], Client]") -> "Client":
    """Connect on a thread of its own: a client whose making is interrupted has sockets that nobody could close. That
    one is finished, and closed."""
    outcome: Future[Client] = Future()

    def work() -> None:
        try:
            with _warned_in_earnest() as made:
                made.append(connect())
            outcome.set_result(made[0])
        except BaseException as error:
            outcome.set_exception(error)

    try:
        threading.Thread(target=work, name="tplab-connect", daemon=True).start()
        return outcome.result()
    except KeyboardInterrupt:
        outcome.add_done_callback(lambda made: None if made.exception() else made.result().close())
        raise


@contextmanager
def _warned_in_earnest() -> "Iterator[list[Client]]":
    """Without a warning that messages are not signed, where the client that is made here encrypts them: CurveZMQ does
    both, and ipyparallel's controller says that the warning is to be ignored."""
    made: list[Client] = []
    held: list[logging.LogRecord] = []
    here = threading.get_ident()

    def passes(record: logging.LogRecord) -> bool:
        is_it = record.thread == here and "Message signing is disabled" in record.getMessage()
        held.extend([record] * is_it)
        return not is_it

    from traitlets.log import get_logger

    logger = get_logger()
    logger.addFilter(passes)
    try:
        yield made
    finally:
        logger.removeFilter(passes)
        if not (made and made[0].curve_serverkey):
            for record in held:
                logger.handle(record)


def file_of_profile(profile: str) -> Path:
    """The ``ipcontroller-client.json`` of an IPython profile; :class:`NoHosts` where there is none.

    Looked for here: ipyparallel waits for it, and says so on the screen.
    """
    from IPython.core.profiledir import ProfileDir, ProfileDirError
    from IPython.paths import get_ipython_dir

    try:
        found = ProfileDir.find_profile_dir_by_name(get_ipython_dir(), profile)
        file = Path(found.security_dir) / "ipcontroller-client.json"
    except ProfileDirError as error:
        raise NoHosts(f"there is no IPython profile {profile!r}: {_in_one_line(error)}. {_START_ONE}") from error
    if not file.is_file():
        raise NoHosts(
            f"no ipyparallel controller of the profile {profile!r} is running: there is no {file}. {_START_ONE}"
        )
    return file


def where(cluster: str) -> dict[str, str]:
    """What a user calls a cluster, as an argument of :func:`open_client`: the path of a file, or a profile's name."""
    if not (cluster.endswith(".json") or os.sep in cluster):
        return {"profile": cluster}
    if not Path(cluster).expanduser().is_file():
        rule = "must be a profile's name, or an ipcontroller-client.json or cluster-ID.json that is there"
        raise ArgumentError("cluster", cluster, rule)
    return {"cluster_file": cluster}


def find_hosts(client: "Client", known: Sequence[str] | None = None, timeout_s: float = _ANSWER_S) -> tuple[Host, ...]:
    """The hosts that answer, in the order of their engines.

    Args:
        client: of the ipyparallel cluster.
        known: engines (uuids) that answered before. Once these have answered, others get a moment only: an engine that
            was killed stays registered for a while.
        timeout_s: seconds that engines have to answer.

    Raises :class:`NoHosts` where none does, with the reasons.
    """
    asked = {engine_id: client._engines[engine_id] for engine_id in client.ids}
    if not asked:
        raise NoHosts(f"{NO_ENGINE} ({WHEN_REGISTERED}; without `ipcluster`, start one engine on each host)")
    answers: dict[int, Any] = call_on(
        client,
        asked,
        "describe",
        timeout_s=timeout_s,
        enough=None if known is None else {engine for engine, uuid in asked.items() if uuid in known},
    )
    facts = {engine: answer for engine, answer in answers.items() if not isinstance(answer, Exception)}
    if not facts:
        reasons = "; ".join(f"engine {engine}: {_in_one_line(error)}" for engine, error in sorted(answers.items()))
        raise NoHosts(f"no engine of the ipyparallel cluster can start ranks ({reasons})")
    return group(facts, asked)


def group(facts: Mapping[int, Mapping[str, Any]], uuids: Mapping[int, str]) -> tuple[Host, ...]:
    """The hosts that the engines are on, in the order of these.

    Args:
        facts: engine -> what it says of its host: ``hostname``, ``boot_id`` and ``network`` at least.
        uuids: engine -> by which messages find it.
    """
    by_host: dict[str, list[int]] = {}
    for engine, name in zip(sorted(facts), host_names([facts[engine] for engine in sorted(facts)]), strict=True):
        by_host.setdefault(name, []).append(engine)
    return tuple(
        Host(name=name, engine_id=first, uuid=uuids[first], facts=facts[first], num_engines=1 + len(others))
        for name, (first, *others) in by_host.items()
    )


def call_on(
    client: "Client",
    engines: "Sequence[int] | Mapping[int, Any]",
    function: str,
    *args: Any,
    timeout_s: float,
    enough: set[int] | None = None,
    source: str = "",
) -> dict[int, Any]:
    """Call a function of ``remote`` on engines, side by side; a late one does not hold up the others.

    Args:
        client: of the ipyparallel cluster.
        engines: their numbers.
        function: its name.
        args: what it is given.
        timeout_s: seconds that the engines have.
        enough: engines after whose answers the others get a moment only; None: all are waited for.
        source: text that defines the function, for hosts which may lack tplab.

    Returns engine -> what it returned, or the exception: of the call, or ``TimeoutError``.
    """
    from ipyparallel import Reference

    sent: dict[int, tuple[AsyncResult, AsyncResult]] = {}
    unsent: dict[int, Any] = {}
    for engine in engines:
        try:
            view = client[engine]
            # Two requests in one go; the second finds what the first has imported.
            prepared = view.execute(source or _PREPARE, silent=True, block=False)
            sent[engine] = prepared, view.apply_async(Reference(function if source else f"{_MODULE}.{function}"), *args)
        except (OSError, RuntimeError, IndexError) as error:  # the client was closed, or the engine has just left
            unsent[engine] = error
    return _gather(sent, timeout_s, enough) | unsent


def start_on(client: "Client", engine: int, function: str, *args: Any) -> "AsyncResult":
    """Call a function of ``remote``, which the engine knows from ``call_on``, without waiting for it."""
    from ipyparallel import Reference

    return client[engine].apply_async(Reference(f"{_MODULE}.{function}"), *args)


def _gather(
    sent: "Mapping[int, tuple[AsyncResult, AsyncResult]]", timeout_s: float, enough: set[int] | None
) -> dict[int, Any]:
    import time

    answers: dict[int, Any] = {}
    deadline = time.monotonic() + timeout_s
    while len(answers) < len(sent):
        for engine, (prepared, called) in sent.items():
            if engine in answers or not called.ready():
                continue
            try:
                prepared.get(timeout=0.5)
                answers[engine] = called.get(timeout=0.5)
            except Exception as error:  # whatever was raised there, or that the engine died
                answers[engine] = error
        left = deadline - time.monotonic()
        if left <= 0:
            break
        if enough is not None and enough <= answers.keys():
            deadline, enough = min(deadline, time.monotonic() + _STRAGGLERS_S), None
        waiting = [called for engine, (_, called) in sent.items() if engine not in answers]
        if waiting:
            waiting[0].wait(min(0.02, max(0.001, left)))
    late = TimeoutError(f"did not answer within {timeout_s:g} s")
    return {engine: answers.get(engine, late) for engine in sent}


def _in_one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return lines[0] or repr(error)
