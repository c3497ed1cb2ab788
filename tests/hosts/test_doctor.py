"""``tplab doctor --cluster`` on two hosts: what is well, and what is not, made so one thing at a time."""

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.hosts.namespaces import Hosts
from tests.hosts.parallel import Parallel
from tplab import Cluster, cli
from tplab.cluster import ClusterError
from tplab.cluster.hello import all_reduce_hello
from tplab.cluster.hosts import connect, survey
from tplab.lab import cluster_checks
from tplab.lab.cluster_checks import cluster_preflight
from tplab.lab.finding import Check


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def problems(checks: list[Check]) -> set[str]:
    return {check.name for check in checks if check.status == "problem"}


@contextmanager
def mounted_over(hosts: Hosts, folder: str) -> Iterator[None]:
    """On beta, another file system where ``folder`` is."""
    hosts.beta.run(["mount", "-t", "tmpfs", "tmpfs", folder])
    try:
        yield
    finally:
        hosts.beta.run(["umount", folder])


@contextmanager
def one_way(hosts: Hosts) -> Iterator[None]:
    """alpha's connections to beta come from a second address of its own, for which beta has no way back."""
    alpha, beta = hosts.members
    second = f"{alpha.address.rpartition('.')[0]}.111"
    alpha.run(["ip", "address", "add", f"{second}/24", "dev", "eth0"])
    alpha.run(["ip", "route", "add", f"{beta.address}/32", "dev", "eth0", "src", second])
    beta.run(["ip", "route", "add", "blackhole", f"{second}/32"])
    try:
        yield
    finally:
        beta.run(["ip", "route", "del", "blackhole", f"{second}/32"])
        alpha.run(["ip", "route", "del", f"{beta.address}/32"])
        alpha.run(["ip", "address", "del", f"{second}/24", "dev", "eth0"])


def test_two_hosts_that_are_well(
    shared_parallel: Parallel, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["doctor", "--cluster", str(shared_parallel.cluster_file), "--json"]) == 0
    found = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert [row for row in found.values() if row["status"] != "ok"] == []
    alpha, beta = shared_parallel.hosts.members
    assert f"alpha eth0 {alpha.address}" in found["network"]["found"]
    assert f"beta eth0 {beta.address}" in found["network"]["found"]
    assert "2 ways between hosts, all connect" in found["network"]["found"]
    assert "encrypted" in found["connection"]["found"]
    assert "torch 2." in found["versions"]["found"]
    assert "equal" in found["clocks"]["found"]
    assert all(host in found["controller"]["found"] for host in ("alpha", "beta", "median of 9"))
    assert all(host in found["shared folder"]["found"] for host in ("alpha", "beta", "this kernel"))
    assert "all-reduce of 1 and 2 gives 3" in found["a rank on each host"]["found"]
    assert list(tmp_path.iterdir()) == []


def test_one_way_that_does_not_connect_is_named_and_the_other_is_not(shared_parallel: Parallel) -> None:
    with one_way(shared_parallel.hosts):
        checks = cluster_preflight(str(shared_parallel.cluster_file))
    assert problems(checks) == {"alpha to beta"}
    check = by_name(checks)["alpha to beta"]
    assert f"alpha cannot connect to beta at {shared_parallel.hosts.beta.address} (interface eth0)" in check.meaning
    assert "timed out after 3 s" in check.meaning
    assert "--interface" in check.cure
    assert "firewall" in check.cure


def test_ranks_do_not_start_where_hosts_do_not_connect_and_start_once_they_do(shared_parallel: Parallel) -> None:
    """The same check at every start of ranks: an error that names the pair, in place of minutes in gloo."""
    with Cluster(engine="ipyparallel", cluster_file=shared_parallel.cluster_file, ranks_per_host=1) as cluster:
        with one_way(shared_parallel.hosts):
            began = time.monotonic()
            with pytest.raises(ClusterError, match=r"alpha cannot connect to beta at .* timed out after 3 s"):
                cluster.restart()
            assert time.monotonic() - began < 60
        assert [value["got"] for value in cluster.run(all_reduce_hello)] == [3, 3]


def test_what_differs_is_named_with_the_host(shared_parallel: Parallel, tmp_path: Any) -> None:
    beta = shared_parallel.hosts.beta
    beta.run(["ip", "link", "set", "eth0", "mtu", "9000"])
    security = shared_parallel.cluster_file.parent
    security.chmod(0o711)
    shared_parallel.cluster_file.chmod(0o644)
    try:
        with mounted_over(shared_parallel.hosts, str(tmp_path)):
            checks = cluster_preflight(str(shared_parallel.cluster_file), folder=str(tmp_path))
    finally:
        shared_parallel.cluster_file.chmod(0o600)
        security.chmod(0o700)
        beta.run(["ip", "link", "set", "eth0", "mtu", "1500"])
    found = by_name(checks)
    assert "9000 bytes on beta" in found["MTU"].found
    assert found["shared folder"].status == "note"
    assert "is not that of" in found["shared folder"].found
    assert "beta" in found["shared folder"].found
    assert problems(checks) == {"connection files"}
    assert "ipcontroller-client.json may be read by others" in found["connection files"].found


