"""What a run does to the rank as a whole: the next one finds what a fresh rank has."""

import gc
import io
import os
import signal
import sys
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from tplab.cluster import RankError

pytestmark = pytest.mark.timeout(120)


def state(rank):
    """What a run finds."""
    x = torch.ones(2)
    dist.all_reduce(x)
    print("seen")
    return {
        "sum": x.tolist(),
        "device": str(torch.ones(1).device),
        "dtype": str(torch.ones(1).dtype),
        "threads": torch.get_num_threads(),
        "grad": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.ones(1).is_inference()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "tf32": (torch.backends.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision()),
        "fp32": torch.backends.cuda.matmul.fp32_precision if hasattr(torch.backends, "fp32_precision") else None,
        "benchmark": torch.backends.cudnn.benchmark,
        "autocast": torch.is_autocast_enabled("cpu"),
        "interrupt": getattr(signal.getsignal(signal.SIGINT), "__qualname__", None),
        "streams": (type(sys.stdout).__name__, type(sys.stderr).__name__),
        "folder": os.getcwd(),
        "variables": [os.environ.get(name) for name in ("MASTER_ADDR", "OMP_NUM_THREADS", "HOME")],
        "hook": sys.excepthook.__name__,
        "python": (gc.isenabled(), sys.getrecursionlimit()),
        "modes": (torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()),
        "all_reduce": dist.all_reduce.__name__,
        "debug": str(dist.get_debug_level()),
        "mesh": rank.mesh().mesh.tolist(),
    }


def set_default_device(rank):
    torch.set_default_device("meta")
    torch.device("meta").__enter__()


def enter_device_first(rank):
    torch.device("meta").__enter__()
    torch.set_default_device("meta")


def set_types(rank):
    torch.set_default_dtype(torch.bfloat16)


def set_threads(rank):
    torch.set_num_threads(7)
    os.environ["OMP_NUM_THREADS"] = "7"


def switch_gradients_off(rank):
    torch.set_grad_enabled(False)


def stay_in_inference_mode(rank):
    rank.store["mode"] = torch.inference_mode()
    rank.store["mode"].__enter__()


def set_precision(rank):
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("medium")
    torch.use_deterministic_algorithms(True)


def set_precision_anew(rank):
    if hasattr(torch.backends, "fp32_precision"):
        torch.backends.cuda.matmul.fp32_precision = "tf32"


def enter_autocast(rank):
    torch.autocast("cpu", dtype=torch.bfloat16).__enter__()


def enter_fake_mode(rank):
    from torch._subclasses.fake_tensor import FakeTensorMode

    FakeTensorMode().__enter__()


def take_signals(rank):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.alarm(1)


def replace_streams(rank):
    sys.stdout = sys.stderr = io.StringIO()
    sys.excepthook = print


def point_output_elsewhere(rank):
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.close(2)


def change_folder(rank):
    os.chdir("/")
    os.environ["HOME"] = "/"
    os.environ["MASTER_ADDR"] = "elsewhere"


def set_python(rank):
    gc.disable()
    sys.setrecursionlimit(150)


def patch(rank):
    dist.all_reduce = lambda *args, **kwargs: None
    dist.set_debug_level(dist.DebugLevel.DETAIL)


def enter_mesh(rank):
    rank.mesh().__enter__()


def destroy(rank):
    dist.destroy_process_group()


SETTINGS = [
    *(set_default_device, enter_device_first, set_types, set_threads, switch_gradients_off, stay_in_inference_mode),
    *(set_precision, set_precision_anew, enter_autocast, enter_fake_mode, take_signals, replace_streams),
    *(point_output_elsewhere, change_folder, set_python, patch, enter_mesh, destroy),
]


@pytest.mark.parametrize("change", SETTINGS, ids=lambda change: change.__name__)
def test_put_back(cluster2, change):
    cluster2.run(lambda rank: rank.store.update(kept=True))
    fresh = cluster2.submit(state)
    cluster2.run(change)
    run = cluster2.submit(state)
    assert run.result() == fresh.result()
    assert sorted(run.output) == ["[rank 0] seen", "[rank 1] seen"]
    assert cluster2.run(lambda rank: rank.store.pop("kept")) == [True, True]  # the ranks were not replaced


def test_put_back_after_a_fault(cluster2):
    def fail(rank):
        torch.set_default_device("meta")
        dist.destroy_process_group()
        raise ValueError("on purpose")

    fresh = cluster2.run(state)
    with pytest.raises(RankError, match="on purpose"):
        cluster2.run(fail)
    assert cluster2.run(state) == fresh


def test_alarm_does_not_ring_in_the_next_run(cluster2):
    cluster2.run(take_signals)
    pids = cluster2.pids
    cluster2.run(lambda rank: time.sleep(1.2))
    assert cluster2.pids == pids


def test_what_stays(cluster2):
    def leave(rank):
        torch.manual_seed(5)
        os.environ["ADDED_BY_A_RUN"] = "1"
        rank.store["left"] = 1

    def look(rank):
        seed = torch.initial_seed()
        torch.seed()
        return seed, os.environ.pop("ADDED_BY_A_RUN"), rank.store.pop("left")

    cluster2.run(leave)
    assert cluster2.run(look) == [(5, "1", 1)] * 2


