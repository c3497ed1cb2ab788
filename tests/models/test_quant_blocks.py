"""Quantised checkpoints: what tensor parallelism may not cut, and what their scales take."""

import time

import pytest

from tplab.models.shards import Layout, can_cut, why_not
from tplab.topology import Machine, ModelSpec, Workload, advise, predict
from tplab.topology.advisor.layouts import choice

SMALL = {
    "model_type": "llama",
    "vocab_size": 1000,
    "hidden_size": 1024,
    "intermediate_size": 2816,  # 22 x 128, 44 x 64, 88 x 32, 176 x 16, 11 x 256
    "num_hidden_layers": 6,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "torch_dtype": "float16",
}


def spec_of(quantised, **sizes):
    return ModelSpec.from_config(SMALL | sizes | {"quantization_config": quantised})


def able(quantised, **sizes):
    """Degrees of 1, 2, 4, 8, 16 that leave whole groups."""
    spec = spec_of(quantised, **sizes)
    return [tp for tp in (1, 2, 4, 8, 16) if can_cut(spec, tp, 1)]


def in_groups(size, **more):
    return {
        "quant_method": "compressed-tensors",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": size},
                **more,
            }
        },
        "ignore": ["lm_head"],
    }


def quark(**weight):
    return {"quant_method": "quark", "global_quant_config": {"weight": weight}}


TORCHAO = {
    "quant_method": "torchao",
    "quant_type": {"default": {"_type": "Int8DynamicActivationInt4WeightConfig", "_data": {"group_size": 128}}},
}
BLOCKS = {"quant_method": "fp8", "weight_block_size": [128, 128]}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False}


