"""Values of a Hugging Face ``config.json`` checked one by one: type, range, and the key's name in the error.

For both readers of such files, ``models.hf_config`` and ``topology.advisor.hf_config``, and for the sizes that the
two make of them. Types are as strict as transformers 5 is: a size of 4096.0, "4096" or true is refused. Ranges end far
beyond every model, and far below where floats overflow or a loop over layers is felt. Pure: no torch.
"""

from collections.abc import Mapping
from typing import Any

from tplab.checks import ArgumentError, check_count, check_flag, check_number, check_text
from tplab.shown import listed

MOST_BYTES = 4 << 20
"""Most bytes of a configuration: thousands of labels fit in."""
_MOST_LAYERS = 10_000
_MOST_HEADS = 1 << 16
_MOST_WIDE = 1 << 24
_MOST_TOKENS = 1 << 28
_MOST_POSITIONS = 10**13
_MOST = 10**16
"""Largest whole number where a key has no limit of its own: windows, lengths stretched by rope scaling, ids."""
_LARGEST = 1e18
"""Largest of other numbers."""

LIMITS: Mapping[str, int] = {
    **dict.fromkeys(("num_layers", "num_hidden_layers", "n_layer", "max_window_layers"), _MOST_LAYERS),
    **dict.fromkeys(("num_heads", "num_attention_heads", "n_head", "num_kv_heads", "num_key_value_heads"), _MOST_HEADS),
    **dict.fromkeys(("hidden_size", "n_embd", "intermediate_size", "n_inner", "head_dim"), _MOST_WIDE),
    "vocab_size": _MOST_TOKENS,
    **dict.fromkeys(
        (
            *("max_position_embeddings", "original_max_position_embeddings", "n_positions", "num_positions"),
            *("max_sequence_length", "seq_length", "max_seq_len"),
        ),
        _MOST_POSITIONS,
    ),
}
"""Name of a size, in configurations or here -> the most that it may be."""


def whole(value: Any, key: str, where: str = "", *, least: int = 1) -> int:
    """A size. Raises ``ValueError`` for what is no whole number, less than ``least`` or beyond the key's limit.

    Args:
        where: what stands before the key in errors, ``"config.json: "``.
    """
    return check_count(f"{where}{key}", value, least, LIMITS.get(key, _MOST))


def number(value: Any, key: str, where: str = "", *, above: float = 0.0) -> float:
    """A number more than ``above``. Raises ``ValueError`` for any other, beyond 10^18 or not finite included."""
    return float(check_number(f"{where}{key}", value, above=above, most=_LARGEST))


def kv_heads(value: int, heads: int, where: str = "") -> int:
    """Raises ``ValueError`` unless every key-value head serves as many query heads."""
    if heads % value:
        raise ValueError(f"{where}num_key_value_heads={value} must divide num_attention_heads={heads}")
    return value


def flag(value: Any, key: str, where: str = "") -> bool:
    """Raises ``ValueError`` for anything but true and false: the text "false" would count as true."""
    return check_flag(f"{where}{key}", value)


def text(value: Any, key: str, where: str = "") -> str:
    """Raises ``ValueError`` for what is no text."""
    return check_text(f"{where}{key}", value)


def mapping(value: Any, key: str, where: str = "") -> Mapping[str, Any]:
    """Raises ``ValueError`` for what is no object whose keys are texts."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise ArgumentError(f"{where}{key}", value, "must be an object")
    return value


def texts(value: Any, key: str, where: str = "") -> list[str]:
    """Raises ``ValueError`` for what is no list of texts."""
    if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
        raise ArgumentError(f"{where}{key}", value, "must be a list of names")
    return list(value)


def tokens(value: Any, key: str, where: str = "") -> tuple[int, ...]:
    """One id or a list of them; none for null. -1 stands for no token in some files."""
    if value is None:
        return ()
    return tuple(whole(each, key, where, least=-1) for each in (value if isinstance(value, list | tuple) else [value]))


def layer_types(value: Any, layers: int, where: str = "") -> list[str]:
    """What each layer's attention sees. Raises ``ValueError`` for another number of names, or other names."""
    found, known = texts(value, "layer_types", where), {"full_attention", "sliding_attention"}
    if len(found) != layers or not set(found) <= known:
        raise ValueError(
            f"{where}layer_types must be {layers} times full_attention or sliding_attention, one per layer; got "
            f"{len(found)} of {listed(sorted(set(found)))}"
        )
    return found
