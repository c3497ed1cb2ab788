"""Checkpoints read slice by slice, made up by seed, and written.

A rank opens the files that hold its tensors, one tensor at a time, and copies its slices out of the mapped file into
their place: what it has touched of a file leaves its memory when the tensor is done. So its peak is its own shard and
one tensor. Not ``torch.load`` or a state dict, which would bring every tensor in whole.

A file whose header is damaged or whose end is missing is recognised by its lengths; safetensors has no check sums, so
flipped bits inside a tensor are not.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch

from tplab.checks import check_count
from tplab.files import read_json, replacing, settle, told_kind
from tplab.models.decoder import Stage
from tplab.models.precision import itemsize
from tplab.models.records import CheckpointError
from tplab.models.spec import ModelConfig
from tplab.shown import listed, shown

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_MOST_INDEX_BYTES = 16 << 20
_MOST_FILES = 10_000
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}


class Source(Protocol):
    """Full tensors by name, to be sliced."""

    def open(self, name: str) -> AbstractContextManager[Any]:
        """What slices like the full tensor, while the context lasts."""


def torch_dtype(name: str | None) -> torch.dtype:
    """``float32`` -> ``torch.float32``. Raises ``ValueError`` for one that models here do not come in."""
    itemsize(name)
    dtype: torch.dtype = getattr(torch, str(name))
    return dtype


def fill(
    stage: Stage,
    source: Source,
    device: "torch.device | str" = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Give every weight of ``stage`` its memory and values. Returns the bytes taken from the source.

    Args:
        progress: called with (parameters done, of how many) after each.

    Raises:
        CheckpointError: what the source raises.
    """
    plan = stage.plan
    parameters = dict(stage.named_parameters())
    taken = 0
    with torch.no_grad():
        for done, (name, shards) in enumerate(plan.items(), start=1):
            like = parameters[name]
            weight = torch.empty(like.shape, dtype=like.dtype, device=device)
            row = 0
            for shard in shards:
                with source.open(shard.source) as full:
                    if shard.dim is None:
                        part = full[:]
                    elif shard.dim == 0:
                        part = full[shard.start : shard.end]
                    else:
                        part = full[:, shard.start : shard.end]
                    weight[row : row + part.shape[0]].copy_(part)
                    row += part.shape[0]
                    taken += part.numel() * part.element_size()
                    del part  # it is a view of the mapped file, which cannot be let go before
                if shard.padding:
                    weight[row : row + shard.padding].zero_()
                    row += shard.padding
            assert row == weight.shape[0], (name, row, tuple(weight.shape))
            stage.set(name, weight)
            if progress is not None:
                progress(done, len(plan))
    return taken


