"""Which source of the user's modules the kernel has loaded, so that ranks can load the same (see ``follow``).

Functions of imported modules travel by name. A module of which the kernel has another version than a rank (it was
edited and loaded again, by ``importlib.reload`` or by IPython's ``%autoreload``) would silently give another answer
there. The user's modules are those in files outside the standard library and ``site-packages``: what may be edited.

Python does not remember what source a module came from. So a version is taken when the module is first seen, and again
when it is seen to have been loaded again: ``importlib.reload`` gives it another ``__spec__``. IPython's autoreload may
also patch functions where they are; then their code is compared with that of the file.
"""

import ast
import importlib.machinery
import importlib.util
import os
import site
import sys
import sysconfig
import threading
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tplab.needs import Later

if TYPE_CHECKING:
    import cloudpickle
else:
    cloudpickle = Later("cloudpickle", "Cluster")

_SUFFIXES = (".py", *importlib.machinery.EXTENSION_SUFFIXES)
_PATCHABLE = 1000  # more files than that are not looked at in every call: only what is loaded again is seen


class Version(NamedTuple):
    """What a process has loaded of a module."""

    file: str
    digest: bytes
    """Hash of the source; empty where it is not known: the file was edited since it was loaded."""
    loads: int = 0
    """How often the kernel was seen to have loaded it again: with it come what it takes from other modules, and its own
    state as it is at first."""
    in_place: bool = False
    """Whether the kernel's older functions and classes were given the new code, as autoreload does."""
    copies: tuple[tuple[str, str, bytes], ...] = ()
    """What it took from other modules (``from helper import f``) and has in an older version than those have now: its
    name here, the other module, and a hash of its code."""


Versions = dict[str, Version]
"""Module name -> what the kernel has loaded of it. Those that it has loaded again come after those that they import."""


def digest_of(file: str) -> bytes:
    """A short hash of a source file, or of what the system says about a compiled one. Raises ``OSError``."""
    if file.endswith(".py"):
        with open(file, "rb") as source:
            return blake2b(source.read(), digest_size=8).digest()
    return blake2b(repr(stamp_of(file)).encode(), digest_size=8).digest()


def file_of(module: object) -> str:
    """The file of a module that the user may edit; empty for any other."""
    spec = _spec_of(module)
    origin = getattr(spec, "origin", None)
    return origin if isinstance(origin, str) and spec.has_location and is_users(origin) else ""


@cache
def is_users(file: str) -> bool:
    """Whether a file is a module outside the standard library and ``site-packages``."""
    if not file.endswith(_SUFFIXES) or not os.path.isabs(file):
        return False
    folders = file.split(os.sep)
    return "site-packages" not in folders and "dist-packages" not in folders and not file.startswith(_installed())


@cache
def _installed() -> tuple[str, ...]:
    folders = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    with suppress(AttributeError):  # some environments have their own site.py
        folders |= {*site.getsitepackages(), site.getusersitepackages()}
    return tuple(folder + os.sep for folder in folders if folder)


def _spec_of(module: object) -> Any:
    """``__spec__``, without waking a module that loads itself when it is first asked for anything."""
    try:
        return object.__getattribute__(module, "__dict__").get("__spec__")
    except AttributeError:
        return None


def stamp_of(file: str) -> tuple[int, int, int]:
    """What the system says of a file; it changes whenever the file does. Raises ``OSError``."""
    status = os.stat(file)
    return status.st_mtime_ns, status.st_size, status.st_ctime_ns


@dataclass(slots=True)
class _Held:
    """A module as it was last looked at."""

    spec: Any
    stamp: tuple[int, int, int] | None
    """What the system said of the file then; None where it could not be read."""
    version: Version
    source: bytes = b""
    functions: list[types.FunctionType] = field(default_factory=list)
    codes: list[types.CodeType] = field(default_factory=list)
    """What its functions were compiled to: those that were patched have another code now."""


