"""What moved or was renamed is found from its old name, or the error says where it is."""

import importlib
import pkgutil
import sys

import pytest

from tplab.moved import find_moved_modules, moved

MODULES, NAMES = moved()["modules"], moved()["names"]


@pytest.mark.parametrize("old", MODULES)
def test_a_module_that_moved_has_what_the_one_at_its_new_place_has(old: str) -> None:
    sys.modules.pop(old, None)  # a test before this one may have imported it
    with pytest.warns(FutureWarning, match=rf"^{old} has moved: import {MODULES[old]}$"):
        module = importlib.import_module(old)
    there = importlib.import_module(MODULES[old])
    assert there.__spec__ is not None
    assert there.__spec__.name == MODULES[old]
    changed = {name.rpartition(".")[2] for name in NAMES if name.rpartition(".")[0] == old}
    names = [name for name in dir(there) if not name.startswith("_") and name not in changed]
    assert names
    assert all(getattr(module, name) is getattr(there, name) for name in names)


@pytest.mark.parametrize("old", NAMES)
def test_a_name_that_was_changed_stands_in_the_import_error(old: str) -> None:
    module, _, name = old.rpartition(".")
    if module in MODULES:
        sys.modules.pop(module, None)
        with pytest.warns(FutureWarning, match="has moved"):
            importlib.import_module(module)
    with pytest.raises(ImportError, match=f"^{name} of {module} is now called {NAMES[old]}$"):
        exec(f"from {module} import {name}")


@pytest.mark.parametrize("new", sorted(set(NAMES.values())))
def test_the_new_names_are_there(new: str) -> None:
    assert pkgutil.resolve_name(new) is not None


def test_other_names_are_missing_as_ever() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'tplab\.topology\.nowhere'"):
        importlib.import_module("tplab.topology.nowhere")
    with pytest.raises(AttributeError, match="has no attribute '__bool__'"):
        importlib.import_module("tplab.cluster.backends").__bool__  # noqa: B018


def test_the_finder_is_installed_once() -> None:
    finders = list(sys.meta_path)
    find_moved_modules()
    assert sys.meta_path == finders