class Checkpoint:
    """A folder with ``model.safetensors``, or several of them and an index.

    Args:
        folder: the folder.
        config: the model that must be in it.

    Raises:
        CheckpointError: no such files, an index that is not one, tensors missing or too many; at ``open`` a file that
            is damaged, cut short or missing, or a tensor of another shape or of a dtype that is not a float.
    """

    def __init__(self, folder: "str | Path", config: ModelConfig) -> None:
        self.folder = Path(folder)
        self._shapes = config.tensor_shapes()
        self._file_of = self._find()
        self._check_names(config)

    def _find(self) -> dict[str, str]:
        index, single = self.folder / INDEX, self.folder / SINGLE
        if os.path.isfile(index):
            try:
                files = _weight_map(read_json(index, limit=_MOST_INDEX_BYTES))
            except (ValueError, OSError) as error:
                raise CheckpointError(f"{index} is damaged: no weight_map can be read from it ({error})") from error
            missing = sorted({file for file in files.values() if not os.path.isfile(self.folder / file)})
            if missing:
                raise CheckpointError(
                    f"{listed(missing)} {'is' if len(missing) == 1 else 'are'} named in {index}, but not there: the "
                    f"download may be incomplete"
                )
            return files
        if os.path.isfile(single):
            with _opened(single) as file:
                return dict.fromkeys(file.keys(), SINGLE)
        names = os.listdir(self.folder) if os.path.isdir(self.folder) else []
        others = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth", ".gguf")))
        hint = f"; {listed(others)} would have to be converted" if others else ""
        raise CheckpointError(f"{self.folder} has neither {SINGLE} nor {INDEX}: only safetensors are read{hint}")

    def _check_names(self, config: ModelConfig) -> None:
        missing = [name for name in self._shapes if name not in self._file_of]
        if missing:
            raise CheckpointError(
                f"{self.folder} lacks {listed(missing)}, which a {config.model_type} of this config has"
            )
        extra = [name for name in self._file_of if name not in self._shapes and not self._harmless(name)]
        if extra:
            raise CheckpointError(
                f"{self.folder} has {listed(extra)}, which a {config.model_type} of this config has no place for: "
                f"config and weights are not of the same model"
            )

    def _harmless(self, name: str) -> bool:
        """Tensors that older versions stored: frequencies, which follow from the config; the head of a tied model, a
        copy."""
        return name.endswith(".rotary_emb.inv_freq") or name == "lm_head.weight"

    @property
    def dtype(self) -> str:
        """Type of the embedding, as torch calls it, for a config that names none; float64 is read as float32."""
        with self.open("model.embed_tokens.weight") as full:
            return {"BF16": "bfloat16", "F16": "float16"}.get(full.get_dtype(), "float32")

    @contextmanager
    def open(self, name: str) -> Iterator[Any]:
        path = self.folder / self._file_of[name]
        with _opened(path) as file:
            try:
                full = file.get_slice(name)
            except Exception as error:
                raise CheckpointError(f"{path} does not hold {name}, though the index says so") from error
            shape, dtype = tuple(full.get_shape()), full.get_dtype()
            if shape != self._shapes[name]:
                raise CheckpointError(
                    f"{name} in {path} has the shape {shape}; the config makes it {self._shapes[name]}"
                )
            if dtype not in _DTYPES:
                raise CheckpointError(
                    f"{name} in {path} is of dtype {dtype}: quantised weights are not supported, floats are"
                )
            yield full


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        opened = safe_open(path, "pt", device="cpu")
    except (SafetensorError, OSError) as error:
        if kind := told_kind(path):
            raise CheckpointError(f"{path} is {kind}") from error
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) is damaged or cut short: {error}. Fetch or write it again"
            if os.path.isfile(path)
            else f"{path} cannot be read: {error}"
        ) from error
    with opened as file:
        yield file


def _weight_map(data: Any) -> dict[str, str]:
    """Tensor -> file. Only of the index's own folder: what was downloaded is not to choose what is opened elsewhere.
    Links with plain names may lead out of it, as they do in Hugging Face's cache."""
    found = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(found, dict):
        raise ValueError(f"weight_map must be an object, got {shown(found)}")
    for name, file in found.items():
        if not isinstance(file, str) or file in ("", ".", "..") or set(file) & {"/", "\\", "\0"}:
            raise ValueError(f"{listed([name])} must be in a file of this folder, by its name alone; got {shown(file)}")
    if len(files := set(found.values())) > _MOST_FILES:
        raise ValueError(f"it names {len(files):,} files, more than {_MOST_FILES:,}")
    return found


