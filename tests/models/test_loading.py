"""Weights come onto the ranks once and stay; memory on the way; faults that every rank comes back from."""

import json
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tplab.cluster import Rank, RankError
from tplab.models.checkpoint import INDEX, RandomWeights, save_checkpoint
from tplab.models.generation import ensure_loaded, generate, submit_generate, unload
from tplab.models.records import CheckpointError, Weights
from tplab.models.rope import RopeScaling
from tplab.models.shards import Layout, weight_bytes
from tplab.models.spec import ModelConfig

PROMPTS = [[1, 2, 3], [4]]


@pytest.fixture
def checkpoint(families: dict[str, dict[str, Any]], tmp_path: Path) -> Path:
    config = ModelConfig.from_hf(families["llama"])
    save_checkpoint(tmp_path / "llama", config, RandomWeights(config, 3), max_shard_bytes=40_000)
    return tmp_path / "llama"


def count_reads(rank: Rank) -> None:
    """From now on, count every tensor that is opened on this rank."""
    from tplab.models import checkpoint

    if not hasattr(checkpoint, "reads"):
        checkpoint.reads = 0
        inner = checkpoint.Checkpoint.open

        def counted(self: Any, name: str) -> Any:
            checkpoint.reads += 1
            return inner(self, name)

        checkpoint.Checkpoint.open = counted


def reads(rank: Rank) -> int:
    from tplab.models import checkpoint

    seen: int = checkpoint.reads
    checkpoint.reads = 0
    return seen


def test_a_second_generate_does_not_load_again(checkpoint: Path, clusters: Any) -> None:
    cluster = clusters[2]
    cluster.run(count_reads)
    cluster.run(reads)

    def call(**settings: Any) -> tuple[Any, list[int]]:
        return generate(cluster, checkpoint, PROMPTS, max_new_tokens=3, **settings), cluster.run(reads)

    first, opened = call(tp=2)
    assert all(count > 30 for count in opened)
    assert all(load.read_bytes > 0 and load.load_s > 0 for load in first.loads)
    second, opened = call(tp=2, temperature=1.0)
    assert opened == [0, 0]
    assert all(load.read_bytes == 0 and load.load_s == 0 for load in second.loads)
    assert [load.weight_bytes for load in second.loads] == [load.weight_bytes for load in first.loads]
    _, opened = call(pp=2)
    assert all(opened), "another layout is another load"
    _, opened = call(pp=2, dtype="bfloat16")
    assert all(opened), "another dtype is another load"
    again, opened = call(tp=2)
    assert all(opened), "one model at a time is kept"
    assert again.tokens == first.tokens
    config = ModelConfig.from_hf(checkpoint)
    save_checkpoint(checkpoint, config, RandomWeights(config, 4), max_shard_bytes=40_000)
    changed, opened = call(tp=2)
    assert all(opened), "a checkpoint that was written anew is another one"
    assert changed.tokens != first.tokens
    cluster.run(unload)
    _, opened = call(tp=2)
    assert all(opened)


def load_and_tell(rank: Rank, folder: str, layout: Layout) -> tuple[int, int | None, int]:
    config, weights = Weights.of(folder)
    loaded, report = ensure_loaded(rank, config, weights, layout)
    loaded.stage.cpu()
    unload(rank)
    return report.weight_bytes, report.peak_bytes, report.read_bytes


def test_peak_memory_is_the_shard_and_one_tensor(
    families: dict[str, dict[str, Any]], tmp_path: Path, clusters: Any
) -> None:
    keys = families["llama"] | {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "vocab_size": 8009,
        "num_hidden_layers": 4,
    }
    config = ModelConfig.from_hf(keys)
    save_checkpoint(tmp_path, config, RandomWeights(config, 1))
    largest = 8009 * 1024 * 4
    slack = 12 << 20  # threads, buffers of the first collective, the allocator
    for tp, pp in ((1, 1), (2, 1), (4, 1), (2, 2)):
        layout = Layout.of(config, tp, pp)
        clusters[tp * pp].run(load_and_tell, str(tmp_path), layout)  # whatever is imported or allocated once
        for rank, (held, peak, read) in enumerate(clusters[tp * pp].run(load_and_tell, str(tmp_path), layout)):
            assert held == weight_bytes(config.in_dtype("float32"), layout, *layout.place(rank))
            assert abs(read - held) <= 8 * 1024 * 4, "the rows of the vocabulary's padding at most"
            assert peak is not None
            assert peak <= held + largest + slack, (tp, pp, rank, held, peak)