def test_what_cannot_be_put_back(cluster, capfd):
    def close(rank):
        sys.stdout.close()
        return rank.index

    assert cluster.run(close) == [0, 1]
    assert capfd.readouterr().err.count("the run has closed sys.stdout") == 1
    run = cluster.submit(state)
    run.result()
    assert sorted(run.output) == ["[rank 0] seen", "[rank 1] seen"]


class TestScripts:
    """A tutorial pasted as it is: it connects the ranks that are connected already, and takes the group down."""

    def test_destroy(self, cluster2):
        def tutorial(rank):
            x = torch.ones(1)
            dist.all_reduce(x)
            dist.destroy_process_group()
            assert not dist.is_initialized()
            return x.item()

        for sized in (cluster2, cluster2.resized(1)):
            for _ in range(2):
                assert sized.run(tutorial) == [float(sized.num_ranks)] * sized.num_ranks

    def test_for_torchrun(self, cluster2):
        def main(rank):
            dist.init_process_group(backend="gloo")
            index, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
            x = torch.full((1,), float(index + 1))
            dist.all_reduce(x)
            dist.destroy_process_group()
            os.environ["WORLD_SIZE"] = os.environ["RANK"] = "7"
            return index, local, size, x.item()

        for sized in (cluster2, cluster2.resized(1), cluster2):
            n = sized.num_ranks
            assert sized.run(main) == [(index, index, n, n * (n + 1) / 2) for index in range(n)]

    @pytest.mark.parametrize(
        "how",
        [
            {},
            {"backend": "gloo"},
            {"backend": "cpu:gloo,cuda:nccl", "init_method": "env://"},
            {"backend": "gloo", "init_method": "tcp://127.0.0.1:1", "timeout": timedelta(seconds=3)},
        ],
        ids=str,
    )
    def test_own_group(self, cluster2, how):
        def init_process(rank, size, fn, how):
            os.environ["MASTER_ADDR"] = "127.0.0.1"
            os.environ["MASTER_PORT"] = "29500"
            dist.init_process_group(rank=rank, world_size=size, **how)
            value = fn(rank, size)
            dist.destroy_process_group()
            return value

        def run(rank, size):
            x = torch.tensor([float(rank)])
            group = dist.new_group([0, 1])
            dist.all_reduce(x, group=group)
            return x.item() + dist.get_world_size()

        for _ in range(2):
            assert cluster2.run(lambda rank: init_process(rank.index, 2, run, how)) == [3.0, 3.0]
        assert cluster2.run(lambda rank: (dist.init_process_group("gloo"), dist.get_rank())[1]) == [0, 1]

    def test_group_of_another_kind(self, cluster2, tmp_path):
        """Ranks in another order, and each for itself: groups of the run's own, which end with it."""

        def reversed_ranks(rank, file):
            dist.init_process_group("gloo", init_method=f"file://{file}", rank=1 - rank.index, world_size=2)
            x = torch.tensor([float(dist.get_rank())])
            dist.broadcast(x, 0)
            mesh = init_device_mesh("cpu", (2,))
            dist.all_reduce(x, group=mesh.get_group())
            return dist.get_rank(), x.item()

        def alone(rank, file):
            dist.destroy_process_group()
            dist.init_process_group("gloo", init_method=f"file://{file}{rank.index}", rank=0, world_size=1)
            x = torch.ones(1)
            dist.all_reduce(x)
            if rank.index == 0:
                dist.destroy_process_group()
            return x.item()

        pids = cluster2.pids
        for attempt in range(2):
            assert cluster2.run(reversed_ranks, tmp_path / f"two{attempt}") == [(1, 0.0), (0, 0.0)]
            assert cluster2.run(alone, tmp_path / f"one{attempt}") == [1.0, 1.0]
        assert cluster2.run(state)[0]["sum"] == [2.0, 2.0]
        assert cluster2.pids == pids

    def test_group_of_a_mesh(self, clusters):
        def reduce(rank):
            x = torch.ones(1)
            mesh = rank.mesh(tp=2, pp=2)
            for axis in ("tp", "pp"):
                dist.all_reduce(x, group=mesh.get_group(axis))
            return x.item()

        four = clusters(4)
        assert four.run(reduce) == [4.0] * 4
        four.run(lambda rank: dist.destroy_process_group(rank.mesh(tp=2, pp=2).get_group("tp")))
        assert four.run(reduce) == [4.0] * 4

    def test_fault_after_destroying(self, clusters):
        """On some of the ranks: all stay for the next run."""

        def fail(rank):
            dist.destroy_process_group()
            raise ValueError("on purpose")

        four = clusters(4)
        pids = four.pids
        with pytest.raises(RankError, match="on purpose"):
            four.resized(3).run(fail)
        assert four.run(state)[0]["sum"] == [4.0, 4.0]
        assert four.pids == pids

    def test_group_broken_by_other_means(self, cluster, capfd):
        def abort(rank):
            dist.distributed_c10d._world.pg_map.clear()
            return rank.index

        assert cluster.run(abort) == [0, 1]
        assert "the run has broken the process group of the ranks" in capfd.readouterr().err
        assert cluster.run(state)[0]["sum"] == [2.0, 2.0]
