"""Parameters as ``ModelSpec`` counts them beside transformers' own modules, for models as they are published.

    python tests/benchmarks/count_models.py

The configurations have the sizes and the spelling of the files on Hugging Face, old keys and keys left out included, as
far as they say how much there is. transformers makes a module of each on the meta device, which takes no memory. Models
whose code lies beside their checkpoint stand beside the number that is published with it, in billions as written there.
"""

import logging
from typing import Any

import torch
import transformers

from tplab.models.spec import ModelSpec


def sizes(
    d: int, layers: int, heads: int, kv: int | None, wide: int, vocab: int, length: int = 4096, **more: Any
) -> dict[str, Any]:
    """Keys as Llama spells them.

    Args:
        d, layers, heads, kv, wide, vocab: the sizes; ``kv`` None where the file has no such key.
        length: longest sequence.
        more: keys of the family.
    """
    keys = {"hidden_size": d, "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": wide}
    grouped = {} if kv is None else {"num_key_value_heads": kv}
    return keys | grouped | {"vocab_size": vocab, "max_position_embeddings": length} | more


def gpt(d: int, layers: int, heads: int, vocab: int, length: int, **more: Any) -> dict[str, Any]:
    """Keys as GPT-2 spells them."""
    return {"n_embd": d, "n_layer": layers, "n_head": heads, "vocab_size": vocab, "n_positions": length} | more


def opt(d: int, layers: int, heads: int, word: int, **more: Any) -> dict[str, Any]:
    keys = {"hidden_size": d, "num_hidden_layers": layers, "num_attention_heads": heads, "ffn_dim": 4 * d}
    return keys | {"vocab_size": 50272, "max_position_embeddings": 2048, "word_embed_proj_dim": word} | more


