"""The fused kernels against the layers' own operations: on a GPU as they are, on a CPU by Triton's interpreter.

Triton decides when it is imported, so the interpreted run is a pytest of its own, started by the first test here.
"""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from torch.nn import functional as F

from tplab.layers import kernels
from tplab.layers.core_attention import KVCache, RotaryEmbedding, attend
from tplab.layers.strategies import few_tokens_linear
from tplab.models.rope import RopeScaling

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
runs = pytest.mark.skipif(
    kernels.why_not(DEVICE, torch.float32) is not None, reason="needs a GPU, or TRITON_INTERPRET=1 (the first test)"
)


@pytest.mark.skipif(torch.cuda.is_available() or kernels.INTERPRETED, reason="the tests below run here")
@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
@pytest.mark.timeout(400)
def test_the_kernels_by_tritons_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=380)
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


@runs
@pytest.mark.parametrize("vectors", [1, 3, 16])
@pytest.mark.parametrize(("rows", "columns"), [(7, 1030), (33, 512)])
@pytest.mark.parametrize("bias", [False, True])
@torch.no_grad()
def test_products_of_a_matrix_and_few_vectors(vectors: int, rows: int, columns: int, bias: bool) -> None:
    from tplab.layers.kernels.gemv import gated, gated_gemv, gemv

    x, w = drawn(vectors, columns), drawn(2 * rows, columns, seed=1) / columns**0.5
    b = drawn(2 * rows, seed=2) if bias else None
    want = F.linear(x.double(), w.double(), None if b is None else b.double())
    torch.testing.assert_close(gemv(x, w, b).double(), want, atol=1e-5, rtol=1e-5)
    gate, up = want.chunk(2, -1)
    for name, activation in (("swiglu", F.silu), ("geglu", lambda y: F.gelu(y, approximate="tanh"))):
        torch.testing.assert_close(gated_gemv(x, w, b, name).double(), activation(gate) * up, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(gated(want.float(), name).double(), activation(gate) * up, atol=1e-5, rtol=1e-4)


@runs
@torch.no_grad()
def test_what_does_not_fit_together_is_refused_as_by_torch() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        few_tokens_linear(drawn(1, 64), drawn(8, 32))  # not as two vectors of 32
    with pytest.raises(RuntimeError, match="dtype"):
        few_tokens_linear(drawn(1, 64, dtype=torch.bfloat16), drawn(8, 64))


@runs
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("offset", [0.0, 1.0])
@torch.no_grad()
def test_the_sum_is_rounded_once_and_then_normed(dtype: torch.dtype, offset: float) -> None:
    from tplab.layers.kernels.norm import add_norm

    x, delta, weight = drawn(2, 3, 200, dtype=dtype), drawn(2, 3, 200, seed=1, dtype=dtype), drawn(200, seed=2)
    total, normed = add_norm(x, delta, weight.to(dtype), 1e-5, offset)
    if not kernels.INTERPRETED or dtype is torch.float32:  # the interpreter cuts off where a GPU rounds
        assert torch.equal(total, x + delta)
    want = F.rms_norm(total.double(), (200,), weight.to(dtype).double() + offset, 1e-5)
    torch.testing.assert_close(normed.double(), want, atol=1e-5, rtol=1e-5 if dtype is torch.float32 else 8e-3)
    same, alone = add_norm(total, None, weight.to(dtype), 1e-5, offset)
    assert same is total or torch.equal(same, total)
    assert torch.equal(alone, normed)


CASES = [  # sequences, query and key-value heads, head dimension, capacity, tokens in the cache, window, norms
    (2, 4, 2, 16, 40, 7, None, False),
    (1, 6, 1, 24, 300, 290, None, True),
    (3, 4, 4, 32, 600, 211, 50, True),
    (2, 8, 2, 16, 300, 0, None, False),
]


@runs
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_a_token_attends_to_the_cache_and_nothing_else(case: tuple[int, ...]) -> None:
    from tplab.layers.kernels.attention import decode_attention
    from tplab.layers.kernels.rotary import rotate_into_cache

    batch, num_q, num_kv, size, capacity, past, window, normed = case
    starts = torch.tensor([0, past // 2, past // 3])[:batch].to(DEVICE)
    rope = RotaryEmbedding(size)
    cos, sin = rope.tables(capacity, torch.float32, DEVICE)
    cache = KVCache(batch, num_kv, capacity, size, device=DEVICE)
    for held in (cache.k_BGSE, cache.v_BGSE):
        held[:, :, :past] = drawn(batch, num_kv, past, size, seed=3)
        held[:, :, past:] = torch.nan  # nobody may look there
    keys, values = cache.k_BGSE.clone(), cache.v_BGSE.clone()
    cache.length = past
    qkv = drawn(batch, 1, (num_q + 2 * num_kv) * size, seed=4)
    of_q, of_k = drawn(size, seed=5), drawn(size, seed=6)
    on_device = torch.tensor([past], dtype=torch.int32, device=DEVICE)
    q = rotate_into_cache(
        qkv, keys, values, cos=cos, sin=sin, past=on_device, positions=starts,
        norms=(of_q, of_k, 1e-6, 0.5) if normed else None,
    )  # fmt: skip
    firsts = torch.arange(num_kv + 1, dtype=torch.int32, device=DEVICE) * (num_q // num_kv)
    got = decode_attention(
        q[:, 0], keys, values, past=on_device, starts_B=starts, firsts=firsts, most=num_q // num_kv, window=window
    )
    heads = qkv.view(batch, 1, -1, size).transpose(1, 2)
    query, key, value = heads.split([num_q, num_kv, num_kv], 1)
    if normed:
        query = F.rms_norm(query, (size,), of_q + 0.5, 1e-6)
        key = F.rms_norm(key, (size,), of_k + 0.5, 1e-6)
    places = torch.arange(past + 1, device=DEVICE)
    mask = (places >= starts[:, None])[:, None, None]
    if window is not None:
        mask = mask & (places > past - window)
    positions = (past - starts)[:, None]
    want = attend(query, key, value, rope=rope, positions=positions, cache=cache, mask=mask)[:, :, 0]
    torch.testing.assert_close(got, want, atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(keys[:, :, : past + 1], cache.k_BGSE[:, :, : past + 1], atol=1e-5, rtol=1e-5)
    assert torch.equal(values[:, :, : past + 1], cache.v_BGSE[:, :, : past + 1])
    assert keys[:, :, past + 1 :].isnan().all(), "places beyond this token were written"


FAMILIES = {
    "llama": {},
    "uneven heads": {"num_heads": 6, "num_kv_heads": 3, "head_dim": 24},
    "qwen3": {"model_type": "qwen3", "qk_norm": True, "qkv_bias": True},
    "gemma": {
        "model_type": "gemma",
        "gate": "gelu",
        "norm_offset": 1.0,
        "embedding_scale": 8.0,
        "tied_embeddings": True,
    },
    "biases": {"out_bias": True, "mlp_bias": True},
    "windows": {"model_type": "mistral", "windows": (None, 3)},
    "yarn": {"rope_scaling": RopeScaling(kind="yarn", factor=4.0, original_max_positions=4), "rope_theta": 50.0},
    "dynamic": {"rope_scaling": RopeScaling(kind="dynamic", factor=4.0), "max_positions": 6, "rope_theta": 50.0},
}


@runs
@pytest.mark.parametrize("family", FAMILIES)
def test_a_stage_decodes_as_the_layers_do(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefill and steps, padded prompts: with every kernel, and with none."""
    from tplab.models.checkpoint import RandomWeights, fill
    from tplab.models.decoder import Padding, Stage
    from tplab.models.shards import Layout
    from tplab.models.spec import ModelConfig

    sizes = {"vocab_size": 101, "hidden_size": 64, "intermediate_size": 96, "num_layers": 2, "num_heads": 4}
    sizes |= {"num_kv_heads": 2, "head_dim": 16, "max_positions": 64, "dtype": "float32", "model_type": "llama"}
    config = ModelConfig(**(sizes | FAMILIES[family]))  # type: ignore[arg-type]
    stage = Stage(config, Layout.of(config).spec(0), None, dtype=torch.float32)
    fill(stage, RandomWeights(config, 0), DEVICE, lambda *_: None)
    assert stage.why_no_decode() is None
    prompts = [[1, 2, 3, 4, 5], [6, 7, 8]]
    with torch.inference_mode():
        padding = Padding([5, 3], 12, DEVICE)
        fused, plain = stage.make_caches(2, 12), stage.make_caches(2, 12)
        past = torch.tensor([5], dtype=torch.int32, device=DEVICE)
        got = stage(padding.ids(prompts), padding=padding, caches=fused)
        with monkeypatch.context() as patch:
            patch.setattr(kernels, "usable", lambda x: False)
            want = stage(padding.ids(prompts), padding=padding, caches=plain)
        for _ in range(3):
            torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)
            token = want.argmax(-1)[:, None]
            got = stage.decode(token, padding=padding, caches=fused, past=past)
            past += 1
            with monkeypatch.context() as patch:
                patch.setattr(kernels, "usable", lambda x: False)
                want = stage(token, padding=padding, caches=plain)


def test_the_reason_why_not_is_said() -> None:
    if not kernels.INTERPRETED:
        assert "need a GPU; this rank computes on cpu" in str(kernels.why_not(torch.device("cpu"), torch.float32))
    if find_spec("triton") is not None:
        assert "the weights are torch.float64" in str(kernels.why_not(torch.device("cuda"), torch.float64))
