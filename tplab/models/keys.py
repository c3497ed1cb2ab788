"""The keys of a Hugging Face ``config.json``: which are known, what is meant where one is left out, what it may hold.

Types are as strict as transformers 5 is: a size of 4096.0, "4096" or true is refused. Ranges end far beyond every
model, and far below where floats overflow or a loop over layers is felt. Errors give the key's name. Pure: no torch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tplab.checks import ArgumentError, check_count, check_flag, check_number, check_text

Config = Mapping[str, Any]

INERT = frozenset(
    """
    architectures auto_map attention_dropout bos_token_id pad_token_id sep_token_id decoder_start_token_id
    forced_bos_token_id forced_eos_token_id initializer_range model_type transformers_version use_cache torch_dtype
    dtype _name_or_path name_or_path _commit_hash attn_implementation _attn_implementation _attn_implementation_autoset
    return_dict output_hidden_states output_attentions chunk_size_feed_forward id2label label2id num_labels
    pretraining_tp problem_type task_specific_params tokenizer_class prefix finetuning_task is_encoder_decoder
    torchscript max_length min_length do_sample temperature top_k top_p typical_p repetition_penalty length_penalty
    num_beams num_beam_groups diversity_penalty early_stopping no_repeat_ngram_size num_return_sequences
    encoder_no_repeat_ngram_size bad_words_ids remove_invalid_values unsloth_version unsloth_fixed
    """.split()  # noqa: SIM905
)
"""Keys that change nothing in the forward pass of inference. (``is_encoder_decoder`` true would be another model, and
another ``model_type``.)"""
HONOURED = frozenset(
    """
    vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim
    max_position_embeddings rms_norm_eps rope_theta rope_scaling rope_parameters attention_bias mlp_bias
    tie_word_embeddings sliding_window use_sliding_window max_window_layers layer_types hidden_act hidden_activation
    eos_token_id partial_rotary_factor use_bidirectional_attention original_max_position_embeddings
    """.split()  # noqa: SIM905
)
"""Keys that ``tplab.models`` computes by."""
SIZED = frozenset(
    """
    _sliding_window_pattern activation_function add_cross_attention attention_multiplier attention_probs_dropout_prob
    attention_softmax_in_fp32 attn_logit_softcapping attn_pdrop bias cache_implementation classifier_dropout embd_pdrop
    compression_config embedding_multiplier final_logit_softcapping finetuned_from gradient_checkpointing hidden_dropout
    hidden_dropout_prob inference_runner is_decoder layer_norm_eps layer_norm_epsilon logits_scaling max_batch_size
    max_seq_len max_sequence_length multi_query mup_width_multiplier n_ctx n_embd n_head n_inner n_layer n_positions
    name norm_eps pad_key_length parallel_attn pre_allocate_kv_cache qk_norm quantization_config query_pre_attn_scalar
    reorder_and_upcast_attn resid_pdrop residual_multiplier rope_local_base_freq rotary_emb_base rotary_pct
    router_aux_loss_coef scale_attention_softmax_in_fp32 scale_attn_by_inverse_layer_idx scale_attn_weights seq_length
    sliding_window_pattern summary_activation summary_first_dropout summary_proj_to_labels summary_type
    summary_use_proj text_config unk_token_id use_parallel_residual use_qk_norm validate_runner_input
    """.split()  # noqa: SIM905
)
"""Keys of models that are only sized: read here, or of no effect on sizes and times."""
REFUSED = {
    "latent attention (MLA)": ("kv_lora_rank", "q_lora_rank", "qk_rope_head_dim"),
    "state-space or linear-attention layers": (
        *("ssm_cfg", "mamba_d_state", "mamba_d_ssm", "state_size", "linear_num_key_heads", "full_attention_interval"),
        *("hybrid_override_pattern", "attn_layer_period", "rwkv_version"),
    ),
    "an encoder beside its decoder": ("is_encoder_decoder", "encoder_layers"),
    "cross-attention to images": ("cross_attention_layers",),
    "blocks that differ from each other": ("block_configs", "num_kv_shared_layers", "layers_block_type"),
}
"""What cannot be sized, and the keys that betray it unless they are null, 0, 1, false or empty. Mixtures of
experts have a module of their own."""
KINDS = {
    "mixture of experts": ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "granitemoe", "dbrx", "gpt_oss", "llama4"),
    "multi-head latent attention": ("deepseek_v2", "deepseek_v3", "kimi_k2", "minicpm3"),
    "state-space or linear-attention layers": (
        *("mamba", "mamba2", "falcon_mamba", "rwkv", "rwkv5", "rwkv6", "rwkv7", "xlstm", "jamba", "zamba", "zamba2"),
        *("bamba", "falcon_h1", "nemotron_h", "granitemoehybrid", "recurrent_gemma", "plamo2"),
        *("qwen3_next", "minimax", "olmo_hybrid", "hymba", "griffin", "retnet", "qwen3_5", "qwen3_5_text", "lfm3"),
    ),
    "an encoder": (
        *("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "albert", "electra", "deberta", "deberta-v2"),
        *("mpnet", "modernbert", "nomic_bert", "ernie", "big_bird", "longformer", "t5", "mt5", "umt5", "longt5"),
        *("bart", "mbart", "pegasus", "blenderbot", "m2m_100", "marian", "led", "prophetnet", "switch_transformers"),
        *("whisper", "speech_to_text", "t5gemma", "clip", "vit"),
    ),
    "cross-attention to images": ("mllama", "mllama_text", "mllama_text_model", "idefics", "flamingo"),
    "layers that differ from each other": (
        *("deci", "nemotron-nas", "openelm", "lfm2", "gemma3n", "gemma3n_text", "gemma4_text"),
    ),
}
"""Families that are asked for most, by what they would need."""

CORE = ("hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size", "vocab_size")
"""Sizes that the advisor does not make up: a dict written by hand that lacks one is a slip. (Gemma 3 as published
leaves out whatever is the default of its class.)"""
ALSO: Mapping[str, tuple[str, ...]] = {
    "max_position_embeddings": (
        *("n_positions", "max_sequence_length", "seq_length", "max_seq_len", "model_max_length"),
    ),
    "rms_norm_eps": ("layer_norm_epsilon", "layer_norm_eps", "norm_eps", "norm_epsilon", "layernorm_epsilon"),
    "rope_theta": ("rotary_emb_base",),
    "sliding_window_pattern": ("_sliding_window_pattern",),
}
"""Other names of the same key, in any family; ``Family.names`` has those of one."""
ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function", "activation", "afn")
"""Names of the key for the function inside the MLP."""
PLAIN = frozenset(
    """
    activation_function finetuned_from gradient_checkpointing head_dim hidden_dropout is_decoder layer_norm_epsilon
    max_sequence_length max_seq_len model_max_length n_ctx n_positions name norm_eps qk_norm quantization_config
    compression_config residual_dropout resid_pdrop embd_pdrop attn_pdrop seq_length unk_token_id use_qk_norm
    """.split()  # noqa: SIM905
)
"""Keys that leave a model of an unknown family a Llama, besides ``INERT`` and ``HONOURED``."""
NULLABLE = ("sliding_window", "eos_token_id", "num_key_value_heads", "head_dim", "max_position_embeddings")
"""Null is a setting of its own here (no window, no stop token, as many as query heads, D/H, no limit)."""
MOST_BYTES = 4 << 20
"""Most bytes of a configuration: thousands of labels fit in."""
_LARGEST = 1e18
"""Largest of numbers that need not be whole."""
_MOST = 10**16
"""Largest whole number where a key has no limit of its own: windows, lengths stretched by rope scaling, ids."""
LIMITS: Mapping[str, int] = {
    name: most
    for most, names in (
        (10_000, "num_layers num_hidden_layers max_window_layers"),
        (1 << 16, "num_heads num_attention_heads num_kv_heads num_key_value_heads"),
        (1 << 24, "hidden_size intermediate_size head_dim embedding_width"),
        (1 << 28, "vocab_size"),
        (10**13, "max_position_embeddings original_max_position_embeddings n_positions num_positions"),
        (10**13, "max_positions max_sequence_length seq_length max_seq_len"),
    )
    for name in names.split()
}
"""Name of a size, in configurations or here -> the most that it may be."""


def whole(value: Any, key: str, where: str = "", *, least: int = 1, called: str = "") -> int:
    """A size. Raises ``ValueError`` for what is no whole number, less than ``least`` or beyond the key's limit.

    Args:
        value: what the key holds.
        key: its name, for the limit and the error.
        where: what stands before the key in errors, ``"config.json: "``.
        least: smallest value.
        called: its name in the file, for the error, where that is another.
    """
    return check_count(f"{where}{called or key}", value, least, LIMITS.get(key, _MOST))


def number(value: Any, key: str, where: str = "") -> float:
    """A number above 0. Raises ``ValueError`` for any other, beyond 10^18 or not finite included."""
    return float(check_number(f"{where}{key}", value, above=0.0, most=_LARGEST))


def mapping(value: Any, key: str, where: str = "") -> Config:
    """Raises ``ValueError`` for what is no object whose keys are texts."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise ArgumentError(f"{where}{key}", value, "must be an object")
    return value


