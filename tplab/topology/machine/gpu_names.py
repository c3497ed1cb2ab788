"""Which GPU a name means, what to say of one that is not known, and figures given in the place of a name.

The hint is the kin of what was asked for, of its series and generation, rather than what is spelt alike: nobody who
asks for a GTX 1080 Ti is helped by an RTX 4080.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from functools import lru_cache
from typing import Any

from tplab.shown import listed, nearest, shown
from tplab.topology.machine.machine import Gpu
from tplab.topology.machine.spec_sheets import GPU_ALIASES, GPUS

_MAKERS = re.compile(r"^(nvidia|amd|geforce|tesla|instinct|quadro(?!-rtx))-")

_SERIES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    # pattern of the name, what such GPUs are called, their kin; the first that matches counts
    (r"(gtx-?)?10[1-8]0|titan-xp?$", "Pascal GeForce", ("p40",)),
    (r"(gtx-?)?16[56]0|rtx-?20\d0", "such Turing GeForce", ("rtx-2080-ti",)),
    (r"gtx|k[248]0|m[46]0\b|titan-(x|z|black)", "GPU older than Pascal", ()),
    (r"titan-v", "Titan V", ("v100-pcie-16gb",)),
    (r"quadro|rtx-?[3-8]000$", "such Quadro", ("quadro-rtx-6000", "quadro-rtx-8000")),
    (r"(rtx-?)?30[5-9]0", "such Ampere GeForce", ("rtx-3060", "rtx-3080", "rtx-3080-ti", "rtx-3090")),
    (r"(rtx-?)?40[5-9]0", "such Ada GeForce", ("rtx-4060-ti", "rtx-4070", "rtx-4080", "rtx-4090")),
    (r"(rtx-?)?50[5-9]0", "such Blackwell GeForce", ("rtx-5060-ti", "rtx-5070", "rtx-5080", "rtx-5090")),
    (r"(rtx-)?a[2-6][05]00\b", "such Ampere workstation card", ("rtx-a4000", "rtx-a5000", "rtx-a6000")),
    (r"rtx-?\d000.*ada", "such Ada workstation card", ("rtx-4500-ada", "rtx-5000-ada", "rtx-6000-ada")),
    (r"rtx-pro", "such Blackwell workstation card", ("rtx-pro-5000", "rtx-pro-6000", "rtx-pro-6000-max-q")),
    (r"mi3[02]", "such MI300", ("mi300x", "mi325x")),
    (r"mi3", "such MI350", ("mi350x", "mi355x")),
    (r"mi\d", "AMD accelerator before MI300", ()),
    (r"rx-?\d|radeon|w\d{4}|ryzen", "Radeon", ()),
    (r"jetson|orin|thor|agx", "Jetson", ("gb10",)),
    (
        r"tpu|gaudi|trn\d|trainium|inf\d|inferentia|ascend|910[abc]|arc\b|b[56]0\b|m[1-5]-",
        "such chip",
        (),
    ),
    (r"t4(?!\d)", "such T4", ("t4",)),
    (r"p100(?!\d)", "such P100", ("p100", "p100-pcie")),
    (r"v100(?!\d)", "such V100", ("v100-32gb", "v100-pcie-32gb", "v100s")),
    (r"gh200(?!\d)", "such GH200", ("gh200", "gh200-144gb")),
    (r"gb", "such Grace Blackwell", ("gb10", "gb200", "gb300")),
    (r"a100(?!\d)", "such A100", ("a100", "a100-40gb", "a100-pcie")),
    (r"a800(?!\d)", "such A800", ("a800", "a800-pcie")),
    (r"h100(?!\d)", "such H100", ("h100", "h100-pcie", "h100-nvl")),
    (r"h800(?!\d)", "such H800", ("h800", "h800-pcie")),
    (r"h200(?!\d)", "such H200", ("h200", "h200-nvl")),
    (r"h20(?!\d)", "such H20", ("h20", "h20-3e")),
    (r"b[123]00(?!\d)", "such Blackwell SXM", ("b200", "b300")),
    (r"a16\b", "A16", ("a2",)),
    (r"l40", "such L40", ("l40", "l40s")),
)

OWN = "give the figures of a GPU of your own in the place of a name: memory_GB=24,hbm_GBps=936,bf16_TFLOPS=71"
"""How to go on without a preset."""


def key_of(name: str) -> str:
    """The name in small letters, with single dashes for blanks and underscores, and without its maker."""
    key = re.sub(r"[\s_-]+", "-", name.strip().lower())
    while (bare := _MAKERS.sub("", key)) != key:
        key = bare
    return key.removesuffix("-gpu")


def find(key: str, known: Mapping[str, Any], aliases: Mapping[str, str]) -> str | None:
    """The name in ``known`` that ``key`` stands for, dashes aside; None if there is none."""
    key = aliases.get(key, key)
    if key in known:
        return key
    squeezed = {name.replace("-", ""): name for name in (*aliases, *known)}
    name = squeezed.get(key.replace("-", ""))
    return None if name is None else aliases.get(name, name)


_VARIANTS = {"ti", "super", "d", "max", "laptop", "mobile", "mig", "sff"}
"""Words that make another card of a name: an RTX 4080 SUPER is no RTX 4080."""
_SAYS_NOTHING = re.compile(
    r"\d+gb?|hbm\d?e?|sxm\d?|ac|oam|nvl4|nvl72|generation|blackwell|server|workstation|edition|vf|gpu|[dh]gx"
)
"""Words that do not make another GPU of a name."""
_GRACE = re.compile(r"GH200.?(120|480) ?GB", re.IGNORECASE)
"""Names with the memory of the CPU beside it."""
_MEMORY_APART = 0.15
"""Relative difference from which two memory sizes are not the same GPU's: names give GiB or GB, and round."""


