"""The engine on hosts, and its links, without any host: what it does about loss, floods and wrong arguments."""

import pytest

from tests.hosts.test_spread import hosts
from tplab.checks import ArgumentError
from tplab.cluster import ClusterError
from tplab.cluster.engine import Wrote
from tplab.cluster.hosts import messages
from tplab.cluster.hosts.agent import Agent
from tplab.cluster.hosts.build import _check_interface
from tplab.cluster.hosts.connect import call_on
from tplab.cluster.hosts.engine import _EVENTS_AT_ONCE, HostsEngine, _OnHost
from tplab.cluster.hosts.link import Link
from tplab.cluster.hosts.messages import WINDOW_BYTES, Happened, Inlet, Outlet
from tplab.cluster.hosts.spread import Spread


class Session:
    def msg_header(self, kind):
        return dict.fromkeys(("msg_id", "msg_type", "session", "username", "version"), kind)


class Future:
    def __init__(self):
        self.iopub_callbacks = []


class Client:
    """As much of ipyparallel's as a link uses; what is sent is kept."""

    def __init__(self):
        self.session, self.sent, self._control_socket = Session(), [], None
        self._registration_callbacks = []
        self._futures, self._output_futures, self.metadata = {}, {}, {}

    def create_message_futures(self, name, header, async_result):
        self._futures[name] = future = Future()
        return future, None

    def _send(self, socket, kind, *, content, buffers, ident):
        self.sent.append((content["data"], buffers))

    def __getitem__(self, engine):
        raise RuntimeError("Client cannot be used after its sockets have been closed")


@pytest.fixture
def engine():
    members = hosts(0, 0)
    spread = Spread(members, 4, "gloo", 2)
    return HostsEngine(Client(), None, members, spread, interface=None, start_timeout=10, settings={})


@pytest.fixture
def link(engine):
    made = Link(engine._client, hosts(0)[0], "id", engine._on_message, engine._on_lost)
    engine._links["alpha"] = made
    engine._parts.append(_OnHost(made, 0, 2))
    return made


def arrive(link, *said):
    """Have the agent say something, or, with nothing, give a sign of life."""
    if not hasattr(link, "agent"):
        link.agent = Outlet(
            lambda content, buffers: link._receive(
                {"content": {"execution_state": "tplab", "taken": 0, **content}, "buffers": buffers}
            )
        )
    link.agent.beat()
    for message in said:
        link.agent.send(message)
        link.agent.arrived(link.agent.sent_bytes)


def line(text):
    return Happened(0, (Wrote(0, "stdout", text),))


class TestFlood:
    def test_some_at_a_time(self, engine, link):
        """Between two portions the supervisor does what was posted, such as a stop."""
        arrive(link, *(line(str(i)) for i in range(3 * _EVENTS_AT_ONCE)))
        got = []
        while portion := engine.poll(0):
            assert len(portion) <= _EVENTS_AT_ONCE
            got += portion
        assert [event.line for event in got] == [str(i) for i in range(3 * _EVENTS_AT_ONCE)]

    def test_only_what_was_handled_makes_room(self, engine, link):
        def said(name):
            return engine._client.sent[-1][0][name]

        arrive(link, line("x" * (WINDOW_BYTES - 1000)))
        assert said("taken") == link.agent.sent_bytes
        assert len(engine.poll(0)) == 1
        link.beat()
        assert said("handled") == 0  # the supervisor has it, and is not done with it
        engine.poll(0)
        assert said("handled") == link.agent.sent_bytes

    def test_what_is_left_when_ranks_are_killed_is_bounded(self, engine, link):
        arrive(link, *(line(str(i)) for i in range(3000)), messages.Killed(0, ()))
        assert [event.line for event in engine.kill()] == [str(i) for i in range(2000, 3000)]


