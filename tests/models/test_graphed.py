"""Decode steps from CUDA graphs: bitwise what the same kernels give one by one, at every length, kept for the next
generation; and tokens that the host reads late are dropped behind a stop token.

Beside it the CPU, which has neither: in float32 it chooses the same tokens.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
import torch

from tplab import Cluster
from tplab.cluster import RankError
from tplab.models.generation import generate
from tplab.models.graphed import KeptSteps, StepShape
from tplab.models.records import Request
from tplab.models.rope import RopeScaling
from tplab.models.spec import ModelConfig

LLAMA = ModelConfig(
    model_type="llama",
    vocab_size=509,
    hidden_size=128,
    intermediate_size=256,
    num_layers=4,
    num_heads=8,
    num_kv_heads=4,
    head_dim=16,
    max_positions=2048,
    dtype="float32",
)
MODELS = {
    "llama": LLAMA,
    "qwen3, windows": replace(LLAMA, model_type="qwen3", qk_norm=True, windows=(None, None, 7, 7)),
    "gemma": replace(
        LLAMA, model_type="gemma", gate="gelu_tanh", embedding_scale=128**0.5, norm_offset=1.0, num_kv_heads=1
    ),
    "llama, dynamic rope": replace(LLAMA, rope_scaling=RopeScaling(kind="dynamic", factor=20.0), max_positions=10),
}
NEW = 8
PROMPTS = [[7 * i + j for j in range(length)] for i, length in enumerate((5, 3, 8, 4))]
SAMPLED: dict[str, Any] = {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "seed": 5}


def request(**changes: Any) -> Request:
    return Request.of(PROMPTS, **({"max_new_tokens": NEW} | changes))


def test_lengths_share_a_shape_and_ways_to_choose_do_not() -> None:
    one = StepShape.of(request(), 4, 15)
    assert one.capacity == 256
    assert StepShape.of(request(seed=3, stop_tokens=(1,)), 4, 256) == one
    assert StepShape.of(request(), 4, 257).capacity == 512
    others = [{"margins": True}, {"temperature": 0.5}, {"temperature": 0.5, "top_k": 3}]
    assert len({StepShape.of(request(**each), 4, 15) for each in ({}, *others)}) == 4


class _Step:
    def __init__(self, shape: StepShape) -> None:
        self.shape = shape


def test_kept_steps_are_found_by_shape_each_once_and_the_oldest_go() -> None:
    kept = KeptSteps()
    shapes = [StepShape(batch, 256, ()) for batch in range(12)]
    two: Any = [_Step(shapes[1]), _Step(shapes[1])]
    kept.keep(two)
    assert kept.taken([shapes[1], shapes[1]]) == two
    assert kept.taken([shapes[1]] * 3) is None
    assert not kept.has([shapes[1], shapes[2]])
    for shape in shapes[2:]:
        kept.keep([_Step(shape)])  # type: ignore[list-item]
        assert kept.has([shapes[1]]), "used all the time"
    assert len(kept) == 8
    assert not kept.has([shapes[2]])
    assert kept.has([shapes[-1]])
    kept.forget([shapes[-1]])
    assert not kept.has([shapes[-1]])
    kept.drop()
    assert len(kept) == 0


def read_late(rank: Any, lag: int) -> None:
    """From now on the engine on this rank looks at tokens ``lag`` steps later, as on a GPU."""
    from tplab.models import engine, reading

    class Late(reading.TokenReader):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)  # type: ignore[arg-type]
            self.lag = lag

        def put(self, *step: object) -> None:
            super().put(*step)  # type: ignore[arg-type]
            assert len(self._under_way) <= lag + 1

    engine.TokenReader = Late if lag else reading.TokenReader  # type: ignore[misc]


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (1, 2), (2, 2), (1, 4)])
def test_tokens_that_are_read_a_step_later_are_the_same(clusters: Any, tp: int, pp: int) -> None:
    """Sequences end by stop tokens at their first token, in the middle, and at the last; micro-batches one by one."""
    cluster = clusters[tp * pp]
    layout: dict[str, Any] = {"tp": tp, "pp": pp, "max_new_tokens": NEW}
    want = generate(cluster, LLAMA, PROMPTS, margins=True, stop_tokens=(), **layout)
    stops = [want.tokens[0][0], want.tokens[1][3], want.tokens[2][-1]]
    for k in (1, 3):
        cut = generate(cluster, LLAMA, PROMPTS, margins=True, num_micro_batches=k, stop_tokens=stops, **layout)
        cluster.run(read_late, 1)
        try:
            whole = generate(cluster, LLAMA, PROMPTS, margins=True, num_micro_batches=k, stop_tokens=(), **layout)
            late = generate(cluster, LLAMA, PROMPTS, margins=True, num_micro_batches=k, stop_tokens=stops, **layout)
        finally:
            cluster.run(read_late, 0)
        assert whole.tokens == want.tokens
        assert (late.tokens, late.finish) == (cut.tokens, cut.finish)
        assert [len(margins) for margins in late.margins or ()] == [len(tokens) for tokens in cut.tokens]
        assert late.tokens[0] == want.tokens[0][:1]


def test_on_the_cpu_decoding_is_eager_and_says_so(clusters: Any) -> None:
    got = generate(clusters[1], LLAMA, PROMPTS, max_new_tokens=2)
    assert got.decode == "eager: the fused kernels need a GPU; this rank computes on cpu"
    assert (got.capture_s, got.frame()["launch_mode"][0]) == (0.0, "eager")
    asked = generate(clusters[1], LLAMA, PROMPTS, max_new_tokens=2, cuda_graphs=False)
    assert asked.decode == "eager: asked for by cuda_graphs=False"
    with pytest.raises(ValueError, match="cuda_graphs must be left out or False where ranks speak gloo; got True"):
        generate(clusters[1], LLAMA, PROMPTS, cuda_graphs=True)


def break_prepare(rank: Any) -> None:
    """As if graphs could be captured here, and the next capture fails on the last rank."""
    from tplab.models import engine, ready

    whole = engine.GenerationEngine.prepare

    def prepare(self: engine.GenerationEngine) -> None:
        engine.GenerationEngine.prepare, ready.why_eager = whole, engine.why_eager  # type: ignore[method-assign]
        if rank.index == rank.world_size - 1:
            raise RuntimeError("no room for a graph")
        whole(self)

    engine.GenerationEngine.prepare = prepare  # type: ignore[method-assign]
    ready.why_eager = lambda loaded, request: None


@pytest.mark.parametrize("n", [1, 2])
def test_a_capture_that_fails_on_one_rank_leaves_all_eager(clusters: Any, n: int) -> None:
    want = generate(clusters[n], LLAMA, PROMPTS, max_new_tokens=NEW).tokens
    clusters[n].run(break_prepare)
    got = generate(clusters[n], LLAMA, PROMPTS, max_new_tokens=NEW)
    why = "eager: capturing did not work (RuntimeError: no room for a graph)"
    assert (got.tokens, got.decode) == (want, why), "also where the first rank knows only that another failed"
    assert generate(clusters[n], LLAMA, PROMPTS, max_new_tokens=NEW).tokens == want


def break_warm_up(rank: Any) -> None:
    """The next warm-up fails on the last rank, while the others are in its sum."""
    import torch.distributed as dist

    from tplab.models.engine import GenerationEngine

    whole = GenerationEngine.warm_up

    def warm_up(self: GenerationEngine) -> None:
        GenerationEngine.warm_up = whole  # type: ignore[method-assign]
        if rank.index == rank.world_size - 1:
            raise MemoryError("no room for a step")
        dist.all_reduce(torch.zeros(1), group=rank.group)

    GenerationEngine.warm_up = warm_up  # type: ignore[method-assign]


def test_a_warm_up_that_fails_on_one_rank_leaves_none_waiting(clusters: Any) -> None:
    clusters[2].run(break_warm_up)
    with pytest.raises(RankError, match="no room for a step"):
        generate(clusters[2], LLAMA, PROMPTS, max_new_tokens=2, timeout=60.0)
    assert generate(clusters[2], LLAMA, PROMPTS, max_new_tokens=2).num_tokens == 2 * len(PROMPTS)


def with_free_bytes(rank: Any, free: list[float] | None) -> int:
    """A step is kept, and from now on the looks at the free memory find these; None: what there is. How many steps were
    kept before."""
    from tplab.models import ready

    kept = rank.store["tplab.models"][1].kept
    before = len(kept)
    if free is None:
        ready._free_bytes = vars(ready).pop("free_bytes_of_old")
        kept.drop()
    else:
        vars(ready).setdefault("free_bytes_of_old", ready._free_bytes)
        ready._free_bytes = lambda rank: free.pop(0)
        kept.keep([object()])
    return before


def test_kept_steps_go_when_their_memory_is_wanted(clusters: Any) -> None:
    generate(clusters[1], LLAMA, PROMPTS, max_new_tokens=2)
    cluster = clusters[1]
    cluster.run(with_free_bytes, [1e9, 1e9])
    generate(cluster, LLAMA, PROMPTS, max_new_tokens=2)
    assert cluster.run(with_free_bytes, [0.0, 1e9]) == [1], "there was room"
    generate(cluster, LLAMA, PROMPTS, max_new_tokens=2)
    assert cluster.run(with_free_bytes, None) == [0]


@pytest.mark.timeout(240)
def test_the_fused_kernels_choose_the_same_tokens(
    clusters: Any, monkeypatch: pytest.MonkeyPatch, no_ranks_left: None
) -> None:
    """Run by Triton's interpreter, on the CPU: two micro-batches, prompts of other lengths."""
    pytest.importorskip("triton")
    small = replace(LLAMA, vocab_size=61, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4, head_dim=8)
    small = replace(small, num_kv_heads=2)
    how: dict[str, Any] = {"tp": 1, "pp": 2, "num_micro_batches": 2, "max_new_tokens": 3}
    prompts = [[3, 1, 4], [1, 5, 9, 2, 6], [5]]
    ways: list[dict[str, Any]] = [{"margins": True}, SAMPLED]
    want = [generate(clusters[2], small, prompts, **how, **way) for way in ways]
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with Cluster(2) as cluster:
        for way, reference in zip(ways, want, strict=True):
            got = generate(cluster, small, prompts, **how, **way)
            assert got.tokens == reference.tokens
            assert got.decode == "eager: CUDA graphs need a GPU; this rank computes on cpu"
            torch.testing.assert_close(got.margins, reference.margins, atol=1e-4, rtol=0)


