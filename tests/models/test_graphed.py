"""Decode steps from CUDA graphs: the same tokens as eagerly, from the first generation to replayed ones."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from tplab import Cluster
from tplab.models.graphed import GraphedStage
from tplab.models.spec import ModelConfig

LLAMA = ModelConfig(
    model_type="llama",
    vocab_size=512,
    hidden_size=128,
    intermediate_size=256,
    num_layers=4,
    num_heads=8,
    num_kv_heads=4,
    head_dim=16,
    max_positions=64,
    dtype="float32",
)
NEW = 6
PROMPTS = [[7 * i + j for j in range(length)] for i, length in enumerate((5, 3, 8, 4))]


class _Cache:
    def __init__(self) -> None:
        self.length = 0

    def reset(self) -> None:
        self.length = 0


class _Stage:
    """Counts its calls."""

    spec = vocab = None
    config = LLAMA

    def __init__(self) -> None:
        self.calls = 0

    def make_caches(self, batch: int, max_length: int) -> list[_Cache]:
        return [_Cache()]

    def __call__(self, x: torch.Tensor, *, padding: Any, caches: list[_Cache]) -> torch.Tensor:
        self.calls += 1
        caches[0].length += x.shape[1]
        return x


class _Padding:
    lengths = (3, 3)


def test_caches_are_the_same_after_a_restart_and_empty() -> None:
    graphed = GraphedStage(_Stage())  # type: ignore[arg-type]
    first, second = graphed.make_caches(2, 8), graphed.make_caches(2, 8)
    assert first is not second
    first[0].length = 3
    graphed.restart()
    assert graphed.make_caches(2, 8) is first
    assert first[0].length == 0
    with pytest.raises(ValueError, match=r"captured for batch and length \(2, 8\), got \(3, 8\)"):
        graphed.make_caches(3, 8)


def test_prompts_and_first_visits_run_as_they_are() -> None:
    stage = _Stage()
    graphed = GraphedStage(stage)  # type: ignore[arg-type]
    caches = graphed.make_caches(2, 8)
    for length in (3, 1, 1):
        graphed(torch.zeros(2, length), padding=_Padding(), caches=caches)  # type: ignore[arg-type]
    assert stage.calls == 3
    assert graphed.num_graphs == 0


def test_a_model_whose_embedding_is_scaled_by_the_host_is_refused() -> None:
    stage = _Stage()
    stage.config = replace(LLAMA, embedding_scale=8.0)
    with pytest.raises(ValueError, match=r"embedding_scale=8\.0 cannot be captured"):
        GraphedStage(stage)  # type: ignore[arg-type]


def generations(rank: Any, tp: int, pp: int) -> tuple[list[Any], list[int]]:
    """Tokens of an eager generation and of four graphed ones, and the number of graphs after each."""
    from tplab.models.engine import GenerationEngine
    from tplab.models.records import Request
    from tplab.models.shards import Layout
    from tplab.topology.calibration.copies import comm_of, load_random, p2p_of

    torch.manual_seed(rank.index)
    layout = Layout.of(LLAMA, tp, pp)
    comms = [comm_of(rank, range(stage * tp, (stage + 1) * tp), None) for stage in range(pp)]
    comm = comms[rank.index // tp]
    assert comm is not None
    loaded = load_random(LLAMA, layout, rank.index, comm, device=rank.device)
    graphed = GraphedStage(loaded.stage)
    made, counts = [], []
    for stage in (loaded.stage, *[graphed] * 4):
        graphed.restart()
        request = Request.of(PROMPTS, max_new_tokens=NEW, num_micro_batches=pp)
        engine = GenerationEngine(replace(loaded, stage=stage), request, PROMPTS, p2p_of(rank, None))
        engine.run()
        made.append(engine.tokens)
        counts.append(graphed.num_graphs)
    return made, counts


def logits(rank: Any) -> bool:
    """Whether two replays of every step give the eager logits, bitwise, padded prompts included."""
    from tplab.layers.comm import NullComm
    from tplab.models.decoder import Padding
    from tplab.models.shards import Layout
    from tplab.topology.calibration.copies import load_random

    torch.manual_seed(0)
    loaded = load_random(LLAMA, Layout.of(LLAMA), 0, NullComm(), device=rank.device)
    graphed = GraphedStage(loaded.stage)
    lengths = [len(prompt) for prompt in PROMPTS]
    ids = torch.randint(LLAMA.vocab_size, (NEW, len(PROMPTS), 1), device=rank.device)

    def generation(stage: Any) -> list[torch.Tensor]:
        graphed.restart()
        padding = Padding(lengths, max(lengths) + NEW, rank.device)
        caches = stage.make_caches(len(PROMPTS), max(lengths) + NEW)
        made = [stage(padding.ids(PROMPTS), padding=padding, caches=caches)]
        return made + [stage(each, padding=padding, caches=caches).clone() for each in ids]

    with torch.inference_mode():
        eager = generation(loaded.stage)
        turns = [generation(graphed) for _ in range(4)]
    assert graphed.num_graphs == NEW
    return all(torch.equal(one, other) for turn in turns for one, other in zip(eager, turn, strict=True))


@pytest.mark.gpu
@pytest.mark.timeout(150)
def test_the_same_logits_as_eagerly(no_ranks_left: None) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    with Cluster(1, "nccl") as cluster:
        assert cluster.run(logits, timeout=120) == [True]


@pytest.mark.gpu
@pytest.mark.timeout(150)
@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_the_same_tokens_as_eagerly(no_ranks_left: None, tp: int, pp: int) -> None:
    if torch.cuda.device_count() < tp * pp:
        pytest.skip(f"needs {tp * pp} CUDA GPUs")
    with Cluster(tp * pp, "nccl") as cluster:
        for made, counts in cluster.run(generations, tp, pp, timeout=120):
            assert all(tokens == made[0] for tokens in made)
            assert counts == [0, 0, *[(NEW - 1) * pp] * 3]
