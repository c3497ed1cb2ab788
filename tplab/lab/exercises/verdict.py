"""What a checker says, in plain words: passed or not, what was expected, what came, where to look."""

import contextlib
import functools
import re
import signal
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any, NamedTuple, NoReturn, ParamSpec

from tplab.cluster import ClusterError, RankDied, RankError, RankTimeout
from tplab.lab.progress import record_exercise

P = ParamSpec("P")
_FRAME = re.compile(r'^ *File "(?P<file>.*)", line (?P<line>\d+),? in (?P<name>\S+)$', re.MULTILINE)
_LONGEST = 300  # characters of an exception's own message in the first line


class Verdict(NamedTuple):
    """What a checker found."""

    passed: bool
    """Whether everything asked for is there."""
    message: str
    """One line or a few: what was expected, what came, where to look."""
    details: str = ""
    """What is folded away below it: a traceback, or the input that it is about."""

    def _repr_html_(self) -> str:
        from html import escape

        from tplab.lab import style
        from tplab.lab.panels import html

        pill = html.pill("passed", style.WEIGHT_GRADIENT) if self.passed else html.pill("not yet", style.COLLECTIVE)
        folded = (
            f"<details><summary>Details</summary><pre>{escape(self.details)}</pre></details>" if self.details else ""
        )
        return f"{pill}&nbsp; {escape(self.message).replace(chr(10), '<br>')}{folded}"

    def __repr__(self) -> str:
        text = f"{'passed' if self.passed else 'not yet'}: {self.message}"
        return f"{text}\n\n{self.details}" if self.details else text


class NotYetError(Exception):
    """What is wrong with an answer. Raised anywhere below a checker, it is its verdict.

    Args:
        message: see :class:`Verdict`.
        details: see :class:`Verdict`.
    """

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.verdict = Verdict(False, message, details)


def checker(name: str) -> Callable[[Callable[P, Verdict]], Callable[P, Verdict]]:
    """Makes a function the checker of the exercise ``name`` (of the registry): ``NotYetError`` becomes its verdict, and
    the learner's progress is kept."""

    def decorate(check: Callable[P, Verdict]) -> Callable[P, Verdict]:
        @functools.wraps(check)
        def checked(*args: P.args, **kwargs: P.kwargs) -> Verdict:
            try:
                verdict = check(*args, **kwargs)
            except NotYetError as error:
                verdict = error.verdict
            given: list[Any] = [*args, *kwargs.values()]
            answer = next((each for each in given if callable(each)), None)
            note = record_exercise(name, verdict.passed, answer)
            return verdict._replace(message=f"{verdict.message} {note}") if note else verdict

        checked.exercise = name  # type: ignore[attr-defined]
        return checked

    return decorate


def not_yet_for(
    error: BaseException, function: Callable[..., Any], context: str = "", *, on_hang: str = ""
) -> NoReturn:
    """Raise the ``NotYetError`` of an answer that raised, hung or ended its rank: the learner's own line first.

    Args:
        error: a fault of the cluster, or what a call of ``function`` in the kernel raised.
        function: the learner's.
        context: on which input, such as ``With 4 ranks``; a clause.
        on_hang: where to look if it hung; sentences.
    """
    lead = f"{context}: " if context else ""
    when = context[:1].lower() + context[1:]
    if isinstance(error, RankTimeout):
        said = f"{lead}{_of_hang(error, function)} {on_hang}".rstrip()
        raise NotYetError(said, str(error)) from None
    if isinstance(error, RankError):
        whole = error.traceback or str(error)
        place = _place(whole, function)
        cause = _last_line(error, whole)
        others = "; every other rank ended with it" if "Meanwhile rank" in str(error) else ""
        at = f"rank {error.rank}, {when}" if when else f"rank {error.rank}"
        raise NotYetError(f"{place}{cause} ({at}{others}).", whole) from None
    if isinstance(error, RankDied) and error.exit_code == -signal.SIGABRT:
        place = _place(str(error), function, deepest_last=False)
        said = f"rank {error.rank} was ended by gloo (SIGABRT){f' at {place[:-2]}' if place else ''}"
        why = (
            "more arrives than there is room for: is the tensor that it is received in as long as the one that is sent?"
        )
        raise NotYetError(f"{lead}{said}, as it does where {why}", str(error)) from None
    if isinstance(error, ClusterError):
        head, _, rest = str(error).replace("in attempt()", f"in {named(function)}()").partition("\n\n")
        raise NotYetError(f"{lead}{head}", rest) from None
    import traceback

    whole = "".join(traceback.format_exception(error))
    raised = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    raise NotYetError(f"{_place(whole, function)}{raised[:_LONGEST]}{f' ({when})' if when else ''}", whole) from None