# On GPUs: ranks share one where there are fewer.


class GpuRanks:
    """Clusters of NCCL ranks by their number, started when asked for."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._made: dict[int, Cluster] = {}

    def __getitem__(self, num_ranks: int) -> Cluster:
        if num_ranks not in self._made:
            self._made[num_ranks] = self._stack.enter_context(Cluster(num_ranks, "nccl"))
        return self._made[num_ranks]


@pytest.fixture(scope="module")
def gpu_ranks() -> Iterator[GpuRanks]:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    with ExitStack() as stack:
        yield GpuRanks(stack)


def graphed_logits(rank: Any, config: ModelConfig, dtype: str) -> tuple[bool, bool, float]:
    """Whether replays of one graph give bitwise the logits of the same kernels one by one, at every length, twice over;
    whether all are finite; and the largest difference from the layers' own step, of the largest logit."""
    from tplab.layers.comm import NullComm
    from tplab.measure.graph import capture
    from tplab.models.decoder import Padding
    from tplab.models.shards import Layout
    from tplab.topology.calibration.copies import load_random

    torch.manual_seed(0)
    config = config.in_dtype(dtype)
    stage = load_random(config, Layout.of(config), 0, NullComm(), device=rank.device).stage
    lengths, capacity = [len(prompt) for prompt in PROMPTS], 256
    ids = torch.randint(config.vocab_size, (140, len(PROMPTS), 1), device=rank.device)  # beyond a part of the cache
    padding = Padding(lengths, capacity, rank.device)
    past = torch.zeros(1, dtype=torch.int32, device=rank.device)
    x = torch.zeros_like(ids[0])

    def generation(step: Any, caches: Any) -> torch.Tensor:
        for cache in caches:
            cache.reset()
        stage(padding.ids(PROMPTS), padding=padding, caches=caches)
        past.fill_(padding.longest)
        made = []
        for each in ids:
            x.copy_(each)
            made.append(step().clone())
            past.add_(1)
        return torch.stack(made)

    with torch.inference_mode():
        plain, fused, graphed = (stage.make_caches(len(PROMPTS), capacity) for _ in range(3))
        layers = generation(lambda: stage(x, padding=padding, caches=plain), plain)
        eager = generation(lambda: stage.decode(x, padding=padding, caches=fused, past=past), fused)
        graph, y = capture(lambda: stage.decode(x, padding=padding, caches=graphed, past=past))

        def replay() -> torch.Tensor:
            graph.replay()
            return y

        turns = [generation(replay, graphed) for _ in range(2)]
    error = float((eager - layers).abs().max() / layers.abs().max())
    return all(torch.equal(eager, turn) for turn in turns), bool(eager.isfinite().all()), error


