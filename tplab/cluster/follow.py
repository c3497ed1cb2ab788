"""The rank's side of ``sources``: before a call, load the user's modules again of which the kernel has a newer version.

Where that cannot be done, or the rank has what the kernel has not, the run says so, once for every change.
"""

import gc
import importlib
import importlib.machinery
import importlib.util
import os
import sys
import types
import weakref
from collections.abc import Generator, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tplab.cluster.sources import Version, Versions, code_of, digest_of, file_of, in_order, is_users, stamp_of

_RENEW = "cluster.restart() starts ranks that have it (rank.store is empty then)"
_OBJECTS_SEARCHED = 300_000


@dataclass(slots=True)
class InPlace:
    """How IPython's autoreload works on this rank, which both this module and a notebook's cells do."""

    old_objects: dict[Any, Any] = field(default_factory=dict)
    """What it knows of earlier versions."""
    always: bool = False
    """Whether cells that run here have it on."""


IN_PLACE = InPlace()


@dataclass(slots=True)
class Follower:
    """What this rank has loaded of the user's modules, and what the kernel has."""

    store: Mapping[Any, Any]
    """``rank.store``, whose objects a new version of their class does not change."""
    loaded: Versions = field(default_factory=dict)
    stamps: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    """What the system said of a module's file when it was loaded."""
    wanted: Versions = field(default_factory=dict)
    loads: dict[str, int] = field(default_factory=dict)
    """How often the kernel had loaded a module again when this rank last did."""
    said: set[str] = field(default_factory=set)
    checked: int = -1
    """How many modules had been loaded at the last look."""
    num_loaded: int = 0

    def listen(self) -> None:
        """Note the source of each module that is loaded from now on; never take an older ``.pyc`` for it."""
        for name, module in list(sys.modules.items()):
            self._note(name, file_of(module))
        loader = importlib.machinery.SourceFileLoader
        path_stats = loader.path_stats

        def noting(one: importlib.machinery.SourceFileLoader, path: Any) -> Mapping[str, Any]:
            if isinstance(path, str) and is_users(path):
                self._note(one.name, path)
                if _may_be_confused(path):
                    raise OSError("compile the source")  # the loader's way of leaving the .pyc alone
            return path_stats(one, path)

        loader.path_stats = noting  # type: ignore[method-assign,assignment]

    def _note(self, name: str, file: str) -> None:
        if not file:
            return
        self.num_loaded += 1
        with suppress(OSError):
            self.stamps[name] = stamp_of(file)
            self.loaded[name] = Version(file, digest_of(file))

    def follow(self, versions: Versions | None) -> Iterator[tuple[str, str]]:
        """Load again what the kernel has loaded again, in the kernel's order.

        ``versions``: the kernel's; None: as in the last call. Yields what the run has to say: a key that is the same on
        all ranks, and the sentence. Raises ``ImportError`` for a module that cannot be loaded here.
        """
        if versions is not None:
            self.wanted = versions
            importlib.invalidate_caches()
        again = {} if versions is None and self.checked == self.num_loaded else (yield from self._look())
        again = (yield from self._edited_since()) | again
        for name, module in again.items():
            if text := self._load_again(name, module):
                yield f"{name} {self.loaded[name].digest.hex()} in rank.store", text
        if again:
            yield from self._look()
        self.checked = self.num_loaded

    def differences(self) -> Iterator[tuple[str, str]]:
        """What there is to say of the modules that the run itself has imported."""
        if self.checked != self.num_loaded and not (yield from self._look()):
            self.checked = self.num_loaded

    def _look(self) -> Generator[tuple[str, str], None, dict[str, types.ModuleType]]:
        """Compare the versions. Yields what is to be said, and returns the modules to load again."""
        again: dict[str, types.ModuleType] = {}
        for name, wanted in self.wanted.items():
            module = sys.modules.get(name)
            have = self.loaded.get(name)
            if module is None or have is None:
                continue
            yield from self._new(f"{name} {wanted.copies}", _other_copies(name, module, wanted))
            if have.digest == wanted.digest and have.digest:
                if self.loads.setdefault(name, wanted.loads) != wanted.loads and not _is_own_package(name):
                    again[name] = module
                continue
            text = _difference(name, have, wanted)
            if not text:
                again[name] = module
            yield from self._new(f"{name} {have.digest.hex()} {wanted.digest.hex()}", text)
        return again

    def _edited_since(self) -> Generator[tuple[str, str], None, dict[str, types.ModuleType]]:
        """Of the modules that the kernel has not imported, those whose files have changed: it would import them now."""
        found: dict[str, types.ModuleType] = {}
        for name, have in list(self.loaded.items()):  # a thread of an earlier run may import more
            if name in self.wanted or name not in sys.modules or not have.file.endswith(".py"):
                continue
            with suppress(OSError):  # deleted: what was loaded of it stays loaded
                stamp = stamp_of(have.file)
                if have.digest and (stamp == self.stamps[name] or digest_of(have.file) == have.digest):
                    self.stamps[name] = stamp
                elif not _is_own_package(name):
                    found[name] = sys.modules[name]
                else:
                    text = f"the ranks hold an older version of {name} ({have.file}) than the file: {_RENEW}."
                    yield from self._new(f"{name} {stamp}", text)
        sources = {name: (Path(self.loaded[name].file).read_bytes(), _package_of(found[name])) for name in found}
        return {name: found[name] for name in in_order(sources)}

    def _new(self, key: str, text: str) -> Iterator[tuple[str, str]]:
        if text and key not in self.said:
            self.said.add(key)
            yield key, text

    def _load_again(self, name: str, module: types.ModuleType) -> str:
        """Returns what is to be said of objects that stay as they were."""
        wanted = self.wanted.get(name, self.loaded[name])
        self.loads[name] = wanted.loads
        in_place = wanted.in_place or IN_PLACE.always
        old = [weakref.ref(value) for value in vars(module).values() if _is_own(value, name)]
        try:
            if in_place:
                from IPython.extensions.autoreload import superreload

                superreload(module, old_objects=IN_PLACE.old_objects)
            else:
                importlib.reload(module)
        except BaseException as error:
            self.loaded[name] = Version(wanted.file, b"")
            if not isinstance(error, Exception):  # an interrupt
                raise
            raise ImportError(
                f"{name} ({wanted.file}) was edited since the ranks imported it, but cannot be loaded again on this "
                f"rank ({type(error).__name__}: {error}). cluster.restart() starts fresh ranks, with an empty "
                "rank.store"
            ) from error
        if in_place or not self.store:
            return ""
        gc.collect()
        kept = _kept_in(self.store, [value for ref in old if (value := ref()) is not None])
        if not kept:
            return ""
        return (
            f"{name} was loaded again on the ranks, but rank.store keeps objects of its older version "
            f"({', '.join(kept)}), which go on with the older code: make them again, or cluster.restart()."
        )


