"""How a ``config.json`` stretches rotary positions beyond the trained context: read, and written. Pure: no torch.

``tplab.models.rotary`` makes frequencies of it. Every kind of transformers 5 is read that turns the whole of a head;
others are named in ``unsupported``, and then only sized.

Source: ``modeling_rope_utils.py`` of transformers 5.23 for the kinds, their keys and what is taken for a key left out.
"""

import math
from dataclasses import dataclass
from typing import Any

from tplab.checks import ArgumentError, check_flag, check_length, check_number, check_one_of, check_text
from tplab.models.keys import Keys, mapping, number, whole
from tplab.shown import listed, shown

_LARGEST_STRETCH = 1000
_FACTORS = ("factor", *(_PASSAGE := ("low_freq_factor", "high_freq_factor")))
_NEEDED: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": _FACTORS,
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
}
"""The kinds, and the keys without which there is none."""
KINDS = tuple(kind for kind in _NEEDED if kind != "default")
"""Kinds of scaling that ``tplab.models`` computes."""
_USED = {
    "yarn": ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    "longrope": ("attention_factor",),
}
"""What some kinds use beside what they need; the other kinds' factors and lengths do nothing in transformers either."""
_TRAINED = ("llama3", "yarn", "longrope")
"""Kinds that depend on the trained context."""
_FIELDS = {"short_factor": "short_factors", "long_factor": "long_factors"}
_MOST_FACTORS = 1 << 16
_WITHOUT_EFFECT = {"finetuned": None, "extrapolation_factor": 1, "attn_factor": 1}
"""Keys of the first YaRN checkpoints, and the value with which each changes nothing (None: any)."""
_NOTHING = object()


