"""Public names of a package that load on first use.

Every rank imports the packages before torch, and the notebook's kernel does without torch: a package that imported all
that it offers would cost both of them seconds. Not ``lazy_loader`` from PyPI, which wants stub files beside the code.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(package: str, home_of: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` for a package whose public names live in modules below it.

    ::

        __getattr__, __dir__ = lazy_names(__name__, {"Cluster": "cluster"})
    """

    def find(name: str) -> Any:
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{home_of[name]}"), name)

    return find, lambda: sorted(home_of)
