"""The words in which a hang is told: a call, a rank's doing, a place in the code."""

import linecache
import os
import sys
from collections.abc import Sequence

import tplab
from tplab.cluster.calls import BETWEEN_TWO, Call, Frame, Position

_NOT_OURS = (os.path.dirname(tplab.__file__) + os.sep, f"{os.sep}site-packages{os.sep}", f"{os.sep}lib{os.sep}python3.")
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")


def ordinal(index: int) -> str:
    """``first`` for 0."""
    return _ORDINALS[index] if index < len(_ORDINALS) else f"{index + 1}th"


def describe(call: Call) -> str:
    """``all_reduce #3``, ``send #1 to rank 2``."""
    name = f"{call.kind} #{call.number}"
    if call.kind in BETWEEN_TWO:
        peer = "any rank" if call.peer is None else f"rank {call.peer}"
        name += f" {'to' if call.kind == 'send' else 'from'} {peer}"
        name += f" with tag {call.tag}" if call.tag else ""
    return name


def tell_doing(position: Position) -> str:
    """What a rank does that waits for nobody: the end of a sentence about it."""
    match position.status:
        case "running":
            frame = own_line(position.frames) or (position.frames[-1] if position.frames else None)
            if frame is None:
                return "is between two steps"
            if frame[2] == "synchronize" and is_not_ours(frame):
                return "waits for the GPU"
            source = (frame[3] or linecache.getline(frame[0], frame[1])).strip()
            return f"is at {name_place(frame)}" + (f" (`{source}`)" if source else "")
        case "returned":
            return "has returned from the function"
        case "raised":
            return f"raised {position.fault}"
        case "ended":
            return "has ended: there is no process"
        case "lost":
            return "is on a host that nothing is heard of any more"
        case "silent":
            return (
                "did not even say where: compiled code holds Python's lock (the GIL) there, or the process is stopped"
            )


def name_place(frame: Frame) -> str:
    """``train.py:12``, and of a notebook's cell ``Cell In[3], line 12``."""
    file, line = frame[:2]
    if "ipykernel" in file or file.startswith("<"):
        return f"{_name_cell(file)}, line {line}"
    return f"{os.path.basename(file)}:{line}"


def _name_cell(file: str) -> str:
    """As IPython's tracebacks name it, where this is its process."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    named = shell.compile.format_code_name(file) if shell is not None else None
    return " ".join(named) if named else "a cell"


def own_line(frames: Sequence[Frame]) -> Frame | None:
    """The innermost line of the user's own code."""
    return next((frame for frame in reversed(frames) if not is_not_ours(frame)), None)


def is_not_ours(frame: Frame) -> bool:
    return any(part in frame[0] for part in _NOT_OURS)


def tell_size(call: Call) -> str:
    return "" if call.num_elements is None else f"{call.num_elements:,} {call.dtype}"


def inflect(ranks: Sequence[int], verb: str) -> str:
    several = len(ranks) > 1
    return ("are" if several else "is") if verb == "be" else verb + "s" * (not several)


__all__ = [
    "describe",
    "inflect",
    "is_not_ours",
    "name_place",
    "ordinal",
    "own_line",
    "tell_doing",
    "tell_size",
]
