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
        """Write what there is of a file that :meth:`write` will write whole; where it cannot be, that will say so."""
        with suppress(OSError):
            write_text(self.folder / name, text)

    def write(self, name: str, text: str) -> Path | None:
        """Write a file; its path, or None if it could not be written, which is said with what was to go into it."""
        path = self.folder / name
        try:
            write_text(path, text)
        except OSError as error:
            self.unwritten.append(error)
            self._say(f"{path} cannot be written: {error.strerror}; this was to go into it:\n{text}")
            return None
        return path
