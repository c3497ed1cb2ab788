"""A checkpoint's folder, or one file of it: its configuration, and the headers of its weights."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tplab.files import read_json
from tplab.models.found.headers import StoredWeights, read_tensors, stored
from tplab.shown import counted, listed, shown

INDEX = "model.safetensors.index.json"
MOST_INDEX_BYTES = 16 << 20
MOST_FILES = 10_000
_PART = re.compile(r"-of-(\d{1,9})\.safetensors$")


def files_in_index(index: Any, name: str) -> list[str]:
    """The files that an index names, each once, in order.

    Raises:
        ValueError: no ``weight_map``, too many files, or one that lies elsewhere.
    """
    weights = index.get("weight_map") if isinstance(index, Mapping) else None
    if not isinstance(weights, dict) or not weights or not all(isinstance(file, str) for file in weights.values()):
        raise ValueError(f"{name} must hold an object weight_map, of names of tensors and of files")
    files = list(dict.fromkeys(weights.values()))
    for file in files:
        if not file.endswith(".safetensors") or "/" in file or "\\" in file or "\0" in file:
            raise ValueError(f"{name} names {shown(file)}, which is no safetensors file beside it")
    if len(files) > MOST_FILES:
        raise ValueError(f"{name} names {len(files):,} files, more than {MOST_FILES:,}")
    return files


def weights_in(folder: Path) -> StoredWeights | None:
    """What the safetensors files of a folder hold; None where there are none.

    Raises:
        ValueError: files that the index names are missing, an index or a file is damaged.
        OSError: a file cannot be read.
    """
    index = folder / INDEX
    if index.is_file():
        names = files_in_index(read_json(index, limit=MOST_INDEX_BYTES), str(index))
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise ValueError(
                f"{index} names {listed(missing)}, {'which is' if len(missing) == 1 else 'which are'} not there: the "
                f"download may be incomplete. Give {folder / 'config.json'} to count by the configuration alone"
            )
    else:
        with os.scandir(folder) as entries:
            names = sorted(each.name for each in entries if each.name.endswith(".safetensors") and each.is_file())
        names = [name for name in names if not name.startswith("adapter")]  # of LoRA: no model by themselves
        if "model.safetensors" in names:  # the others are the same in another form
            names = ["model.safetensors"]
        elif len(names) > 1:
            names = [name for name in names if name.startswith("model-")] or names
        parts = {int(part[1]) for name in names if (part := _PART.search(name))}
        if parts and max(parts) > len(names):
            raise ValueError(
                f"{folder} has {counted(len(names), 'file')} of weights, whose names count {max(parts):,}: "
                f"the download may be incomplete. Give {folder / 'config.json'} to count by the configuration alone"
            )
    return stored(read_tensors(folder / name) for name in names[:MOST_FILES]) if names else None