def test_keys_in_a_folder_that_nobody_else_enters_are_kept(shared_parallel: Parallel) -> None:
    """ipyparallel leaves some of its files open to all in there."""
    shared_parallel.cluster_file.chmod(0o644)
    try:
        check = cluster_checks._who_reads(shared_parallel.cluster_file.parent)
    finally:
        shared_parallel.cluster_file.chmod(0o600)
    assert check.status == "ok"


def test_an_interface_that_no_host_has_on_the_cluster_of_a_profile(
    shared_parallel: Parallel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(shared_parallel.folder))
    checks = cluster_preflight("default", interface="ib0")
    assert problems(checks) == {"network"}
    assert "has eth0 (10.213." in by_name(checks)["network"].meaning
    assert by_name(checks)["connection files"].found == "2, which nobody else may read"
    [check] = cluster_preflight("no-such-profile")
    assert (check.name, check.found, check.status) == ("controller", "not reached", "problem")
    assert "no-such-profile" in check.meaning


@pytest.mark.parametrize(
    ("old", "new", "problem", "says"),
    [
        ('"executable"', '"here": 1 / (socket.gethostname() != "beta"), "executable"', "engine", "division by zero"),
        (
            "        import tplab.cluster.hosts.remote\n",
            "        import tplab.cluster.hosts.remote\n        if socket.gethostname() == 'beta':\n"
            "            raise ImportError('no libcudart')\n",
            "tplab on beta",
            "ImportError: no libcudart",
        ),
        (
            'name: version(name) for',
            'name: version(name) + ".x" * (name == "torch" and socket.gethostname() == "beta") for',
            "torch",
            "ranks of different releases",
        ),
    ],
)  # fmt: skip
def test_a_host_whose_software_differs(
    shared_parallel: Parallel, monkeypatch: pytest.MonkeyPatch, old: str, new: str, problem: str, says: str
) -> None:
    assert old in survey.FIRST_LOOK
    monkeypatch.setattr(survey, "FIRST_LOOK", survey.FIRST_LOOK.replace(old, new))
    checks = cluster_preflight(str(shared_parallel.cluster_file))
    [name] = problems(checks)
    assert name.startswith(problem)
    check = by_name(checks)[name]
    assert says in check.meaning
    assert check.cure
    if problem == "torch":
        assert ".x on beta" in check.found


def test_a_host_that_stops_answering_is_a_finding_and_no_hang(
    own_parallel: Parallel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped between two questions; then from the beginning."""
    engine = own_parallel.engines["beta"].pid
    monkeypatch.setattr(cluster_checks, "_ANSWER_S", 3.0)
    monkeypatch.setattr(connect, "_CONTROLLER_S", 1.0)
    asked: list[str] = []
    call_on = cluster_checks.call_on

    def stop_before_limits(client: Any, engines: Any, function: str, *args: Any, **options: Any) -> Any:
        asked.append(f"{function} of {len(engines)}")
        if function == "limits":
            os.kill(engine, signal.SIGSTOP)
        return call_on(client, engines, function, *args, **options)

    monkeypatch.setattr(cluster_checks, "call_on", stop_before_limits)
    try:
        checks = cluster_preflight(str(own_parallel.cluster_file))
        assert problems(checks) == {"host beta"}
        assert by_name(checks)["host beta"].meaning == "Host beta: did not answer within 3 s."
        assert "limits of 2" in asked
        assert "scheduler of 1" in asked  # it is asked nothing more
        monkeypatch.setattr(cluster_checks, "_FIRST_S", 3.0)
        checks = cluster_preflight(str(own_parallel.cluster_file))
        [name] = problems(checks)
        assert name.startswith("engine ")
        assert "(1 host)" in by_name(checks)["engines"].found
    finally:
        os.kill(engine, signal.SIGCONT)
    own_parallel.kill_controller()
    [check] = cluster_preflight(str(own_parallel.cluster_file))
    assert (check.name, check.status) == ("controller", "problem")


def test_what_the_command_line_refuses(capsys: pytest.CaptureFixture[str], tmp_path: Any) -> None:
    for arguments, said in (
        (["--interface", "eth0"], "--interface is about the hosts of a cluster"),
        (
            ["--cluster", str(tmp_path / "none.json")],
            "--cluster must be a profile's name, or an ipcontroller-client.json",
        ),
        (["--cluster", ""], "--cluster must not be empty"),
    ):
        assert cli.main(["doctor", *arguments]) == 2
        assert said in capsys.readouterr().err