UNTIED, TIED, GELU = {"tie_word_embeddings": False}, {"tie_word_embeddings": True}, {"hidden_act": "gelu_new"}
FALCON = {"bias": False, "parallel_attn": True, "alibi": False, "vocab_size": 65024}
MODELS: dict[str, dict[str, Any]] = {
    "Llama-3.1-8B": sizes(4096, 32, 32, 8, 14336, 128256, model_type="llama", **UNTIED),
    "Mistral-7B-v0.3": sizes(4096, 32, 32, 8, 14336, 32768, model_type="mistral", **UNTIED),
    "Qwen2.5-0.5B": sizes(896, 24, 14, 2, 4864, 151936, model_type="qwen2", **TIED),
    "Qwen3-14B": sizes(5120, 40, 40, 8, 17408, 151936, model_type="qwen3", head_dim=128, **UNTIED),
    "gemma-2b": sizes(2048, 18, 8, 1, 16384, 256000, model_type="gemma", head_dim=256),
    "gemma-2-9b": sizes(3584, 42, 16, 8, 14336, 256000, model_type="gemma2", head_dim=256),
    "gemma-3-1b": sizes(1152, 26, 4, 1, 6912, 262144, model_type="gemma3_text", head_dim=256),
    "starcoder2-3b": sizes(3072, 30, 24, 2, 12288, 49152, model_type="starcoder2", use_bias=True),
    "starcoder2-15b": sizes(6144, 40, 48, 4, 24576, 49152, model_type="starcoder2", use_bias=True),
    "phi-1_5": sizes(2048, 24, 32, None, 8192, 51200, 2048, model_type="phi", **GELU, **UNTIED),
    "phi-2": sizes(2560, 32, 32, 32, 10240, 51200, 2048, model_type="phi", **GELU, **UNTIED),
    "Phi-3-mini-4k": sizes(3072, 32, 32, 32, 8192, 32064, model_type="phi3", **UNTIED),
    "phi-4": sizes(5120, 40, 40, 10, 17920, 100352, model_type="phi3", **UNTIED),
    "Nemotron-Mini-4B": sizes(3072, 32, 24, 8, 9216, 256000, model_type="nemotron", head_dim=128, hidden_act="relu2"),
    "Nemotron-4-340B": sizes(18432, 96, 96, 8, 73728, 256000, model_type="nemotron", head_dim=192, hidden_act="relu2"),
    "Apertus-8B": sizes(4096, 32, 32, 8, 21504, 131072, model_type="apertus", hidden_act="xielu", **UNTIED),
    "c4ai-command-r-v01": sizes(8192, 40, 64, 64, 22528, 256000, model_type="cohere", use_qk_norm=False),
    "c4ai-command-r-plus": sizes(12288, 64, 96, 8, 33792, 256000, model_type="cohere", use_qk_norm=True),
    "c4ai-command-r7b": sizes(4096, 32, 32, 8, 14336, 256000, model_type="cohere2", head_dim=128),
    "SmolLM3-3B": sizes(2048, 36, 16, 4, 11008, 128256, model_type="smollm3"),
    "falcon-7b": {"model_type": "falcon", "hidden_size": 4544, "num_hidden_layers": 32, "num_attention_heads": 71,
                  "multi_query": True, "new_decoder_architecture": False, "num_kv_heads": 71, **FALCON},
    "falcon-40b": {"model_type": "falcon", "hidden_size": 8192, "num_hidden_layers": 60, "num_attention_heads": 128,
                   "multi_query": True, "new_decoder_architecture": True, "num_kv_heads": 8, **FALCON},
    "falcon-180B": {"model_type": "falcon", "hidden_size": 14848, "num_hidden_layers": 80, "num_attention_heads": 232,
                    "multi_query": True, "new_decoder_architecture": True, "num_kv_heads": 8, **FALCON},
    "falcon-11B": {"model_type": "falcon", "hidden_size": 4096, "num_hidden_layers": 60, "num_attention_heads": 32,
                   "multi_query": True, "new_decoder_architecture": True, "num_kv_heads": 8, "ffn_hidden_size": 16384,
                   "num_ln_in_parallel_attn": 1, "tie_word_embeddings": False, **FALCON},
    "falcon-rw-1b": {"model_type": "falcon", "hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 32,
                     "multi_query": False, "parallel_attn": False, "alibi": True, "bias": True, "vocab_size": 50304},
    "opt-350m": opt(1024, 24, 16, 512, model_type="opt", do_layer_norm_before=False),
    "opt-6.7b": opt(4096, 32, 32, 4096, model_type="opt", do_layer_norm_before=True),
    "opt-66b": opt(9216, 64, 72, 9216, model_type="opt", do_layer_norm_before=True),
    "bloom-560m": {"model_type": "bloom", "n_embed": 1024, "n_layer": 24, "num_attention_heads": 16,
                   "vocab_size": 250880},
    "bloom": {"model_type": "bloom", "n_embed": 14336, "n_layer": 70, "num_attention_heads": 112,
              "vocab_size": 250880},
    "mpt-7b": {"model_type": "mpt", "d_model": 4096, "n_layers": 32, "n_heads": 32, "expansion_ratio": 4,
               "max_seq_len": 2048, "vocab_size": 50432, "no_bias": True, "attn_config": {"alibi": True}},
    "mpt-30b": {"model_type": "mpt", "d_model": 7168, "n_layers": 48, "n_heads": 64, "expansion_ratio": 4,
                "max_seq_len": 8192, "vocab_size": 50432, "no_bias": True, "attn_config": {"alibi": True}},
    "gpt2-xl": gpt(1600, 48, 25, 50257, 1024, model_type="gpt2"),
    "starcoderbase-1b": gpt(2048, 24, 16, 49152, 8192, model_type="gpt_bigcode", n_inner=8192, multi_query=True),
    "gpt-j-6b": gpt(4096, 28, 16, 50400, 2048, model_type="gptj", rotary_dim=64, n_inner=None, **UNTIED),
    "codegen-2B-mono": gpt(2560, 32, 32, 51200, 2048, model_type="codegen", rotary_dim=64, n_inner=None, **UNTIED),
    "gpt-neo-2.7B": {"model_type": "gpt_neo", "hidden_size": 2560, "num_layers": 32, "num_heads": 20,
                     "attention_types": [[["global", "local"], 16]], "intermediate_size": None, "window_size": 256,
                     "max_position_embeddings": 2048, "vocab_size": 50257},
    "pythia-6.9b": sizes(4096, 32, 32, None, 16384, 50432, 2048, model_type="gpt_neox", hidden_act="gelu", **UNTIED),
    "gpt-neox-20b": sizes(6144, 44, 64, None, 24576, 50432, 2048, model_type="gpt_neox", hidden_act="gelu", **UNTIED),
    "stablelm-3b-4e1t": sizes(2560, 32, 32, 32, 6912, 50304, model_type="stablelm", use_qkv_bias=False),
    "stablelm-2-12b": sizes(5120, 40, 32, 8, 13824, 100352, model_type="stablelm", qk_layernorm=True,
                            use_parallel_residual=True, **UNTIED),
    "OLMo-7B": sizes(4096, 32, 32, 32, 11008, 50304, 2048, model_type="olmo", **UNTIED),
    "OLMo-2-13B": sizes(5120, 40, 40, 40, 13824, 100352, model_type="olmo2", **UNTIED),
    "Olmo-3-32B": sizes(5120, 64, 40, 8, 27648, 100278, 65536, model_type="olmo3", sliding_window=4096, **UNTIED),
    "granite-3.1-8b": sizes(4096, 40, 32, 8, 12800, 49155, 131072, model_type="granite", **TIED),
    "EXAONE-4.0-32B": sizes(5120, 64, 40, 8, 27392, 102400, 131072, model_type="exaone4", head_dim=128,
                            sliding_window=4096, **UNTIED),
    "Hunyuan-7B": sizes(4096, 32, 32, 8, 14336, 128167, 32768, model_type="hunyuan_v1_dense", head_dim=128, **TIED),
    "Seed-OSS-36B": sizes(5120, 64, 80, 8, 27648, 155136, 524288, model_type="seed_oss", head_dim=128, **UNTIED),
    "ERNIE-4.5-0.3B": sizes(1024, 18, 16, 2, 3072, 103424, 131072, model_type="ernie4_5", head_dim=128, use_bias=False),
    "helium-1-2b": sizes(2048, 28, 16, 8, 8192, 64000, model_type="helium", head_dim=128, **UNTIED),
    "bitnet-b1.58-2B": sizes(2560, 30, 20, 5, 6912, 128256, model_type="bitnet", hidden_act="relu2", **TIED),
    "persimmon-8b": sizes(4096, 36, 64, None, 16384, 262144, 16384, model_type="persimmon", hidden_act="relu2"),
    "xglm-7.5B": {"model_type": "xglm", "d_model": 4096, "num_layers": 32, "attention_heads": 32, "ffn_dim": 16384,
                  "vocab_size": 256008, "max_position_embeddings": 2048},
    "BioGPT-Large": sizes(1600, 48, 25, None, 6400, 57717, 2048, model_type="biogpt", hidden_act="gelu"),
    "AFM-4.5B": sizes(2560, 36, 20, 4, 18432, 128004, 65536, model_type="arcee", head_dim=128, hidden_act="relu2"),
    "glm-4-9b-hf": sizes(4096, 40, 32, 2, 13696, 151552, 131072, model_type="glm", head_dim=128, **UNTIED),
    "GLM-4-32B-0414": sizes(6144, 61, 48, 2, 23040, 151552, 32768, model_type="glm4", head_dim=128, **UNTIED,
                            attention_bias=False),
    "internlm3-8b": sizes(4096, 48, 32, 2, 10240, 128512, 32768, model_type="internlm3", head_dim=128, bias=False,
                          qkv_bias=False, **UNTIED),
}  # fmt: skip
PUBLISHED: dict[str, tuple[float, dict[str, Any]]] = {
    "Qwen-1.8B": (1.84, sizes(2048, 24, 16, None, 11008, 151936, 8192, model_type="qwen", no_bias=True)),
    "Qwen-7B": (7.72, sizes(4096, 32, 32, None, 22016, 151936, 8192, model_type="qwen", no_bias=True)),
    "Qwen-14B": (14.17, sizes(5120, 40, 40, None, 27392, 152064, 8192, model_type="qwen", no_bias=True)),
    "Qwen-72B": (72.3, sizes(8192, 80, 64, None, 49152, 152064, 32768, model_type="qwen", no_bias=True)),
    "Baichuan2-13B": (13.9, sizes(5120, 40, 40, None, 13696, 125696, model_type="baichuan", **UNTIED)),
    "internlm2-20b": (19.9, sizes(6144, 48, 48, 8, 16384, 92544, model_type="internlm2", bias=False)),
    "chatglm3-6b": (6.24, {"model_type": "chatglm", "hidden_size": 4096, "num_layers": 28, "num_attention_heads": 32,
                           "ffn_hidden_size": 13696, "kv_channels": 128, "padded_vocab_size": 65024,
                           "multi_query_attention": True, "multi_query_group_num": 2, "add_qkv_bias": True}),
    "EXAONE-3.5-7.8B": (7.82, {"model_type": "exaone", "hidden_size": 4096, "num_layers": 32, "vocab_size": 102400,
                               "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336,
                               "activation_function": "silu", "tie_word_embeddings": False}),
    "Yi-34B": (34.4, sizes(7168, 60, 56, 8, 20480, 64000, model_type="Yi", **UNTIED)),
    "MiniCPM-2B": (2.72, sizes(2304, 40, 36, 36, 5760, 122753, model_type="minicpm")),
}  # fmt: skip


