"""The header of a safetensors file: which tensors there are, of which type, how many bytes; never the tensors.

Format (github.com/huggingface/safetensors, README, "Format"): 8 bytes, little-endian, N; N bytes of JSON, an object of
name -> {dtype, shape, data_offsets}, at most 100 MB; the tensors, without holes.

Bytes count as they lie there: scales, zero points and packed numbers of a quantised checkpoint included. An engine
keeps them so, except floats of more than 16 bits, which it turns into the type that it computes in.
"""

import math
import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from tplab.checks import ArgumentError
from tplab.files import parse_json
from tplab.shown import shown

MOST_BYTES = 100_000_000
"""Longest header that the format allows."""
FIRST_BYTES = 8
_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0", "I8", "U8", "BOOL"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
_FLOATS = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
"""Types that an engine turns into the one that it computes in -> bytes of a number."""
_BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks?|layer)\.(\d+)\.")
_TOWER = re.compile(
    r"vision|visual|image|audio|speech|sound_|multi_modal|mm_proj|connector|resampler|perceiver|talker|token2wav"
    r"|code2wav|aligner"
)
"""Names of tensors beside the language model's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredWeights:
    """What the tensors of a checkpoint take, by type: ``BF16``, ``F8_E4M3``, ``I32`` ..., in bytes."""

    blocks: Mapping[str, int]
    """The numbered layers of the language model."""
    towers: Mapping[str, int]
    """Encoders of images or sound, and what joins them to the language model."""
    ends: Mapping[str, int]
    """Everything else: embedding, head, last norm."""
    num_tensors: int
    num_files: int

    @property
    def total_bytes(self) -> int:
        """As they lie on the disk."""
        return sum(sum(part.values()) for part in (self.blocks, self.towers, self.ends))

    @property
    def precision(self) -> str:
        """The type that most of the blocks' bytes have, as the advisor calls it; ``int4`` for packed numbers."""
        part = self.blocks or self.ends or self.towers
        kind = max(part, key=lambda name: part[name])
        names = {"F64": "fp32", "F32": "fp32", "BF16": "bf16", "F16": "fp16", "I8": "int8"}
        return names.get(kind, "fp8" if kind.startswith("F8") else "int4")

    def served_bytes(self, itemsize: float, *parts: str) -> float:
        """Bytes that an engine keeps of ``parts`` (``blocks``, ``towers``, ``ends``; none named: all), which computes
        in numbers of ``itemsize`` bytes."""
        held: list[Mapping[str, int]] = [getattr(self, part) for part in parts or ("blocks", "towers", "ends")]
        sizes = ((kind, size) for each in held for kind, size in each.items())
        return float(sum(size / _FLOATS[kind] * itemsize if kind in _FLOATS else size for kind, size in sizes))


def header_length(first: bytes, name: str) -> int:
    """Bytes of the header behind the first eight. Raises ``ValueError`` for what cannot be one."""
    length = int.from_bytes(first[:FIRST_BYTES], "little")
    if len(first) < FIRST_BYTES:
        raise ValueError(f"{name} is no safetensors file: it is shorter than {FIRST_BYTES} bytes")
    if not 2 <= length <= MOST_BYTES:
        raise ValueError(f"{name} is no safetensors file: its header would have {length:,} bytes")
    return length


def tensors_in(header: bytes, name: str, data_bytes: int | None = None) -> list[tuple[str, str, int]]:
    """Name, type and bytes of every tensor.

    Args:
        header: the JSON text, without the eight bytes before it.
        name: what to call the file in errors.
        data_bytes: how long the file is behind its header; None where that is not known.

    Raises:
        ValueError: no such header, types or offsets that are none, tensors in each other, a file that is cut short.
    """
    try:
        text = header.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{name} is no safetensors file: its header is not text in UTF-8") from None
    found = parse_json(text, f"the header of {name}")
    if not isinstance(found, dict):
        raise ValueError(f"{name} is no safetensors file: its header holds no object")
    made, spans = [], []
    for key, value in found.items():
        if key == "__metadata__":
            continue
        kind, start, end = _tensor(key, value, name)
        made.append((key, kind, end - start))
        spans.append((start, end))
    behind = 0
    for start, end in sorted(spans):
        if start != behind:
            raise ValueError(f"{name} is damaged: its tensors overlap or leave a hole at byte {min(start, behind):,}")
        behind = end
    if data_bytes is not None and behind > data_bytes:
        raise ValueError(
            f"{name} is cut short: its tensors take {behind:,} bytes, of which {data_bytes:,} are there: the download "
            f"may be incomplete"
        )
    return made


def read_tensors(path: "str | os.PathLike[str]") -> list[tuple[str, str, int]]:
    """``tensors_in`` of a file, of which nothing but the header is read.

    Raises:
        ValueError: like ``tensors_in``, and for what is no file.
        OSError: it cannot be opened.
    """
    name = str(path)
    try:
        # Not blocking: a named pipe without a writer would hold up the opening itself.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:
        raise ValueError(f"{shown(name)} is no path of a file: {error}") from None
    with os.fdopen(fd, "rb", buffering=0) as file:
        about = os.fstat(fd)
        if not stat.S_ISREG(about.st_mode):
            raise ValueError(f"{name} is no file of weights: it is a folder, a pipe or a device")
        first = file.read(FIRST_BYTES)
        if first.startswith(b"version "):
            raise ValueError(f"{name} is a pointer of Git LFS, not the file: fetch it (git lfs pull)")
        length = header_length(first, name)
        if length > about.st_size - FIRST_BYTES:
            raise ValueError(f"{name} is cut short: it ends inside its header; the download may be incomplete")
        header = b""
        while len(header) < length and (more := file.read(length - len(header))):
            header += more
        return tensors_in(header, name, about.st_size - FIRST_BYTES - length)


def stored(files: Iterable[list[tuple[str, str, int]]]) -> StoredWeights:
    """All tensors of all files together. Raises ``ArgumentError`` where there is none."""
    parts: dict[str, dict[str, int]] = {"blocks": {}, "towers": {}, "ends": {}}
    tensors = num_files = 0
    for each in files:
        num_files += 1
        for name, kind, size in each:
            part = parts["towers" if _TOWER.search(name) else "blocks" if _BLOCK.search(name) else "ends"]
            part[kind] = part.get(kind, 0) + size
            tensors += 1
    if not tensors:
        raise ArgumentError("weights", num_files, "must be files with at least one tensor in all")
    return StoredWeights(**parts, num_tensors=tensors, num_files=num_files)


def _tensor(key: str, value: Any, name: str) -> tuple[str, int, int]:
    fields = value if isinstance(value, dict) else {}
    kind, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not isinstance(kind, str) or not _wholes(shape) or not _wholes(offsets) or len(offsets) != 2:
        raise ValueError(f"{name}: tensor {shown(key)} must have dtype, shape and two data_offsets; got {shown(value)}")
    if kind not in _BITS:
        raise ValueError(f"{name}: tensor {shown(key)} has dtype={shown(kind)}, which is no type of safetensors")
    start, end = offsets
    if len(shape) > 64 or end - start != -(-math.prod(shape) * _BITS[kind] // 8):
        raise ValueError(
            f"{name}: tensor {shown(key)} is {kind} of shape {shown(shape)}, which does not take {end - start:,} bytes"
        )
    return kind, start, end


def _wholes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(each) is int and each >= 0 for each in value)
