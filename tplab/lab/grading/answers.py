"""What of a notebook is a learner's answer to an exercise.

Of the cells up to the check, the definitions that the exercise's function needs: imports, functions, classes and
constants. The rest (panels, calls of checkers, loops that print) is not run: it would cost time, and has no say.
"""

import ast
import re
import symtable
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tplab.lab.exercises.registry import Exercise
from tplab.lab.grading.submissions import Notebook, Submission

_ACTS = {"open", "input", "exec", "eval", "print", "display", "get_ipython", "Pool", "Cluster", "Predict", "MemoryWall"}
"""What is called for what it does, besides checkers and panels. A variable made of such a thing is no constant."""
_ACTING = re.compile(r"check_|explain_|.*(Panel|Studio|Stepper|Painter)$")


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """Definitions of one cell, to be run in the order of the notebook."""

    cell: int
    """Number of the cell, from 1."""
    source: str
    """The cell's text with everything else blanked, so that lines keep their numbers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One learner's answer to one exercise."""

    notebook: str
    """Where it stands."""
    pieces: tuple[Piece, ...] = ()
    """What is run; the last one defines the exercise's function."""
    fault: str = ""
    """Why it cannot be run, in words for the learner."""
    attempted: bool = True
    """False for the stub as it was shipped, or a function without a body."""
    note: str = ""
    """What the teacher should know."""


def find_answer(submission: Submission, exercise: Exercise, stub: str = "") -> Answer | None:
    """The newest answer to ``exercise``; None where no notebook has one.

    Args:
        submission: the learner's.
        exercise: the one that is looked for.
        stub: the shipped stub cell's text, to tell an answer from it.
    """
    books = [
        (notebook, cells)
        for notebook in sorted(submission.notebooks, key=lambda each: each.modified)
        if (cells := _stub_cells(notebook, exercise))
    ]
    if not books:
        return None
    several = f"{len(books)} notebooks have this exercise; " if len(books) > 1 else ""
    answers = []  # the newest first
    for number, (notebook, cells) in enumerate(reversed(books)):
        for cell, note in cells:
            chosen = f"{several}the newest {'with an answer ' * bool(number)}counts" if several else ""
            answers.append(_answer(notebook, cell, exercise, stub, "; ".join(filter(None, (note, chosen)))))
    return next((answer for answer in answers if answer.attempted), answers[0])


def source_of(cell: Any) -> str:
    """A cell's text, in both forms that the format allows; empty for what is none."""
    text = cell.get("source", cell.get("input", ""))
    if isinstance(text, list):
        text = "".join(line for line in text if isinstance(line, str))
    return text if isinstance(text, str) else ""


def part_of(cell: Any) -> tuple[str, str]:
    """Exercise and part that a cell's metadata say: ``("02-ring", "stub")``; empty texts where they say none."""
    metadata = cell.get("metadata")
    ours = metadata.get("tplab") if isinstance(metadata, dict) else None
    if not isinstance(ours, dict):
        return "", ""
    return str(ours.get("exercise", "")), str(ours.get("part", ""))


def _stub_cells(notebook: Notebook, exercise: Exercise) -> list[tuple[int, str]]:
    """Indices of the cells that may hold the answer, the likeliest first, and what the teacher should know of each."""
    code = [index for index, cell in enumerate(notebook.cells) if cell.get("cell_type") == "code"]
    marked = [index for index in code if part_of(notebook.cells[index]) == (exercise.name, "stub")]
    defining = [index for index in code if exercise.function in _defined(source_of(notebook.cells[index]))]
    unmarked = [index for index in defining if index not in marked]
    if marked:
        # Somebody may have written on in a copy of the cell, which keeps the metadata, or in a cell of their own.
        best = next((index for index in reversed(marked) if index in defining), marked[-1])
        return [
            (best, ""),
            *((index, "in a cell of its own, below the stub") for index in unmarked[-1:] if index > best),
        ]
    own = {other.name for other in _others(notebook)}
    if not unmarked or (own and exercise.name not in own):
        return []
    return [(unmarked[-1], "found by the function's name, for the cell has lost its metadata")]


def _others(notebook: Notebook) -> Iterator[Exercise]:
    from tplab.lab.exercises.registry import EXERCISES

    names = {part_of(cell)[0] for cell in notebook.cells}
    yield from (exercise for exercise in EXERCISES.values() if exercise.name in names)


