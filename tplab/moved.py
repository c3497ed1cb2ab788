"""Modules and names under what they were called before: imports that worked still do, or say where to look.

A module that moved loads from its old path too, with a warning that names the new one: notebooks and scripts of others
import deep paths. A class or function that is called otherwise now, because another one has its name with another
meaning, is not silently taken for the new one: importing the old name fails, and the error gives the new name.

What moved stands in ``moved.json``: old dotted paths of modules, and old names of classes and functions in modules,
there or gone. Read when an import has failed, so it costs nobody else anything. Not files of one line at the old paths,
which would fill the rooms with some seventy of them.
"""

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import import_module
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any


@cache
def moved() -> Mapping[str, Mapping[str, str]]:
    """``modules`` and ``names``: from the old dotted name to the new one."""
    import json  # not before it is needed: every rank imports this module first

    table: dict[str, dict[str, str]] = json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))
    return table


class _MovedModules:
    """Finder and loader, asked last, when no module of that name was found.

    Not a subclass of ``importlib.abc``'s, whose import takes longer than all else that a rank imports here.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        is_ours = fullname.startswith("tplab.") and fullname in moved()["modules"]
        return ModuleSpec(fullname, self) if is_ours else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> None:
        """An empty module, as usual."""

    def exec_module(self, module: ModuleType) -> None:
        new = moved()["modules"][module.__name__]
        warnings.warn(f"{module.__name__} has moved: import {new}", FutureWarning, stacklevel=2)
        there = import_module(new)
        module.__dir__ = there.__dir__  # type: ignore[method-assign]
        module.__getattr__ = with_new_names(module.__name__, there)  # type: ignore[method-assign]


def find_moved_modules() -> None:
    """From now on, modules that moved are found under their old paths."""
    if not any(isinstance(finder, _MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(_MovedModules())


def say_new_names(module: str) -> None:
    """Of a module some names of which are called otherwise now: importing an old one says so. ``__name__`` is given."""
    sys.modules[module].__getattr__ = with_new_names(module)  # type: ignore[method-assign]


def with_new_names(module: str, there: ModuleType | None = None) -> Callable[[str], Any]:
    """``__getattr__`` of a module: what it lacks is looked for ``there``; what is called otherwise now says so."""

    def find(name: str) -> Any:
        if not name.startswith("__") and (now := moved()["names"].get(f"{module}.{name}")):
            raise ImportError(f"{name} of {module} is now called {now}")
        if there is not None and hasattr(there, name):
            return getattr(there, name)
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return find