@dataclass(frozen=True, kw_only=True, slots=True)
class RopeScaling:
    """How the rotary frequencies of a longer context are made from the trained ones."""

    kind: str
    """``rope_type`` of the config.json. ``linear`` divides all frequencies by ``factor``; ``llama3`` the low ones, with
    a smooth passage; ``yarn`` those that turn seldom within the trained context, and multiplies cosines and sines;
    ``dynamic`` raises theta with the length of the sequence; ``longrope`` divides each frequency by its own factor,
    one set of them up to the trained context and one beyond."""
    factor: float = 1.0
    """Factor by which the context is stretched."""
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    """``llama3``: wavelengths above ``original_max_positions`` / low are stretched, those below the same / high not."""
    original_max_positions: int | None = None
    """Context the model was trained with, in tokens; ``llama3``, ``yarn`` and ``longrope`` need it. None: not given."""
    attention_factor: float | None = None
    """``yarn``, ``longrope``: factor on cosines and sines; None: what their papers take for ``factor``."""
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    """``yarn``: frequencies with more turns than fast within the trained context stay, with fewer than slow all are
    stretched, and in between the two are mixed."""
    truncate: bool = True
    """``yarn``: whether the ends of that passage are whole frequencies."""
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    """``longrope``: divisors of the E/2 frequencies, for sequences up to the trained context and for longer ones."""

    def check_computed(self, positions: int | None, head_dim: int) -> None:
        """Raises ``ArgumentError`` for what ``tplab.models`` does not compute.

        Args:
            positions: longest sequence of the model before any stretch.
            head_dim: E.
        """
        check_one_of("kind of rope_scaling", self.kind, KINDS)
        if self.kind in _TRAINED and self.original_max_positions is None:
            raise ArgumentError("original_max_positions of rope_scaling", None, f"must be given for {self.kind}")
        if self.kind == "dynamic" and (positions is None or head_dim <= 2):
            raise ArgumentError("rope_scaling", self.kind, "needs max_positions, and heads of more than 2")
        if self.kind == "longrope":
            for name in ("short_factors", "long_factors"):
                check_length(f"{name} of rope_scaling", getattr(self, name), head_dim // 2, "frequencies")


def read_rope(keys: Keys, positions: int | None, head_dim: int) -> tuple[float, RopeScaling | None]:
    """Theta and scaling: from ``rope_parameters`` (transformers 5), or ``rope_theta`` and ``rope_scaling`` (before).

    Args:
        keys: the configuration; what cannot be run is added to its ``unsupported``.
        positions: its ``max_position_embeddings``.
        head_dim: E.
    """
    values, at = keys.values, keys.at
    given = {name: values[name] for name in ("rope_parameters", "rope_scaling") if values.get(name) is not None}
    found = {name: mapping(value, name, at) for name, value in given.items()}
    name = "rope_scaling" if found.get("rope_scaling") else "rope_parameters"  # so in transformers, where both are
    settings = dict(found.get(name, {}))
    if "full_attention" in settings:  # one for each kind of layer, in Gemma 3
        if any(value != settings["full_attention"] for value in settings.values()):
            keys.unsupported.append(f"{name} that differ by kind of layer are not supported")
        settings = dict(mapping(settings["full_attention"], f"full_attention of {name}", at))
    theta = settings.pop("rope_theta", None)
    theta = keys.number("rope_theta", 10_000.0) if theta is None else number(theta, "rope_theta", at)
    if all(found.get(each) for each in ("rope_scaling", "rope_parameters")):
        other = {"rope_theta": theta, **found["rope_parameters"]}
        if _plain({"rope_theta": theta, **settings}) != _plain(other):
            keys.unsupported.append(
                "rope_scaling and rope_parameters say different things, and transformers drops the latter, rope_theta "
                "and all: keep one of them"
            )
    kind = check_text(f"{at}rope_type of {name}", settings.pop("rope_type", settings.get("type", "default")))
    settings.pop("type", None)
    for place in (values, settings):
        part = place.get("partial_rotary_factor")
        if part is not None and number(part, "partial_rotary_factor", at) != 1.0:
            keys.unsupported.append(f"partial_rotary_factor={part} is not supported; all of a head is turned")
    settings.pop("partial_rotary_factor", None)
    return theta, _scaling(_Settings(keys, settings, kind, name), positions, head_dim, theta)


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings without what says nothing, the kind under its newer name."""
    kind = settings.get("rope_type", settings.get("type", "default"))
    said = {key: value for key, value in settings.items() if value is not None and key not in ("type", "rope_type")}
    return said | {"rope_type": kind}


def rope_json(theta: float, scaling: RopeScaling | None) -> dict[str, Any]:
    """``rope_parameters`` that :func:`read_rope` reads as these."""
    rope: dict[str, Any] = {"rope_theta": theta, "rope_type": "default"}
    if scaling is None:
        return rope
    rope |= {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "llama3":
        rope |= {key: getattr(scaling, key) for key in _FACTORS}
    if scaling.kind == "yarn":
        rope |= {key: getattr(scaling, key) for key in ("beta_fast", "beta_slow", "truncate")}
    if scaling.kind == "longrope":
        rope |= {"short_factor": list(scaling.short_factors), "long_factor": list(scaling.long_factors)}
    for key, value in (
        ("attention_factor", scaling.attention_factor),
        ("original_max_position_embeddings", scaling.original_max_positions),
    ):
        if value is not None:
            rope[key] = value
    return rope


def _scaling(settings: "_Settings", positions: int | None, head_dim: int, theta: float) -> RopeScaling | None:
    kind, unsupported, said = settings.kind, settings.keys.unsupported, settings.said
    made: dict[str, Any] = {key: settings.number(key) for key in _FACTORS}
    check_number(f"{settings.keys.at}factor of {settings.name}", made["factor"] or 1, least=1.0, most=_LARGEST_STRETCH)
    original = settings.whole("original_max_position_embeddings")
    if kind in _TRAINED:  # in transformers the key outside goes first, the model's length last
        original = settings.keys.optional("original_max_position_embeddings") or original or positions
        if original is None:
            unsupported.append(f"{said} needs original_max_position_embeddings")
        elif positions is not None and ("factor" in settings.values or kind == "longrope"):  # it may be null there
            made["factor"] = made["factor"] or max(1.0, positions / original)
    if kind not in _NEEDED:
        unsupported.append(f"{said} is not supported; default, {listed(KINDS)} are")
        return RopeScaling(kind=kind, factor=made["factor"] or 1.0, original_max_positions=original)
    if kind == "yarn":
        made |= _yarn(settings, made["factor"] or 1.0)
        if theta <= 1:
            unsupported.append(f"rope_theta={theta:g} is not supported for {said}; it must be more than 1")
    if kind == "longrope":
        made |= {"short_factors": settings.factors("short_factor"), "long_factors": settings.factors("long_factor")}
        made["attention_factor"] = settings.number("attention_factor", least=0.0)
        if any(len(made[key]) not in (0, head_dim // 2) for key in ("short_factors", "long_factors")):
            unsupported.append(f"{said} needs {head_dim // 2} numbers in short_factor and in long_factor")
    if kind == "dynamic" and (positions is None or head_dim <= 2):
        unsupported.append(f"{said} needs max_position_embeddings, and heads of more than 2")
    if missing := [key for key in _NEEDED[kind] if made.get(_FIELDS.get(key, key)) in (None, ())]:
        unsupported.append(f"{said} needs {listed(missing)}")
    elif extra := settings.others():
        unsupported.append(f"{said} with {listed(extra)} is not supported")
    if kind == "default":
        return None
    scaling = RopeScaling(
        kind=kind,
        original_max_positions=original,
        **{
            key: value for key, value in made.items() if value is not None and (kind == "llama3" or key not in _PASSAGE)
        },
    )
    if scaling.high_freq_factor <= scaling.low_freq_factor:
        unsupported.append(
            f"{settings.name}: high_freq_factor={scaling.high_freq_factor} must be more than "
            f"low_freq_factor={scaling.low_freq_factor}"
        )
    return scaling


def _yarn(settings: "_Settings", factor: float) -> dict[str, Any]:
    """What is YaRN's own. A factor of cosines and sines that DeepSeek's two keys give is computed here."""
    attention = settings.number("attention_factor", least=0.0)
    of_scores, of_all = (settings.number(key, least=0.0) for key in ("mscale", "mscale_all_dim"))
    if attention is None and of_scores and of_all:
        attention = yarn_mscale(factor, of_scores) / yarn_mscale(factor, of_all)
    return {
        "attention_factor": attention,
        # 0 stands for the usual ones, as in transformers
        **{key: settings.number(key, least=0.0) or None for key in ("beta_fast", "beta_slow")},
        "truncate": check_flag(f"{settings.keys.at}truncate of {settings.name}", settings.values.get("truncate", True)),
    }


def yarn_mscale(factor: float, weight: float = 1.0) -> float:
    """YaRN's factor of cosines and sines for a stretch by ``factor``: 0.1·weight·ln(factor) + 1."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


class _Settings:
    """The keys of the scaling, checked as they are read."""

    def __init__(self, keys: Keys, values: dict[str, Any], kind: str, name: str) -> None:
        self.keys, self.values, self.kind, self.name = keys, values, kind, name
        self.said = f"{name} of type {kind if kind in _NEEDED else shown(kind)}"

    def number(self, key: str, *, least: float | None = None) -> float | None:
        value, where = self.values.get(key), f"{key} of {self.name}"
        if value is None or least is None:
            return None if value is None else number(value, where, self.keys.at)
        return float(check_number(f"{self.keys.at}{where}", value, least=least))

    def factors(self, key: str) -> tuple[float, ...]:
        value, where = self.values.get(key) or (), f"{key} of {self.name}"
        if not isinstance(value, list | tuple) or len(value) > _MOST_FACTORS:
            raise ArgumentError(f"{self.keys.at}{where}", value, "must be a list of numbers, one for each frequency")
        return tuple(number(each, where, self.keys.at) for each in value)

    def whole(self, key: str) -> int | None:
        value = self.values.get(key)
        return None if value is None else whole(value, f"{key} of {self.name}", self.keys.at)

    def others(self) -> list[str]:
        """Keys that have a value and no meaning for this kind."""
        known = {*_FACTORS, *_NEEDED[self.kind], *_USED.get(self.kind, ()), "original_max_position_embeddings"}
        left = [key for key, value in self.values.items() if value is not None and key not in known]
        return sorted(key for key in left if _WITHOUT_EFFECT.get(key, _NOTHING) not in (None, self.values[key]))
