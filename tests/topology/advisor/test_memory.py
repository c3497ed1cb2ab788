"""Bytes told are bytes allocated: the advisor's arithmetic against the modules and caches of ``tplab.models``."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tplab.models.decoder import Stage
from tplab.models.shards import Layout, kv_bytes, kv_bytes_per_token, weight_bytes
from tplab.models.spec import ModelConfig
from tplab.topology import EnginePolicy, Machine, ModelSpec, Workload
from tplab.topology.advisor.engine_memory import HOST_BYTES, engine_memory
from tplab.topology.advisor.memory import (
    CACHE_PAGE,
    LayoutMemory,
    activation_bytes,
    all_ranks,
    cached_tokens,
    fullest_rank,
    max_requests,
)
from tplab.topology.advisor.workload import MOST
from tplab.topology.machine.spec_sheets import GPUS

BASE = {
    "model_type": "llama",
    "hidden_size": 48,
    "intermediate_size": 84,
    "num_hidden_layers": 7,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 6,
    "vocab_size": 1009,
    "max_position_embeddings": 256,
    "torch_dtype": "bfloat16",
}
CONFIGS = {
    "llama": BASE,
    "kv heads that straddle cuts": BASE | {"num_key_value_heads": 2},
    "multi-query, fp32": BASE | {"num_key_value_heads": 1, "torch_dtype": "float32"},
    "qwen2: biases, tied": BASE | {"model_type": "qwen2", "tie_word_embeddings": True, "max_window_layers": 7},
    "qwen3: head norms": BASE | {"model_type": "qwen3", "num_key_value_heads": 12},
    "biases everywhere": BASE | {"attention_bias": True, "mlp_bias": True, "vocab_size": 7},
    "gemma": BASE | {"model_type": "gemma", "num_key_value_heads": 3, "tie_word_embeddings": True},
}
LAYOUTS = [(1, 1), (2, 1), (3, 2), (4, 3), (6, 1), (12, 7), (1, 7), (2, 5)]


class Place:
    """A rank's place in a group that is not there: enough to build a stage on the meta device."""

    device_types: frozenset[str] = frozenset()
    start_all_reduce = None

    def __init__(self, index, size):
        self.index, self.size = index, size


@pytest.mark.sampled(every=3)
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("tp", "pp"), LAYOUTS)
def test_as_allocated(name, tp, pp):
    """Every rank's weights and cache, byte for byte."""
    spec = ModelSpec.from_config(CONFIGS[name])
    config = ModelConfig.from_hf(CONFIGS[name])
    layout = Layout.of(spec, tp, pp)
    for rank in range(layout.gpus_per_replica):
        stage, index = layout.place(rank)
        module = Stage(config, layout.spec(stage), Place(index, tp), dtype=getattr(torch, config.dtype))
        assert weight_bytes(spec, layout, stage, index) == module.weight_bytes
        cached = sum(cache.num_bytes for cache in module.make_caches(3, 11))
        assert kv_bytes(spec, layout, stage, index, requests=3, context=11) == cached
        assert kv_bytes_per_token(spec, layout, stage, index) * 33 == cached


@pytest.mark.parametrize("preset", ["llama-3.1-8b", "llama-3.1-405b", "qwen3-4b", "gemma-2-9b", "gpt-3-175b"])
@pytest.mark.parametrize("precision", ["bf16", "fp8", "int4"])
def test_one_rank_holds_the_model(preset, precision):
    """Whatever the precision: all of it on one GPU, and what layouts cut adds up to it, less what is held twice."""
    spec = ModelSpec.from_config(preset, weight_precision=precision)
    assert weight_bytes(spec, Layout.of(spec, 1, 1), 0, 0) == pytest.approx(spec.weight_bytes, rel=1e-12)
    layout = Layout.of(spec, 1, 2)
    over_stages = sum(weight_bytes(spec, layout, stage, 0) for stage in range(2))
    twice = spec.lm_head_params * spec.activation_itemsize if spec.tied_embeddings else 0
    assert over_stages == pytest.approx(spec.weight_bytes + twice, rel=1e-12)


def test_quantisation_leaves_the_tables_alone():
    """An fp8 70B checkpoint has 72.7 GB, not 70.6: embedding and lm_head stay in bf16."""
    spec = ModelSpec.from_config("llama-3.1-70b", weight_precision="fp8")
    assert spec.weight_bytes > spec.total_params
    assert spec.weight_bytes == pytest.approx(spec.total_params + 2 * spec.embedding_params, rel=1e-4)


