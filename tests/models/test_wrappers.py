"""Models of images and sound: the language model inside is found, with the defaults of its class, and counted as
transformers' own modules; what stands beside it is named."""

from typing import Any

import pytest
import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tplab.models.spec import ModelSpec
from tplab.models.wrappers import _TEXT_CLASS

SIZES: dict[str, Any] = {
    **{"vocab_size": 320, "hidden_size": 64, "intermediate_size": 144, "num_hidden_layers": 3},
    **{"num_attention_heads": 8, "num_key_value_heads": 2, "tie_word_embeddings": False},
}
FEW: dict[str, Any] = {"num_hidden_layers": 2, "tie_word_embeddings": False}
WITHOUT_MODULES = {
    *("internvl_chat", "multi_modality", "ovis", "pixtral"),  # no classes in transformers, or of the tower only
    *("aya_vision", "fast_vlm", "perception_lm"),  # with towers that need more libraries
    *("emu3", "exaone4_5", "fun_asr_nano", "granite4_vision", "hunyuan_vl"),  # whose towers have no defaults that fit
    *("qwen2_5_omni", "ovis2"),  # whose thinker is tried; whose head is as wide as the wrapper says
}
SAME = ("total_params", "num_kv_heads", "head_dim", "max_positions", "tied_embeddings")
TOWERS = ("vision", "visual", "audio", "qformer", "aligner", "projector", "connector", "perceiver")


def counted(config: Any) -> int:
    """Parameters of the language model with its head, in transformers' module of the whole."""
    names = ("ImageTextToText", "MultimodalLM", "Seq2SeqLM", "SpeechSeq2Seq", "CausalLM")
    kinds = [
        getattr(transformers, f"AutoModelFor{name}") for name in names if hasattr(transformers, f"AutoModelFor{name}")
    ]
    kind = next(kind for kind in kinds if type(config) in kind._model_mapping)
    with torch.device("meta"):
        model = kind.from_config(config)
    inside = ("language_model", "lm_head", "text_model")
    return sum(
        weight.numel()
        for name, weight in model.named_parameters()
        if any(part in name for part in inside) and not any(tower in name for tower in TOWERS)
    )


@pytest.mark.parametrize("wrapper", sorted(set(_TEXT_CLASS) - WITHOUT_MODULES))
def test_a_text_config_without_model_type_is_of_the_wrappers_class(wrapper: str) -> None:
    config = CONFIG_MAPPING[wrapper](text_config=dict(FEW), tie_word_embeddings=False)
    spec = ModelSpec.from_config({"model_type": wrapper, "tie_word_embeddings": False, "text_config": FEW})
    assert abs(spec.total_params / counted(config) - 1) < 1e-3
    again = ModelSpec.from_config(config.to_dict())  # with all that transformers writes
    assert [getattr(again, name) for name in SAME] == [getattr(spec, name) for name in SAME]


def test_heads_that_no_key_sizes_are_as_wide_as_the_class_makes_them() -> None:
    keys = FEW | {"hidden_size": 256, "intermediate_size": 300, "num_attention_heads": 8, "num_key_value_heads": 4}
    for wrapper in sorted(
        set(_TEXT_CLASS) - WITHOUT_MODULES - {"granite_docling", "fuyu"}
    ):  # which has towers of that width
        theirs = CONFIG_MAPPING[wrapper](text_config=dict(keys)).get_text_config()
        spec = ModelSpec.from_config({"model_type": wrapper, "text_config": keys})
        width = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
        assert (wrapper, spec.head_dim) == (wrapper, width)


def test_a_tie_that_differs_inside_and_outside_is_said() -> None:
    for inside, outside, said in ((False, True, 1), (True, True, 0), (None, True, 0)):
        keys = {"text_config": QWEN_7B | {"tie_word_embeddings": inside}, "tie_word_embeddings": outside}
        spec = ModelSpec.from_config({"model_type": "internvl"} | keys)
        assert spec.tied_embeddings is (outside if inside is None else inside)
        assert sum("tie_word_embeddings is False in text_config" in note for note in spec.notes) == said


