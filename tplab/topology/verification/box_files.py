"""The files of ``measure_box``: what takes minutes on a machine that is soon gone is not lost to a full disk."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tplab.files import write_text


class BoxFiles:
    """Files of one folder. What cannot be written in the end is said instead."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.folder, self._say = folder, say
        self.unwritten: list[OSError] = []
        """Why files could not be written."""

    def draft(self, name: str, text: str) -> None:
        """Write what there is so far of a file beside it, as ``sweep.partial.csv``: an earlier one stays until there is
        a whole one. Where it cannot be written, :meth:`write` will say so."""
        with suppress(OSError):
            write_text(self.folder / partial(name), text)

    def write(self, name: str, text: str) -> Path | None:
        """Write a file; its path, or None if it could not be written, which is said with what was to go into it.

        Its draft goes, and of a packed one an earlier one that was not.
        """
        path = self.folder / name
        try:
            write_text(path, text)
        except OSError as error:
            self.unwritten.append(error)
            self._say(f"{path} cannot be written: {error.strerror}; this was to go into it:\n{text}")
            return None
        for other in {partial(name), name.removesuffix(".gz")} - {name}:
            with suppress(OSError):
                (self.folder / other).unlink()
        return path


def partial(name: str) -> str:
    """``sweep.partial.csv`` for ``sweep.csv``."""
    stem, dot, endings = name.partition(".")
    return f"{stem}.partial{dot}{endings}"