def preset_of(driver_name: str, memory_GB: float) -> Gpu | None:
    """The spec sheet for a GPU as the driver calls it: ``NVIDIA H100 80GB HBM3``, ``Tesla V100-SXM2-16GB``.

    None if there is none. Names that several cards share (PCIe and SXM, 40 and 80 GB) are told apart by form and
    memory.
    """
    return _of_memory(_called(driver_name), memory_GB)


def _called(driver_name: str) -> list[tuple[int, Gpu]]:
    """GPUs of that name whatever their memory, with the number of words that they share with it."""
    words = set(re.split(r"[\s\-/]+", driver_name.lower()))
    return [
        (len(parts), gpu)
        for gpu, parts in _PARTS
        if parts <= words
        and not _VARIANTS & words - parts
        and not (gpu.num_nvlinks and "pcie" in words and "pcie" not in parts)  # the spec sheet is the SXM module's
    ]


def _of_memory(called: Iterable[tuple[int, Gpu]], memory_GB: float) -> Gpu | None:
    """The one that shares most words among those of about that memory, the nearest in memory among equals."""
    near = [(-shared, abs(gpu.memory_GB - memory_GB), i, gpu) for i, (shared, gpu) in enumerate(called)]
    return min((each for each in near if each[1] <= 0.1 * memory_GB), default=(0, 0.0, 0, None))[-1]


_PARTS = tuple(
    (gpu, frozenset(part for part in gpu.name.split("-") if not re.fullmatch(r"\d+gb", part))) for gpu in GPUS.values()
)
"""GPUs with the words of their names, less their memory."""