@pytest.mark.gpu
@pytest.mark.timeout(150)
@pytest.mark.parametrize("model", MODELS)
def test_captured_or_not_the_same_logits(gpu_ranks: Any, model: str) -> None:
    for dtype, most in (("float32", 1e-5), ("bfloat16", 0.05)):
        [(same, finite, error)] = gpu_ranks[1].run(graphed_logits, MODELS[model], dtype, timeout=120)
        print(f"{model}, {dtype}: kernels and layers differ by {error:.1e} of the largest logit")
        assert same
        assert finite
        assert error < most


@pytest.mark.gpu
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_the_same_tokens_on_a_cpu_eagerly_and_from_graphs(gpu_ranks: Any, clusters: Any, tp: int, pp: int) -> None:
    cluster = gpu_ranks[tp * pp]
    for config in MODELS.values():
        for way in ({"margins": True}, SAMPLED):
            how: dict[str, Any] = {"max_new_tokens": NEW, **way}
            want = generate(clusters[1], config, PROMPTS, stop_tokens=(), **how)
            stops = [want.tokens[1][3], want.tokens[2][-2]]
            cut = generate(clusters[1], config, PROMPTS, stop_tokens=stops, **how)
            how |= {"tp": tp, "pp": pp, "num_micro_batches": min(pp, 2)}
            eager = generate(cluster, config, PROMPTS, stop_tokens=(), cuda_graphs=False, **how)
            first = generate(cluster, config, PROMPTS, stop_tokens=(), **how)
            again = generate(cluster, config, PROMPTS, stop_tokens=stops, **how)
            assert eager.decode == "eager: asked for by cuda_graphs=False"
            assert first.decode == again.decode == "CUDA graphs"
            assert first.tokens == eager.tokens == want.tokens
            assert (again.tokens, again.finish) == (cut.tokens, cut.finish)
            assert first.capture_s > 0
            assert again.capture_s == 0, "kept from the first"
            assert first.frame()["launch_mode"][0] == "graph"
            assert (first.communication_share == first.communication_share) == (tp == 1), "NaN, not 0 %"


