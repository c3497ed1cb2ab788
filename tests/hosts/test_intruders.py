"""Somebody on a host that does not belong to the cluster attacks the ports of its ranks: reads nothing, joins nothing,
runs nothing; what stops a run is named, and the next run works."""

import cloudpickle
import pytest

from tests.cluster import attacks
from tests.cluster.attacks import Attacker, linger
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
