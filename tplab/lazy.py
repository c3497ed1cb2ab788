"""Public names of a package that load on first use.

Every rank imports the packages before torch, and the notebook's kernel does without torch: a package that imported all
that it offers would cost both of them seconds. Not ``lazy_loader`` from PyPI, which reads the names from a stub file
beside the code: here they are read from the block that type checkers read, so that they are written down once.
"""

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from tplab.moved import with_new_names
from tplab.needs import needed_by


def lazy_names(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` for a package of what it imports under ``if TYPE_CHECKING:``.

    ::

        if TYPE_CHECKING:
            from tplab.cluster.cluster import Cluster as Cluster

        __getattr__, __dir__, __all__ = lazy_names(__name__)
    """
    source = Path(str(sys.modules[package].__file__)).read_text("utf-8")
    blocks = (node for node in ast.parse(source).body if isinstance(node, ast.If))
    imports = (node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom))
    home_of = {alias.name: str(node.module) for node in imports for alias in node.names}
    names = sorted(home_of)

    def find(name: str) -> Any:
        if name not in home_of:
            return with_new_names(package)(name)
        with needed_by(f"{package}.{name}"):
            return getattr(import_module(home_of[name]), name)

    return find, lambda: names, names
