"""The two hosts themselves: names, addresses, cables, rates, and that nothing is left of them."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.hosts.namespaces import Host, Hosts
from tests.hosts.parallel import wait_for

ROOT = Path(__file__).parents[2]

_RECEIVE = """
import socket, sys, time
server = socket.create_server((sys.argv[1], 0))
print(server.getsockname()[1], flush=True)
connection, peer = server.accept()
connection.recv(1)
began, count = time.perf_counter(), 0
while piece := connection.recv(1 << 20):
    count += len(piece)
print(count * 8 / (time.perf_counter() - began) / 1e6, peer[0])
"""
_SEND = """
import socket, sys
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=20)
connection.sendall(bytes(int(sys.argv[3])))
"""


def mbit_between(source: Host, target: Host, num_bytes: int) -> float:
    """Measured by plain sockets; the peer is who it should be."""
    server = target.popen([sys.executable, "-c", _RECEIVE, target.address], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    port = server.stdout.readline().strip()
    source.python(_SEND, target.address, port, str(num_bytes))
    measured, peer = server.communicate(timeout=60)[0].split()
    assert peer == source.address
    return float(measured)


def test_names_and_addresses(hosts: Hosts):
    for host in (*hosts.members, hosts.gamma):
        code = "import socket; print(socket.gethostname(), *[socket.gethostbyname(n) for n in ('alpha', 'beta')])"
        assert host.python(code).split() == [host.name, hosts.alpha.address, hosts.beta.address]
        assert host.python("import os; print(sorted(os.listdir('/sys/class/net')))") == "['eth0', 'lo']\n"
        assert host.python("import os; print(os.getcwd())").strip() == os.getcwd()
    assert socket.gethostname() not in ("alpha", "beta", "gamma")


def test_a_process_is_one_process_with_its_environment(hosts: Hosts):
    code = "import os; print(os.getpid(), os.environ['KEY'], flush=True); import time; time.sleep(60)"
    argv = [sys.executable, "-c", code]
    before = {*hosts.alpha.pids()}  # engines, where tests of them ran before
    with hosts.alpha.popen(argv, env={"KEY": "here"}, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().split() == [str(process.pid), "here"]
        assert {*hosts.alpha.pids()} - before == {process.pid}
        assert process.pid not in hosts.beta.pids()
        process.kill()
    assert {*hosts.alpha.pids()} <= before


def test_rate(hosts: Hosts):
    """What ``tc`` was told is what a plain socket gets, either way, and only on that host's cable."""
    hosts.set_rate(hosts.beta, 200)
    for source, target in (hosts.members, hosts.members[::-1]):
        assert 140 < mbit_between(source, target, 10_000_000) < 210  # below on a busy machine, above never
    assert mbit_between(hosts.alpha, hosts.gamma, 20_000_000) > 300
    hosts.set_rate(hosts.beta, None)
    assert mbit_between(hosts.alpha, hosts.beta, 20_000_000) > 300


def test_a_pulled_cable_is_silent_and_can_be_put_back(hosts: Hosts):
    reach = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=float(sys.argv[3]))"
    with socket.create_server((hosts.address, 0)) as server:
        port = str(server.getsockname()[1])
        hosts.link_down(hosts.beta)
        with pytest.raises(subprocess.CalledProcessError) as refused:
            hosts.beta.python(reach, hosts.address, port, "0.5")
        assert "timed out" in refused.value.stderr or "No route" in refused.value.stderr
        hosts.alpha.python(reach, hosts.address, port, "20")
        hosts.link_up(hosts.beta)
        hosts.beta.python(reach, hosts.address, port, "20")


def test_nothing_is_left_when_the_tests_are_killed(tmp_path: Path):
    """Another test process makes hosts beside ours, starts something in one, and is killed."""
    code = """if True:
        import subprocess, sys, time
        from pathlib import Path
        from tests.hosts.namespaces import two_hosts
        with two_hosts(Path(sys.argv[1])) as hosts:
            stray = "import os, time; os.setsid(); print('runs', flush=True); time.sleep(600)"
            stray = hosts.beta.popen([sys.executable, "-c", stray], stdout=subprocess.PIPE)
            stray.stdout.readline()
            holders = [host.holder.pid for host in (*hosts.members, hosts.switch)]
            print(hosts.interface, stray.pid, *holders, flush=True)
            time.sleep(600)
    """
    tests = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert tests.stdout is not None
    interface, *pids = tests.stdout.readline().split()
    assert Path("/sys/class/net", interface).exists()
    os.kill(tests.pid, signal.SIGKILL)
    tests.communicate(timeout=20)
    for pid in map(int, pids):
        wait_for(lambda pid=pid: not _runs(pid), f"process {pid} to end")  # type: ignore[misc]
    wait_for(lambda: not Path("/sys/class/net", interface).exists(), f"{interface} to go")


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class TestParallel:
    def test_an_engine_on_each_host_at_the_controller_outside(self, shared_parallel):
        with shared_parallel.client() as client:
            names = client[:].apply_sync(socket.gethostname)
        assert sorted(names) == ["alpha", "beta"]
        assert {address for address, _ in shared_parallel.hosts.alpha.listening()} <= {"127.0.0.1"}

    def test_killed_and_started_again(self, own_parallel):
        hosts = own_parallel.hosts
        with own_parallel.client() as client:
            own_parallel.kill_engine(hosts.beta)
            wait_for(lambda: len(client.ids) == 1, "ipyparallel to notice")
            own_parallel.start_engine(hosts.beta)
            wait_for(lambda: len(client.ids) == 2, "the new engine")
        own_parallel.kill_controller()
        assert own_parallel.pids(hosts.beta)
        own_parallel.close()
        wait_for(lambda: not own_parallel.pids(hosts.beta), "the engines to end")