class TestWindow:
    def test_the_rest_follows(self):
        sent, inlet, got = [], Inlet(), []
        outlet = Outlet(lambda content, buffers: sent.append((content, buffers)))
        outlet.send("x" * (5 * WINDOW_BYTES))
        outlet.send("next")
        while sent:
            assert sum(len(buffers[0]) for _, buffers in sent) <= WINDOW_BYTES
            outlet.beat()  # goes in between
            for content, buffers in sent:
                got += inlet.take(content, buffers)
            sent.clear()
            outlet.arrived(inlet.taken_bytes)
        assert got == ["x" * (5 * WINDOW_BYTES), "next"]

    def test_the_rest_is_dropped(self):
        """An order to end ranks does not wait until they have had a large value."""
        sent, inlet, got = [], Inlet(), []
        outlet = Outlet(lambda content, buffers: sent.append((content, buffers)))
        outlet.send("x" * (5 * WINDOW_BYTES))
        outlet.send("never")
        outlet.drop()
        assert not outlet.is_full
        outlet.send("end")
        outlet.arrived(WINDOW_BYTES)
        for content, buffers in sent:
            got += inlet.take(content, buffers)
        assert got == ["end"]

    def test_nothing_follows_a_loss(self, engine, link):
        link.send("x" * (5 * WINDOW_BYTES))
        before = len(engine._client.sent)
        link.lose("gone")
        link._outlet.arrived(WINDOW_BYTES)
        assert len(engine._client.sent) == before


class TestLoss:
    def test_leaves_nothing_in_the_client(self, engine, link):
        client = engine._client
        assert client._registration_callbacks
        assert client._futures
        link.lose("gone")
        assert [event.lost for event in engine.poll(0)] == ["gone", "gone"]
        assert not client._registration_callbacks
        assert not client._futures

    def test_says_why_it_left(self, engine, link):
        arrive(link, messages.Left("nothing was heard of the kernel for 10 s"))
        [event, _] = engine.poll(0)
        assert event.lost == "the agent of host alpha ended its ranks: nothing was heard of the kernel for 10 s"

    def test_interfaces_of_hosts_that_are_gone(self, engine):
        engine._interface = {"alpha": "eth0", "beta": "eth1"}
        [alpha] = hosts(0)
        assert list(engine._choose([alpha])) == ["alpha"]


class Kernel:
    """An engine's, as far as an agent uses it."""

    def __init__(self):
        self.session, self.iopub_socket, self.said = self, None, []
        self._inlet = Inlet()

    def send(self, socket, kind, *, content, parent, ident, buffers):
        self.said += self._inlet.take(content, buffers)


class TestAgent:
    def test_kernel_that_is_not_heard_of(self, monkeypatch):
        monkeypatch.setattr(messages, "PATIENCE_S", 0.1)
        agent = Agent("id", {"session": "s"}, kernel := Kernel())
        agent.start()
        agent.join(20)
        assert kernel.said == [messages.Left("nothing was heard of the kernel for 0.1 s")]

    def test_kernel_that_cannot_be_understood(self):
        agent = Agent("id", {"session": "s"}, kernel := Kernel())
        agent.start()
        content = {"number": 5, "digest": "", "anew": False, "taken": 0, "handled": 0}
        agent.receive(content, [b"?"])
        agent.join(20)
        [left] = kernel.said
        assert "cannot be understood" in left.reason

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
    def test_its_own_failure(self):
        agent = Agent("id", {"session": "s"}, kernel := Kernel())
        agent._orders.append(messages.Spawn(1, None, None, 1.0))
        agent.start()
        agent.join(20)
        [left] = kernel.said
        assert "it failed (AttributeError" in left.reason

    def test_kernel_that_closes(self):
        agent = Agent("id", {"session": "s"}, kernel := Kernel())
        agent.start()
        Outlet(lambda content, buffers: agent.receive({"taken": 0, "handled": 0, **content}, buffers)).send(
            messages.Leave()
        )
        agent.join(20)
        assert kernel.said == []


class TestArguments:
    @pytest.mark.parametrize("wrong", [7, "", ["eth0"], {"alpha": 7}, {"alpha": ""}, {"gamma": "eth0"}])
    def test_interface(self, wrong):
        with pytest.raises(ArgumentError, match="interface must"):
            _check_interface(wrong, hosts(0, 0))

    @pytest.mark.parametrize("right", [None, "eth0", {}, {"beta": "eth0"}])
    def test_interface_that_may_be(self, right):
        _check_interface(right, hosts(0, 0))

    def test_interface_that_is_not_there(self, engine, monkeypatch):
        """It is found out on the cluster's own thread, which knows what to do about a ClusterError."""
        from tplab.cluster.hosts.networks import Network

        monkeypatch.setattr(
            "tplab.cluster.hosts.engine.call_on", lambda *args, **options: dict.fromkeys((0, 1), Network(interfaces=()))
        )
        engine._interface = "eth7"
        with pytest.raises(ClusterError, match="interface must be an interface of every host"):
            engine._choose(hosts(0, 0))

    def test_closed_client(self):
        answers = call_on(Client(), [0, 1], "describe", timeout_s=1)
        assert "closed" in str(answers[0])
        assert list(answers) == [0, 1]
