"""Messages over a socket, whole and in pieces; the supervisor's end never waits. No other process involved."""

import os
import socket
import threading

import pytest

from tplab.cluster.channel import RankChannel, SupervisorChannel, encode

pytestmark = pytest.mark.timeout(30)


@pytest.fixture
def ends():
    """Supervisor's end, rank's end."""
    ours, theirs = socket.socketpair()
    supervisor, rank = SupervisorChannel(ours), RankChannel(theirs.detach())
    yield supervisor, rank
    supervisor.close()


def read_all(channel, count):
    """Read until so many messages are there."""
    messages, ended = [], False
    while len(messages) < count and not ended:
        more, ended = channel.read()
        messages += more
    return messages


def test_both_ways(ends):
    supervisor, rank = ends
    supervisor.send(encode({"to": "rank"}))
    assert rank.recv() == {"to": "rank"}
    rank.send(encode(["to", "supervisor"]))
    assert supervisor.read() == ([["to", "supervisor"]], False)


def test_nothing_there(ends):
    assert ends[0].read() == ([], False)


def test_several_at_once(ends):
    supervisor, rank = ends
    for i in range(5):
        rank.send(encode(i))
    assert supervisor.read() == ([0, 1, 2, 3, 4], False)


@pytest.mark.parametrize("num_bytes", [0, 1, 1 << 16, 20_000_000])
def test_sizes(ends, num_bytes):
    supervisor, rank = ends
    data = os.urandom(num_bytes)
    thread = threading.Thread(target=lambda: rank.send(encode(rank.recv())))
    thread.start()
    supervisor.send(encode(data))
    while supervisor.has_outgoing:
        supervisor.flush()
    assert read_all(supervisor, 1) == [data]
    thread.join(10)


def test_sending_does_not_wait_for_the_reader(ends):
    """A rank that is stopped takes nothing in."""
    supervisor, rank = ends
    for i in range(3):
        supervisor.send(encode(bytes([i]) * 5_000_000))
    assert supervisor.has_outgoing
    received = []
    thread = threading.Thread(target=lambda: received.extend(rank.recv() for _ in range(3)))
    thread.start()
    while supervisor.has_outgoing:
        supervisor.flush()
    thread.join(10)
    assert received == [bytes([i]) * 5_000_000 for i in range(3)]


def test_half_a_message_is_none_yet():
    ours, theirs = socket.socketpair()
    recorded = RankChannel(theirs.detach())
    recorded.send(encode("whole"))
    data = ours.recv(1 << 16)
    ours.close()
    supervisor, peer = _with_raw_peer()
    for byte in data[:-1]:
        peer.send(bytes([byte]))
        assert supervisor.read() == ([], False)
    peer.send(data[-1:] + data[:3])
    assert supervisor.read() == (["whole"], False)
    peer.send(data[3:])
    assert supervisor.read() == (["whole"], False)
    peer.close()
    supervisor.close()


def test_last_message_of_a_rank_that_is_gone():
    supervisor, peer = _with_raw_peer()
    rank = RankChannel(peer.detach())
    rank.send(encode("last words"))
    del rank
    messages, ended = supervisor.read()
    assert messages == ["last words"]
    assert ended or supervisor.read() == ([], True)
    supervisor.close()


def test_half_a_message_of_a_rank_that_is_gone():
    supervisor, peer = _with_raw_peer()
    peer.send(b"".join(encode("no length before it"))[:5])
    peer.close()
    assert supervisor.read() == ([], True)
    supervisor.close()


def test_sending_to_a_rank_that_is_gone():
    """It shows when reading."""
    supervisor, peer = _with_raw_peer()
    peer.close()
    supervisor.send(encode("anyone?"))
    assert supervisor.read() == ([], True)
    supervisor.close()


def test_rank_learns_that_the_kernel_is_gone(ends):
    supervisor, rank = ends
    supervisor.close()
    with pytest.raises(EOFError):
        rank.recv()


def _with_raw_peer():
    ours, theirs = socket.socketpair()
    return SupervisorChannel(ours), theirs
