"""The provenance columns of a frame, and the badge of a figure, with one spelling of emulated links. No torch."""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tplab.cluster import Provenance

EMULATED_LINK = "emulated link "
"""How the ``link`` column, badges and notes begin where messages went over declared links."""
_OLDER = re.compile(r"(?:emulated: )?(\S+ us, \S+ GB/s.*)")
"""How frames of earlier versions spell it: with a colon, or the bare link."""
_PLAIN = re.compile(r"\d{4,}(?= us)")
"""How they write thousands of microseconds."""


def link_text(link: object | None, own: str = "") -> str:
    """``emulated link 200 us, 0.05 GB/s`` for a declared link or table of links; ``own`` where there is none."""
    return own if link is None else f"{EMULATED_LINK}{link}"


def newest_spelling(link: str) -> str:
    """The same ``link`` column as this version writes it."""
    link = _OLDER.sub(rf"{EMULATED_LINK}\1", link) if _OLDER.fullmatch(link) else link
    if not link.startswith(EMULATED_LINK):
        return link
    return _PLAIN.sub(lambda found: f"{int(found[0]):,}", link).replace("inf GB/s", "no bandwidth limit")


def is_emulated(link: str) -> bool:
    """Whether a ``link`` column, of this version or an earlier one, is of declared links."""
    return newest_spelling(link).startswith(EMULATED_LINK)


def provenance_columns(
    provenance: "Provenance", *, link: object | None = None, launch_mode: str | None = None
) -> dict[str, str | int]:
    """One value per column of ``provenance``, for the rows of a measurement.

    Args:
        link: the declared link that its messages went over; None: the backend's own.
        launch_mode: ``eager`` or ``graph``; None: as in ``provenance``.
    """
    columns = provenance.columns()
    return columns | {
        "link": link_text(link, provenance.link),
        "launch_mode": launch_mode or provenance.launch_mode,
    }


def joined_badge(*parts: str) -> str:
    """``LIVE gloo · 2 ranks · emulated link 200 us, 0.05 GB/s``: the parts that are not empty."""
    return " · ".join(part for part in parts if part)