@lru_cache(4096)
def gpus_called(name: str) -> frozenset[str]:
    """Names in ``spec_sheets.GPUS`` that a GPU may have which is called ``name`` there or by its driver; several where
    only its memory would tell them apart, none where there is no such spec sheet."""
    if name in GPUS:
        return frozenset({name})
    called = _called(name)
    found = {gpu.name: gpu for size in GPUS.values() if (gpu := _of_memory(called, size.memory_GB)) is not None}
    said = re.search(r"(?<!\d)([1-9]\d{0,4}) ?GB", name, re.IGNORECASE)
    if said and not _GRACE.search(name):
        found = {key: gpu for key, gpu in found.items() if abs(gpu.memory_GB / float(said[1]) - 1) < _MEMORY_APART}
        nearest = min((abs(gpu.memory_GB - float(said[1])) for gpu in found.values()), default=0.0)
        found = {key: gpu for key, gpu in found.items() if abs(gpu.memory_GB - float(said[1])) == nearest}
    return frozenset(found)


def known_gpu(name: str) -> str | None:
    """The name in ``GPUS`` that ``name`` stands for, as people or drivers write it; None if none, or several."""
    key = key_of(name)
    found = find(key, GPUS, GPU_ALIASES) or find(f"rtx-{key}", GPUS, GPU_ALIASES)
    called = gpus_called(name)
    if found or len(called) != 1:
        return found
    (only,) = called
    more = set(key.split("-")) - set(only.split("-"))
    return only if all(_SAYS_NOTHING.fullmatch(word) for word in more) else None


def gpu_preset(name: "str | Gpu") -> Gpu:
    """The GPU of that name, or of those figures (``memory_GB=24,hbm_GBps=936,bf16_TFLOPS=71``; see ``Gpu`` for the
    others). Raises ``ValueError`` with its kin for one that is not known, and for figures that no GPU has."""
    if isinstance(name, Gpu):
        return name
    if "=" in name:
        return gpu_of_figures(name)
    found = known_gpu(name)
    if found is None:
        raise ValueError(f"no GPU preset is called {name!r}: {hint(name, [*GPUS, *GPU_ALIASES])}")
    return GPUS[found]


def hint(name: str, known: Iterable[str]) -> str:
    """What to say of a GPU that is not known: its kin, or that none is; and how to go on without."""
    names, key = tuple(known), key_of(name)
    for pattern, series, kin in _SERIES:
        if re.match(pattern, key):
            able = [each for each in kin if each in names]
            if not able:
                return f"no {series} is known, nor any of its kind: {OWN}"
            return f"no {series} is known, the nearest in kind is {' or '.join(able)}; or {OWN}"
    near = nearest(key, names)
    return f"{near} Or {OWN}" if near.endswith("?") else f"{near}; or {OWN}"


def gpu_of_figures(text: str) -> Gpu:
    """A GPU from ``key=value`` figures with commas between; keys are the fields of ``Gpu``.

    Raises:
        ValueError: a key that is no field or stands twice, a value that is none, or one of the three that every GPU
            must have missing.
    """
    kinds = {field.name: field.type for field in fields(Gpu)}
    values: dict[str, Any] = {}
    for part in text.split(","):
        key, _, value = part.partition("=")
        key, value = key.strip(), value.strip()
        if key not in kinds:
            raise ValueError(f"{shown(part)} is no figure of a GPU: use key=value with {listed(kinds, len(kinds))}")
        if key in values:
            raise ValueError(f"{key} stands twice in {shown(text)}: give it once")
        values[key] = _value(key, value, str(kinds[key]))
    missing = [key for key in ("memory_GB", "hbm_GBps", "bf16_TFLOPS") if key not in values]
    if missing:
        raise ValueError(f"{shown(text)} lacks {' and '.join(missing)}: every GPU needs those")
    return Gpu(**{"name": "own-gpu", **values})


def _value(key: str, text: str, kind: str) -> Any:
    if "str" in kind:
        return text
    if "bool" in kind:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{key} must be true or false; got {shown(text)}")
        return text.lower() == "true"
    try:
        return int(text) if "int" in kind else float(text)
    except ValueError:
        raise ValueError(f"{key} must be a number; got {shown(text)}") from None
