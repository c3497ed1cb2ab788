"""Checkpoints: slices of every layout are the full tensors; random ones are the same everywhere; faults are named."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tplab.models.checkpoint import INDEX, SINGLE, Checkpoint, RandomWeights, fill, save_checkpoint
from tplab.models.decoder import Stage
from tplab.models.records import CheckpointError
from tplab.models.shards import Layout
from tplab.models.spec import ModelConfig

LAYOUTS = [(1, 1, None), (2, 1, None), (4, 1, None), (1, 3, None), (2, 2, (1, 3)), (1, 2, (3, 1)), (4, 4, None)]


class Place:
    """A rank's place in a group that is not there: loading communicates nothing."""

    device_types: frozenset[str] = frozenset()
    start_all_reduce = None

    def __init__(self, index: int, size: int) -> None:
        self.index, self.size = index, size


def stage_of(config: ModelConfig, layout: Layout, rank: int, dtype: torch.dtype = torch.float32) -> Stage:
    stage, index = layout.place(rank)
    comm: Any = Place(index, layout.tp)
    return Stage(config, layout.spec(stage), comm, dtype=dtype)


def full_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.fixture
def qwen(families: dict[str, dict[str, Any]], tmp_path: Path) -> tuple[ModelConfig, Path]:
    config = ModelConfig.from_hf(families["qwen2"])
    save_checkpoint(tmp_path / "qwen", config, RandomWeights(config, 5), max_shard_bytes=100_000)
    return config, tmp_path / "qwen"


@pytest.mark.sampled(every=4)
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gemma"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_rank_has_its_slices_of_the_full_tensors(
    name: str, layout: tuple[int, int, Any], families: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    config = ModelConfig.from_hf(families[name])
    save_checkpoint(tmp_path, config, RandomWeights(config, 1), max_shard_bytes=60_000)
    full = full_tensors(tmp_path)
    tp, pp, stages = layout
    cut = Layout.of(config, tp, pp, layers_of_stage=stages)
    seen = {key: torch.zeros(tensor.shape, dtype=torch.bool) for key, tensor in full.items()}
    for rank in range(cut.gpus_per_replica):
        stage = stage_of(config, cut, rank)
        fill(stage, Checkpoint(tmp_path, config))
        drawn = stage_of(config, cut, rank)
        fill(drawn, RandomWeights(config, 1))
        weights, parts = dict(stage.named_parameters()), stage.plan
        for key, value in drawn.named_parameters():
            assert torch.equal(value, weights[key]), "a seed gives what the checkpoint of that seed has"
        for key, shards in parts.items():
            row = 0
            for shard in shards:
                take = slice(None) if shard.dim is None else slice(shard.start, shard.end)
                where = (slice(None), take) if shard.dim == 1 else (take,)
                want = full[shard.source][where]
                assert torch.equal(weights[key][row : row + want.shape[0]], want)
                seen[shard.source][where] = True
                row += want.shape[0]
                assert not weights[key][row : row + shard.padding].any()
                row += shard.padding
            assert row == weights[key].shape[0]
    assert all(mask.all() for mask in seen.values()), "every element lies on some rank"


