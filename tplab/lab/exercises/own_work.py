"""Whether an answer uses what it is to be: for grading.

Read from the code itself and not from its source text, which need not be there. What it finds is use in good faith, a
``ParallelMLP`` where one was to be written; names can be hidden from any such search (``getattr`` of pieced-together
text), so it is no wall.
"""

import dis
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from types import CodeType, ModuleType
from typing import Any

from tplab.lab.exercises.verdict import closed_over, code_of

_LIBRARY = "tplab"
_NAMED = re.compile(rf"{_LIBRARY}(\.\w+)*|.*\b(import|from)\s+{_LIBRARY}\b.*", re.DOTALL)
"""Text by which one imports it: its name, or source for ``exec``. Prose may speak of it."""


def find_library_use(function: Callable[..., Any], allowed: tuple[str, ...] = ()) -> str:
    """The first use of tplab in the function or in what it calls of its own, in words; empty if there is none.

    Args:
        function: a learner's; a partial or a callable object will do.
        allowed: public names that may be used, objects of such classes included: ``tplab.topology.place``.
    """
    things = [getattr(import_module(module), name) for module, _, name in (each.rpartition(".") for each in allowed)]
    return next(_uses(function, things, set()), "")


def _uses(function: Any, allowed: list[Any], seen: set[int]) -> Iterator[str]:
    if home := _home(function, allowed):
        yield f"it is {home}"
    code = None if _is_one_of(function, allowed) else code_of(function)
    if code is None or id(code) in seen:
        return
    seen.add(id(code))
    scope = getattr(getattr(function, "func", function), "__globals__", {})
    handed = [*closed_over(function), *(getattr(function, "__defaults__", None) or ())]
    handed += [*getattr(function, "args", ()), *getattr(function, "keywords", {}).values()]  # of a partial
    for each in _nested(code):
        for instruction in dis.get_instructions(each):
            if instruction.opname != "IMPORT_NAME" or not _is_library(str(instruction.argval)):
                continue
            if not _all_allowed(each, instruction.offset, str(instruction.argval), allowed):
                yield f"line {_line(instruction, each) - code.co_firstlineno + 1} imports {instruction.argval}"
        for const in each.co_consts:
            if isinstance(const, str) and _NAMED.fullmatch(const):
                yield f"it names {const!r:.60}"
    for other in (*(scope[name] for name in _names(code) if name in scope), *handed):
        if home := _home(other, allowed):
            yield f"it uses {home}"
        elif callable(other):
            yield from _uses(other, allowed, seen)


def _all_allowed(code: CodeType, offset: int, module: str, allowed: list[Any]) -> bool:
    """Whether the import at ``offset`` is a ``from ... import`` of allowed names only."""
    names = []
    for instruction in dis.get_instructions(code):
        if instruction.offset > offset:
            if instruction.opname == "IMPORT_FROM":
                names.append(str(instruction.argval))
            elif not instruction.opname.startswith("STORE"):
                break
    return bool(names) and all(_is_one_of(getattr(import_module(module), name, None), allowed) for name in names)


def _is_one_of(thing: Any, allowed: list[Any]) -> bool:
    return any(thing is each or type(thing) is each for each in allowed)


def _line(instruction: dis.Instruction, code: CodeType) -> int:
    positions = instruction.positions
    return positions.lineno if positions and positions.lineno else code.co_firstlineno


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield from _nested(const)


def _names(code: CodeType) -> list[str]:
    return list(dict.fromkeys(name for each in _nested(code) for name in each.co_names))


def _is_library(name: str) -> bool:
    return name == _LIBRARY or name.startswith(f"{_LIBRARY}.")


def _home(thing: Any, allowed: list[Any]) -> str:
    """The qualified name of something that is tplab's: a module, a function, a class, or an object of such a class.
    Empty for what is not, or is allowed."""
    if _is_one_of(thing, allowed):
        return ""
    if isinstance(thing, ModuleType):
        return thing.__name__ if _is_library(thing.__name__) else ""
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    module = str(getattr(named, "__module__", ""))
    return f"{module}.{named.__qualname__}" if _is_library(module) else ""
