"""The GPUs that a report names beside its table of links: ``nvidia-smi -L``, its table, ``-q`` and ``--query-gpu``;
``collect_env`` of torch and vLLM, ``check_env`` of SGLang and LMDeploy, ``transformers env``, logs of engines.

Sources of the forms: torch/utils/collect_env.py (2.9), vllm/collect_env.py (0.11), sglang/check_env.py (0.5),
lmdeploy/cli and transformers/commands/env.py of the same year; nvidia-smi of drivers 384 to 590 in public threads.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from tplab.shown import listed, shown
from tplab.topology.machine.gpu_names import gpus_called, hint, key_of, known_gpu, preset_of
from tplab.topology.machine.machine import Gpu
from tplab.topology.machine.spec_sheets import GPU_ALIASES, GPUS, cuda_GB

_MAKER = r"(?:NVIDIA|Tesla|Quadro|GeForce|TITAN|GRID)\b"
_NAME = rf"{_MAKER}[^|,;(\[]*?"
_END = r"(?=\s*(?:[|,;(\[]|\s{3}|\bGPU \d|\bx\d|$))"
_MAKERS_NAME = re.compile(rf"{_MAKER}[\w .()/-]{{2,60}}")
_QUOTED = re.compile(rf"['\"]({_MAKER}[\w .()/-]{{2,60}})['\"]")
_LISTED = re.compile(rf"\bGPU ?(\d+(?: ?, ?\d+)*) ?[:=] *({_NAME}){_END}")
_DEVICE = re.compile(rf"(?:\b[Dd]evice:?\s*|\[)(\d+)\b[\]:,]?\s*(?:\[[0-9a-fA-Fx:.]+\]\s*)?({_NAME}){_END}")
_TABLE = re.compile(
    rf"^\W*(\d+)\s+((?:{_MAKER}|RTX|GTX|[ABHLTV]\d)[^|]*?)\s+(?:On|Off|N/A|WDDM|TCC|MCDM)\s*\|\s*[0-9A-Fa-f]{{4,8}}:"
)
_MEMORY = re.compile(r"\d+ ?MiB */ *(\d+) ?MiB")
_BESIDE = re.compile(r"\W*(\d{4,7}) ?MiB")
_PRODUCT = re.compile(r"^\s*(?:Product Name\s*:|<product_name>) *([^<]+?)\s*(?:<|$)")
_FRAME_BUFFER = re.compile(r"^\s*(?:FB Memory Usage|<fb_memory_usage>)")
_TOTAL = re.compile(r"^\s*(?:Total\s*: *|<total>)(\d+) ?MiB")
_MIB_CELL = re.compile(r"(\d{4,7})(?: ?MiB)?")
_SAID = re.compile(
    r"\b(?:GPUs?(?: name| type| model)?|GPU models? and configuration|Graphics card|Device name|CUDA device(?: name)?)"
    r"\s*[:=] *(?:\d+ ?[x×*] ?)?([A-Za-z0-9][\w .\-/]*)",
    re.IGNORECASE,
)
_COUNTED = re.compile(
    r"(?<![\w.-])(?:(\d{1,2})(?: ?[x×] ?| (?=[A-Za-z]))|(dual|two|quad|four|eight) )(?=((?:[A-Za-z0-9.\-]+ ?){1,5}))",
    re.IGNORECASE,
)
_NUMBERS = {"dual": 2, "two": 2, "quad": 4, "four": 4, "eight": 8}
_TIMES = re.compile(r" ?[x×*] ?\d{1,2}\b.*")
_MIG = re.compile(r"\bMIG \d+g\.\d+gb|^\W*MIG devices:|^[|\s]+\|\s+Enabled \|\s*$", re.IGNORECASE)
_VIRTUAL = re.compile(r"GRID|-\d+[QCAB]\b")
_DISPLAY = re.compile(r"DGX Display")
_MIB = 1048576 / 1e9
_MOST_INDEX = 255
_MOST_PHRASES = 50
_LONGEST_NAME = 80
_MOST_KINDS = 8

Names = Mapping[int | None, tuple[str, int | None]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Named:
    """What a report says of the GPUs of its table."""

    gpus: tuple[Gpu, ...]
    """One per GPU of the table, less those that are left out; one for all; none if the text does not say."""
    left_out: tuple[int, ...] = ()
    """Places in the table of GPUs that only drive a display."""
    names: tuple[str, ...] = ()
    """Their names in the text."""
    in_words: bool = False
    """Whether a sentence names them for all, rather than a list."""
    notes: tuple[str, ...] = ()
    """What was made of it, one sentence each."""


def names_in(lines: Sequence[str], count: int | None = None, again: set[str] | None = None) -> Names:
    """Number of a GPU -> its name as printed and its memory in MiB, where the text says it; the number None stands for
    all. Empty where none is named. Words such as ``4x L4`` count if they are of ``count`` GPUs.
    Other names of a number that has one already go into ``again``."""
    names: dict[int | None, tuple[str, int | None]] = {}

    def add(index: int, name: str, mib: int | None = None) -> None:
        if index > _MOST_INDEX:
            return
        known, memory = names.get(index, ("...", None))
        if again is not None and not known.endswith("...") and name.strip()[:_LONGEST_NAME] != known:
            again.add(name.strip()[:_LONGEST_NAME])
        names[index] = (name.strip()[:_LONGEST_NAME] if known.endswith("...") else known, memory or mib)

    product = 0
    lines = [line.replace("*", "").replace("`", "") for line in lines]
    for number, line in enumerate(lines):
        for found in (*_LISTED.finditer(line), *_DEVICE.finditer(line)):
            beside = _BESIDE.match(line[found.end() :])
            for index in found[1].split(",")[: _MOST_INDEX + 1]:
                add(int(index[:9]), found[2], int(beside[1]) if beside else None)
        if row := _TABLE.search(line):
            memory = next((has for later in lines[number + 1 : number + 4] if (has := _MEMORY.search(later))), None)
            add(int(row[1][:9]), row[2], int(memory[1][:9]) if memory else None)
        if said := _PRODUCT.search(line):
            following = lines[number + 1 : number + 120]
            at = next((i for i, later in enumerate(following) if _FRAME_BUFFER.search(later)), len(following))
            total = next((has for later in following[at : at + 3] if (has := _TOTAL.search(later))), None)
            add(product, said[1], int(total[1][:9]) if total else None)
            product += 1
        elif product <= _MOST_INDEX and (queried := _queried(line) or _alone(line)):
            index, name, mib = queried
            add(product if index is None else index, name, mib)
            product += index is None
    return names or _in_words(lines, count)


def _queried(line: str) -> tuple[int | None, str, int | None] | None:
    """A line of ``--query-gpu=...,name,memory.total --format=csv``."""
    cells = [cell.strip() for cell in line.split(",")]
    at = next((i for i, cell in enumerate(cells[:4]) if re.fullmatch(_NAME, cell)), None)
    if at is None or len(cells) < 2 or not all(re.fullmatch(r"\d{1,3}|GPU-[\w-]+", cell) for cell in cells[:at]):
        return None
    memory = next((has for cell in cells[at + 1 :] if (has := _MIB_CELL.fullmatch(cell))), None)
    index = int(cells[0]) if cells[0].isdigit() else None
    return None if memory is None and index is None else (index, cells[at], int(memory[1]) if memory else None)


def _alone(line: str) -> tuple[None, str, None] | None:
    """A line with nothing but the name of a known GPU."""
    name = line.strip(" ,[]'\"")
    return (None, name, None) if _MAKERS_NAME.fullmatch(name) and known_gpu(name) else None


def _in_words(lines: Sequence[str], count: int | None) -> Names:
    """What is said of all GPUs at once: ``GPU type: NVIDIA A10G``, ``2x RTX 5090``, ``'NVIDIA L4'``."""
    phrases = [[_TIMES.sub("", name).strip()] for line in lines for name in _SAID.findall(line)]
    phrases += [[name] for line in lines for name in _QUOTED.findall(line)]
    for found in islice((found for line in lines for found in _COUNTED.finditer(line)), 1000):
        if count in (None, int(found[1] or _NUMBERS[found[2].lower()])):
            words = found[3].split()
            phrases.append([" ".join(words[:length]).removesuffix("s") for length in range(len(words), 0, -1)])
    said = {next(filter(known_gpu, names), "") for names in phrases[:_MOST_PHRASES]} - {""}
    if len({known_gpu(name) for name in said}) != 1:
        return {}
    return {None: (max(said, key=len), None)}


def gpu_of(name: str, mib: int | None) -> Gpu | None:
    """The spec sheet of a GPU as a report names it; the smallest of several that it may be; None if there is none."""
    bare = name.rstrip(". …")
    if _VIRTUAL.search(name):
        return None
    memory = None if mib is None else cuda_GB(mib * _MIB)
    if bare != name:  # cut off by the width of a column
        geforce, key = "geforce" in bare.lower(), key_of(bare).removesuffix("geforce").removesuffix("nvidia")
        may_be = [gpu for gpu in GPUS.values() if gpu.name.startswith(key) and gpu.pcie_p2p != geforce]
        may_be = may_be or [GPUS[called] for called in gpus_called(bare)]
        for share in (0.0003, 0.035):  # drivers differ in what they keep back
            near = [gpu for gpu in may_be if memory is None or abs(gpu.memory_GB / memory - 1) < share]
            if near:
                return min(near, key=_size) if key or memory is not None else None
        return None
    if mib is not None and (exact := preset_of(name, mib * _MIB)):
        return exact
    called = [GPUS[each] for each in gpus_called(name)]
    if mib is not None:
        kin = [gpu for gpu in GPUS.values() if gpu.name.startswith(f"{key_of(name)}-")]
        called = [gpu for gpu in (*called, *kin) if memory and abs(gpu.memory_GB / memory - 1) < 0.035]
    elif not called and (found := known_gpu(name)):
        return GPUS[found]
    longest = max((_parts(gpu) for gpu in called), default=0)
    return min((gpu for gpu in called if _parts(gpu) == longest), key=_size, default=None)


def _parts(gpu: Gpu) -> int:
    return sum(not re.fullmatch(r"\d+gb", part) for part in gpu.name.split("-"))


def smallest(gpus: Iterable[Gpu]) -> Gpu:
    """The one of least memory; memory bandwidth and rate decide between equals."""
    return min(gpus, key=_size)


def _size(gpu: Gpu) -> tuple[float, float, float]:
    return round(gpu.memory_GB), gpu.hbm_GBps, gpu.bf16_TFLOPS


def gpus_of_table(lines: Sequence[str], numbers: Sequence[int], spec: Gpu | None = None) -> Named:
    """What the text says of the GPUs of its table.

    Args:
        lines: of the text.
        numbers: of the table's GPUs, as in ``GPU0``.
        spec: which GPUs these are, for those who know it: then names only tell which GPUs drive a display.

    Raises:
        ValueError: slices of a GPU (MIG), or a name without spec sheet, unless ``spec`` is given.
    """
    if spec is None and any(_MIG.search(line) for line in lines):
        raise ValueError(
            "the text lists slices of GPUs (MIG), which have neither the memory nor the links of the table's GPUs: "
            "give the gpu (--gpu), the whole one or a slice in figures"
        )
    again: set[str] = set()
    names = names_in(lines, len(numbers), again)
    if not names:
        return Named(gpus=() if spec is None else (spec,))
    usual = names.get(None) or names[min(index for index in names if index is not None)]
    each = [names.get(number, usual) for number in numbers]
    left_out = tuple(i for i, (name, _) in enumerate(each) if _DISPLAY.search(name))
    each = [named for i, named in enumerate(each) if i not in left_out]
    said = Named(
        gpus=(),
        left_out=left_out,
        names=tuple(dict.fromkeys(name for name, _ in each)),
        in_words=None in names,
        notes=tuple(f"GPU{numbers[i]} is left out: it only drives a display" for i in left_out),
    )
    if len(set(each)) > _MOST_KINDS:
        raise ValueError(f"the text names {len(set(each))} kinds of GPUs: give the gpu (--gpu) that all count as")
    kinds = {named: gpu_of(*named) for named in dict.fromkeys(each)}
    if spec is not None:
        unlike = [f"{name} as {spec.name}" for (name, _), gpu in kinds.items() if gpu and gpu.name != spec.name]
        other = (f"the text names other GPUs than were given: {listed(unlike)}",) if unlike else ()
        return replace(said, gpus=(spec,), notes=(*said.notes, *other))
    for name, mib in (named for named, gpu in kinds.items() if gpu is None):
        if name.endswith("...") and len(kinds) == 1:
            return said
        size = f" with {mib} MiB" if mib else ""
        raise ValueError(
            f"the text names {shown(name)}{size}, of which there is no spec sheet: give the gpu (--gpu), a name or "
            f"figures; {hint(name, [*GPUS, *GPU_ALIASES])}"
        )
    notes = [f"the text names the GPUs: {listed(f'{name} is {gpu.name}' for (name, _), gpu in kinds.items() if gpu)}"]
    there = [index for index in names if index is not None]
    if there and len(there) < len(numbers):
        notes.append(f"it names {len(there)} of {len(numbers)}: the others are taken as the same")
    elif len(there) > len(numbers):
        notes.append(f"it names {len(there)}, and its table has {len(numbers)}: those of the table count")
    gpus = tuple(gpu for named in each if (gpu := kinds[named]) is not None)
    others = [name for name in sorted(again)[:_MOST_KINDS] if (gpu := gpu_of(name, None)) and gpu not in gpus]
    if others:
        notes.append(f"it also names {listed(others)} under the same numbers: what it names first counts")
    return replace(said, gpus=gpus, notes=(*said.notes, *notes))


def named_without_table(lines: Sequence[str]) -> str:
    """The GPUs that a text names, for an error; empty if it names none."""
    return listed(
        f"{number} x {name}" for name, number in Counter(name for name, _ in names_in(lines).values()).items()
    )