def damage_one_file(folder: Path, tensor: str) -> str:
    file = str(json.loads((folder / INDEX).read_text())["weight_map"][tensor])
    (folder / file).write_bytes((folder / file).read_bytes()[:-20])
    return file


WIDE = pytest.mark.wide


@pytest.mark.parametrize(
    "layout", [pytest.param((1, 2), marks=WIDE), (2, 2), pytest.param((1, 4), marks=WIDE)], ids=str
)
def test_every_rank_comes_back_from_a_fault_of_one(layout: tuple[int, int], checkpoint: Path, clusters: Any) -> None:
    tp, pp = layout
    cluster = clusters[tp * pp]
    good = generate(cluster, checkpoint, PROMPTS, tp=tp, pp=pp, max_new_tokens=3)
    file = damage_one_file(checkpoint, "model.layers.3.mlp.down_proj.weight")  # of the last stage only
    began = time.monotonic()
    with pytest.raises(RankError) as caught:
        generate(cluster, checkpoint, PROMPTS, tp=tp, pp=pp, max_new_tokens=3, timeout=60)
    assert time.monotonic() - began < 30
    assert isinstance(caught.value.__cause__, CheckpointError)
    assert str(caught.value.__cause__).count(f"{file} ") == 1
    assert "is damaged or cut short" in str(caught.value.__cause__)
    message = str(caught.value)
    others = [rank for rank in range(tp * pp) if rank != caught.value.rank]
    assert all(f"Rank {rank} failed too: " in message for rank in others), "every rank came back by itself"
    assert "Meanwhile" not in message
    config = ModelConfig.from_hf(checkpoint)
    save_checkpoint(checkpoint, config, RandomWeights(config, 3), max_shard_bytes=40_000)
    assert generate(cluster, checkpoint, PROMPTS, tp=tp, pp=pp, max_new_tokens=3).tokens == good.tokens


def test_caches_that_do_not_fit_are_refused_with_their_size(checkpoint: Path, clusters: Any) -> None:
    config = ModelConfig.from_hf(
        json.loads((checkpoint / "config.json").read_text()) | {"max_position_embeddings": 1 << 40}
    )
    with pytest.raises(
        RankError, match=r"keys and values of 2 sequences of 4000000002 tokens take .* GB are free on cpu"
    ):
        generate(clusters[2], config, PROMPTS, max_new_tokens=4_000_000_000)
    assert generate(clusters[2], config, PROMPTS, max_new_tokens=2).num_tokens == 4


