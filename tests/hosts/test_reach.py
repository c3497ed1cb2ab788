"""Whether pairs of hosts connect: hosts are threads here that listen at loopback addresses of their own."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from tests.hosts.namespaces import Hosts
from tplab.cluster.hosts import reach
from tplab.cluster.hosts.networks import Address, Unreachable
from tplab.cluster.hosts.reach import Reached, Unreached, check_pairs, try_pairs, unreachable

ADDRESSES = {
    "alpha": Address("eth0", "127.0.0.2"),
    "beta": Address("eth0", "127.0.0.3"),
    "gamma": Address("ib0", "::1"),
}
PAIRS = {(a, b) for a in ADDRESSES for b in ADDRESSES if a != b}
SOON_S = 10.0


@pytest.fixture
def call() -> Iterator[Callable[..., Future[Any]]]:
    with ThreadPoolExecutor() as threads:
        yield lambda host, function, *args: threads.submit(function, *args)


def wait_until_all_doors_are_closed() -> None:
    deadline = time.monotonic() + SOON_S
    while any(thread.name == "tplab reach" for thread in threading.enumerate()) or reach._doors:
        assert time.monotonic() < deadline, "a door stayed open"
        time.sleep(0.01)


def test_every_pair_connects_both_ways_and_the_doors_are_closed(call: Any) -> None:
    found = try_pairs(call, ADDRESSES)
    assert {(each.from_host, each.to_host) for each in found} == PAIRS
    assert all(isinstance(each, Reached) and 0 < each.seconds < reach.TIMEOUT_S for each in found)
    assert check_pairs(call, ADDRESSES) == []
    wait_until_all_doors_are_closed()


def test_one_host_has_nobody_to_reach(call: Any) -> None:
    assert try_pairs(call, {"alpha": ADDRESSES["alpha"]}) == []


def test_a_host_with_a_full_queue_is_named_and_nobody_waits_for_longer_than_the_limit(call: Any) -> None:
    """A listener that takes nobody in: what connects waits, as behind a firewall that drops packets."""
    with socket.socket() as full:
        full.bind(("127.0.0.3", 0))
        full.listen(0)
        fillers = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
            fillers.append(filler)

        def through(host: str, function: Callable[..., Any], *args: Any) -> Future[Any]:
            if function is reach.open_door and host == "beta":
                return call(host, lambda: full.getsockname()[1])
            return call(host, function, *args)

        began = time.monotonic()
        found = check_pairs(through, ADDRESSES, timeout_s=0.5)
        assert time.monotonic() - began < SOON_S
        for filler in fillers:
            filler.close()
    assert {(each.from_host, each.to_host) for each in found} == {("alpha", "beta"), ("gamma", "beta")}
    assert all(each.reason == "timed out after 0.5 s" for each in found)
    wait_until_all_doors_are_closed()
    message = str(unreachable(found, ADDRESSES))
    assert "alpha cannot connect to beta at 127.0.0.3 (interface eth0): timed out after 0.5 s" in message
    assert "interface=" in message
    assert isinstance(unreachable(found, ADDRESSES), Unreachable)


@pytest.mark.parametrize(
    ("says", "reason"),
    [
        (b"", "another process than the host's"),
        (bytes(32 + 64 + reach._DATA_BYTES), "does not know the cluster's secret"),
        (None, "KiB did not come through within 0.5 s"),
    ],
)
def test_somebody_else_at_the_hosts_address_is_no_host(call: Any, says: bytes | None, reason: str) -> None:
    """As where two hosts have the same address in networks of their own; and a path that swallows large packets."""
    done = threading.Event()

    def stranger(server: socket.socket) -> None:
        one, _ = server.accept()
        with one:
            if says is not None:
                reach._take(one, 48 + reach._DATA_BYTES)
                one.sendall(says)
            else:
                done.wait(SOON_S)

    with socket.create_server(("127.0.0.3", 0)) as server, ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(stranger, server)

        def through(host: str, function: Callable[..., Any], *args: Any) -> Future[Any]:
            if function is reach.open_door and host == "beta":
                return call(host, lambda: server.getsockname()[1])
            return call(host, function, *args)

        two = {host: ADDRESSES[host] for host in ("alpha", "beta")}
        [found] = check_pairs(through, two, timeout_s=0.5)
        done.set()
        waiting.result(SOON_S)
    assert (found.from_host, found.to_host) == ("alpha", "beta")
    assert reason in found.reason


def test_who_does_not_know_the_secret_is_told_nothing() -> None:
    port = reach.open_door(b"secret" * 6, "127.0.0.2", 1, 1.0)
    with socket.create_connection(("127.0.0.2", port)) as one:
        one.settimeout(SOON_S)
        one.sendall(bytes(48))
        assert one.recv(1) == b""
    assert reach.knock(b"secret" * 6, {"alpha": ("127.0.0.2", port)}, 1.0)["alpha"][1] == "127.0.0.1"
    wait_until_all_doors_are_closed()


def test_a_host_that_says_nothing_and_one_that_cannot_listen_are_named(
    call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reach, "_PATIENCE_S", 0.3)

    def through(host: str, function: Callable[..., Any], *args: Any) -> Future[Any]:
        return Future() if host == "gamma" else call(host, function, *args)

    addresses = ADDRESSES | {"delta": Address("eth0", "198.51.100.7")}
    found = {(each.from_host, each.to_host): each.reason for each in check_pairs(through, addresses, timeout_s=0.5)}
    assert ("alpha", "beta") not in found
    assert found["alpha", "gamma"] == found["gamma", "beta"] == "gamma did not answer the kernel within 0.3 s"
    assert "it cannot listen at 198.51.100.7" in found["beta", "delta"]
    wait_until_all_doors_are_closed()


def test_a_door_closes_by_itself_where_nobody_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "_PATIENCE_S", 0.1)
    port = reach.open_door(bytes(32), "127.0.0.2", 1, 0.1)
    wait_until_all_doors_are_closed()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port), timeout=1)


_LISTEN = """
import sys, time
from tplab.cluster.hosts.reach import open_door
print(open_door(bytes(32), sys.argv[1], 1, 60.0), flush=True)
sys.stdin.read()
"""
_KNOCK = """
import sys
from tplab.cluster.hosts.reach import knock
print(knock(bytes(32), {"beta": (sys.argv[1], int(sys.argv[2]))}, float(sys.argv[3]))["beta"])
"""


def test_a_path_that_swallows_large_packets_is_found_and_blames_them(hosts: Hosts) -> None:
    """As between hosts with jumbo frames and a switch without: the handshake passes, and gloo would wait for data."""
    alpha, beta = hosts.members
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with beta.popen([sys.executable, "-c", _LISTEN, beta.address], **pipes) as listening:
        assert listening.stdout is not None
        port = listening.stdout.readline().strip()
        hosts.switch.run(["ip", "link", "set", "to-beta", "mtu", "1000"])
        try:
            said = alpha.python(_KNOCK, beta.address, port, "1.0")
        finally:
            hosts.switch.run(["ip", "link", "set", "to-beta", "mtu", "1500"])
        assert "did not come through within 1 s" in said
        assert "MTU" in said
        assert alpha.address in alpha.python(_KNOCK, beta.address, port, "20.0")
        listening.kill()


def test_unreached_pairs_beyond_a_few_are_counted() -> None:
    pairs = [Unreached("alpha", "beta", "no route to host")] * 9
    assert "and 5 more pairs of hosts" in str(unreachable(pairs, ADDRESSES))
