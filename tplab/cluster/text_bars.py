"""Progress bars on ranks are text: ``tqdm.notebook`` draws widgets, and a rank has no notebook to draw them in.

``tqdm.auto`` sees that by itself.
"""

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class _TextBars(MetaPathFinder, Loader):
    """Gives tqdm's bars of text to whoever imports, or unpickles, those of ``tqdm.notebook``."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name == "tqdm.notebook" else None

    def exec_module(self, module: ModuleType) -> None:
        from tqdm import std

        bars = {"tqdm": std.tqdm, "tqdm_notebook": std.tqdm, "trange": std.trange, "tnrange": std.trange}
        vars(module).update(bars)


def bars_are_text() -> None:
    """To be called once on a rank, before anything imports tqdm."""
    sys.meta_path.insert(0, _TextBars())
