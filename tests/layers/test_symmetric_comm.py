"""Sums by size over GPUs that write into each other's memory: which kernel gets what, and that nobody else is asked."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import cloudpickle
import pytest
import torch

from tplab import Cluster
from tplab.collectives import peer_memory
from tplab.collectives.limits import Limits
from tplab.layers.comm import NullComm, ProcessGroupComm, RecordingComm
from tplab.layers.strategies import Blocking, Int8, OneKernel
from tplab.layers.sum_norm import sum_add_norm
from tplab.layers.symmetric_comm import SymmetricComm, gpu_comm, symmetric_of, why_not_symmetric

LIMITS = Limits(one_shot_bytes=1024, two_shot_bytes=4096)


class Noted(SymmetricComm):
    """A ``SymmetricComm`` without ranks; kernels and NCCL only write down that they were called."""

    def __init__(self) -> None:
        self.index, self.size, self.limits, self.device_types, self.is_capturable = 0, 2, LIMITS, frozenset(), True
        self.memory = peer_memory.PeerMemory.in_one_process(2, torch.device("cpu"), 1 << 13)[0]


@pytest.fixture(scope="module", autouse=True)
def functions_travel_by_value(request: pytest.FixtureRequest) -> Iterator[None]:
    cloudpickle.register_pickle_by_value(request.module)
    yield
    cloudpickle.unregister_pickle_by_value(request.module)


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    calls: list[tuple[Any, ...]] = []

    def note(name: str) -> Any:
        def kernel(x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
            calls.append((name, x.numel()))
            return x

        return kernel

    monkeypatch.setattr(peer_memory, "one_shot", note("one-shot"))
    monkeypatch.setattr(peer_memory, "two_shot", note("two-shot"))
    monkeypatch.setattr(peer_memory, "quantised_two_shot", lambda x, _, narrow: note(narrow)(x))
    monkeypatch.setattr(peer_memory, "all_reduce_add_rms_norm", lambda x, *_, **__: (note("norm")(x), x))
    monkeypatch.setattr(ProcessGroupComm, "all_reduce", lambda _, x: note("NCCL")(x))
    return calls


@pytest.mark.parametrize(
    ("x", "way"),
    [
        (torch.ones(256), "one-shot"),
        (torch.ones(2, 128), "one-shot"),
        (torch.ones(257), "two-shot"),
        (torch.ones(1024), "two-shot"),
        (torch.ones(1025), "NCCL"),
        (torch.ones(4, dtype=torch.float64), "NCCL"),
        (torch.ones(3, dtype=torch.bfloat16), "NCCL"),
        (torch.ones(4, dtype=torch.bfloat16)[1:3], "NCCL"),
        (torch.ones(512, dtype=torch.bfloat16), "one-shot"),
    ],
)
def test_the_way_follows_from_the_size(called: list[Any], x: torch.Tensor, way: str) -> None:
    comm = RecordingComm(Noted())
    Blocking().reduce(x, comm)
    assert called == [(way, x.numel())]


@pytest.mark.parametrize(
    ("strategy", "way"), [(Int8(), "int8"), (OneKernel("fp8"), "fp8"), (OneKernel("two-shot"), "two-shot")], ids=str
)
def test_strategies_that_choose_the_way(called: list[Any], strategy: Blocking, way: str) -> None:
    """In pieces that fit into the memory."""
    strategy.reduce(torch.ones(5000), Noted())
    assert called == [(way, 2048), (way, 2048), (way, 904)]


@pytest.mark.parametrize("x", [torch.ones(4, dtype=torch.float64), torch.ones(3, dtype=torch.bfloat16)])
def test_int8_of_what_the_kernel_does_not_take_goes_by_messages(
    called: list[Any], monkeypatch: pytest.MonkeyPatch, x: torch.Tensor
) -> None:
    sent: list[torch.Tensor] = []
    monkeypatch.setattr("tplab.collectives.quantised.int8_all_reduce", lambda x, *_, **__: sent.append(x))
    monkeypatch.setattr(ProcessGroupComm, "transport", None)
    Int8().reduce(x, Noted())
    assert (sent, called) == ([x], [])


def test_one_kernel_without_such_ranks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"OneKernel\('int8'\) needs ranks with a GPU each.*the group is a NullComm"):
        OneKernel("int8").reduce(torch.ones(4), NullComm(0, 2))
    assert OneKernel("int8").reduce(torch.ones(4), NullComm()).wait().tolist() == [1, 1, 1, 1]
    with pytest.raises(ValueError, match="algorithm must be one of one-shot, two-shot, int8, fp8; got 'ring'"):
        OneKernel("ring")


@pytest.mark.parametrize(("tokens", "ways"), [(4, ["norm"]), (5, ["two-shot"]), (17, ["NCCL"])])
def test_with_the_norm_while_it_goes_in_one_step(called: list[Any], tokens: int, ways: list[str]) -> None:
    x = torch.ones(tokens, 64)
    sum_add_norm(RecordingComm(Noted()), x, torch.ones(tokens, 64), torch.ones(64), 1e-5)
    assert [way for way, _ in called] == ways


def test_found_inside_what_records_it() -> None:
    comm = Noted()
    assert symmetric_of(comm) is symmetric_of(RecordingComm(comm)) is comm
    assert symmetric_of(NullComm()) is None


def test_memory_that_cannot_be_made_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise RuntimeError("bind /tmp/symm_mem-1: Address already in use")

    monkeypatch.setattr("tplab.layers.symmetric_comm.why_not_symmetric", lambda *_: None)
    monkeypatch.setattr(peer_memory, "memory_of", refuse)
    rank: Any = SimpleNamespace(device=torch.device("cpu"), store={})
    with pytest.raises(RuntimeError, match=r"could not be made: bind .* in use; set TPLAB_SYMMETRIC=0 in the environ"):
        gpu_comm(rank, SimpleNamespace(size=lambda: 2))  # type: ignore[arg-type]


def asked(rank: Any) -> str | None:
    return why_not_symmetric(rank.device, rank.group)


def test_why_not_over_gloo(cluster2: Cluster) -> None:
    assert cluster2.run(asked) == ["symmetric memory needs NCCL; these ranks speak gloo"] * 2


def summed_by_processes(rank: Any) -> list[Any]:
    from tplab.measure.graph import replayed

    def addend(of: int, *shape: int) -> torch.Tensor:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(of)).bfloat16()
        return x.to(rank.device)

    comm = gpu_comm(rank, rank.group, Limits(one_shot_bytes=16 << 10, two_shot_bytes=64 << 10))
    wrong: list[Any] = [] if isinstance(comm, SymmetricComm) else [type(comm).__name__]
    for length in (4096, 20_000, 100_000):
        x, mine = addend(rank.index, length), addend(rank.index, length)
        want = (addend(0, length).float() + addend(1, length).float()).bfloat16()

        def again(x: torch.Tensor = x, mine: torch.Tensor = mine) -> None:
            x.copy_(mine)
            comm.all_reduce(x)

        replay = replayed(again)
        for _ in range(3):
            replay()
        wrong += [] if torch.equal(x, want) else [length]
    x, residual, weight = addend(rank.index, 2, 512), addend(8, 2, 512), addend(9, 512)
    slow = sum_add_norm(ProcessGroupComm(rank.group), x.clone(), residual, weight, 1e-5, 1.0)
    fast = sum_add_norm(RecordingComm(comm), x, residual, weight, 1e-5, 1.0)
    wrong += [] if torch.equal(fast[0], slow[0]) else ["residual"]
    wrong += [] if torch.allclose(fast[1].float(), slow[1].float(), rtol=2**-7, atol=1e-3) else ["norm"]
    return wrong


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_ranks_that_are_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of them, on one GPU if there is no other: then they take turns of milliseconds."""
    monkeypatch.setenv("TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES", "1")
    with Cluster(2, "nccl") as cluster:
        assert cluster.run(summed_by_processes, timeout=120) == [[], []]
