"""Which ranks run on which hosts, and the messages to these: without any host."""

import pickle

import pytest

from tplab.checks import ArgumentError
from tplab.cluster import ClusterError
from tplab.cluster.channel import ChannelBroken
from tplab.cluster.hosts import build
from tplab.cluster.hosts.build import check_alike
from tplab.cluster.hosts.connect import Host
from tplab.cluster.hosts.messages import PIECE_BYTES, Garbled, Inlet, Outlet, Pass
from tplab.cluster.hosts.spread import Spread


def hosts(*gpus, **facts):
    names = ("alpha", "beta", "gamma", "delta")
    return [
        Host(name=name, engine_id=i, uuid=str(i), facts={"num_gpus": n, **facts})
        for i, (name, n) in enumerate(zip(names, gpus, strict=False))
    ]


def counts(spread):
    return {name: devices.num_ranks for name, devices in spread.used.items()}


class TestSpread:
    @pytest.mark.parametrize(
        ("gpus", "n", "per_host", "expected"),
        [
            ((0, 0), 4, None, [2, 2]),
            ((0, 0), 3, None, [2, 1]),
            ((0, 0), 1, None, [1]),
            ((0, 0, 0), 7, None, [3, 2, 2]),
            ((0, 0), None, None, [1, 1]),
            ((0, 0), None, 3, [3, 3]),
            ((0, 0), 3, 2, [2, 1]),
            ((0, 0), 2, 2, [2]),
            ((8, 8), None, None, [8, 8]),
            ((8, 4), None, None, [8, 4]),
            ((8, 4), 12, None, [8, 4]),
            ((8, 4), 4, None, [2, 2]),
        ],
    )
    def test_counts(self, gpus, n, per_host, expected):
        spread = Spread(hosts(*gpus), n, "auto", per_host)
        assert list(counts(spread).values()) == expected
        assert spread.placement.num_ranks == sum(expected) == spread.num_ranks
        assert spread.placement.hosts == tuple(name for name, n in counts(spread).items() for _ in range(n))

    def test_devices(self):
        placement = Spread(hosts(2, 2), 4, "auto", None).placement
        assert (placement.backend, placement.devices) == ("nccl", ("cuda:0", "cuda:1") * 2)
        assert (placement.num_devices, placement.shares_gpus, placement.num_hosts) == (4, False, 2)
        shared = Spread(hosts(1, 1), 4, "nccl", None).placement
        assert (shared.devices, shared.num_devices, shared.shares_gpus) == (("cuda:0",) * 4, 2, True)
        assert shared.first(2).num_hosts == 1

    def test_one_host_without_a_gpu(self):
        assert Spread(hosts(2, 0), 2, "auto", None).placement.backend == "gloo"
        with pytest.raises(ArgumentError, match=r"backend.*beta"):
            Spread(hosts(2, 0), 2, "nccl", None)

    def test_after_a_loss_and_back(self):
        alpha, beta = hosts(0, 0)
        spread = Spread([alpha, beta], 4, "gloo", 2)
        assert spread.over([alpha, beta]) == ""
        assert "4 on beta (before: 2 on alpha, 2 on beta)" in spread.over([beta])
        assert spread.placement.num_ranks == 4
        assert "2 on alpha, 2 on beta (before: 4 on beta)" in spread.over([alpha, beta])

    def test_no_gpu_left(self):
        alpha, beta = hosts(1, 1)
        spread = Spread([alpha, beta], 2, "nccl", None)
        before = spread.placement
        with pytest.raises(ClusterError, match="GPU"):
            spread.over(hosts(0))
        assert spread.placement == before

    @pytest.mark.parametrize(
        ("n", "per_host", "name"), [(5, 2, "n"), (4, 0, "ranks_per_host"), (4, "2", "ranks_per_host")]
    )
    def test_what_cannot_be(self, n, per_host, name):
        with pytest.raises((ValueError, TypeError), match=name):
            Spread(hosts(0, 0), n, "gloo", per_host)

    def test_other_versions(self):
        versions = {"tplab": "0.0.1"}
        with pytest.raises(ClusterError, match=r"Python 3\.9 on host alpha, tplab 0\.0\.1 on host alpha"):
            check_alike(hosts(0, python="3.9.2", versions=versions))


class TestMessages:
    @pytest.fixture
    def pieces(self):
        sent = []
        return sent, Outlet(lambda content, buffers: sent.append((content, [bytes(each) for each in buffers])))

    def test_whole(self, pieces):
        sent, outlet = pieces
        large = bytes(range(256)) * (PIECE_BYTES // 100)
        for data in (b"small", large, b""):
            outlet.send(Pass((0, 1), (pickle.PickleBuffer(data), b"x")))
        outlet.beat()
        assert len(sent) > 4
        inlet, got = Inlet(), []
        for content, buffers in sent:
            got += inlet.take(content, buffers)
        assert [bytes(each.parts[0]) for each in got] == [b"small", large, b""]
        assert inlet.taken_bytes == outlet.sent_bytes

    def test_small_ones_are_one_piece(self, pieces):
        sent, outlet = pieces
        outlet.send(Pass((0,), (pickle.PickleBuffer(b"a"), pickle.PickleBuffer(b"b"))))
        assert len(sent) == 1

    def test_lost_and_changed(self, pieces):
        sent, outlet = pieces
        outlet.send("first")
        outlet.send("second")
        (content, [data]), second = sent
        with pytest.raises(Garbled, match="lost"):
            Inlet().take(*second)
        with pytest.raises(Garbled, match="changed"):
            Inlet().take(content, [data[:-1] + b"?"])

    def test_what_is_no_message(self, pieces):
        sent, outlet = pieces
        outlet._send(b"no message at all, but signed")
        with pytest.raises(ChannelBroken):
            Inlet().take(*sent[0])


@pytest.mark.parametrize(("num_hosts", "ranks_per_host"), [(2, 2), (1, None)])
def test_what_is_remembered_fits_the_hosts_that_are_left(monkeypatch, num_hosts, ranks_per_host):
    """Four ranks were two on each of two hosts: with one of these lost, all are on the other."""
    settings = {"n": 4, "backend": "gloo", "ranks_per_host": 2, "interface": None, "start_timeout": 60.0}
    answering = hosts(*[0] * num_hosts)
    monkeypatch.setattr(build, "open_client", lambda *given: (None, False))
    monkeypatch.setattr(build, "find_hosts", lambda client: answering)
    monkeypatch.setattr(build, "call_on", lambda client, engines, name, **limit: dict.fromkeys(engines, settings))
    assert build.remembered_settings(None, None, None) == settings | {"ranks_per_host": ranks_per_host}
