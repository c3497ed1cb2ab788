"""Another user of the machine attacks the ranks' ports: reads nothing, joins nothing, runs nothing; what stops a run is
named, and the next run works. Needs root, who can become that user."""

import inspect
import os
import socket
import sys
from pathlib import Path

import cloudpickle
import pytest

from tests.cluster import attacks
from tests.cluster.attacks import OTHER_UID, SECRETS, Attacker, be_attacked, linger, share
from tplab import Cluster
from tplab.cluster import ClusterError, RankError, launch
from tplab.cluster.neighbours import Intruder, check_all, ends_here, strangers, unclaimed
from tplab.cluster.sockets import ends_of, own_sockets, owner_of

cloudpickle.register_pickle_by_value(attacks)

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="who is at the other end of a connection, only Linux says"),
    pytest.mark.skipif(sys.platform != "linux" or os.getuid() != 0, reason="needs root, to become another user"),
    pytest.mark.timeout(170),
]


@pytest.fixture
def attack(tmp_path):
    """Start an attacker; whatever happens, it hears nothing."""
    folder = tmp_path / "open to all"
    folder.mkdir()
    for one in (tmp_path, folder):
        one.chmod(0o777)
    started = []

    def start(mode):
        started.append(Attacker(mode, folder / "mark"))
        return started[-1]

    start.folder = str(folder)
    yield start
    for attacker in started:
        attacker.process.kill()
        attacker.process.wait()


@pytest.mark.parametrize("mode", ["store", "join", "hold", "flood"])
def test_starts_and_groups_go_on(attack, mode):
    """In the few milliseconds that connecting takes, a flood slows it down, and hardly anybody takes a rank's place; on
    a busy machine somebody may."""
    attacker = attack(mode)
    with Cluster(2, "gloo") as cluster:
        for _ in range(4):
            run = cluster.submit(share, timeout=60)
            if (error := run.exception()) is None:
                assert run.result() == SECRETS
            else:
                assert mode == "join", error
                assert "uid 12345" in str(error)
        be_attacked(attack.folder)
    assert attacker.end()["ports"] > 0, "it found no port to attack"


@pytest.mark.parametrize("mode", ["hold", "flood"])
def test_bystanders_are_hung_up_on(attack, mode):
    """With all the time in the world to connect: a group whose ranks are all there goes on."""
    with Cluster(2, "gloo") as cluster:
        cluster.run(linger, attack.folder)
        attacker = attack(mode)
        assert cluster.run(share, timeout=90) == SECRETS
    assert attacker.end()["connections"] >= 20


def test_who_takes_a_ranks_place_is_named(attack):
    """With all the time in the world to pose as rank 1."""
    with Cluster(2, "gloo") as cluster:
        cluster.run(linger, attack.folder)
        attacker = attack("join")
        error = cluster.submit(share, timeout=90).exception()
        assert isinstance(error, RankError)
        assert "another user of this machine (uid 12345)" in str(error)
        attacker.end()
        assert cluster.run(share) == SECRETS


def test_who_takes_a_ranks_place_among_the_first_is_named(attack):
    """The first run on some of the ranks connects these."""
    with Cluster(3, "gloo") as whole:
        whole.run(linger, attack.folder)
        attacker, two = attack("join"), whole.resized(2)
        error = two.submit(lambda rank: rank.index, timeout=90).exception()
        assert isinstance(error, RankError)
        assert "another user of this machine (uid 12345)" in str(error)
        attacker.end()
        assert two.run(share) == SECRETS


LINGER = """
import os, sys
if any(argument.startswith("rank ") for argument in sys.orig_argv):  # a rank of tplab, which begins
    import tplab.cluster.store as _  # the folder is importable
    import importlib.abc, importlib.machinery

    class Finder(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path, target=None):
            if name != "tplab.cluster.rank_store":
                return None
            sys.meta_path.remove(self)
            spec = importlib.util.find_spec(name)
            run = spec.loader.exec_module
            def exec_module(module):
                run(module)
                wait = module.KernelStore.wait
                def wait_longer(self, *args):
                    wait(self, *args)
                    be_attacked({folder!r})
                module.KernelStore.wait = wait_longer
            spec.loader.exec_module = exec_module
            return spec

    import importlib.util
    sys.meta_path.insert(0, Finder())
"""


@pytest.mark.parametrize("ends", [True, False], ids=["once", "for ever"])
def test_a_spoiled_start_is_tried_again(attack, tmp_path, monkeypatch, ends):
    (tmp_path / "sitecustomize.py").write_text(LINGER.format(folder=attack.folder) + inspect.getsource(be_attacked))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[2]}")
    monkeypatch.setattr(launch, "_ATTEMPTS", 2)
    attacker = attack("join")
    states = []

    def follow(state):
        states.append(state.value)
        if ends and states[-2:] == ["starting", "down"]:
            attacker.end()

    with Cluster(2, "gloo") as cluster:
        cluster.watch(follow, None)
        if not ends:
            with pytest.raises(ClusterError, match=r"2 attempts.*another user of this machine \(uid 12345\)"):
                cluster.run(share, timeout=90)
            attacker.end()
        assert cluster.run(share, timeout=90) == SECRETS
    assert states.count("starting") == 2 + (not ends)


class TestStrangers:
    @pytest.fixture
    def connected(self):
        """Two ends of a connection over loopback, of this process."""
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            with socket.create_connection(listener.getsockname()) as near:
                far, _ = listener.accept()
                with far:
                    yield near, far

    def test_own(self, connected):
        near, far = connected
        assert strangers([near.fileno(), far.fileno()]) == {}

    def test_of_another(self, attack):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            listener.settimeout(30)
            attack("hold")
            far, _ = listener.accept()
            while ends_of(far) is None:  # hung up already
                far.close()
                far, _ = listener.accept()
            with far:
                assert strangers([far.fileno(), listener.fileno()]) == {far.fileno(): OTHER_UID}
                with pytest.raises(Intruder, match=r"uid 12345\) is connected to this rank"):
                    check_all()
                assert far.recv(1) == b"", "hung up on"

    def test_both_ways_to_ask_agree(self, connected, monkeypatch):
        from tplab.cluster import sockets

        near, far = connected
        here, there = sockets.ends_of(near)
        asked = owner_of(here, there)
        assert asked.uid == os.getuid()
        assert asked.inode == os.fstat(near.fileno()).st_ino
        monkeypatch.setattr(sockets, "_answers", lambda ask: False)
        assert owner_of(here, there) == asked
        assert owner_of(there, here).inode == os.fstat(far.fileno()).st_ino
        assert owner_of(here, (there[0], 1)) is None

    @pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv4 in IPv6"])
    def test_no_rank_claims_it(self, family):
        """As between hosts: what the other end's process says it has is a rank's, whatever else is a stranger's."""
        with socket.socket(family) as listener:
            listener.bind(("127.0.0.1" if family == socket.AF_INET else "::ffff:127.0.0.1", 0))
            listener.listen()
            port = listener.getsockname()[1]
            near, other = (socket.create_connection(("127.0.0.1", port)) for _ in range(2))
            far, strange = (listener.accept()[0] for _ in range(2))
            with near, other, far, strange:
                here = [far.fileno(), strange.fileno(), listener.fileno()]
                claims = ends_here([near.fileno()]) | ends_here(here)
                assert unclaimed(here, {port}, claims) == {
                    strange.fileno(): "somebody at 127.0.0.1, who is no rank,",
                }
                assert unclaimed(here, {1}, set()) == {}

    def test_of_this_process_there_are_none(self):
        check_all()
        assert strangers([*own_sockets().values()]) == {}