def _of_hang(error: RankTimeout, function: Callable[..., Any]) -> str:
    limit = str(error).partition(" did not answer within ")[2].partition(" s")[0]
    waits = {rank: place for rank, stack in error.stacks.items() if (place := _place(stack, function))}
    who = " and ".join(str(rank) for rank in error.ranks)
    said = f"rank{'s' * (len(error.ranks) > 1)} {who} did not answer within {limit} s"
    if waits:
        said += ": " + ", ".join(f"rank {rank} was at {place.removesuffix(': ')}" for rank, place in waits.items())
    return (
        f"{said}. A message or a collective that the other side does not enter, with the same size and in the same "
        f"order, waits for ever"
    ) + ("." if waits else "; so does a loop without an end.")


def _last_line(error: RankError, whole: str) -> str:
    cause = error.__cause__
    if cause is not None:
        return f"{type(cause).__name__}: {cause}"[:_LONGEST] if str(cause) else type(cause).__name__
    return whole.strip().splitlines()[-1][:_LONGEST]


def _place(frames: str, function: Callable[..., Any], *, deepest_last: bool = True) -> str:
    """``line 3 of my_mlp: ``, the innermost place of the learner's in the text of a stack; empty if there is none."""
    starts = dict(_first_lines(function, set()))
    frames_found = list(_FRAME.finditer(frames))
    for found in reversed(frames_found) if deepest_last else frames_found:
        start = starts.get((found["file"], found["name"].rpartition(".")[2]))
        if start is not None:
            return f"line {int(found['line']) - start + 1} of {found['name'].rpartition('.')[2]}: "
    return ""


def _first_lines(function: Any, seen: set[int]) -> Iterator[tuple[tuple[str, str], int]]:
    """(file, name) -> first line, of the function and of everything of its own file that it calls."""
    code = code_of(function)
    if code is None or id(code) in seen:
        return
    seen.add(id(code))
    nested = [code]
    while nested:
        each = nested.pop()
        yield (each.co_filename, each.co_name), each.co_firstlineno
        nested += [const for const in each.co_consts if isinstance(const, CodeType)]
    scope = getattr(function, "__globals__", {})
    for other in (*map(scope.get, code.co_names), *closed_over(function)):
        if getattr(other, "__module__", None) == getattr(function, "__module__", ""):
            yield from _first_lines(other, seen)


def closed_over(function: Any) -> list[Any]:
    """What a function that was defined in another one uses of that one's variables."""
    found = []
    for cell in getattr(function, "__closure__", None) or ():
        with contextlib.suppress(ValueError):  # nothing in it yet
            found.append(cell.cell_contents)
    return found


def named(function: Any) -> str:
    """What to call it."""
    return str(getattr(function, "__name__", None) or getattr(code_of(function), "co_name", type(function).__name__))


def code_of(function: Any) -> CodeType | None:
    """Its code; of a partial, a bound method or an object that can be called, the code behind it."""
    function = getattr(function, "func", function)
    function = getattr(function, "__wrapped__", function)
    code = getattr(function, "__code__", None) or getattr(getattr(type(function), "__call__", None), "__code__", None)  # noqa: B004
    return code if isinstance(code, CodeType) else None
