"""The keys through which ranks find each other: in the kernel, reached by the ranks' own sockets and by nobody else."""

import os
import sys
from datetime import timedelta

import psutil
import pytest
import torch
import torch.distributed as dist

from tplab.cluster.store import KeyValueStore
from tplab.cluster.wire import StoreCall, StoreReply

pytestmark = pytest.mark.timeout(60)


def values(replies):
    return [(rank, reply.value) for rank, reply in replies]


class TestKeyValueStore:
    def ask(self, store, operation, *arguments, rank=0, call_id=1, waits=False):
        return store.handle(rank, StoreCall(call_id, operation, arguments, waits))

    def test_set_wants_no_reply(self):
        store = KeyValueStore()
        assert self.ask(store, "set", {"a": b"1"}, call_id=0) == []
        assert store.values == {"a": b"1"}

    def test_get_waits_until_all_keys_are_there(self):
        store = KeyValueStore()
        assert self.ask(store, "get", ["a", "b"], rank=1, call_id=7, waits=True) == []
        assert self.ask(store, "set", {"a": b"1"}, call_id=0) == []
        replies = self.ask(store, "set", {"b": b"2"}, call_id=0)
        assert replies == [(1, StoreReply(7, [b"1", b"2"], ""))]
        assert self.ask(store, "set", {"b": b"3"}, call_id=0) == [], "answered once"

    def test_every_rank_that_waits_is_answered(self):
        store = KeyValueStore()
        for rank in range(3):
            assert self.ask(store, "wait", ["go"], rank=rank, waits=True) == []
        assert [rank for rank, _ in self.ask(store, "set", {"go": b""}, call_id=0)] == [0, 1, 2]

    def test_add_counts(self):
        store = KeyValueStore()
        assert values(self.ask(store, "add", "n", 2)) == [(0, 2)]
        assert values(self.ask(store, "add", "n", 3)) == [(0, 5)]
        assert store.values["n"] == b"5"

    def test_add_releases_who_waits_for_the_key(self):
        store = KeyValueStore()
        self.ask(store, "wait", ["n"], rank=1, call_id=4, waits=True)
        assert [rank for rank, _ in self.ask(store, "add", "n", 1)] == [0, 1]

    def test_add_to_what_is_no_number(self):
        store = KeyValueStore({"n": b"many"})
        ((_, reply),) = self.ask(store, "add", "n", 1)
        assert "many" in reply.error

    @pytest.mark.parametrize(
        ("now", "expected", "then", "says"),
        [
            (None, b"", b"new", b"new"),
            (None, b"old", None, b"old"),
            (b"old", b"old", b"new", b"new"),
            (b"x", b"old", b"x", b"x"),
        ],
    )
    def test_compare_set(self, now, expected, then, says):
        """As torch's HashStore (below) has it."""
        store = KeyValueStore({} if now is None else {"k": now})
        assert values(self.ask(store, "compare_set", "k", expected, b"new")) == [(0, says)]
        assert store.values.get("k") == then
        torchs = dist.HashStore()
        if now is not None:
            torchs.set("k", now)
        assert torchs.compare_set("k", expected.decode(), "new") == says

    def test_delete_append_check_list(self):
        store = KeyValueStore({"a": b"1"})
        self.ask(store, "append", "a", b"2", call_id=0)
        self.ask(store, "append", "b", b"3", call_id=0)
        assert store.values == {"a": b"12", "b": b"3"}
        assert values(self.ask(store, "check", ["a", "b"])) == [(0, True)]
        assert values(self.ask(store, "check", ["a", "c"])) == [(0, False)]
        assert values(self.ask(store, "list_keys")) == [(0, ["a", "b"])]
        assert values(self.ask(store, "num_keys")) == [(0, 2)]
        assert values(self.ask(store, "delete_key", "a")) == [(0, True)]
        assert values(self.ask(store, "delete_key", "a")) == [(0, False)]