def _may_be_confused(path: str) -> bool:
    """Whether a ``.pyc`` was written in the second of the source's last change: what it was made from may have changed
    since then, and Python compares seconds and sizes only."""
    try:
        return int(os.stat(importlib.util.cache_from_source(path)).st_mtime) <= int(os.stat(path).st_mtime)
    except (OSError, NotImplementedError):
        return False


def _difference(name: str, have: Version, wanted: Version) -> str:
    """What there is to say where loading it again would not bring what the kernel has; empty where it would."""
    if have.file != wanted.file and not _is_same_file(have.file, wanted.file):
        return (
            f"module {name} is {wanted.file} in this kernel, but {have.file} on the ranks: make the order of sys.path "
            "the same, then cluster.restart() (rank.store is empty then)."
        )
    try:
        now = digest_of(wanted.file)
    except OSError:
        now = b""
    own = _is_own_package(name)
    if now and now == wanted.digest:
        if not own and wanted.file.endswith(".py"):
            return ""
        return f"the ranks hold an older version of {name} ({wanted.file}) than this kernel: {_RENEW}."
    up_to_date = "restart the kernel" if own else f"importlib.reload({name}) or %autoreload 2 brings it up to date"
    whose = "The ranks hold the newer version" if now == have.digest else "The ranks hold another version"
    return (
        f"{name} ({wanted.file}) was edited, and this kernel holds an older version of it. {whose}, so they may answer "
        f"otherwise: {up_to_date}."
    )


def _other_copies(name: str, module: types.ModuleType, wanted: Version) -> str:
    """What there is to say of functions and classes that the kernel's module took from another one's older version."""
    other = {own: source for own, source, code in wanted.copies if code_of(vars(module).get(own)) != code}
    if not other:
        return ""
    return (
        f"{name} holds {', '.join(other)} of an older {' and '.join({*other.values()})} in this kernel, and of a newer "
        f"one on the ranks, so they may answer otherwise: importlib.reload({name}) brings the kernel up to date."
    )


def _package_of(module: types.ModuleType) -> str:
    return module.__spec__.parent or "" if module.__spec__ is not None else ""


def _is_own_package(name: str) -> bool:
    """Whether a module is part of tplab, whose threads run on the rank."""
    return name.partition(".")[0] == __name__.partition(".")[0]


def _is_same_file(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def _is_own(value: object, name: str) -> bool:
    return issubclass(type(value), (types.FunctionType, type)) and value.__module__ == name


def _kept_in(store: Mapping[Any, Any], old: list[Any]) -> list[str]:
    """The names of those old functions and classes which the store's values are, are made of, or are instances of."""
    wanted = {id(value): value.__name__ for value in old}
    found: set[str] = set()
    look: list[Any] = [store]
    seen: set[int] = set()
    while look and len(seen) < _OBJECTS_SEARCHED:
        one = look.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        found |= {wanted[key] for key in (id(one), id(type(one))) if key in wanted}
        if not isinstance(one, (types.FunctionType, types.ModuleType, types.CodeType, types.FrameType, type)):
            look += gc.get_referents(one)
    return sorted(found)