@pytest.mark.parametrize(
    ("quantised", "expected"),
    [
        (GPTQ, [1, 2]),  # 22 groups; 1024 of the heads are 8
        (GPTQ | {"desc_act": True}, [1, 2]),  # scales on every rank, checked all the same
        (GPTQ | {"group_size": 64}, [1, 2, 4]),
        (GPTQ | {"group_size": 32}, [1, 2, 4, 8]),
        (GPTQ | {"group_size": -1}, [1, 2, 4, 8, 16]),
        ({"quant_method": "awq", "w_bit": 4, "q_group_size": 64}, [1, 2, 4]),
        ({"quant_method": "auto-round", "bits": 4, "group_size": 128}, [1, 2]),
        (in_groups(128), [1, 2]),
        (in_groups(32), [1, 2, 4, 8]),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, [1, 2, 4, 8, 16]),
        ({"quant_method": "modelopt", "quant_algo": "W4A16_AWQ"}, [1, 2]),
        ({"quant_method": "mxfp4"}, [1, 2, 4, 8]),
        ({"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 64}}}, [1, 2, 4]),
        (TORCHAO, [1, 2]),
        (
            {"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "fp4", "group_size": 32}}},
            [1, 2, 4, 8],
        ),
        ({"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "fp8_e4m3"}}}, [1, 2, 4, 8, 16]),
        (BLOCKS, [1, 2]),  # at 4 a rank has 64 of the keys, at 2 128 of them and 1408 = 11 x 128 of the MLP
        ({"quant_method": "fp8", "activation_scheme": "dynamic"}, [1, 2, 4, 8, 16]),  # one scale a matrix
        ({"quant_method": "fbgemm_fp8"}, [1, 2, 4, 8, 16]),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, [1]),
        ({"load_in_8bit": True, "llm_int8_threshold": 6.0}, [1]),  # from before methods had names
        (
            {"quant_method": "torchao", "quant_type": "int4_weight_only", "quant_type_kwargs": {"group_size": 64}},
            [1, 2, 4],
        ),
        ({"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "W4A16_AWQ", "group_size": 64}}, [1, 2, 4]),
    ],
)
def test_shares_are_whole_groups(quantised, expected):
    assert able(quantised) == expected


def test_the_first_name_of_quantization_config_is_read_inside_wrappers_too():
    for config in (SMALL, {"model_type": "llava", "text_config": SMALL}):
        spec = ModelSpec.from_config(config | {"compression_config": in_groups(128)})
        assert spec.weight_precision == "int4"
        assert not can_cut(spec, 4, 1)
        assert not any("compression_config" in note for note in spec.notes)


def test_groups_of_several_precisions_are_said():
    mixed = in_groups(128)
    mixed["config_groups"]["group_1"] = {"targets": ["re:.*down_proj"], "weights": {"num_bits": 8, "type": "float"}}
    assert any("int4 and fp8 weights: all are counted as int4" in note for note in spec_of(mixed).notes)


def test_gguf_is_cut_by_super_blocks_when_its_precision_is_given():
    config = SMALL | {"quantization_config": {"quant_method": "gguf"}, "intermediate_size": 2560}
    spec = ModelSpec.from_config(config, weight_precision="int4")
    assert [tp for tp in (1, 2, 4) if can_cut(spec, tp, 1)] == [1, 2]  # 10 x 256


def test_blocks_hold_for_keys_of_single_heads_and_for_both_halves_of_the_gate():
    wide = {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 4096}
    assert able(BLOCKS, **wide) == [1, 2, 4, 8, 16]  # 16: copied heads of 128
    assert able(BLOCKS, **wide | {"head_dim": 64}) == [1, 2, 4]  # 8: one head of 64
    assert "G·E=512 is 4 groups of 128" in str(why_not(spec_of(BLOCKS, **wide | {"head_dim": 64}), 8, 1))
    structure = {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [128, 128]}
    by_text = {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": structure}}}
    assert able(by_text, **wide | {"head_dim": 64}) == [1, 2, 4]
    structure["block_structure"] = "128x128"
    assert able(by_text, **wide | {"head_dim": 64}) == [1, 2, 4]


@pytest.mark.parametrize(
    "left_out",
    [
        {"ignore": ["lm_head", "re:.*down_proj$", "re:.*o_proj"]},
        {"modules_to_not_convert": ["down_proj", "self_attn"]},
        {"ignored_layers": [f"model.layers.{i}.{name}" for i in range(6) for name in ("mlp.down_proj", "self_attn")]},
        {"ignore": [f"model.language_model.layers.{i}" for i in range(6)]},
        {"exclude_modules": ["model.layers.*mlp*", "*self_attn*"]},
        {"dynamic": {"-:.*down_proj": {}, "-:.*o_proj": {}}},
    ],
)
def test_what_is_left_out_may_be_cut(left_out):
    assert able(GPTQ | left_out) == [1, 2, 4, 8, 16]


@pytest.mark.parametrize(
    "left_out",
    [
        {"modules_to_not_convert": ["lm_head", "visual"]},
        {"ignore": ["re:.*vision.*", "re:visual.*"]},
        {"ignored_layers": ["model.layers.0.mlp.down_proj", "model.layers.5"]},  # not all layers
        {"ignore": ["model.vision_model.layers.0.mlp.down_proj"]},
        {"ignore": ["re:(((", "re:(a+)+$", "re:.*.*.*.*.*.*.*x"]},
    ],
)
def test_what_is_left_out_elsewhere_changes_nothing(left_out):
    started = time.perf_counter()
    assert able(GPTQ | left_out) == [1, 2]
    assert time.perf_counter() - started < 2


@pytest.mark.parametrize("tp", [3, 11, 8])
def test_degrees_that_an_error_names_leave_whole_groups_too(tp):
    assert f"use 1 or 2; got {tp}" in str(why_not(spec_of(GPTQ), tp, 1))


def test_targets_that_cannot_be_told_are_taken_as_quantised():
    layers = "|".join(map(str, range(80)))
    long = in_groups(128, targets=[rf"re:model\.layers\.({layers})\.mlp\.down_proj"])
    assert able(long) == [1, 2]
    assert able(in_groups(128, targets=["re:.*no_such_module"])) == [1, 2, 4, 8, 16]


def test_groups_without_end_are_refused_at_once_and_many_names_that_are_left_out_are_read_once():
    left_out = {"ignore": [f"model.layers.{i}.mlp.up_proj" for i in range(30_000)]}
    many = {f"g{i}": in_groups(128)["config_groups"]["group_0"] | {"targets": [f"re:.*x{i}$"]} for i in range(100)}
    started = time.perf_counter()
    spec_of(in_groups(128) | left_out | {"config_groups": many})
    with pytest.raises(ValueError, match=r"config_groups in quantization_config must be at most 100.* got 101"):
        spec_of(in_groups(128) | {"config_groups": many | {"one": many["g0"]}})
    assert time.perf_counter() - started < 2


def test_groups_hold_for_the_modules_that_they_are_said_of():
    attention = in_groups(128)
    attention["config_groups"]["group_0"]["targets"] = ["re:.*self_attn.*"]
    assert able(attention) == [1, 2, 4, 8]  # 16 heads of 64: 8 groups
    mixed = in_groups(128)
    mixed["config_groups"]["group_1"] = {
        "targets": ["re:.*mlp.*"],
        "weights": {"num_bits": 4, "type": "int", "group_size": 32},
    }
    mixed["config_groups"]["group_0"]["targets"] = ["re:.*self_attn.*"]
    assert able(mixed) == [1, 2, 4, 8]


def test_kernels_beside_bf16_want_whole_tiles():
    assert able(in_groups(32), torch_dtype="bfloat16") == [1, 2]  # 2816 / 4 = 704, no 128
    assert able(GPTQ | {"group_size": -1}, torch_dtype="bfloat16") == [1, 2, 4]
    both = in_groups(32, input_activations={"num_bits": 8, "type": "int"})
    assert able(both, torch_dtype="bfloat16") == [1, 2, 4, 8]  # other kernels
    awq = {"quant_method": "awq", "bits": 4, "group_size": 32}
    assert able(awq, torch_dtype="bfloat16") == [1, 2, 4, 8]  # falls back on its own


def test_activation_order_is_said():
    assert any("desc_act" in note for note in spec_of(GPTQ | {"desc_act": True}).notes)
    assert not any("desc_act" in note for note in spec_of(GPTQ).notes)


def test_other_weights_than_the_files_have_no_groups():
    spec = ModelSpec.from_config(SMALL | {"quantization_config": GPTQ}, weight_precision="fp8")
    assert can_cut(spec, 4, 1)


def test_the_reason_has_numbers_and_the_way_out():
    said = str(why_not(spec_of(GPTQ), 4, 1))
    assert "intermediate_size=2816 is 22 groups of 128 (gptq, group_size 128), which 4 ranks cannot share" in said
    assert "use 1 or 2; got 4" in said
    with pytest.raises(ValueError, match="whole groups"):
        Layout.of(spec_of(GPTQ), tp=4)


def test_none_is_recommended_or_started():
    spec, machine = spec_of(GPTQ, intermediate_size=2944), Machine.preset("l40s")  # 23 groups
    workload = Workload(input_length=64, output_length=8, concurrency=1)
    advice = advise(spec, machine, workload)
    table = advice.table()
    assert set(table[table["rank"] > 0]["tp"]) == {1}
    reasons = table[table["tp"].isin([2, 4, 8])]["verdict"]
    assert len(reasons)
    assert reasons.str.contains("23 groups").all()
    assert "tensor-parallel-size 1 " in str(advice.commands["vllm"])
    with pytest.raises(ValueError, match="23 groups"):
        predict(spec, machine, workload, tp=2, pp=1)


def test_int4_without_a_checkpoint_says_what_the_usual_groups_would_need():
    spec = ModelSpec.from_config(SMALL, weight_precision="int4")
    machine = Machine.preset("l40s", gpus=4)
    notes = choice(spec, machine, Workload(input_length=64, output_length=8, concurrency=1), tp=4, pp=1).notes
    assert any("groups of 128" in note and "2816" in note for note in notes)


@pytest.mark.parametrize(
    ("quantised", "bits"),
    [
        (GPTQ, 4 + 20 / 128),
        (GPTQ | {"group_size": 32}, 4 + 20 / 32),
        (in_groups(64), 4 + 20 / 64),
        ({"quant_method": "mxfp4"}, 4 + 8 / 32),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, 4 + 8 / 16),
        (GPTQ | {"bits": 8}, 8),
        (BLOCKS, 8),
    ],
)
def test_scales_and_zero_points_are_counted(quantised, bits):
    assert 8 * spec_of(quantised).weight_itemsize == pytest.approx(bits)


@pytest.mark.parametrize(
    ("quantised", "message"),
    [
        (GPTQ | {"group_size": 0.5}, "group_size in quantization_config must be a whole number"),
        (GPTQ | {"group_size": "many"}, "group_size in quantization_config must be a whole number"),
        (BLOCKS | {"weight_block_size": [128]}, "weight_block_size in quantization_config must be two whole numbers"),
        (BLOCKS | {"weight_block_size": [0, 128]}, "weight_block_size .* must be a whole number from 1"),
        (in_groups(-3), "group_size in config_groups.group_0"),
    ],
)
def test_groups_that_are_none_are_refused_by_name(quantised, message):
    with pytest.raises(ValueError, match=message):
        spec_of(quantised)