class KernelModules:
    """The user's modules in this process. ``versions`` may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._names: list[str] = []
        self._held: dict[str, _Held] = {}
        self._versions: Versions = {}

    def versions(self) -> Versions:
        """What this process has loaded; the same object as before where nothing has changed."""
        with self._lock:
            names, new = list(sys.modules), set[str]()
            if names != self._names:
                new = set(names).difference(self._names)
                self._names = names
                self._held = {name: held for name, held in self._held.items() if name in sys.modules}
                for name in new:
                    self._look_at(name)
            stat_files = len(self._held) <= _PATCHABLE
            changed = [name for name, held in self._held.items() if self._changed(name, held, stat_files)]
            for name in changed:
                self._look_at(name)
            if changed or new:
                for name, held in self._held.items():
                    copies = tuple(_older_copies(sys.modules.get(name), name, self._held))
                    held.version = held.version._replace(copies=copies)
            by_value = cloudpickle.list_registry_pickle_by_value()
            names = [name for name in self._held if not by_value or not _is_in(name, by_value)]
            versions = {name: self._held[name].version for name in names}
            if versions != self._versions:
                self._versions = {name: versions[name] for name in self._in_order(names)}
            return self._versions

    def _in_order(self, names: list[str]) -> list[str]:
        edited = {name for name in names if self._held[name].version.loads or self._held[name].version.in_place}
        sources = {name: (self._held[name].source, self._held[name].spec.parent) for name in names if name in edited}
        return [*(name for name in names if name not in edited), *in_order(sources)]

    def _changed(self, name: str, held: _Held, stat_file: bool) -> bool:
        if _spec_of(sys.modules.get(name)) is not held.spec:
            return True
        if not stat_file:
            return False
        try:
            return stamp_of(held.version.file) != held.stamp
        except OSError:  # deleted or renamed: what was loaded of it stays loaded
            return False

    def _look_at(self, name: str) -> None:
        try:
            self._look(name)
        except Exception:  # whatever stands in sys.modules: no run fails because of it
            self._held.pop(name, None)

    def _look(self, name: str) -> None:
        module = sys.modules.get(name)
        spec, file, before = _spec_of(module), file_of(module), self._held.pop(name, None)
        if not file or name == "__main__" or getattr(spec, "_initializing", False):
            return
        try:
            stamp = stamp_of(file)
            digest, source = digest_of(file), Path(file).read_bytes() if file.endswith(".py") else b""
        except OSError:
            if before is not None:
                before.spec = spec
                self._held[name] = before
            return
        held = self._held[name] = _Held(spec, stamp, Version(file, digest), source)
        functions = _functions(module, name, file)
        held.functions, held.codes = functions, [one.__code__ for one in functions]
        plain = type(getattr(spec, "loader", None)) is importlib.machinery.SourceFileLoader
        if not plain:
            if before is not None and before.spec is spec:
                self._keep(name, before, held)
            elif before is not None:
                held.version = held.version._replace(loads=before.version.loads + 1)
            return
        if before is None and stamp[2] <= _process_start_ns():
            return
        fits = _fits(functions, source, file)
        if before is None:
            if not fits:
                held.version = Version(file, b"")
            return
        patched = any(one.__code__ is not code for one, code in zip(before.functions, before.codes, strict=True))
        loads = before.version.loads
        if before.spec is spec:
            # The same module as before, and another file: unless it was patched it is what it was.
            if not fits or not (patched or _has_new_constants(module, before.source, source)):
                self._keep(name, before, held)
            else:
                held.version = Version(file, digest, loads, in_place=True)
        elif fits:
            held.version = Version(file, digest, loads + 1, in_place=patched)
        elif held.codes == before.codes or fits is None:
            # It could not be compiled, or Python took an older .pyc for it: same second, same size.
            self._keep(name, before, held)
        else:
            held.version = Version(file, b"", loads + 1)

    def _keep(self, name: str, before: _Held, now: _Held) -> None:
        """It still is what it was; ``stamp`` stays that of the file then, so that it is looked at in every call."""
        before.spec = now.spec
        if now.version.digest == before.version.digest:
            before.stamp = now.stamp
        self._held[name] = before


def _is_in(name: str, packages: set[str]) -> bool:
    """Whether a module travels by value, itself or with its package."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def imports_of(source: bytes, package: str) -> Iterator[str]:
    """The modules that a source in a package may import when it is loaded."""
    with suppress(SyntaxError, ValueError):
        for statement in ast.walk(ast.parse(source)):
            if isinstance(statement, ast.Import):
                yield from (alias.name for alias in statement.names)
            elif isinstance(statement, ast.ImportFrom):
                with suppress(ImportError):  # from beyond the package
                    relative = "." * statement.level + (statement.module or "")
                    name = importlib.util.resolve_name(relative, package)
                    yield name
                    yield from (f"{name}.{alias.name}" for alias in statement.names)


