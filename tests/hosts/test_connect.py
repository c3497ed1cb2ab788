"""How a client of an ipyparallel cluster comes to be."""

import functools
import os
import signal
import threading

import pytest

from tests.hosts.parallel import wait_for
from tplab import Cluster
from tplab.cluster.hosts.connect import _made_apart, open_client


class Client:
    curve_serverkey = b""

    def __init__(self):
        self.closed = threading.Event()

    def close(self):
        self.closed.set()


def test_interrupted_while_it_connects():
    """What is half made then would have sockets that nobody could close."""
    client, go_on = Client(), threading.Event()

    def connect():
        os.kill(os.getpid(), signal.SIGINT)
        assert go_on.wait(20)
        return client

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            _made_apart(connect)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not client.closed.is_set()
    go_on.set()
    assert client.closed.wait(20)


def test_an_error_comes_through():
    def connect():
        raise TimeoutError("no controller")

    with pytest.raises(TimeoutError, match="no controller"):
        _made_apart(connect)


@pytest.mark.timeout(120)
def test_of_agents_a_client_hears_its_own(shared_parallel):
    """For one that is stopped, the controller would keep all that the agents of others say."""
    client, _ = open_client(cluster_file=shared_parallel.cluster_file)
    clients = [client, shared_parallel.client()]
    try:
        heard = [[], []]
        for each, topics in zip(clients, heard, strict=True):
            take = functools.partial(lambda topics, frames: topics.append(bytes(frames[0])), topics)
            each._io_loop.add_callback(each._iopub_stream.on_recv, take)
        with Cluster(2, engine="ipyparallel", cluster_file=shared_parallel.cluster_file) as cluster:
            assert cluster.run(lambda rank: rank.index) == [0, 1]
        assert any(topic.startswith(b"tplab.") for topic in heard[1])
        wait_for(lambda: any(topic.startswith(b"engine.") for topic in heard[0]), "ipyparallel's own messages")
        assert not any(topic.startswith(b"tplab.") for topic in heard[0])
    finally:
        for each in clients:
            each.close()