@pytest.mark.gpu
@pytest.mark.timeout(150)
def test_other_lengths_find_the_same_graph(gpu_ranks: Any, clusters: Any) -> None:
    for new, longer in ((3, 0), (150, 20), (40, 60)):
        prompts = [[*range(longer), *prompt] for prompt in PROMPTS]
        want = generate(clusters[1], LLAMA, prompts, max_new_tokens=new)
        got = generate(gpu_ranks[1], LLAMA, prompts, max_new_tokens=new)
        assert got.tokens == want.tokens
        assert (got.capture_s > 0) == (new == 3)


def break_capture(rank: Any, how: str) -> None:
    """The next capture on rank 0 fails, in the middle of the layers."""
    stage = rank.store["tplab.models"][1].stage
    rank.store["tplab.models"][1].kept.drop()
    whole = type(stage).decode

    def decode(x: torch.Tensor, **arguments: Any) -> torch.Tensor:
        y = whole(stage, x, **arguments)
        if torch.cuda.is_current_stream_capturing():
            if how == "raises":
                raise RuntimeError("a fault while capturing")
            y.sum().item()  # waits for the device, which a graph cannot hold
        return y

    if rank.index == 0:
        stage.decode = decode


def mend(rank: Any) -> None:
    vars(rank.store["tplab.models"][1].stage).pop("decode", None)


@pytest.mark.gpu
@pytest.mark.timeout(150)
@pytest.mark.parametrize("how", ["raises", "waits"])
@pytest.mark.parametrize("tp", [1, 2])
def test_a_fault_while_capturing_leaves_the_ranks_usable(gpu_ranks: Any, tp: int, how: str) -> None:
    cluster = gpu_ranks[tp]
    model: dict[str, Any] = {"max_new_tokens": NEW, "timeout": 60}
    want = generate(cluster, LLAMA, PROMPTS, cuda_graphs=False, **model).tokens
    cluster.run(break_capture, how)
    with pytest.raises(RankError, match="a fault while capturing" if how == "raises" else "captur"):
        generate(cluster, LLAMA, PROMPTS, cuda_graphs=True, **model)
    # Ranks that have not captured the same collectives are ended: these may be fresh ones.
    assert generate(cluster, LLAMA, PROMPTS, cuda_graphs=False, **model).tokens == want
    cluster.run(break_capture, how)
    got = generate(cluster, LLAMA, PROMPTS, **model)
    assert got.tokens == want
    assert got.decode.startswith("eager: capturing did not work")
    cluster.run(mend)
    got = generate(cluster, LLAMA, PROMPTS, **model)
    assert (got.tokens, got.decode) == (want, "CUDA graphs")