def in_order(sources: Mapping[str, tuple[bytes, str]]) -> list[str]:
    """The names of modules, each after those that it imports. ``sources``: name -> source and package."""
    ordered: list[str] = []
    seen: set[str] = set()

    def visit(name: str) -> None:
        if name not in seen:
            seen.add(name)
            for imported in imports_of(*sources[name]):
                if imported in sources:
                    visit(imported)
            ordered.append(name)

    for name in sources:
        visit(name)
    return ordered


def _older_copies(module: object, name: str, held: Mapping[str, _Held]) -> Iterator[tuple[str, str, bytes]]:
    for own, value in list(vars(module).items()) if module is not None else ():
        source = value.__module__ if issubclass(type(value), (types.FunctionType, type)) else None
        if isinstance(source, str) and source != name and source in held:
            now = vars(sys.modules[source]).get(value.__name__)
            if now is not value and type(now) is type(value) and code_of(now) != (code := code_of(value)):
                yield own, source, code


def code_of(value: object) -> bytes:
    """A hash of what a function does, or the methods of a class."""
    functions = [value, *vars(value).values()] if isinstance(value, type) else [value]
    codes = [repr(_essence(one.__code__)) for one in functions if isinstance(one, types.FunctionType)]
    return blake2b("".join(codes).encode(), digest_size=8).digest()


def _functions(module: object, name: str, file: str) -> list[types.FunctionType]:
    """The functions and methods of a module that were compiled from its file."""

    def walk(values: Iterator[object], depth: int) -> Iterator[types.FunctionType]:
        for value in values:
            one: Any = value  # asked for its type alone: a proxy may raise when it is asked for anything else
            if type(one) in (staticmethod, classmethod):
                one = one.__func__
            elif type(one) is property:
                one = one.fget
            if type(one) is types.FunctionType and one.__code__.co_filename == file:
                yield one
            elif issubclass(type(one), type) and one.__module__ == name and depth < 3:
                yield from walk(iter(list(vars(one).values())), depth + 1)

    return [*walk(iter(list(vars(module).values())), 0)]


def _fits(functions: list[types.FunctionType], source: bytes, file: str) -> bool | None:
    """Whether the functions are those of this source; None where it cannot be compiled."""
    try:
        tops = [compile(source, file, "exec", dont_inherit=True)]
        if all(_is_among(one.__code__, _by_name(tops)) for one in functions):
            return True
        # autoreload patches with what it has written anew from the syntax tree: other lines, other indents.
        tops.append(compile(ast.unparse(ast.parse(source)), file, "exec", dont_inherit=True))
    except (SyntaxError, ValueError):
        return None
    return all(_is_among(one.__code__, _by_name(tops), _essence) for one in functions)


def _by_name(tops: list[types.CodeType]) -> dict[str, list[types.CodeType]]:
    found: dict[str, list[types.CodeType]] = {}
    look = list(tops)
    while look:
        for constant in look.pop().co_consts:
            if isinstance(constant, types.CodeType):
                found.setdefault(constant.co_name, []).append(constant)
                look.append(constant)
    return found


def _is_among(
    code: types.CodeType,
    found: dict[str, list[types.CodeType]],
    essence: Callable[[types.CodeType], Any] = lambda code: code,
) -> bool:
    # A function that the file no longer has stays in a module that is loaded again.
    return code.co_name not in found or essence(code) in map(essence, found[code.co_name])


def _essence(code: types.CodeType) -> tuple[Any, ...]:
    """What a code does, without where it stands."""
    constants = (
        _essence(one) if isinstance(one, types.CodeType) else " ".join(one.split()) if isinstance(one, str) else one
        for one in code.co_consts
    )
    arguments = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags
    return code.co_code, code.co_names, code.co_varnames, code.co_freevars, arguments, *map(repr, constants)


def _has_new_constants(module: object, old: bytes, new: bytes) -> bool:
    """Whether a name to which the two sources give different literals has the new one."""
    before, after = _literals(old), _literals(new)
    values = vars(module)
    return any(
        name in values and bool(type(values[name]) is type(value) and values[name] == value)
        for name, value in after.items()
        if name not in before or before[name] != value
    )


def _literals(source: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with suppress(SyntaxError, ValueError):
        for statement in ast.parse(source).body:
            if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
                with suppress(ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
                    found[statement.targets[0].id] = ast.literal_eval(statement.value)
    return found


@cache
def _process_start_ns() -> int:
    import psutil

    return int(psutil.Process().create_time() * 1e9)


kernel_modules = KernelModules()
"""Those of this process."""
