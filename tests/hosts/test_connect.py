"""How a client of an ipyparallel cluster comes to be."""

import os
import signal
import threading

import pytest

from tplab.cluster.hosts.connect import _made_apart


class Client:
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
