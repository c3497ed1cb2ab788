"""What machines of no, one and four GPUs offer a notebook's ranks, with a driver made up for the test."""

import ctypes
import sys
from types import SimpleNamespace

import pytest

from tplab.checks import ArgumentError
from tplab.cluster import backends
from tplab.lab import OverlapPanel, Pool, choices

GIB = 1 << 30


class Driver:
    """As much of ``pynvml`` as is asked for. A handle is a GPU's number."""

    class NVMLError(Exception):
        pass

    NVML_P2P_CAPS_INDEX_READ, NVML_P2P_CAPS_INDEX_WRITE, NVML_P2P_STATUS_OK = (0,), 1, 0  # the tuple is in the real one
    apart: frozenset[int] = frozenset()
    """GPUs that nobody may write to."""

    def __init__(self, num_gpus: int, answers: bool = True) -> None:
        self.num_gpus, self.answers = num_gpus, answers

    def nvmlDeviceGetP2PStatus(self, first: int, second: int, way: int) -> int:
        if not isinstance(way, int):
            raise ctypes.ArgumentError(f"argument 3: {way}")
        return 1 if way == self.NVML_P2P_CAPS_INDEX_WRITE and second in self.apart else self.NVML_P2P_STATUS_OK

    def nvmlInit(self) -> None:
        if not self.answers:
            raise self.NVMLError("Driver Not Loaded")

    def nvmlShutdown(self) -> None:
        pass

    def nvmlDeviceGetCount(self) -> int:
        return self.num_gpus

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetName(self, handle: int) -> str:
        return "NVIDIA H100"

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return f"GPU-{handle}{handle}-ab"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        raise self.NVMLError("Not Found")

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(total=(80 - handle) * GIB, free=(80 - handle) * GIB)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    def with_gpus(num_gpus: int, visible: str | None = None, *, cuda_build: bool = True, answers: bool = True) -> None:
        monkeypatch.setitem(sys.modules, "pynvml", Driver(num_gpus, answers))
        monkeypatch.setattr(backends, "torch_is_for_cuda", lambda: cuda_build)
        if visible is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    return with_gpus


@pytest.mark.parametrize(
    ("visible", "seen"),
    [
        (None, 4),
        ("", 0),
        ("0", 1),
        ("2,0", 2),
        ("0,7,1", 1),  # ends at the first that is none, as in CUDA
        ("-1", 0),
        ("1,1", 0),
        ("GPU-11,GPU-11-ab", 0),
        ("1gpu,2", 2),
        ("MIG-gone", 0),
        ("GPU-22", 1),
        ("GPU-33-ab, GPU-00", 2),
        ("nonsense", 0),
    ],
)
def test_gpus_are_those_that_cuda_would_show(machine, visible, seen):
    machine(4, visible)
    assert backends.num_gpus() == seen


def test_a_torch_without_cuda_or_a_driver_that_does_not_answer_shows_none(machine):
    machine(4, cuda_build=False)
    assert backends.num_gpus() == 0
    machine(4, answers=False)
    assert backends.num_gpus() == 0


def test_torchs_build_is_read_without_importing_it(monkeypatch, tmp_path):
    said = tmp_path / "version.py"
    monkeypatch.setattr(backends, "find_spec", lambda name: SimpleNamespace(origin=str(tmp_path / "__init__.py")))
    for text, built in (
        ("cuda: Optional[str] = None\nhip: Optional[str] = '6.4'\n", False),
        ("debug = False\ncuda: Optional[str] = '13.0'\n", True),
        ('cuda = "12.8"\n', True),
    ):
        said.write_text(text)
        assert backends.torch_is_for_cuda() is built
    monkeypatch.undo()
    import torch

    assert backends.torch_is_for_cuda() is (torch.version.cuda is not None)


@pytest.mark.parametrize(
    ("gpus", "ranks", "offered", "best"),
    [
        (0, 4, ["gloo, CPU"], "cpu"),
        (1, 4, ["NCCL, ranks share a GPU", "gloo, CPU"], "shared"),
        (2, 4, ["NCCL, ranks share 2 GPUs", "gloo, CPU"], "shared"),
        (4, 4, ["NCCL, a GPU each", "gloo, CPU"], "own"),
        (4, 1, ["NCCL, a GPU", "gloo, CPU"], "own"),
    ],
)
def test_what_is_offered_and_what_is_taken(machine, gpus, ranks, offered, best):
    machine(gpus)
    offers = choices(ranks)
    assert [each.label for each in offers] == offered
    assert offers[0].pick(cpu="cpu", shared="shared", own="own") == best
    assert offers[-1].pick(cpu="cpu", shared="shared", own="own") == "cpu"
    assert (offers[0].on_gpus, offers[0].own_gpus) == (gpus > 0, best == "own")