@pytest.mark.parametrize("max_shard_bytes", [1, 100_000, 1 << 30])
def test_transformers_reads_what_is_written(
    max_shard_bytes: int, families: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    for name, keys in families.items():
        config = ModelConfig.from_hf(keys)
        random = RandomWeights(config, 2)
        files = save_checkpoint(tmp_path / name, config, random, max_shard_bytes=max_shard_bytes)
        assert (len(files) == 1) == (max_shard_bytes == 1 << 30)
        model, info = AutoModelForCausalLM.from_pretrained(
            tmp_path / name, dtype=torch.float32, output_loading_info=True
        )
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert not info["mismatched_keys"]
        theirs = model.state_dict()
        for tensor in config.tensor_shapes():
            assert torch.equal(theirs[tensor], random.tensor(tensor))


def test_what_transformers_writes_is_read(families: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    for name, keys in families.items():
        config = ModelConfig.from_hf(keys)
        save_checkpoint(tmp_path / "first", config, RandomWeights(config, 2))
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "first", dtype=torch.float32)
        model.save_pretrained(tmp_path / name, max_shard_size="100KB")
        again = ModelConfig.from_hf(tmp_path / name)
        stage = stage_of(again, Layout.of(again), 0)
        fill(stage, Checkpoint(tmp_path / name, again))
        drawn = stage_of(config, Layout.of(config), 0)
        fill(drawn, RandomWeights(config, 2))
        assert all(torch.equal(a, b) for a, b in zip(stage.parameters(), drawn.parameters(), strict=True)), name


def test_another_dtype_is_the_rounding(qwen: tuple[ModelConfig, Path]) -> None:
    config, folder = qwen
    layout = Layout.of(config)
    full, half = stage_of(config, layout, 0), stage_of(config, layout, 0, torch.bfloat16)
    source = Checkpoint(folder, config)
    fill(full, source)
    taken = fill(half, source)
    assert all(torch.equal(a.bfloat16(), b) for a, b in zip(full.parameters(), half.parameters(), strict=True))
    assert half.weight_bytes * 2 == full.weight_bytes == taken


def test_two_tensors_of_a_seed_differ_and_two_seeds_differ(families: dict[str, dict[str, Any]]) -> None:
    config = ModelConfig.from_hf(families["llama"])
    one, two = RandomWeights(config, 1), RandomWeights(config, 2)
    first, second = (f"model.layers.{layer}.mlp.up_proj.weight" for layer in (0, 1))
    assert torch.equal(one.tensor(first), one.tensor(first))
    assert not torch.equal(one.tensor(first), one.tensor(second))
    assert not torch.equal(one.tensor(first), two.tensor(first))


def test_only_the_own_slices_are_taken(qwen: tuple[ModelConfig, Path]) -> None:
    config, folder = qwen
    source = Checkpoint(folder, config)
    whole = fill(stage_of(config, Layout.of(config), 0), source)
    layout = Layout.of(config, 2, 2)
    for rank in range(4):
        stage = stage_of(config, layout, rank)
        taken = fill(stage, source)
        padding = sum(s.padding * config.hidden_size * 4 for shards in stage.plan.values() for s in shards)
        assert taken == stage.weight_bytes - padding < whole / 2


def rewrite(folder: Path, name: str, change: Any) -> None:
    """Replace one tensor in its file; ``change`` returns None to leave it out."""
    file = folder / json.loads((folder / INDEX).read_text())["weight_map"][name]
    tensors = load_file(file)
    value = change(tensors.pop(name))
    save_file(tensors | ({} if value is None else {name: value}), file, metadata={"format": "pt"})


def index_without(folder: Path, name: str) -> None:
    index = json.loads((folder / INDEX).read_text())
    del index["weight_map"][name]
    (folder / INDEX).write_text(json.dumps(index))


VICTIM = "model.layers.2.self_attn.k_proj.weight"


def load_all(config: ModelConfig, folder: Path) -> None:
    fill(stage_of(config, Layout.of(config), 0), Checkpoint(folder, config))


def file_of(folder: Path, name: str = VICTIM) -> Path:
    return folder / str(json.loads((folder / INDEX).read_text())["weight_map"][name])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: index_without(f, VICTIM), f"lacks {VICTIM}, which a qwen2"),
        (lambda f: rewrite(f, VICTIM, lambda t: None), f"does not hold {VICTIM}, though the index says so"),
        (lambda f: rewrite(f, VICTIM, lambda t: t[:-1].clone()), f"{VICTIM} in .* has the shape .11, 48.; the config"),
        (lambda f: rewrite(f, VICTIM, lambda t: t.to(torch.int8)), f"{VICTIM} in .* is of dtype I8: quantised"),
        (lambda f: file_of(f).write_bytes(file_of(f).read_bytes()[:-100]), "damaged or cut short"),
        (lambda f: file_of(f).write_bytes(b"\xff" * 5000), r"\(5000 bytes\) is damaged or cut short"),
        (lambda f: file_of(f).write_bytes(b""), r"\(0 bytes\) is damaged or cut short"),
        (lambda f: file_of(f).unlink(), "model-0.* is named in .*, but not there"),
        (lambda f: (f / INDEX).write_text("{"), "damaged: no weight_map"),
        (lambda f: (f / INDEX).write_text("[1]"), "damaged: no weight_map"),
    ],
)  # fmt: skip
def test_faults_name_the_tensor_or_the_file(qwen: tuple[ModelConfig, Path], damage: Any, message: str) -> None:
    config, folder = qwen
    load_all(config, folder)
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        load_all(config, folder)


def test_an_extra_tensor_is_named_and_harmless_ones_pass(qwen: tuple[ModelConfig, Path]) -> None:
    config, folder = qwen
    index = json.loads((folder / INDEX).read_text())
    file = file_of(folder)
    save_file(
        load_file(file)
        | {"lm_head.weight": torch.zeros(1), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(1)},
        file,
    )
    for name in ("lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"):
        index["weight_map"][name] = file.name
    (folder / INDEX).write_text(json.dumps(index))
    load_all(config, folder)
    index["weight_map"]["model.layers.9.mlp.up_proj.weight"] = file.name
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"has model.layers.9.mlp.up_proj.weight, which a qwen2 .* no place for"):
        load_all(config, folder)


def test_no_safetensors(tmp_path: Path, families: dict[str, dict[str, Any]]) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"only safetensors are read; pytorch_model\.bin would have to be conv"):
        Checkpoint(tmp_path, ModelConfig.from_hf(families["llama"]))


def test_an_unwritable_folder(tmp_path: Path, families: dict[str, dict[str, Any]]) -> None:
    config = ModelConfig.from_hf(families["llama"])
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=f"cannot write a checkpoint to {re.escape(str(tmp_path))}"):
        save_checkpoint(tmp_path / "file" / "folder", config, RandomWeights(config))
    (tmp_path / SINGLE).mkdir()
    with pytest.raises(CheckpointError, match="cannot write a checkpoint"):
        save_checkpoint(tmp_path, config, RandomWeights(config))
    assert not (tmp_path / "config.json").exists()
