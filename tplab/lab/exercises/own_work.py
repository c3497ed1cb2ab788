"""Whether an answer uses what it is to be: for grading.

Read from the code itself and not from its source text, which need not be there. What it finds is use in good faith, a
``ParallelMLP`` where one was to be written; names can be hidden from any such search (``getattr`` of pieced-together
text), so it is no wall.
"""

import dis
from collections.abc import Callable, Iterator
from types import CodeType, ModuleType
from typing import Any

from tplab.lab.exercises.verdict import code_of

_LIBRARY = "tplab"


def find_library_use(function: Callable[..., Any], allowed: tuple[str, ...] = ()) -> str:
    """The first use of tplab in the function or in what it calls of its own, in words; empty if there is none.

    Args:
        function: a learner's; a partial or a callable object will do.
        allowed: qualified names that may be used, such as ``tplab.topology.place``.
    """
    return next(_uses(function, allowed, set()), "")


def _uses(function: Any, allowed: tuple[str, ...], seen: set[int]) -> Iterator[str]:
    home = _home(function)
    if home and home not in allowed:
        yield f"it is {home}"
    code = code_of(function)
    if code is None or id(code) in seen:
        return
    seen.add(id(code))
    scope = getattr(getattr(function, "func", function), "__globals__", {})
    closure = [cell.cell_contents for cell in getattr(function, "__closure__", None) or () if _filled(cell)]
    handed = (*closure, *(getattr(function, "__defaults__", None) or ()), *getattr(function, "args", ()))
    for each in _nested(code):
        for instruction in dis.get_instructions(each):
            if instruction.opname == "IMPORT_NAME" and _is_library(str(instruction.argval)):
                yield f"line {_line(instruction, each) - code.co_firstlineno + 1} imports {instruction.argval}"
        for const in each.co_consts:
            # An import by name; prose may name the library.
            if isinstance(const, str) and _is_library(const) and " " not in const.strip():
                yield f"it names {const!r}"
    for other in (*(scope[name] for name in _names(code) if name in scope), *handed):
        home = _home(other)
        if home and home not in allowed:
            yield f"it uses {home}"
        elif callable(other) and not home:
            yield from _uses(other, allowed, seen)


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


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _is_library(name: str) -> bool:
    return name == _LIBRARY or name.startswith(f"{_LIBRARY}.")


def _home(thing: Any) -> str:
    """The qualified name of something that is tplab's: a module, a function, a class, or an object of such a class."""
    if isinstance(thing, ModuleType):
        return thing.__name__ if _is_library(thing.__name__) else ""
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    module = str(getattr(named, "__module__", ""))
    return f"{module}.{named.__qualname__}" if _is_library(module) else ""