def texts(value: Any, key: str, where: str = "") -> list[str]:
    """Raises ``ValueError`` for what is no list of texts."""
    if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
        raise ArgumentError(f"{where}{key}", value, "must be a list of names")
    return list(value)


def text(values: Config, key: str, where: str = "") -> str:
    """The text that a key holds; empty where there is none. Raises ``ValueError`` for anything else."""
    value = values.get(key)
    return "" if value is None else check_text(f"{where}{key}", value)


Fact = bool | str
"""True or false for the whole family, or the keys of its files that say so, any of them; ``"!key"`` says the
opposite."""

COMMON: dict[str, Any] = {
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": None,
    "head_dim": None, "vocab_size": 32000, "intermediate_size": 11008, "max_position_embeddings": 2048,
    "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10_000.0,
}  # fmt: skip
"""What most classes take for a key that is left out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """Where a family is no Llama. A key that its class does not know is not in ``defaults``, and does nothing."""

    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Key -> what its class in transformers takes where it is left out, if that is not ``COMMON``'s."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Key as Llama calls it -> what it is called here; several with spaces between."""
    rewrite: "Callable[[Keys], Config] | None" = None
    """Keys to put in place of the file's, where they mean something else here."""
    widens: int = 0
    """Intermediate size over hidden size where no key says it; 0: a key must."""
    gated: Fact = True
    """Whether the MLP has a gate beside up and down."""
    norms: int = 2
    """Norms of D weights in a block."""
    norm: tuple[bool, bool] = (True, False)
    """Whether norms have weights, and biases."""
    outer_norms: int = 1
    """Norms outside the blocks: one after the last, in BLOOM one after the embedding."""
    parallel: Fact = False
    """Whether attention and MLP run side by side."""
    one_sum: Fact = False
    """Whether engines sum these two over the ranks at once."""
    shared_norm: Fact = False
    """Whether these two then have one norm before them, not two."""
    qkv_bias: Fact = "attention_bias"
    out_bias: Fact = "attention_bias"
    mlp_bias: Fact = "mlp_bias"
    head_bias: Fact = False
    """On the output head."""
    qk_norm: Fact = False
    """Whether queries and keys are normed."""
    qk_norm_heads: bool = False
    """Whether each head has weights of its own there."""
    positions: int | None = None
    """Rows of a learned position embedding beyond the longest sequence; None: there is no such embedding."""
    switched_window: bool = False
    """Whether ``sliding_window`` counts only with ``use_sliding_window``, and from ``max_window_layers`` on."""
    gemma: bool = False
    """Whether the embedding is scaled, norms are held as differences from 1, and the gate is GELU."""

    def facts(self) -> set[str]:
        """The keys that say how the blocks are built."""
        said = (self.gated, self.parallel, self.shared_norm, self.qkv_bias, self.out_bias, self.mlp_bias, self.qk_norm)
        return {key for fact in said if isinstance(fact, str) for key in fact.removeprefix("!").split()}

    def keys(self) -> set[str]:
        """All keys that are read in this family and not in every one."""
        return {key for names in self.names.values() for key in names.split()} | self.facts() | set(self.defaults)