class RandomWeights:
    """A model made up by seed. Every tensor has a generator of its own, keyed by its name, so that every layout takes
    slices of the same values, whatever it takes them of and in what order.

    Matrices are normal with variance 1/columns, so that logits have a spread of about 1 and the likeliest token is one;
    norms are around 1, and biases small. Drawn in float32: other dtypes are its rounding. Beyond four million numbers a
    tensor's begin again: drawing the billions of a real model's takes minutes. As many as a prime number, so that rows
    differ.
    """

    _DRAWN = 4_000_037

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        self._config, self._seed = config, seed
        self._shapes = config.tensor_shapes()

    @contextmanager
    def open(self, name: str) -> Iterator[torch.Tensor]:
        yield self.tensor(name)

    def tensor(self, name: str) -> torch.Tensor:
        """The full tensor, float32."""
        shape = self._shapes[name]
        digest = hashlib.sha256(f"{self._seed}:{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
        size = math.prod(shape)
        drawn = torch.empty(min(size, self._DRAWN)).normal_(generator=generator)
        if name.endswith("norm.weight"):
            drawn.mul_(0.1).add_(1.0 - self._config.norm_offset)
        else:
            drawn.mul_(0.1 if len(shape) == 1 else shape[1] ** -0.5)
        return drawn.repeat(-(-size // drawn.numel()))[:size].view(shape)


def save_checkpoint(
    folder: "str | Path",
    config: ModelConfig,
    source: Source,
    *,
    dtype: str | None = None,
    max_shard_bytes: int = 2 << 30,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write a checkpoint that transformers, and :class:`Checkpoint`, can read; the files written.

    One file in memory at a time. All files are written beside those of an earlier checkpoint, which takes the room of
    both, and renamed when the last one is on the disk: until then a full disk or an interrupt leaves the earlier
    checkpoint as it was, and none of the new one. ``config.json`` goes before the first file is renamed and comes
    last, so that a machine that dies in between leaves no mixture of two checkpoints that looks like one.

    Args:
        source: of the tensors: ``RandomWeights``, or another ``Checkpoint`` to write again.
        dtype: by default the config's, and float32 where it names none.
        max_shard_bytes: of tensors per file; a larger tensor has a file of its own.

    Raises:
        CheckpointError: the folder cannot be written to, or what the source raises.
    """
    from safetensors.torch import save_file

    folder, dtype = Path(folder), dtype or config.dtype or "float32"
    kind = torch_dtype(dtype)
    check_count("max_shard_bytes", max_shard_bytes, least=1)
    parts: list[list[str]] = [[]]
    filled = total = 0
    for name, shape in config.tensor_shapes().items():
        size = torch.Size(shape).numel() * kind.itemsize
        if parts[-1] and filled + size > max_shard_bytes:
            parts.append([])
            filled = 0
        parts[-1].append(name)
        filled, total = filled + size, total + size
    files = [
        SINGLE if len(parts) == 1 else f"model-{number:05}-of-{len(parts):05}.safetensors"
        for number in range(1, len(parts) + 1)
    ]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as renamed_last_first:

            def beside(file: str) -> Path:
                return renamed_last_first.enter_context(replacing(folder / file))

            keys = config.to_hf() | {"torch_dtype": dtype}
            beside("config.json").write_text(json.dumps(keys, indent=2))
            if len(parts) > 1:
                weight_map = {name: file for file, names in zip(files, parts, strict=True) for name in names}
                index = {"metadata": {"total_size": total}, "weight_map": weight_map}
                beside(INDEX).write_text(json.dumps(index, indent=2))
            partials = [beside(file) for file in files]
            for number, (partial, names) in enumerate(zip(partials, parts, strict=True), start=1):
                tensors = {}
                for name in names:
                    with source.open(name) as full:
                        tensors[name] = torch.as_tensor(full[:]).to(kind, copy=True).contiguous()
                save_file(tensors, partial, metadata={"format": "pt"})
                settle(partial)
                if progress is not None:
                    progress(number, len(parts))
            (folder / "config.json").unlink(missing_ok=True)
            if len(parts) == 1:
                (folder / INDEX).unlink(missing_ok=True)
    except CheckpointError:
        raise
    except Exception as error:  # safetensors has an error of its own for a full or read-only disk
        raise CheckpointError(f"cannot write a checkpoint to {folder}: {error}") from error
    return [folder / file for file in files]
