"""What moved or was renamed is found from its old name, or the error says where it is."""

import importlib
import sys

import pytest

from tplab.moved import MODULES, NAMES, find_moved_modules


@pytest.mark.parametrize("old", MODULES)
def test_a_module_that_moved_is_the_module_at_its_new_place(old: str) -> None:
    sys.modules.pop(old, None)  # a test before this one may have imported it
    with pytest.warns(FutureWarning, match=rf"^{old} has moved: import {MODULES[old]}$"):
        module = importlib.import_module(old)
    assert module is importlib.import_module(MODULES[old])
    assert module.__spec__ is not None
    assert module.__spec__.name == module.__name__ == MODULES[old]


@pytest.mark.parametrize("old", NAMES)
def test_a_name_that_was_changed_stands_in_the_import_error(old: str) -> None:
    module, name = old.rsplit(".", 1)
    home, now = NAMES[old].rsplit(".", 1)
    assert hasattr(importlib.import_module(home), now)
    with pytest.raises(ImportError, match=f"{name} of {module} is now called {NAMES[old]}"):
        getattr(importlib.import_module(module), name)


def test_other_names_are_missing_as_ever() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'tplab\.topology\.nowhere'"):
        importlib.import_module("tplab.topology.nowhere")


def test_the_finder_is_installed_once() -> None:
    finders = list(sys.meta_path)
    find_moved_modules()
    assert sys.meta_path == finders
