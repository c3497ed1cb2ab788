"""Arguments that cannot work are refused at once, by name, and do no harm."""

import threading
from functools import partial

import psutil
import pytest
import torch

from tplab import Cluster
from tplab.cluster import ClusterError

pytestmark = pytest.mark.timeout(60)

NAN = float("nan")
BAD_SECONDS = [0, -1, NAN, "5", True, [1]]


@pytest.fixture
def no_new_process():
    """A refusal comes before any process is started."""
    before = {child.pid for child in psutil.Process().children()}
    yield
    assert {child.pid for child in psutil.Process().children()} <= before


@pytest.mark.usefixtures("no_new_process")
class TestCluster:
    @pytest.mark.parametrize("n", [0, -1, 65, 10**9, 2.5, 2.0, True, False, None, "2", [2]])
    def test_n(self, n):
        with pytest.raises((ValueError, TypeError), match=r"\bn\b") as info:
            Cluster(n)
        assert repr(n) in str(info.value)

    def test_n_left_out(self):
        with pytest.raises((ValueError, TypeError), match=r"\bn\b"):
            Cluster()

    @pytest.mark.parametrize("backend", ["mpi", "GLOO", "", None, 1])
    def test_backend(self, backend):
        with pytest.raises((ValueError, TypeError), match=r"backend.*gloo.*nccl") as info:
            Cluster(2, backend=backend)
        assert repr(backend) in str(info.value)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA GPU: nccl can run")
    def test_nccl_without_gpu(self):
        with pytest.raises(ValueError, match=r"backend.*gloo.*GPU.*nccl"):
            Cluster(2, backend="nccl")

    @pytest.mark.parametrize("engine", ["mpi", "", None, 1])
    def test_engine(self, engine):
        with pytest.raises((ValueError, TypeError), match=r"engine.*local") as info:
            Cluster(2, engine=engine)
        assert repr(engine) in str(info.value)

    @pytest.mark.parametrize("name", ["client", "profile", "cluster_file", "ranks_per_host", "interface"])
    def test_hosts_of_a_local_cluster(self, name):
        with pytest.raises(ValueError, match=rf"{name} must be left out unless engine='ipyparallel'"):
            Cluster(2, **{name: 1})

    def test_where_nothing_runs(self, tmp_path, monkeypatch):
        monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
        with pytest.raises(ClusterError, match=r"profile.*Start one"):
            Cluster(2, engine="ipyparallel")
        with pytest.raises(ValueError, match=r"cluster_file must be a file"):
            Cluster(2, engine="ipyparallel", cluster_file=tmp_path / "none.json")
        with pytest.raises(ValueError, match=r"client must be an ipyparallel.Client"):
            Cluster(2, engine="ipyparallel", client="here")
        with pytest.raises(ValueError, match=r"profile must be given alone"):
            Cluster(2, engine="ipyparallel", profile="a", cluster_file="b")

    @pytest.mark.parametrize("start_timeout", [*BAD_SECONDS, None])
    def test_start_timeout(self, start_timeout):
        with pytest.raises((ValueError, TypeError), match="start_timeout") as info:
            Cluster(2, start_timeout=start_timeout)
        assert repr(start_timeout) in str(info.value)


@pytest.mark.parametrize("method", ["run", "submit"])
class TestRun:
    """Each test ends by looking at the ranks: a refused call must not have cost them."""

    @pytest.fixture(autouse=True)
    def _ranks_stay(self, cluster2, assert_works):
        pids = cluster2.start().pids
        yield
        assert_works(cluster2)
        assert cluster2.pids == pids

    @pytest.mark.parametrize("timeout", BAD_SECONDS)
    def test_timeout(self, cluster2, method, timeout):
        with pytest.raises((ValueError, TypeError), match=r"\btimeout\b") as info:
            getattr(cluster2, method)(lambda rank: 1, timeout=timeout)
        assert repr(timeout) in str(info.value)

    @pytest.mark.parametrize("fn", [None, 3, "print", [print]])
    def test_fn_that_is_not_callable(self, cluster2, method, fn):
        with pytest.raises(TypeError, match=r"\bfn\b") as info:
            getattr(cluster2, method)(fn)
        assert repr(fn) in str(info.value)

    def test_fn_left_out(self, cluster2, method):
        with pytest.raises(TypeError, match=r"\bfn\b"):
            getattr(cluster2, method)()

    def test_fn_captures_a_lock(self, cluster2, method):
        lock = threading.Lock()

        def guarded(rank):
            with lock:
                return rank.index

        with pytest.raises(TypeError, match=r"\bfn\b.*guarded.*lock"):
            getattr(cluster2, method)(guarded)

    def test_fn_captures_the_cluster(self, cluster2, method):
        def recursive(rank):
            return cluster2.run(lambda inner: inner.index)

        with pytest.raises(TypeError, match=r"\bfn\b.*recursive.*[Cc]luster"):
            getattr(cluster2, method)(recursive)

    def test_fn_is_a_partial_of_what_cannot_be_pickled(self, cluster2, method):
        with pytest.raises(TypeError, match=r"\bfn\b.*lock"):
            getattr(cluster2, method)(partial(lambda rank, lock: 1, lock=threading.Lock()))

    @pytest.mark.parametrize(
        ("make", "why"),
        [
            (lambda cluster: (i for i in range(3)), "generator"),
            (lambda cluster: threading.Lock(), "lock"),
            (lambda cluster: cluster, "[Cc]luster"),
            (lambda cluster: {"deep": [threading.Lock()]}, "lock"),
        ],
        ids=["generator", "lock", "the cluster", "nested lock"],
    )
    @pytest.mark.parametrize("position", [0, 2])
    def test_args(self, cluster2, method, make, why, position):
        args = [1] * position + [make(cluster2)]
        with pytest.raises(TypeError, match=rf"args\[{position}\].*{why}"):
            getattr(cluster2, method)(lambda rank, *args: 1, *args)

    def test_surplus_argument(self, cluster2, method):
        """Only the ranks can tell; all the same it is clear what was wrong."""
        with pytest.raises(RuntimeError, match=r"(?s)rank [01].*TypeError.*takes 1 positional argument but 2"):
            _result(getattr(cluster2, method)(lambda rank: 1, "surplus"))


def _result(returned):
    return returned.result() if hasattr(returned, "result") else returned


def test_timeout_beyond_all_clocks(clusters, assert_works):
    """Refused, and it does not end the cluster."""
    cluster = clusters(1)
    with pytest.raises(ValueError, match="timeout"):
        cluster.run(lambda rank: 1, timeout=10**400)
    assert_works(cluster)
