"""One finding of ``tplab doctor``."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "note", "problem"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One thing looked at."""

    name: str
    found: str
    """What there is."""
    status: Status = "ok"
    """``note``: works, but know this. ``problem``: something will not work."""
    meaning: str = ""
    """One plain sentence, where the status is not ``ok``."""
    cure: str = ""
    """What to do about it."""