@pytest.mark.parametrize(
    ("prompts", "settings", "message"),
    [
        ([], {}, "prompts must hold at least one prompt; it is empty"),
        ([[1], []], {}, "prompt 1 is empty"),
        ([[1, 1009]], {}, "prompt 0 has the token 1009; tokens are 0 to 1008"),
        ([[-1]], {}, "prompt 0 has the token -1"),
        ([[1] * 250], {"max_new_tokens": 10}, "250 tokens, with max_new_tokens=10 that makes 260; the model takes 256"),
        ([["a", "b"]], {}, "must be a text or a list of token ids"),
        (["text", [1]], {}, "must all be texts, or all lists"),
        ("text", {}, "has no tokenizer: give token ids"),
        (PROMPTS, {"max_new_tokens": 0}, "max_new_tokens must be a whole number of at least 1; got 0"),
        (PROMPTS, {"temperature": -1.0}, "temperature must be a finite number of at least 0"),
        (PROMPTS, {"top_k": 0, "temperature": 1.0}, "top_k must be a whole number of at least 1"),
        (PROMPTS, {"top_p": 0.0, "temperature": 1.0}, "top_p must be a number above 0 and at most 1"),
        (PROMPTS, {"seed": -1}, "seed must be a whole number"),
        (PROMPTS, {"margins": True, "temperature": 1.0}, "margins are of the likeliest token"),
        (PROMPTS, {"cuda_graphs": "no"}, "cuda_graphs must be true or false; got 'no'"),
        (PROMPTS, {"num_micro_batches": 3}, "num_micro_batches must be a whole number from 1 to 2; got 3"),
        (PROMPTS, {"dtype": "int8"}, "dtype must be one of"),
        (PROMPTS, {"tp": 3}, "tp=3 times pp=0 must be the 2 ranks"),
        (PROMPTS, {"tp": 2, "pp": 2}, "tp=2 times pp=2 must be the 2 ranks"),
        (PROMPTS, {"pp": 2, "stages": (4, 1)}, "stages must be 2 positive numbers of layers"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_anything_starts(
    prompts: Any, settings: dict[str, Any], message: str, families: dict[str, dict[str, Any]], clusters: Any
) -> None:
    config = ModelConfig.from_hf(families["llama"])
    with pytest.raises(ValueError, match=re.escape(message)):
        submit_generate(clusters[2], config, prompts, **settings)


def test_sizes_that_do_not_divide_and_folders_that_are_not_there(
    families: dict[str, dict[str, Any]], tmp_path: Path, clusters: Any
) -> None:
    config = ModelConfig.from_hf(families["llama"] | {"intermediate_size": 90})
    with pytest.raises(ValueError, match="tp must divide intermediate_size=90: use 1 or 2; got 4"):
        generate(clusters[4], config, PROMPTS)
    with pytest.raises(CheckpointError, match="there is no folder"):
        generate(clusters[2], tmp_path / "nowhere", PROMPTS)
    with pytest.raises(ValueError, match="model must be the folder of a checkpoint, or a ModelConfig; got 3"):
        generate(clusters[2], 3, PROMPTS)  # type: ignore[arg-type]


def test_texts_go_through_the_checkpoints_tokenizer(checkpoint: Path, clusters: Any) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    words = {f"w{number}": number for number in range(1009)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0").save_pretrained(checkpoint)
    from_texts = generate(clusters[2], checkpoint, ["w1 w2 w3", "w4"], max_new_tokens=3)
    from_ids = generate(clusters[2], checkpoint, PROMPTS, max_new_tokens=3)
    assert from_texts.prompts == PROMPTS
    assert from_texts.tokens == from_ids.tokens
    assert from_texts.texts == [" ".join(f"w{token}" for token in tokens) for tokens in from_ids.tokens]
    assert from_ids.texts is None
    with pytest.raises(RankError, match="prompt 1 has 300 tokens"):
        generate(clusters[2], checkpoint, ["w1", "w2 " * 300], max_new_tokens=3)
    assert generate(clusters[2], checkpoint, PROMPTS, max_new_tokens=3).tokens == from_ids.tokens


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"gated_mlp": False}, "gated_mlp must be True in a model that is to run here; got False"),
        ({"norms_per_block": 4}, "norms_per_block must be 2"),
        ({"norm_bias": True}, "norm_bias must be False"),
        ({"num_positions": 64}, "num_positions must be 0"),
        ({"parallel_residual": True}, "parallel_residual must be False"),
        ({"model_type": "gpt2"}, "model_type must be one of llama, mistral"),
        ({"rope_scaling": RopeScaling(kind="su", factor=2.0)}, "kind of rope_scaling must be one of linear, dynamic"),
        (
            {"rope_scaling": RopeScaling(kind="yarn", factor=2.0)},
            "original_max_positions of rope_scaling must be given",
        ),
        ({"rope_scaling": RopeScaling(kind="dynamic"), "max_positions": None}, "rope_scaling needs max_positions"),
        (
            {"rope_scaling": RopeScaling(kind="longrope", original_max_positions=9, short_factors=(1.0,))},
            "short_factors of rope_scaling must have one for each of the 8 frequencies",
        ),
    ],
)
def test_what_the_decoder_does_not_compute_is_not_run(
    change: dict[str, Any], error: str, families: dict[str, dict[str, Any]]
) -> None:
    with pytest.raises(ValueError, match=error):
        Weights.of(replace(ModelConfig.from_hf(families["llama"]), **change))