def as_torch_uses_it(rank):
    """Every operation of the default store, through torch's own C++ (PrefixStore)."""
    store = dist.PrefixStore(f"of {rank.index}", dist.distributed_c10d._get_default_store())
    said = []
    store.set("a", "1")
    said.append(store.get("a"))
    said.append([store.add("n", 2), store.add("n", 3)])
    said.append([store.compare_set("c", "", "x"), store.compare_set("c", "x", "y")])
    store.multi_set(["u", "v"], ["5", "6"])
    said.append(store.multi_get(["u", "v"]))
    store.append("u", "7")
    said.append(store.get("u"))
    said.append([store.check(["a", "n"]), store.check(["a", "nobody"])])
    said.append([store.delete_key("a"), store.check(["a"])])
    said.append(store.num_keys() >= 5)
    said.append(store.has_extended_api())
    try:
        store.wait(["nobody"], timedelta(seconds=0.2))
    except dist.DistStoreError as error:
        said.append("nobody" in str(error) and "0.2 s" in str(error))
    return said


def test_every_operation_that_torch_knows(cluster2):
    want = [b"1", [2, 5], [b"x", b"y"], [b"5", b"6"], b"57", [True, False], [True, False], True, True, True]
    assert cluster2.run(as_torch_uses_it, timeout=20) == [want, want]


def test_a_key_of_one_rank_is_seen_by_the_other(cluster2):
    def meet(rank):
        store = dist.distributed_c10d._get_default_store()
        store.set(f"said by {rank.index}", str(rank.index))
        return store.get(f"said by {1 - rank.index}")

    assert cluster2.run(meet, timeout=20) == [b"1", b"0"]


def test_waiting_for_a_key_that_never_comes_is_ended_like_any_hang(cluster, assert_works):
    from tplab.cluster import RankTimeout

    def wait(rank):
        dist.distributed_c10d._get_default_store().get("never")

    with pytest.raises(RankTimeout, match="never"):
        cluster.run(wait, timeout=1)
    assert_works(cluster)


def test_stop_interrupts_it(cluster, assert_works, eventually):
    from tplab.cluster import RunStopped

    def wait(rank):
        rank.report(here=True)
        dist.distributed_c10d._get_default_store().get("never")

    run = cluster.submit(wait)
    assert eventually(lambda: len(run.reports) == 2)
    run.stop()
    with pytest.raises(RunStopped):
        run.result()
    assert_works(cluster)


def is_of_tplab(pid):
    try:
        return any("tplab.cluster.worker" in word or "keeper.py" in word for word in psutil.Process(pid).cmdline())
    except psutil.Error:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="filters are Linux's")
def test_nobody_can_connect_to_anything(cluster2):
    """Not even this user: the ports of gloo drop what arrives, and there are no others."""
    import socket

    def make_groups(rank):
        rank.mesh(tp=2)
        return dist.get_rank(dist.new_group([0, 1]))

    cluster2.run(make_groups, timeout=30)
    kernel = psutil.Process(os.getpid())
    # Of all clusters that there are; a JupyterLab of other tests, say, listens because it should.
    ranks = {pid for pid in (child.pid for child in kernel.children(recursive=True)) if is_of_tplab(pid)}
    ours = {kernel.pid, *ranks}
    assert ranks > set(cluster2.pids), "the keeper, too"
    listening = [c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.pid in ours]
    assert {connection.pid for connection in listening} >= set(cluster2.pids), "gloo listens: there is something to see"
    assert kernel.pid not in {connection.pid for connection in listening}
    for connection in listening:
        assert connection.laddr.ip == "127.0.0.1"
        with socket.socket() as stranger:
            stranger.settimeout(0.1)
            with pytest.raises(TimeoutError):
                stranger.connect(connection.laddr)


def test_groups_of_odd_kinds(clusters):
    """Overlapping, of one rank, of some ranks only, with local synchronisation, and destroyed and made again."""

    def make(rank):
        sums = []
        some = dist.new_group([0, 2])
        if rank.index in (0, 2):
            x = torch.ones(1)
            dist.all_reduce(x, group=some)
            sums.append(x.item())
            dist.destroy_process_group(some)
        for members in ([rank.index], [0, 1, 2]):
            group = dist.new_group(members, use_local_synchronization=True)
            x = torch.ones(1)
            dist.all_reduce(x, group=group)
            sums.append(x.item())
        return sums

    for _ in range(2):
        assert clusters(3).run(make, timeout=40) == [[2.0, 1.0, 3.0], [1.0, 3.0], [2.0, 1.0, 3.0]]