def test_memory_is_a_ranks_share_of_the_smallest_gpu(machine):
    machine(2)
    assert choices(4)[0].memory_GB == pytest.approx(79 * GIB / 2 / 1e9)
    assert choices(1)[0].memory_GB == pytest.approx(80 * GIB / 1e9)
    assert str(choices(4)[0]) == "4 ranks over NCCL, sharing 2 x NVIDIA H100"
    assert str(choices(1)[0]) == "1 rank over NCCL, on one NVIDIA H100"
    assert choices(2)[1].memory_GB == 0


def test_the_chip_offers_what_there_is_and_can_be_changed(machine):
    machine(2)
    pool = Pool(num_ranks=2)
    assert pool.choice.own_gpus
    assert pool._runs_on.options == (("NCCL, a GPU each", "nccl"), ("gloo, CPU", "gloo"))
    pool.num_ranks = 4
    assert pool.choice.label == "NCCL, ranks share 2 GPUs"
    pool._runs_on.value = "gloo"
    pool.num_ranks = 2
    assert pool.choice.backend == "gloo", "a change of size keeps what was chosen"
    assert Pool(num_ranks=2, backend="gloo").choice.backend == "gloo"


def test_the_chip_of_a_machine_without_gpus_has_one_entry(machine):
    machine(0)
    assert Pool(num_ranks=4)._runs_on.options == (("gloo, CPU", "gloo"),)
    with pytest.raises(ArgumentError, match="backend must be gloo or auto where torch can use no CUDA GPU"):
        Pool(num_ranks=4, backend="nccl")


def test_a_change_in_the_chip_replaces_the_ranks(machine, monkeypatch):
    started = []

    class Fake:
        closed = False

        def __init__(self, num_ranks: int, backend: str, **_: object) -> None:
            self.num_ranks, self.backend = num_ranks, backend
            started.append(self)

        def watch(self, callback: object) -> None:
            pass

        def close(self) -> None:
            self.closed = True

    monkeypatch.setattr("tplab.lab.panels.pool.Cluster", Fake)
    machine(1)
    pool = Pool(num_ranks=2)
    first = pool.cluster
    assert pool.cluster is first
    assert first.backend == "nccl"
    pool._runs_on.value = "gloo"
    assert (pool.cluster.backend, first.closed, len(started)) == ("gloo", True, 2)


def test_who_asked_is_told_what_is_chosen(machine):
    machine(2)
    pool, told = Pool(num_ranks=2), []
    pool.on_choice(lambda choice: told.append(choice.label))
    pool.num_ranks = 4
    pool._runs_on.value = "gloo"
    assert (told[0], told[-1]) == ("NCCL, a GPU each", "gloo, CPU")
    assert "NCCL, ranks share 2 GPUs" in told


def test_another_number_of_ranks_leaves_what_the_reader_has_set(machine):
    machine(1)
    pool = Pool(num_ranks=2)
    panel, told = OverlapPanel(pool).configure(tokens=256), []
    pool.on_choice(lambda choice: told.append(choice.label))
    pool.num_ranks = 5  # which the chip did not offer: its list is made anew
    assert panel.settings()["tokens"] == 256
    assert told == ["NCCL, ranks share a GPU"] * 2
    pool._runs_on.value = "gloo"
    assert panel.settings()["in_features"] == 8192, "other ranks, other sizes"
    panel.configure(tokens=512)
    pool.num_ranks = 3
    assert panel.settings()["tokens"] == 512
    assert told[2:] == ["gloo, CPU"] * 2


def test_gpus_that_do_not_reach_each_other_are_told_by_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(4)
    driver.apart = frozenset({2})
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [backends.gpus_reach_each_other(each) for each in (1, 2, 3, 4)] == [True, True, False, False]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,3,2")
    assert [backends.gpus_reach_each_other(each) for each in (2, 3)] == [True, False]
