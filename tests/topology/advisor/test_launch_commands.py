"""Command lines: precisions, where the checkpoint is, and shares of nodes that no flag can say."""

import json
import shlex

import pytest

from tplab.models.shards import Layout
from tplab.topology import EnginePolicy, Machine, ModelSpec, Workload
from tplab.topology.advisor.launch_commands import ENGINES, launch_commands
from tplab.topology.advisor.workload import PREFILL_POLICIES
from tplab.topology.machine.placement import place

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "vocab_size": 1000,
}


def commands(
    model, machine="h100", tp=2, pp=1, replicas=1, chunked_prefill=8192, input_length=1024, load=None, **engine
):
    """By engine, each command as its comments and its words."""
    spec = model if isinstance(model, ModelSpec) else ModelSpec.from_config(model)
    where = Machine.preset(machine) if isinstance(machine, str) else machine
    policy = EnginePolicy(name="vllm", chunked_prefill=chunked_prefill, **engine)
    load = {"concurrency": 16} if load is None else load
    workload = Workload(input_length=input_length, output_length=256, engine=policy, **load)
    made = launch_commands(spec, where, workload, Layout.of(spec, tp, pp, replicas), place(where, tp, pp, replicas))
    return {engine: [split(line) for line in lines] for engine, lines in made.items()}


def split(command):
    *comments, line = command.split("\n")
    assert all(comment.startswith("# ") for comment in comments)
    return comments, shlex.split(line)


def first(model, **more):
    return {engine: made[0] for engine, made in commands(model, **more).items()}


def follows(words, flag):
    return words[words.index(flag) + 1] if flag in words else None


@pytest.mark.parametrize(
    ("weights", "flags", "said"),
    [
        ("bf16", {}, {}),
        ("fp8", {"vllm": "fp8", "sglang": "fp8"}, {"trtllm": "# needs a checkpoint already in fp8"}),
        ("int4", {}, dict.fromkeys(ENGINES, "# needs a checkpoint already in int4 (AWQ, GPTQ, ...)")),
        ("int8", {}, dict.fromkeys(ENGINES, "# needs a checkpoint already in int8")),
        ("fp4", {}, dict.fromkeys(ENGINES, "# needs a checkpoint already in fp4")),
    ],
)
def test_weights_that_a_flag_makes_and_others(weights, flags, said):
    made = first(ModelSpec.from_config("llama-3.1-8b", weight_precision=weights))
    for engine, (comments, words) in made.items():
        assert follows(words, "--quantization") == flags.get(engine)
        assert [comment.startswith(said[engine]) for comment in comments] == [True] if engine in said else not comments


def test_float32_is_asked_for():
    made = first(SIZES | {"torch_dtype": "float32"})
    assert follows(made["vllm"][1], "--dtype") == follows(made["sglang"][1], "--dtype") == "float32"
    assert "dtype: float32" in made["trtllm"][0][0]