def of_transformers(keys: dict[str, Any]) -> float:
    config = transformers.AutoConfig.for_model(**keys)
    with torch.device("meta"):
        module = transformers.AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for parameter in module.parameters()) / 1e9


def main() -> None:
    logging.disable(logging.WARNING)
    print(f"parameters in billions; transformers {transformers.__version__}, torch {torch.__version__}")
    print(f"{'model':22s}{'model_type':18s}{'tplab':>10s}{'beside':>10s}{'off':>10s}  what stands beside")
    worst: dict[str, tuple[float, str]] = {}
    rows = [("transformers", name, keys, of_transformers(keys)) for name, keys in MODELS.items()]
    rows += [("published", name, keys, beside) for name, (beside, keys) in PUBLISHED.items()]
    for what, name, keys, beside in rows:
        count = ModelSpec.from_config(keys).total_params / 1e9
        off = 100 * (count / beside - 1)
        worst[what] = max(worst.get(what, (0.0, "")), (abs(off), name))
        shown = f"{beside:.4f}" if what == "transformers" else f"{beside:g}"
        print(f"{name:22s}{keys['model_type']:18s}{count:10.4f}{shown:>10s}{off:9.4f} %  {what}")
    for what, (off, name) in worst.items():
        print(
            f"largest deviation from what is {what}: {off:.4f} % ({name})".replace(
                "is transformers", "transformers has"
            )
        )


if __name__ == "__main__":
    main()
