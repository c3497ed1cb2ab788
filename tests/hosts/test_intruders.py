"""Another user on a host of the cluster, and somebody on a host that does not belong to it, attack the cluster: they
read nothing, join nothing, run nothing; what stops a run is named, and the next run works."""

import json
import subprocess
import sys
from pathlib import Path

import cloudpickle
import pytest

from tests.cluster import attacks
from tests.cluster.attacks import Attacker, linger
from tests.hosts.parallel import parallel
from tplab import Cluster
from tplab.cluster import RankError

cloudpickle.register_pickle_by_value(attacks)
pytestmark = pytest.mark.timeout(150)
SECRETS = [["secret of rank 0", "secret of rank 1"]] * 2


@pytest.fixture
def cluster(shared_parallel):
    """Fresh ranks: what lingers in them goes with them."""
    client = shared_parallel.client()
    with Cluster(2, engine="ipyparallel", client=client) as cluster:
        yield cluster
    client.close()


@pytest.fixture
def attack(hosts, tmp_path):
    """Start an attacker on gamma; whatever happens, it hears nothing."""
    folder = tmp_path / "open to all"
    folder.mkdir()
    folder.chmod(0o777)
    started = []

    def start(mode):
        started.append(Attacker(mode, folder / "mark", hosts.gamma.within, start.tables))
        return started[-1]

    start.folder = str(folder)
    start.tables = [f"/proc/{host.holder.pid}/net/tcp" for host in hosts.members]
    yield start
    for attacker in started:
        attacker.process.kill()
        attacker.process.wait()


@pytest.mark.parametrize("mode", ["hold", "flood"])
def test_bystanders_are_hung_up_on(cluster, attack, mode):
    """With all the time in the world to connect: a group whose ranks are all there goes on."""
    cluster.run(linger, attack.folder, attack.tables, True)
    attacker = attack(mode)
    assert cluster.run(attacks.share, timeout=90) == SECRETS
    assert attacker.end()["connections"] >= 20


def test_who_takes_a_ranks_place_is_named(cluster, attack, hosts):
    """With all the time in the world to pose as rank 1."""
    cluster.run(linger, attack.folder, attack.tables, True)
    attacker = attack("join")
    error = cluster.submit(attacks.share, timeout=90).exception()
    assert isinstance(error, RankError)
    assert f"somebody at {hosts.gamma.address}, who is no rank," in str(error)
    attacker.end()
    assert cluster.run(attacks.share, timeout=90) == SECRETS


def test_every_listening_socket(hosts, tmp_path):
    """Of controller, engines and ranks, all of them on the two hosts: what another user of the same host, one of the
    other host and the outsider get from it. (``pytest -s`` prints the list.)"""
    mark = tmp_path / "mark"
    tmp_path.chmod(0o777)
    with parallel(hosts, tmp_path / "ipython", at=hosts.alpha) as running:
        client = running.client()
        with Cluster(2, engine="ipyparallel", client=client) as cluster:
            assert cluster.run(attacks.share, timeout=90) == SECRETS
            ends = [(host.name, f"{address}:{port}") for host in hosts.members for address, port in host.listening()]
            visits = {host.name: _visit(host, mark, [end for _, end in ends]) for host in (*hosts.members, hosts.gamma)}
            answers = {name: json.loads(visit.communicate(timeout=90)[0]) for name, visit in visits.items()}
            commands = [_command(pid) for host in hosts.members for pid in running.pids(host)]
            files = running.cluster_file, running.engine_file, running.cluster_file.parent
            modes = [file.stat().st_mode for file in files]
            secrets = [
                value
                for file in files[:2]
                for name, value in json.loads(file.read_text()).items()
                if "key" in name and value
            ]
            assert cluster.run(attacks.share, timeout=90) == SECRETS
        client.close()
    rows = [(host, end, name, answers[name][end]) for host, end in ends for name in answers]
    print("\n".join(f"socket of {host:5} {end:21} from {name:5}: {answer}" for host, end, name, answer in rows))
    assert {answer for *_, answer in rows} == {"ZeroMQ, wants CURVE", "takes no connection"}
    assert sum(answer == "ZeroMQ, wants CURVE" for *_, answer in rows) > 30, "it has visited nobody"
    assert {"takes no connection"} == {
        answer for host, end, name, answer in rows if host != name and end.startswith("127.")
    }
    assert not mark.exists()
    assert secrets
    assert not [command for command in commands if any(secret.encode() in command for secret in secrets)]
    assert not [mode for mode in modes if mode & 0o77]


def _visit(host, mark, ends):
    visitor = Path(__file__).with_name("visitor.py")
    return subprocess.Popen(
        host.within([sys.executable, str(visitor), str(mark), *ends]), stdout=subprocess.PIPE, text=True
    )


def _command(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has ended
        return b""