@pytest.mark.parametrize(
    "how",
    [
        {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": 8, "type": "float"}}}},
        {"quant_method": "fp8"},
        {"quant_method": "awq", "bits": 4},
    ],
)
def test_a_quantised_checkpoint_says_so_itself(how):
    """vLLM refuses ``--quantization fp8`` beside another method in the checkpoint's configuration."""
    for comments, words in first(SIZES | {"quantization_config": how}).values():
        assert not comments
        assert "--quantization" not in words


@pytest.mark.parametrize(
    ("cache", "flags"),
    [
        ("bf16", dict.fromkeys(ENGINES)),
        ("fp16", dict.fromkeys(ENGINES)),
        ("fp8", {"vllm": "fp8", "sglang": "fp8_e4m3", "trtllm": "fp8"}),
        ("fp4", {"vllm": None, "sglang": "fp4_e2m1", "trtllm": "nvfp4"}),
        ("int4", dict.fromkeys(ENGINES)),
        ("int8", dict.fromkeys(ENGINES)),
    ],
)
def test_caches_that_a_flag_makes_and_others(cache, flags):
    made = first(ModelSpec.from_config("llama-3.1-8b", kv_precision=cache))
    for engine, (comments, words) in made.items():
        flag = "--kv_cache_dtype" if engine == "trtllm" else "--kv-cache-dtype"
        assert follows(words, flag) == flags[engine]
        dropped = any(f"no flag makes a cache in {cache}" in comment for comment in comments)
        assert dropped == (flags[engine] is None and cache not in ("bf16", "fp16"))


def test_comments_on_the_model_stand_once():
    made = commands(ModelSpec.from_config("llama-3.1-8b", weight_precision="int4"), replicas=2)
    for both in made.values():
        assert [len(comments) for comments, _ in both] == [1, 0]


def test_what_is_served(tmp_path):
    """The user's folder or the preset's repository, then the name."""
    (tmp_path / "config.json").write_text(json.dumps(SIZES | {"_name_or_path": "/trainer/out"}))
    for model, path in (
        (str(tmp_path), str(tmp_path)),
        ("llama-3.1-70b", "meta-llama/Llama-3.1-70B"),
        ("gpt-3-175b", "gpt-3-175b"),
        (SIZES | {"name": "mine"}, "mine"),
    ):
        made = first(model, tp=8)
        assert made["vllm"][1][:3] == ["vllm", "serve", path]
        assert follows(made["sglang"][1], "--model-path") == path
        assert made["trtllm"][1][:2] == ["trtllm-serve", path]


def test_without_chunks():
    """Left out, vLLM would chunk all the same."""
    made = first("llama-3.1-8b", chunked_prefill=None)
    assert "--no-enable-chunked-prefill" in made["vllm"][1]
    assert follows(made["sglang"][1], "--chunked-prefill-size") == "-1"
    assert "--no-enable-chunked-prefill" not in first("llama-3.1-8b")["vllm"][1]
    assert "--enable_chunked_prefill" not in first("llama-3.1-8b")["trtllm"][1]
    assert "--enable_chunked_prefill" in first("llama-3.1-8b", input_length=9000)["trtllm"][1]


def test_what_trtllm_takes_from_a_file_only():
    comments, _ = first("llama-3.1-8b", cuda_graphs=False, all_reduce="nccl")["trtllm"]
    assert [comment.split(":")[1].strip() for comment in comments] == ["cuda_graph_config", "allreduce_strategy"]
    assert first("llama-3.1-8b")["trtllm"][0] == []


def test_vllm_is_never_told_of_more_sequences_than_a_step_has_tokens():
    made = first("llama-3.1-8b", tp=1, max_num_seqs=512, chunked_prefill=64)
    assert follows(made["vllm"][1], "--max-num-seqs") == "64"


@pytest.mark.parametrize(("max_num_seqs", "replicas", "want"), [(None, 1, "16"), (None, 4, "4"), (48, 4, "48")])
def test_the_largest_batch_is_the_one_asked_for_else_a_share_of_the_load(max_num_seqs, replicas, want):
    made = first("llama-3.1-8b", tp=1, replicas=replicas, max_num_seqs=max_num_seqs)
    flags = {"vllm": "--max-num-seqs", "sglang": "--max-running-requests", "trtllm": "--max_batch_size"}
    assert {engine: follows(made[engine][1], flag) for engine, flag in flags.items()} == dict.fromkeys(flags, want)


@pytest.mark.parametrize(("machine", "vllm"), [("h100", "1024"), ("a100", "256"), ("rtx-4090", "256")])
@pytest.mark.parametrize("load", [{"concurrency": 5000}, {"request_rate": 8.0}])
def test_no_more_requests_at_once_than_the_engine_takes_by_default(machine, vllm, load):
    made = first("llama-3.1-8b", machine=machine, tp=1, load=load)
    assert follows(made["vllm"][1], "--max-num-seqs") == vllm
    assert follows(made["sglang"][1], "--max-running-requests") == "2048"
    assert follows(made["trtllm"][1], "--max_batch_size") == "2048"
    made = first("llama-3.1-8b", machine=machine, tp=1, load=load, chunked_prefill=128)
    assert follows(made["vllm"][1], "--max-num-seqs") == "128"


@pytest.mark.parametrize("policy", PREFILL_POLICIES)
def test_prompts_get_their_turn_as_asked_or_it_is_said(policy):
    made = first("llama-3.1-8b", prefill_policy=policy)
    assert ("--enable-mixed-chunk" in made["sglang"][1]) == (policy == "mixed")
    lacking = {engine for engine, (comments, _) in made.items() if any("has no scheduler" in one for one in comments)}
    assert lacking == {"static": {"vllm", "sglang"}, "prefill-first": {"vllm", "trtllm"}}.get(policy, set())
    assert any("STATIC_BATCH" in comment for comment in made["trtllm"][0]) == (policy == "static")


def test_a_draft_model_must_be_named():
    made = first("llama-3.1-8b", speculative_tokens=3)
    assert json.loads(follows(made["vllm"][1], "--speculative-config")) == {
        "model": "DRAFT",
        "num_speculative_tokens": 3,
    }
    assert follows(made["sglang"][1], "--speculative-num-steps") == "3"
    assert follows(made["sglang"][1], "--speculative-num-draft-tokens") == "4"
    assert "max_draft_len: 3" in made["trtllm"][0][0]
    assert all("DRAFT: name the draft model" in comments[0] for comments, _ in made.values())
    assert not any("DRAFT" in word for _, words in first("llama-3.1-8b").values() for word in words)


def test_a_cached_prefix_is_asked_for():
    assert "--enable-prefix-caching" in first("llama-3.1-8b", load={"concurrency": 16, "cached_prefix": 0.5})["vllm"][1]
    assert "--enable-prefix-caching" not in first("llama-3.1-8b")["vllm"][1]


def test_unequal_shares_of_nodes_are_said():
    """PP 4 as 3 + 1: engines give every node as many ranks."""
    machine = Machine.preset("h100", gpus=3, nodes=2)
    made = commands("llama-3.1-8b", machine=machine, tp=1, pp=4)
    for engine, name in (("vllm", "vLLM"), ("sglang", "SGLang")):
        (comments, _), (others, _) = made[engine]
        assert comments[0] == f"# unequal shares per node: 3 + 1 GPUs; {name} wants as many on every node"
        assert [comment for comment in others if "unequal" in comment] == []
    ((comments, words),) = made["trtllm"]
    assert any("unequal shares per node: 3 + 1 GPUs; give mpirun a hostfile" in comment for comment in comments)
    assert any("node 0 all GPUs; node 1 CUDA_VISIBLE_DEVICES=0" in comment for comment in comments)
    assert words[:4] == ["mpirun", "-n", "4", "trtllm-llmapi-launch"]


def test_mpirun_exports_the_gpus_of_a_replica():
    machine = Machine.preset("h100", gpus=3, nodes=2)  # a group of 2 on each, and one GPU idle
    ((comments, words),) = commands("llama-3.1-8b", machine=machine, tp=2, pp=2)["trtllm"]
    assert words[:7] == ["mpirun", "-n", "4", "--npernode", "2", "-x", "CUDA_VISIBLE_DEVICES=0,1"]
    assert comments == ["# over nodes 0, 1"]
    ((comments, words),) = commands("llama-3.1-8b", machine=Machine.preset("h100", nodes=2), tp=8, pp=2)["trtllm"]
    assert words[:6] == ["mpirun", "-n", "16", "--npernode", "8", "trtllm-llmapi-launch"]
    assert comments == ["# over nodes 0, 1"]
