"""What a rank that crashed had printed: where it was, and whether a message of another size ended it."""

import re
from collections.abc import Sequence

from tplab.cluster.calls import Frame

# Gloo ends the process when more comes in than the tensor that was given for it can hold.
_SIZES = re.compile(r"op\.preamble\.length <= op\.nbytes\. (\d+) vs (\d+)")
_THREAD = re.compile(r"(Current thread|Thread) 0x\w+")
_FRAME = re.compile(r'\s*File "(.+)", line (\d+) in (.+)')


def find_sizes(lines: Sequence[str]) -> tuple[int, int] | None:
    """Bytes of the message that came, and bytes that the rank had room for; None if that was not it."""
    found = next((match for line in lines if (match := _SIZES.search(line))), None)
    return (int(found[1]), int(found[2])) if found is not None else None


def find_frames(lines: Sequence[str], bottom: str) -> tuple[Frame, ...]:
    """The stack that ``faulthandler`` printed of the thread that has ``bottom`` on it: the frames above that, outermost
    first."""
    frames: list[Frame] = []
    for line in lines:
        if _THREAD.match(line):
            frames = []
        elif (match := _FRAME.fullmatch(line)) is not None:
            if match[3] == bottom:
                return tuple(frames[::-1])
            frames.append((match[1], int(match[2]), match[3], None))
    return ()


__all__ = ["find_frames", "find_sizes"]