def _answer(notebook: Notebook, at: int, exercise: Exercise, stub: str, note: str) -> Answer:
    text = source_of(notebook.cells[at])
    try:
        tree = _parsed(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = f"line {error.lineno} of the cell: " if isinstance(error, SyntaxError) and error.lineno else ""
        said = error.msg if isinstance(error, SyntaxError) else str(error)
        return Answer(notebook=notebook.name, fault=f"{line}{type(error).__name__}: {said}", note=note)
    if exercise.function not in _names_of(tree.body):
        return Answer(notebook=notebook.name, fault=f"the cell does not define {exercise.function}", note=note)
    attempted = not (_same(tree, stub) or _is_empty(tree, exercise.function))
    last = next(
        (n for n in range(at, len(notebook.cells)) if part_of(notebook.cells[n]) == (exercise.name, "check")),
        len(notebook.cells) - 1,
    )
    bodies = [(n, source_of(cell)) for n, cell in enumerate(notebook.cells[: last + 1]) if n != at]
    bodies = [(n, source) for n, source in bodies if notebook.cells[n].get("cell_type") == "code"]
    pieces = _pieces([*bodies, (at, text)], exercise.function)
    return Answer(notebook=notebook.name, pieces=pieces, attempted=attempted, note=note)


def _pieces(cells: Sequence[tuple[int, str]], function: str) -> tuple[Piece, ...]:
    """What ``function`` needs, cell by cell. The stub's cell comes last: what it defines is what counts."""
    trees = list(_definitions(cells))
    wanted, grown = {function}, True
    while grown:
        before = len(wanted)
        for _, _, body in trees:
            for node in body:
                if _binds_all(node) or wanted & set(_names_of([node])):
                    wanted |= set(_uses(symtable.symtable(ast.unparse(node), "cell", "exec")))
        grown = len(wanted) > before
    pieces = []
    for number, source, body in trees:
        kept = [node for node in body if _binds_all(node) or wanted & set(_names_of([node]))]
        if kept:
            pieces.append(Piece(cell=number + 1, source=_blanked(source, kept)))
    return tuple(pieces)


def _parsed(source: str) -> ast.Module:
    return ast.parse(_plain(source))


def _plain(source: str) -> str:
    """The cell as Python, line by line: IPython's own lines (``%time``, ``!pip``) are calls in it."""
    from IPython.core.inputtransformer2 import TransformerManager

    if source.lstrip().startswith("%%"):  # the rest is another language's, or a rank's
        raise ValueError("a cell that begins with %% defines nothing here")
    try:
        ast.parse(source)
    except SyntaxError:
        head = len(source) - len(source.lstrip("\n"))  # which the transformation drops
        return "\n" * head + str(TransformerManager().transform_cell(source))
    return source


def _blanked(source: str, kept: Sequence[ast.stmt]) -> str:
    """The cell with only these statements, at their own lines; written anew where a line holds others, too."""
    lines: list[str] = []
    for node in kept:
        first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", ()))])
        lines += [""] * (first - 1 - len(lines))
        if first - 1 < len(lines):  # two statements on one line
            lines[-1] += f"; {ast.unparse(node)}" if "\n" not in ast.unparse(node) else f"\n{ast.unparse(node)}"
            continue
        own = source.splitlines()[first - 1 : node.end_lineno]
        lines += own if _alone(node, source) else ast.unparse(node).splitlines()
    return "\n".join(lines) + "\n"


def _alone(node: ast.stmt, source: str) -> bool:
    """Whether the statement's lines hold nothing else."""
    lines = source.splitlines()
    if node.col_offset or (node.end_lineno or 0) > len(lines):
        return False
    rest = lines[(node.end_lineno or 1) - 1].encode()[node.end_col_offset or 0 :].decode(errors="replace").strip()
    return not rest or rest.startswith("#")


def _definitions(cells: Sequence[tuple[int, str]]) -> Iterator[tuple[int, str, list[ast.stmt]]]:
    """Of each cell that is Python: its number, its text and its definitions."""
    acting = set(_ACTS)
    for number, source in cells:
        try:
            text = _plain(source)
            tree = ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        kept = []
        for node in tree.body:
            if _is_definition(node, acting):
                kept.append(node)
                acting -= set(_names_of([node])) - _ACTS  # ranks once, a number now
            else:
                acting |= set(_names_of([node]))
        yield number, text, kept


def _is_definition(node: ast.stmt, acting: set[str]) -> bool:
    match node:
        case ast.Import() | ast.ImportFrom() | ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return True
        case ast.Assign() | ast.AnnAssign():
            return node.value is not None and _is_constant(node.value, acting)
        case ast.If() | ast.Try():  # if TYPE_CHECKING, try: import
            return all(_is_definition(each, acting) or isinstance(each, ast.Pass) for each in node.body)
    return False


def _is_constant(value: ast.expr, acting: set[str]) -> bool:
    """Whether it is computed from imports, definitions and other constants, without what acts."""
    for node in ast.walk(value):
        if isinstance(node, ast.Await | ast.Yield | ast.YieldFrom | ast.NamedExpr):
            return False
        if isinstance(node, ast.Name) and (node.id in acting or _ACTING.match(node.id)):
            return False
    return True


def _binds_all(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and any(each.name == "*" for each in node.names)


def _names_of(body: Sequence[ast.stmt]) -> Iterator[str]:
    """Names that these statements bind."""
    for node in body:
        match node:
            case ast.Import() | ast.ImportFrom():
                yield from ((each.asname or each.name).split(".")[0] for each in node.names)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.name
            case ast.Assign():
                yield from (
                    each.id for target in node.targets for each in ast.walk(target) if isinstance(each, ast.Name)
                )
            case ast.AnnAssign() if isinstance(node.target, ast.Name):
                yield node.target.id
            case ast.If() | ast.Try():
                yield from _names_of(node.body)


def _uses(scope: symtable.SymbolTable) -> Iterator[str]:
    """Names that a definition looks up among the notebook's, its functions' own variables left out."""
    at_top = scope.get_type() == "module"
    yield from (
        each.get_name() for each in scope.get_symbols() if each.is_global() or (at_top and each.is_referenced())
    )
    for inner in scope.get_children():
        yield from _uses(inner)


def _defined(source: str) -> set[str]:
    try:
        return set(_names_of(_parsed(source).body))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set(re.findall(r"^def +(\w+)", source, re.MULTILINE))


def _same(tree: ast.Module, stub: str) -> bool:
    try:
        return bool(stub) and ast.dump(tree) == ast.dump(_parsed(stub))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _is_empty(tree: ast.Module, function: str) -> bool:
    """Whether the function has nothing but a docstring, ``pass`` or ``raise NotImplementedError``."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            return all(
                isinstance(each, ast.Pass)
                or (isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant))
                or (isinstance(each, ast.Raise) and each.exc is not None and "NotImplemented" in ast.unparse(each.exc))
                for each in node.body
            )
    return False
