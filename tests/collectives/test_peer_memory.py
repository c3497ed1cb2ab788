"""All-reduces that write into other GPUs' memory: right sums, the same bits everywhere, and bounds of what is rounded.

On the CPU by Triton's interpreter, on a rank of its own: the parts of each kernel that do not wait,
for all ranks one after another. On a GPU whole kernels, ranks being streams of one process: they do wait for each
other. The interpreter cuts off where a GPU rounds to bfloat16, and carries wrongly where it rounds to e4m3: those two
are tested on the GPU.
"""

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import cloudpickle
import pytest
import torch

from tplab import Cluster

pytest.importorskip("triton", reason="the kernels need Triton, which is not installed")
# On a GPU each rank's kernel is compiled for each kind of length, in a second or so.
N = (1, 3) if torch.cuda.is_available() else (1, 2, 3)
LENGTHS = (4096, 1000) if torch.cuda.is_available() else (2, 200, 1030)
MOST_BYTES = 1 << 20


@pytest.fixture(scope="module", autouse=True)
def functions_travel_by_value(request: pytest.FixtureRequest) -> Iterator[None]:
    cloudpickle.register_pickle_by_value(request.module)
    yield
    cloudpickle.unregister_pickle_by_value(request.module)


@pytest.fixture(scope="module")
def run_here() -> Iterator[Callable[..., Any]]:
    """Runs a function where kernels can: in this process on a GPU, else on a rank with the interpreter."""
    if torch.cuda.is_available():
        yield lambda function, *arguments: function(None, *arguments)
        return
    with Cluster(1, "gloo") as cluster:
        yield lambda function, *arguments: cluster.run(interpreted, function, *arguments, timeout=150)[0]