UNNAMED = Family(qk_norm="use_qk_norm qk_norm")
"""A family that is not known, where the keys are a Llama's."""


class Keys:
    """The keys of one file, with the defaults of its family, and what was found on the way.

    Args:
        values, family: the file, and the name of the family it is read by.
        kind: what is known of that family; None: nothing.
        where: what stands before errors.
        core: whether sizes that are left out are those of the family's class.
    """

    def __init__(self, values: Config, family: str, kind: Family | None, where: str, *, core: bool = True) -> None:
        self.values, self.family, self.at = values, family, f"{where}: "
        self.known = kind is not None
        self.kind = kind or UNNAMED
        self.defaults: dict[str, Any] = {**COMMON, **self.kind.defaults} if self.known else {}
        if not core:
            self.defaults = {key: value for key, value in self.defaults.items() if key not in CORE}
        self.notes: list[str] = []
        self.unsupported: list[str] = []
        self.rewritten: Config = {}
        if self.kind.rewrite is not None:
            self.rewritten = self.kind.rewrite(self)

    def names(self, key: str) -> tuple[str, ...]:
        """What the key may be called here; the family's own names go first."""
        return *self.kind.names.get(key, "").split(), key, *ALSO.get(key, ())

    def find(self, key: str) -> tuple[str, Any]:
        """What the key is called here, and its value, or the family's default."""
        if key in self.rewritten:
            return key, self.rewritten[key]
        here = [name for name in self.names(key) if name in self.values]
        name = next((name for name in here if self.values[name] is not None), here[0] if here else key)
        value = self.values.get(name)
        left_out = not here or (value is None and key not in (*NULLABLE, *CORE))
        return name, self.defaults.get(key) if left_out else value

    def size(self, key: str) -> int:
        """A size that the file or the family's default must have."""
        name, value = self.find(key)
        if value is None and name not in self.values:
            raise ValueError(f"{self.at}the configuration has no {' or '.join(self.names(key))}")
        return whole(value, key, self.at, called=name)

    def optional(self, key: str, *, least: int = 1) -> int | None:
        """A size, if there is one."""
        name, value = self.find(key)
        return None if value is None else whole(value, key, self.at, least=least, called=name)

    def number(self, key: str, usual: float) -> float:
        """A number above 0; ``usual`` without one."""
        name, value = self.find(key)
        return usual if value is None else number(value, name, self.at)

    def flag(self, key: str, usual: bool = False) -> bool:
        """True or false; ``usual`` without one."""
        value = self.find(key)[1]
        return usual if value is None else check_flag(f"{self.at}{key}", value)

    def lacks(self, key: str) -> bool:
        """Whether the family's class in transformers has no such key, so that it does nothing in this file."""
        if not self.known or key in self.defaults or key in self.rewritten:
            return False
        note = f"{key} is not a key of {self.family}'s, and does nothing in transformers"
        if self.values.get(key) and note not in self.notes:
            self.notes.append(note)
        return True

    def switch(self, key: str) -> bool:
        """A flag, if the family's class has it."""
        if not self.flag(key):
            return False
        if self.lacks(key):
            self.unsupported.append(f"{key}=True is not supported for {self.family}; false is")
            return False
        return True

    def told(self, fact: Fact) -> bool:
        """A fact of the family (``families.Fact``), in this file."""
        if isinstance(fact, bool):
            return fact
        if fact.startswith("!"):
            return not self.switch(fact[1:])
        return any(self.switch(key) for key in fact.split())