def test_six_heads_two_kv_heads_three_ranks():
    """The middle rank's two query heads belong to different groups: it keeps both key-value heads."""
    spec = ModelSpec.from_config(BASE | {"num_attention_heads": 6, "num_key_value_heads": 2})
    assert [spec.kv_heads_of_rank(rank, 3) for rank in range(3)] == [1, 2, 1]
    assert spec.kv_heads_per_rank(3) == 2


@settings(max_examples=100, deadline=None)
@given(group=st.integers(1, 6), kv=st.integers(1, 6), data=st.data())
def test_distinct_kv_heads_by_counting(group, kv, data):
    heads = group * kv
    tp = data.draw(st.sampled_from([n for n in range(1, heads + 1) if heads % n == 0]))
    spec = ModelSpec.from_config(BASE | {"num_attention_heads": heads, "num_key_value_heads": kv})
    each = heads // tp
    counted = [len({head // group for head in range(rank * each, (rank + 1) * each)}) for rank in range(tp)]
    assert [spec.kv_heads_of_rank(rank, tp) for rank in range(tp)] == counted
    assert spec.kv_heads_per_rank(tp) == max(counted)


@settings(max_examples=100, deadline=None)
@given(
    preset=st.sampled_from(["llama-3.1-8b", "qwen3-32b", "gemma-2-9b", "mistral-7b-v0.1"]),
    gpu=st.sampled_from(["h100", "l4", "rtx-4090"]),
    tp=st.sampled_from([1, 2, 4, 8]),
    pp=st.integers(1, 6),
    prompt=st.integers(1, 20_000),
    output=st.integers(1, 4000),
    chunk=st.none() | st.integers(64, 16_384),
    engine=st.sampled_from(["generic", "vllm", "sglang", "trtllm", "fastertransformer", "lab"]),
)
def test_room_is_used_up_to_the_last_request(preset, gpu, tp, pp, prompt, output, chunk, engine):
    """As many requests as said fit on every rank, one more does not."""
    spec = ModelSpec.from_config(preset)
    engine = EnginePolicy(name=engine, chunked_prefill=chunk)
    workload = Workload(input_length=prompt, output_length=output, concurrency=1, engine=engine)
    layout = Layout.of(spec, tp, pp)
    most = max_requests(spec, GPUS[gpu], workload, layout)

    def free(requests):
        return min(rank.free for rank in all_ranks(spec, GPUS[gpu], workload, layout, requests=requests))

    assert most == 0 or free(most) >= -1
    assert free(most + 1) < 1
    assert fullest_rank(spec, GPUS[gpu], workload, layout, requests=most).free == free(most)


QUESTIONS = {
    "preset": st.sampled_from(["llama-3.1-8b", "qwen3-32b", "llama-3.1-70b", "llama-2-13b", "gpt-3-175b"]),
    "gpu": st.sampled_from(["h100", "a100", "l4", "rtx-4090", "v100-32gb", "b200"]),
    "weights": st.sampled_from(["bf16", "fp8", "int4"]),
    "tp": st.sampled_from([1, 2, 4, 8]),
    "pp": st.integers(1, 5),
    "policy": st.builds(
        EnginePolicy,
        name=st.sampled_from(["generic", "vllm", "sglang", "trtllm", "fastertransformer", "lab"]),
        chunked_prefill=st.none() | st.integers(16, 16_384),
        max_num_seqs=st.none() | st.integers(1, 3000),
        gpu_memory_utilization=st.floats(0.3, 1.0),
    ),
    "prompt": st.integers(1, 30_000),
}


class Held:
    """A layout's memory that can be asked with something else."""

    def __init__(self, preset, gpu, weights, tp, pp, policy, prompt):
        self.spec = ModelSpec.from_config(preset, weight_precision=weights)
        self.gpu, self.tp, self.pp, self.policy, self.prompt = GPUS[gpu], tp, pp, policy, prompt

    def of(self, spec=None, gpu=None, tp=None, pp=None, prompt=None, **policy):
        spec = spec or self.spec
        engine = replace(self.policy, **policy)
        workload = Workload(input_length=prompt or self.prompt, output_length=100, concurrency=1, engine=engine)
        return LayoutMemory.of(spec, gpu or self.gpu, workload, Layout.of(spec, tp or self.tp, pp or self.pp))


def no_less(more, less):
    assert more.token_capacity() >= less.token_capacity()
    assert more.max_requests >= less.max_requests


@settings(max_examples=150, deadline=None)
@given(more=st.floats(1, 3), **QUESTIONS)
def test_more_memory_and_a_larger_share_of_it_never_hold_less(more, **question):
    held = Held(**question)
    no_less(held.of(gpu=replace(held.gpu, memory_GB=held.gpu.memory_GB * more)), held.of())
    share = held.policy.gpu_memory_utilization
    no_less(held.of(gpu_memory_utilization=min(1.0, share * more)), held.of())


@settings(max_examples=150, deadline=None)
@given(**QUESTIONS)
def test_more_ranks_never_hold_less_where_they_share_everything(**question):
    """Each brings a whole GPU; the buffers of its collectives are less than that."""
    held = Held(**question)
    if held.spec.num_kv_heads % (2 * held.tp) == 0:
        no_less(held.of(tp=2 * held.tp), held.of())
    if held.spec.num_layers % (2 * held.pp) == 0:
        no_less(held.of(pp=2 * held.pp), held.of())


@settings(max_examples=150, deadline=None)
@given(more=st.integers(1, 5000), **QUESTIONS)
def test_larger_steps_and_batches_leave_no_more_to_the_cache(more, **question):
    held = Held(**question)
    chunk, batch = held.policy.chunked_prefill or 512, held.policy.max_num_seqs or 256
    no_less(held.of(chunked_prefill=chunk), held.of(chunked_prefill=chunk + more))
    larger = held.of(max_num_seqs=batch + more)
    assert held.of(max_num_seqs=batch).token_capacity() >= larger.token_capacity()
    assert held.of().max_requests >= held.of(prompt=held.prompt + more).max_requests


@settings(max_examples=150, deadline=None)
@given(**QUESTIONS)
def test_fewer_bits_never_hold_less(**question):
    held = Held(**question)
    no_less(held.of(replace(held.spec, kv_precision="fp8")), held.of())
    no_less(held.of(replace(held.spec, weight_precision="fp8")), held.of(replace(held.spec, weight_precision="bf16")))


@settings(max_examples=150, deadline=None)
@given(**QUESTIONS)
def test_no_more_is_promised_than_the_engine_will_allow(**question):
    """Requests fit in the tokens of the cache, in whole pages; the engine's share is of what the GPU has."""
    held = Held(**question).of()
    pages = cached_tokens(held.spec, held.workload.context_length)
    assert held.max_requests * pages <= held.token_capacity()
    assert held.max_requests <= (held.workload.engine.max_num_seqs or MOST)
    assert held.token_capacity() % CACHE_PAGE == 0
    for rank in held.ranks(max(1, held.max_requests)):
        assert min(rank.weights, rank.kv, rank.activations, rank.workspace) > 0
        assert rank.usable <= held.gpu.memory_bytes or rank.free < 0


def test_70b_fp8_starves_for_cache_on_one_80_gb_card():
    """Weights leave next to nothing on one card; on two there is room for many times as much as twice."""
    spec = ModelSpec.from_config("llama-3.1-70b", weight_precision="fp8", kv_precision="fp8")
    gpu = Machine.preset("h100").gpu
    workload = Workload(input_length=128, output_length=2048, concurrency=64)
    one, two = (max_requests(spec, gpu, workload, Layout.of(spec, tp, 1)) for tp in (1, 2))
    assert 0 < one < workload.concurrency < two
    assert two > 10 * one
    in_tokens = [LayoutMemory.of(spec, gpu, workload, Layout.of(spec, tp, 1)).token_capacity() for tp in (1, 2)]
    assert in_tokens[0] // workload.context_length == one
    assert in_tokens[1] > 10 * in_tokens[0]


def test_copied_kv_heads_stop_the_gain():
    """8 key-value heads on 16 ranks: cache per rank as on 8."""
    spec = ModelSpec.from_config("llama-3.1-405b")
    per_token = [kv_bytes_per_token(spec, Layout.of(spec, tp, 1), 0, 0) for tp in (4, 8, 16)]
    assert per_token[0] == 2 * per_token[1]
    assert per_token[1] == per_token[2]
    eighth, sixteenth = (weight_bytes(spec, Layout.of(spec, tp, 1), 0, 0) for tp in (8, 16))
    assert sixteenth > eighth / 2


def test_windowed_layers_keep_less():
    spec = ModelSpec.from_config("gemma-2-9b")
    layout = Layout.of(spec, 1, 1)
    whole = replace(spec, windows=())
    workload = Workload(input_length=1, output_length=1, concurrency=1)
    kept = {
        (model, n): fullest_rank(model, GPUS["h100"], replace(workload, input_length=n - 1), layout).kv
        for model in (spec, whole)
        for n in (4096, 8192)
    }
    assert kept[spec, 4096] == kept[whole, 4096] == kv_bytes(whole, layout, 0, 0, requests=1, context=4096)
    assert kept[spec, 8192] == 0.75 * kept[whole, 8192]


def test_pages():
    spec = ModelSpec.from_config(BASE)
    layout = Layout.of(spec, 1, 1)
    workload = Workload(input_length=16, output_length=1, concurrency=1)
    paged = fullest_rank(spec, GPUS["h100"], workload, layout, requests=2).kv
    assert paged == kv_bytes(spec, layout, 0, 0, requests=2, context=32)


def test_activations():
    """They grow with tokens, shrink with t inside the layer but not to 1/t, and sampling counts on the last stage."""
    spec, vllm = ModelSpec.from_config("llama-3.1-8b"), engine_memory("vllm")

    def of(tp, pp=1, tokens=1024, sampled=8, last=False, model=spec):
        layout = Layout.of(model, tp, pp)
        return activation_bytes(model, layout, vllm, tokens=tokens, sampled=sampled, last_stage=last)

    assert of(1, tokens=2048) == 2 * of(1)
    assert of(1) / 8 < of(8) < of(1)
    assert of(1, pp=2) == of(1) + 2 * 1024 * 4096 * 2
    assert of(1, last=True) == of(1)  # eight rows of logits are less than 1024 tokens of the MLP
    assert of(1, sampled=256, last=True) == 1024 * 4096 * 2 + 256 * 128256 * 38.4
    assert of(2, sampled=256, last=True) == of(1, sampled=256, last=True) + 256 * 128256 / 2 * 2
    four_bits = replace(spec, weight_precision="int4")
    assert of(2, model=four_bits) == of(2) + 2 * 4096 * 14336 / 2 * 2  # gate and up, widened


def test_activations_of_one_model_in_bytes():
    """Llama 8B in bf16, 1000 tokens: four streams of 4096, with TP five, and inside them the larger of attention's
    queries, output, keys and values (2·4096 + 2·8·128) and the MLP's three times 14336."""
    spec = ModelSpec.from_config("llama-3.1-8b")

    def of(model, tp):
        layout = Layout.of(model, tp, 1)
        return activation_bytes(model, layout, engine_memory("lab"), tokens=1000, sampled=1, last_stage=False)

    assert of(spec, 1) == 2 * 1000 * (4 * 4096 + 3 * 14336)
    assert of(spec, 8) == 2 * 1000 * (5 * 4096 + 3 * 14336 / 8)
    assert of(replace(spec, intermediate_size=1024), 1) == 2 * 1000 * (4 * 4096 + 2 * 4096 + 2 * 8 * 128)


def test_stages_differ():
    """Embedding first, lm_head last, the longest in the middle; the fullest rank is one of them."""
    spec = ModelSpec.from_config("llama-3.1-8b")
    workload = Workload(input_length=1000, output_length=100, concurrency=1)
    layout = Layout.of(spec, 2, 3)
    ranks = all_ranks(spec, GPUS["h100"], workload, layout, requests=4)
    assert [(rank.stage, rank.index) for rank in ranks] == [(s, i) for s in range(3) for i in range(2)]
    assert ranks[4].activations > ranks[0].activations
    assert ranks[0].weights != ranks[2].weights
    assert (
        min(ranks, key=lambda rank: rank.free).free
        == fullest_rank(spec, GPUS["h100"], workload, layout, requests=4).free
    )
    one = ranks[2]
    assert one.total == one.weights + one.kv + one.activations + one.workspace


def test_a_cpu_core_has_no_cuda_context():
    spec = ModelSpec.from_config(BASE)
    workload = Workload(input_length=10, output_length=10, concurrency=1)
    core = replace(GPUS["h100"], kind="cpu")
    one, two = (fullest_rank(spec, core, workload, Layout.of(spec, tp, 1)).workspace for tp in (1, 2))
    assert one == two == HOST_BYTES


def test_stages_given_by_hand():
    spec = ModelSpec.from_config(BASE)
    uneven = Layout.of(spec, 1, 2, layers_of_stage=[5, 2])
    assert kv_bytes_per_token(spec, uneven, 0, 0) == 2.5 * kv_bytes_per_token(spec, uneven, 1, 0)
    with pytest.raises(ValueError, match="add up to 7"):
        Layout.of(spec, 1, 2, layers_of_stage=[5, 3])