def interpreted(rank: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    os.environ["TRITON_INTERPRET"] = "1"  # Triton is not loaded yet
    return function(rank, *arguments)


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


_streams: list[Any] = []


def streams(n: int) -> list[Any]:
    """The same ones each time: two that share a queue of the GPU could wait for each other for ever."""
    _streams.extend(torch.cuda.Stream() for _ in range(n - len(_streams)))
    return _streams[:n]


def addends(n: int, length: int, dtype: torch.dtype, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed + length)
    return [(torch.randn(length, generator=generator) * 3.0**rank).to(dtype).to(device()) for rank in range(n)]


def in_rank_order(parts: list[torch.Tensor]) -> torch.Tensor:
    """Added up one after another in float32, rounded once."""
    total = parts[0].float()
    for part in parts[1:]:
        total = total + part.float()
    return total.to(parts[0].dtype)


def on_all(algorithm: str, memories: list[Any], calls: list[Callable[..., Any]]) -> None:
    """``calls[r](phase=...)`` of every rank: together, each on a stream, or part by part."""
    from tplab.collectives import peer_memory

    if device().type == "cpu":
        for phase in peer_memory.PHASES[algorithm]:
            for call in calls:
                call(phase=phase)
        return
    torch.cuda.synchronize()
    for stream, call in zip(streams(len(calls)), calls, strict=True):
        with torch.cuda.stream(stream):
            call()
    torch.cuda.synchronize()


def memories_of(n: int, algorithm: str, rehearse: Callable[[Any, int], Any]) -> list[Any]:
    """A memory per rank. On a GPU kernels are first loaded, by ``rehearse(memory, rank)`` on one in which all that is
    waited for is there: loading a kernel may wait for one that runs, which would wait for this one."""
    from tplab.collectives.peer_memory import PeerMemory, _places

    if device().type == "cuda":
        places = _places(n, MOST_BYTES)
        for memory in PeerMemory.in_one_process(n, device(), MOST_BYTES):
            row = memory.held[memory.index]
            row[: places["flags"]].view(torch.int64).fill_(1 << 32)
            row[places["flags"] : places["inbox"]].view(torch.int32).fill_(1 << 30)
            rehearse(memory, memory.index)
        torch.cuda.synchronize()
    memories = PeerMemory.in_one_process(n, device(), MOST_BYTES)
    for memory in memories:
        memory.most_polls = 20_000_000  # seconds
    return memories


def all_reduced(n: int, algorithm: str, parts: list[torch.Tensor], turns: int = 2) -> list[torch.Tensor]:
    from tplab.collectives import peer_memory

    reduce: Any = {
        "one-shot": peer_memory.one_shot,
        "two-shot": peer_memory.two_shot,
        "int8": peer_memory.quantised_two_shot,
        "fp8": partial(peer_memory.quantised_two_shot, narrow="fp8"),
    }[algorithm]
    memories = memories_of(n, algorithm, lambda memory, rank: reduce(parts[rank].clone(), memory))
    for _ in range(turns):  # flags, halves and inboxes are used again
        results = [part.clone() for part in parts]
        on_all(algorithm, memories, [partial(reduce, x, memory) for x, memory in zip(results, memories, strict=True)])
    return results


def exact(_: Any, algorithm: str, dtype: torch.dtype) -> list[tuple[Any, ...]]:
    wrong = []
    for n in N:
        for length in LENGTHS:
            parts = addends(n, length, dtype)
            results = all_reduced(n, algorithm, parts)
            want = in_rank_order(parts)
            wrong += [(n, length, rank) for rank, x in enumerate(results) if not torch.equal(x, want)]
    return wrong


@pytest.mark.parametrize("algorithm", ["one-shot", "two-shot"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_sums_are_those_in_rank_order_bitwise(run_here: Any, algorithm: str, dtype: torch.dtype) -> None:
    if dtype is torch.bfloat16 and not torch.cuda.is_available():
        pytest.skip("Triton's interpreter cuts off where a GPU rounds to bfloat16")
    assert run_here(exact, algorithm, dtype) == []


def whole_numbers(_: Any, algorithm: str) -> bool:
    parts = [torch.randint(-8, 9, (1000,), generator=torch.Generator().manual_seed(r)).bfloat16() for r in range(4)]
    parts = [part.to(device()) for part in parts]
    return all(torch.equal(x, in_rank_order(parts)) for x in all_reduced(4, algorithm, parts))


@pytest.mark.parametrize("algorithm", ["one-shot", "two-shot"])
def test_sums_of_small_whole_numbers_in_bfloat16(run_here: Any, algorithm: str) -> None:
    assert run_here(whole_numbers, algorithm)


def bounded(_: Any, narrow: str, dtype: torch.dtype) -> tuple[list[tuple[Any, ...]], float]:
    from tplab.collectives.peer_memory import quantised_chunk
    from tplab.collectives.quantised import error_bound

    wrong, nearest = [], 0.0
    for n in N[1:]:
        for length in LENGTHS:
            parts = addends(n, length, dtype)
            results = all_reduced(n, narrow, parts)
            wanted = torch.stack([part.double() for part in parts]).sum(0)
            chunk = quantised_chunk(length, n)
            bounds = [
                error_bound([part.cpu()[start : start + chunk] for part in parts], owner, dtype=dtype, narrow=narrow)
                for owner, start in enumerate(range(0, length, chunk))
            ]
            over = (results[0].double() - wanted).abs().cpu() / torch.cat(bounds)
            nearest = max(nearest, float(over.max()))
            if over.max() > 1 or any(not torch.equal(results[0], x) for x in results):
                wrong.append((n, length, float(over.max())))
    return wrong, nearest


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("narrow", ["int8", "fp8"])
def test_quantised_sums_keep_their_bound_and_have_the_same_bits(run_here: Any, narrow: str, dtype: torch.dtype) -> None:
    if not torch.cuda.is_available() and (narrow == "fp8" or dtype is torch.bfloat16):
        pytest.skip("Triton's interpreter rounds to bfloat16 and e4m3 otherwise than a GPU")
    wrong, nearest = run_here(bounded, narrow, dtype)
    assert wrong == []
    assert nearest > 0.3, "a bound that nothing comes near says nothing"


def poisoned(_: Any, narrow: str) -> list[bool]:
    parts = [torch.ones(256, device=device()) for _ in range(2)]
    parts[1][3] = torch.inf
    parts[0][140] = torch.nan
    return all_reduced(2, narrow, parts)[0].isfinite().tolist()


@pytest.mark.parametrize("narrow", ["int8", "fp8"])
def test_what_is_not_finite_spoils_its_group_and_no_other(run_here: Any, narrow: str) -> None:
    finite = run_here(poisoned, narrow)
    assert finite == [not (index < 64 or 128 <= index < 192) for index in range(256)]


def alone(
    call: Any, parts: list[torch.Tensor], residual: torch.Tensor, weight: torch.Tensor, memory: Any, rank: int
) -> None:
    call(parts[rank], residual, weight, memory)


def normed(_: Any, dtype: torch.dtype, shape: tuple[int, int], offset: float) -> list[Any]:
    from tplab.collectives.peer_memory import all_reduce_add_rms_norm

    tokens, features = shape
    outcomes: list[Any] = []
    for n in N:
        parts = [part.view(shape) for part in addends(n, tokens * features, dtype)]
        residual = addends(1, tokens * features, dtype, seed=7)[0].view(shape)
        weight = addends(1, features, dtype, seed=8)[0]
        call = partial(all_reduce_add_rms_norm, eps=1e-5, offset=offset)
        memories = memories_of(n, "one-shot", partial(alone, call, parts, residual, weight))
        outs = [(torch.empty_like(residual), torch.empty_like(residual)) for _ in range(n)]
        for _ in range(2):
            on_all(
                "one-shot",
                memories,
                [partial(call, parts[r], residual, weight, memories[r], out=outs[r]) for r in range(n)],
            )
        h = residual + in_rank_order(parts)
        wide = outs[0][0].double()
        y = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * (offset + weight.double())
        same = all(torch.equal(outs[0][which], out[which]) for out in outs for which in (0, 1))
        error = ((outs[0][1].double() - y).abs() / y.abs().clamp_min(1e-3)).max()
        outcomes.append((n, same, torch.equal(outs[0][0], h), float(error)))
    return outcomes


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("shape", [(1, 64), (3, 200), (2, 4096)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_with_residual_and_norm_it_is_the_three_one_after_another(
    run_here: Any, dtype: torch.dtype, shape: tuple[int, int], offset: float
) -> None:
    """The residual bitwise; the norm of what was stored, to float32's rounding and that of the result."""
    interpreted_bf16 = dtype is torch.bfloat16 and not torch.cuda.is_available()
    for _, same, residual_equal, error in run_here(normed, dtype, shape, offset):
        assert same
        assert residual_equal or interpreted_bf16, "the interpreter cuts off where a GPU rounds"
        assert error <= (2e-6 if dtype is torch.float32 else 2**-8 * (2 if interpreted_bf16 else 1))


def replayed(algorithm: str) -> bool:
    from tplab.collectives import peer_memory

    n, length = 3, 5000
    reduce = peer_memory.one_shot if algorithm == "one-shot" else peer_memory.two_shot
    parts = addends(n, length, torch.bfloat16)
    memories = memories_of(n, algorithm, lambda memory, rank: reduce(parts[rank].clone(), memory))
    results = [part.clone() for part in parts]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for stream, part, x, memory in zip(streams(n), parts, results, memories, strict=True):
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(3):  # an odd number: halves change roles between replays
                    x.copy_(part)
                    reduce(x, memory)
        for stream in streams(n):
            torch.cuda.current_stream().wait_stream(stream)
    for _ in range(50):
        for x in results:
            x.zero_()
        graph.replay()
        if not all(torch.equal(x, in_rank_order(parts)) for x in results):
            return False
    return True


@pytest.mark.gpu
@pytest.mark.parametrize("algorithm", ["one-shot", "two-shot"])
def test_a_graph_can_be_replayed_for_ever(algorithm: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    assert replayed(algorithm)


def refused(_: Any) -> list[str]:
    from tplab.collectives.peer_memory import PeerMemory, one_shot, quantised_two_shot, two_shot

    memory = PeerMemory.in_one_process(2, device(), 1024)[0]
    said = []
    for call in (
        lambda: one_shot(torch.ones(3, dtype=torch.int32, device=device()), memory),
        lambda: one_shot(torch.ones(3, dtype=torch.bfloat16, device=device()), memory),
        lambda: one_shot(torch.ones(4, 4, device=device()).t(), memory),
        lambda: two_shot(torch.ones(300, device=device()), memory),
        lambda: quantised_two_shot(torch.ones(4, device=device()), memory, "int4"),
        lambda: PeerMemory.in_one_process(9, device(), 1024),
    ):
        try:
            call()
        except ValueError as error:
            said.append(str(error))
    return said


def test_what_the_kernels_cannot_take_is_named(run_here: Any) -> None:
    said = run_here(refused)
    wanted = ["float32, bfloat16 or float16", "whole words", "contiguous", "at most 1,024 bytes", "narrow", "8 ranks"]
    assert len(said) == len(wanted)
    assert all(word in error for word, error in zip(wanted, said, strict=True)), said


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing")
def test_addends_that_lie_at_any_word_are_read_word_by_word() -> None:
    """Compiled for an H100, which needs none: a load of 16 bytes from a place between would end the rank."""
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from tplab.collectives.peer_kernels import two_shot_kernel

    constants = {"KIND": 1, "RANK": 1, "N": 2, "BLOCK": 1024, "PHASE": 0}
    pointers = {"x": "*i32", "out": "*i32", "table": "*i64", "epochs": "*i32"}
    names = two_shot_kernel.arg_names
    even = ("table", "epochs", "num_words", "chunk", "flags", "inbox", "results")

    def wide_loads(*aligned: str) -> int:
        source = ASTSource(
            two_shot_kernel,
            {name: "constexpr" if name in constants else pointers.get(name, "i32") for name in names},
            {(names.index(name),): value for name, value in constants.items()},
            {(names.index(name),): [["tt.divisibility", 16]] for name in (*even, *aligned)},
        )
        made = compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8})
        return str(made.asm["ptx"]).count("ld.global.v4")

    received = wide_loads("out")
    assert received > 0, "what peers have sent is at 16 bytes always"
    assert wide_loads("x", "out") == received + 2
