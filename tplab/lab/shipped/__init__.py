"""The notebooks that tplab brings along, and what they link to: where they lie, and which files belong to them.

In a wheel they lie in this package's own folder, laid out as in a clone; installed from a clone (``pip install -e``),
they are the clone's. Whoever wants them asks here, and nowhere else is it known.
"""

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final
from urllib.parse import unquote

import tplab
from tplab.checks import ArgumentError

START: Final = "00-start-here.ipynb"
"""The notebook to begin with."""
NUMBERED: Final = "[0-9][0-9]-*.ipynb"
"""Pattern of the workshop's notebooks."""

CHECKOUT: Final = Path(tplab.__file__).parents[1]
"""The clone that tplab is installed from, if it is; else the folder of installed packages."""
# In Markdown and in a notebook's JSON alike: ](target) and ](target "title").
_LINK = re.compile(r"\]\(([^)\s#:]+)(?:#[^)\s]*)?(?:\s[^)]*)?\)")
_LINKING = (".ipynb", ".md")


def root() -> Path:
    """The folder with ``notebooks/``, ``docs/`` and the like. Raises ``ArgumentError`` where this installation has
    none."""
    for place in (Path(__file__).parent, CHECKOUT):
        if (place / "notebooks" / START).is_file():
            return place
    raise ArgumentError(
        "notebooks", str(CHECKOUT / "tplab"), "are not in this installation: pip install --force-reinstall tplab"
    )


def shipped_files() -> dict[str, Path]:
    """All files of the notebooks, and those that they link to, over as many links as it takes: path in a copy (with
    slashes) -> file.

    Links to Python files of tplab's are followed into the installed package, so that a copy has what they lead to.
    """
    home = root()
    hidden = (".", "tplab-progress")
    found = {
        path.relative_to(home).as_posix(): path
        for path in sorted((home / "notebooks").rglob("*"))
        if path.is_file() and not any(part.startswith(hidden) for part in path.relative_to(home).parts)
    }
    left = list(found)
    while left:
        name = left.pop()
        for target in _links(name, found[name]):
            file = CHECKOUT / target if target.startswith("tplab/") else home / target
            if target not in found and file.is_file():
                found[target] = file
                left.append(target)
    return found


def _links(name: str, file: Path) -> Iterator[str]:
    """Where the links of one file lead, as paths in a copy; none out of it."""
    if file.suffix not in _LINKING:
        return
    for target in _LINK.findall(file.read_text("utf-8")):
        parts: list[str] = []
        for part in (PurePosixPath(name).parent / unquote(target)).parts:
            if part != "..":
                parts.append(part)
            elif parts:
                parts.pop()
        yield "/".join(parts)