HEADLESS = {"tie_word_embeddings": None}
VISION = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "model_type": "clip_vision_model"}
AUDIO = {"d_model": 1280, "encoder_layers": 32, "encoder_ffn_dim": 5120}
QWEN_7B: dict[str, Any] = {
    **{"hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28, "num_hidden_layers": 28},
    **{"num_key_value_heads": 4, "vocab_size": 152064, "rms_norm_eps": 1e-06, "max_position_embeddings": 32768},
}
LLAMA_8B: dict[str, Any] = {
    **{"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_hidden_layers": 32},
    **{"num_key_value_heads": 8, "vocab_size": 128256, "rms_norm_eps": 1e-5, "max_position_embeddings": 8192},
}
PUBLISHED: dict[str, tuple[dict[str, Any], float]] = {
    "LLaVA 1.5 7B": (
        {
            **{"architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", "image_token_index": 32000},
            "text_config": {"model_type": "llama", "vocab_size": 32064, "rms_norm_eps": 1e-05,
                            "max_position_embeddings": 4096, "torch_dtype": "float16"},
            "vision_config": VISION, "tie_word_embeddings": False,
        },
        6.739e9,
    ),
    "LLaVA 1.5 7B, flat": (
        {
            **{"architectures": ["LlavaLlamaForCausalLM"], "model_type": "llava_llama", "hidden_size": 4096},
            **{"intermediate_size": 11008, "num_attention_heads": 32, "num_hidden_layers": 32, "vocab_size": 32000},
            **{"num_key_value_heads": 32, "mm_hidden_size": 1024, "tie_word_embeddings": False},
            **{"mm_vision_tower": "openai/clip-vit-large-patch14-336", "mm_projector_type": "mlp2x_gelu"},
        },
        6.738e9,
    ),
    "Pixtral 12B": (
        {
            **{"architectures": ["LlavaForConditionalGeneration"], "model_type": "llava"},
            "text_config": {"model_type": "mistral", "hidden_size": 5120, "head_dim": 128, "num_hidden_layers": 40,
                            "intermediate_size": 14336, "num_key_value_heads": 8, "vocab_size": 131072,
                            "sliding_window": None, "max_position_embeddings": 1024000, "rope_theta": 1e9},
            "vision_config": {"model_type": "pixtral", "head_dim": 64, "hidden_act": "silu", "image_size": 1024},
        },
        12.248e9,
    ),
    "Qwen2-VL 7B, flat": (
        {
            **{"architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl"},
            **QWEN_7B, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
            "vision_config": {"depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "hidden_size": 3584, "num_heads": 16},
            "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
            "use_sliding_window": False, "sliding_window": 32768, "max_window_layers": 28,
        },
        7.616e9,
    ),
    "Qwen2.5-Omni 7B": (
        {
            **{"architectures": ["Qwen2_5OmniModel"], "model_type": "qwen2_5_omni", "torch_dtype": "bfloat16"},
            "talker_config": {"hidden_size": 896}, "token2wav_config": {"dit_config": {}},
            "thinker_config": {
                "model_type": "qwen2_5_omni_thinker", "audio_config": AUDIO,
                "text_config": {**QWEN_7B, "model_type": "qwen2_5_omni_text", "tie_word_embeddings": False},
            },
        },
        7.616e9,
    ),
    "Qwen2-Audio 7B": (
        {
            **{"architectures": ["Qwen2AudioForConditionalGeneration"], "model_type": "qwen2_audio"},
            "audio_config": AUDIO,
            "text_config": {"model_type": "qwen2", "intermediate_size": 11008, "vocab_size": 156032,
                            "max_position_embeddings": 8192, "rope_theta": 10000, "torch_dtype": "bfloat16"},
        },
        7.756e9,
    ),
    "InternVL 2.5 8B": (
        {
            **{"architectures": ["InternVLChatModel"], "model_type": "internvl_chat"},
            "llm_config": {"model_type": "internlm2", "architectures": ["InternLM2ForCausalLM"], "hidden_size": 4096,
                           "intermediate_size": 14336, "num_attention_heads": 32, "num_hidden_layers": 32,
                           "num_key_value_heads": 8, "vocab_size": 92553, "bias": False,
                           "tie_word_embeddings": False},
            "vision_config": {**VISION, "architectures": ["InternVisionModel"]},
        },
        7.738e9,
    ),
    "PaliGemma 3B": (
        {
            **{"architectures": ["PaliGemmaForConditionalGeneration"], "model_type": "paligemma"},
            "text_config": {"model_type": "gemma", "hidden_size": 2048, "intermediate_size": 16384,
                            "num_attention_heads": 8, "num_hidden_layers": 18, "num_key_value_heads": 1,
                            "vocab_size": 257216, "num_image_tokens": 256},
            "vision_config": {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27},
        },
        2.508e9,
    ),
    "Aya Vision 8B": (
        {
            **{"architectures": ["AyaVisionForConditionalGeneration"], "model_type": "aya_vision"},
            "text_config": {"model_type": "cohere2", "hidden_size": 4096, "head_dim": 128, "num_hidden_layers": 32,
                            "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8,
                            "layer_switch": 4, "vocab_size": 256000},
            "vision_config": {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27},
        },
        8.028e9,
    ),
    "Phi-3.5 vision": (
        {
            **{"architectures": ["Phi3VForCausalLM"], "model_type": "phi3_v", "hidden_size": 3072},
            **{"intermediate_size": 8192, "num_attention_heads": 32, "num_hidden_layers": 32, "vocab_size": 32064},
            **{"num_key_value_heads": 32, "tie_word_embeddings": False, "sliding_window": 262144},
            "embd_layer": {"embedding_cls": "image"}, "img_processor": {"name": "clip_vision_model"},
        },
        3.821e9,
    ),
    "MiniCPM-V 2.6": (
        {
            **{"architectures": ["MiniCPMV"], "model_type": "minicpmv", "version": 2.6, **QWEN_7B},
            **{"vocab_size": 151666, "tie_word_embeddings": False},
            "vision_config": {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27},
        },
        7.613e9,
    ),
    "MiniCPM-Llama3-V 2.5": (
        {
            **{"architectures": ["MiniCPMV"], "model_type": "minicpmv", "version": 2.5, **LLAMA_8B},
            "vision_config": {"hidden_size": 1152},
        },
        8.030e9,
    ),
    "Ovis 1.6 Llama 3.2": (
        {
            **{"architectures": ["Ovis"], "model_type": "ovis"},
            "llm_config": {**LLAMA_8B, "model_type": "llama"}, "visual_tokenizer_config": {"hidden_size": 1},
        },
        8.030e9,
    ),
    "Molmo 7B-D": (
        {
            **{"architectures": ["MolmoForCausalLM"], "model_type": "molmo", **QWEN_7B, "intermediate_size": 37888},
            **{"embedding_size": 152064, "additional_vocab_size": 128, "qkv_bias": True, "weight_tying": False},
            **{"layer_norm_type": "rms", "use_position_ids": True},
        },
        7.616e9,
    ),
    "Qwen3-VL 8B": (
        {
            **{"architectures": ["Qwen3VLForConditionalGeneration"], "model_type": "qwen3_vl"},
            "text_config": {"model_type": "qwen3_vl_text", "hidden_size": 4096, "intermediate_size": 12288,
                            "num_attention_heads": 32, "num_hidden_layers": 36, "num_key_value_heads": 8,
                            "head_dim": 128, "vocab_size": 151936, "attention_bias": False},
            "vision_config": {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304}, **HEADLESS,
        },
        8.191e9,
    ),
    "Gemma 3 12B": (
        {
            **{"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3"},
            "text_config": {"model_type": "gemma3_text", "hidden_size": 3840, "intermediate_size": 15360,
                            "num_attention_heads": 16, "num_hidden_layers": 48, "num_key_value_heads": 8,
                            "sliding_window": 1024},
            "vision_config": {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27},
        },
        11.766e9,
    ),
    "Mistral Small 3.1": (
        {
            **{"architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3"},
            "text_config": {"model_type": "mistral", "hidden_size": 5120, "intermediate_size": 32768, "head_dim": 128,
                            "num_attention_heads": 32, "num_hidden_layers": 40, "num_key_value_heads": 8,
                            "vocab_size": 131072, "rope_theta": 1e9},
            "vision_config": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
                              "hidden_act": "silu"},
        },
        23.572e9,
    ),
    "Voxtral Mini": (
        {
            **{"architectures": ["VoxtralForConditionalGeneration"], "model_type": "voxtral", "hidden_size": 3072},
            "text_config": {"model_type": "llama"}, "audio_config": {"hidden_size": 1280},
        },
        4.0e9,
    ),
}  # fmt: skip
"""Files as they are on Hugging Face, in what counts here, and parameters of their language models as published: of the
models of text that they were made from, where there are any."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_are_counted_without_their_towers(name: str) -> None:
    keys, published = PUBLISHED[name]
    spec = ModelSpec.from_config({key: value for key, value in keys.items() if value is not None})
    assert abs(spec.total_params / published - 1) < 0.01
    assert any(note.startswith("only the language model is counted (") for note in spec.notes)


@pytest.mark.parametrize(("version", "family"), [(-1, "minicpm"), (2.5, "llama"), (2.6, "qwen2"), (4.5, "qwen3")])
def test_a_flat_minicpm_v_says_its_language_model_by_its_version(version: float, family: str) -> None:
    assert ModelSpec.from_config({**LLAMA_8B, "model_type": "minicpmv", "version": version}).model_type == family


def test_what_towers_weigh_is_said_where_the_file_says_enough() -> None:
    keys, _ = PUBLISHED["LLaVA 1.5 7B"]
    said = "only the language model is counted (text_config); on top come: vision_config (some 0.30 B parameters)"
    assert said in ModelSpec.from_config(keys).notes
    keys, _ = PUBLISHED["Qwen2.5-Omni 7B"]
    (note,) = (note for note in ModelSpec.from_config(keys).notes if "only the language" in note)
    assert note.startswith("only the language model is counted (thinker_config.text_config); on top come: talker_confi")
    assert "audio_config (some 0.63 B parameters)" in note
    keys, _ = PUBLISHED["LLaVA 1.5 7B, flat"]
    (note,) = (note for note in ModelSpec.from_config(keys).notes if "only the language" in note)
    assert note.endswith("mm_vision_tower 'openai/clip-vit-large-patch14-336' (not counted)")
    assert not any(
        "vision_config" in note for note in ModelSpec.from_config(PUBLISHED["Qwen2-VL 7B, flat"][0]).notes[1:]
    )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"model_type": "mllama", "text_config": {**LLAMA_8B, "model_type": "mllama_text_model"}},
            "has cross-attention to images",
        ),
        ({"model_type": "idefics", **LLAMA_8B, "cross_layer_interval": 4}, "has cross-attention to images"),
        ({"model_type": "llama4", "text_config": {**LLAMA_8B, "model_type": "llama4_text"}}, "mixture of experts"),
        ({"model_type": "gemma3n", "text_config": {"model_type": "gemma3n_text"}}, "layers that differ"),
        ({"model_type": "gemma3n", "text_config": {}}, "layers that differ"),
        ({"model_type": "qwen3_5", "text_config": {"num_hidden_layers": 24}}, "state-space or linear-attention"),
        ({"model_type": "some_vl", "text_config": LLAMA_8B}, "model_type 'some_vl_text' is not known here"),
        ({"model_type": "kimi_vl", "text_config": {**LLAMA_8B, "n_routed_experts": 64}}, "mixture of experts"),
        ({"model_type": "florence2", "text_config": {"model_type": "bart"}}, "has an encoder"),
        ({"model_type": "blip-2", "text_config": {"model_type": "t5"}}, "has an encoder"),
        ({"model_type": "whisper", **AUDIO, "decoder_layers": 32, "is_encoder_decoder": True}, "an encoder"),
        ({"model_type": "vision-encoder-decoder", "encoder": {"x": 1}, "decoder": LLAMA_8B}, "an encoder beside its"),
        ({"model_type": "clip", "architectures": ["CLIPModel"], "text_config": {"model_type": "clip_text_model"},
          "vision_config": VISION}, "clip_text_model"),
        ({"model_type": "llava", "architectures": ["LlavaForSequenceClassification"], "text_config": LLAMA_8B,
          "vision_config": VISION}, "does not generate text"),
        ({"model_type": "llama", "architectures": ["LlamaModel"], **LLAMA_8B}, "does not generate text"),
        ({"model_type": "ultravox", "text_model_id": "meta-llama/Meta-Llama-3.1-8B-Instruct"},
         "names its language model by text_model_id='meta-llama/Meta-Llama-3.1-8B-Instruct'"),
        ({"model_type": "llava_llama", "llm_cfg": "/checkpoints/llm"}, "llm_cfg must be an object: where it names"),
        ({"peft_type": "LORA", "base_model_name_or_path": "Qwen/Qwen2-7B", "r": 16}, "by base_model_name_or_path"),
        ({"model_type": "llava", "text_config": []}, "text_config must be an object"),
    ],
    ids=lambda value: str(value.get("model_type", "adapter")) if isinstance(value, dict) else None,
)  # fmt: skip
def test_what_has_no_dense_decoder_is_refused_by_name(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelSpec.from_config(keys)
