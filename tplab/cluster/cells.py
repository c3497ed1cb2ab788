"""Cells of a notebook on the ranks: what ``%%ranks`` runs there, in a namespace that lives from cell to cell.

The namespace is the module ``__main__`` of the rank, as a notebook's is that of its kernel: objects of its classes can
be pickled by name there, as ``dist.all_gather_object`` does. Around it is an IPython shell, so that magics, ``!`` and
``display`` do what they do in a notebook; it needs no kernel. Imported by the kernel, too, which compiles a cell before
it sends it: so torch and IPython are imported in functions.
"""

import __future__

import ast
import asyncio
import builtins
import inspect
import linecache
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import CodeType, ModuleType, SimpleNamespace, TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tplab.cluster.follow import IN_PLACE
from tplab.cluster.interrupts import interrupts_held
from tplab.cluster.rank import Rank

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

_VALUE = "_tplab_value"
_FUTURES = sum(getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)
_LONGEST_TEXT = 20_000
_LARGEST_BUNDLE = 1 << 23

Bundle = dict[str, Any]
"""MIME type -> data, as a notebook's outputs have it; ``text/plain`` is always there."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The text of a cell, as it is sent to the ranks, and called there."""

    name: str
    """What tracebacks call its file, and ``inspect`` finds its source by."""
    source: str
    """Python, its lines numbered as in the notebook."""
    title: str
    """What the run is called in messages."""
    ranks: tuple[int, ...]
    """Those that execute it."""
    gives: Literal["bundle", "value", "nothing"]
    """How its last expression comes back: as text and pictures, as it is, or not at all."""
    reloads: bool
    """Whether edited modules are loaded again first, also those that the notebook itself has not imported."""
    keeps_settings: ClassVar[bool] = True
    """What a cell sets (devices, types, threads, its folder), the next one finds, as in a notebook."""

    @property
    def __name__(self) -> str:
        return self.title

    def __call__(self, rank: Rank) -> Any:
        """Execute it if this rank is among its own. Returns the last expression, or its ``Bundle``, or None."""
        __tracebackhide__ = True
        if rank.index not in self.ranks:
            return None
        return _space_of(rank).execute(self, rank)


@dataclass(frozen=True)
class Push:
    """Values for the namespace of every rank."""

    __name__ = "%ranks push"
    names: tuple[str, ...]
    """What they are called there."""

    def __call__(self, rank: Rank, *values: Any) -> None:
        vars(_space_of(rank).module).update(zip(self.names, values, strict=True))


def describe(rank: Rank) -> dict[str, Any]:
    """What ``%ranks status`` says of a rank: ``device``, ``memory_MB`` that torch holds on a GPU, ``names``."""
    import torch

    on_gpu = rank.device.type == "cuda"
    memory_MB = torch.cuda.memory_allocated(rank.device) / 1e6 if on_gpu else None
    return {"device": str(rank.device), "memory_MB": memory_MB, "names": _space_of(rank).names() if _space else []}


def remember_source(name: str, source: str) -> None:
    """Have tracebacks and ``inspect`` find the lines of a cell in this process."""
    linecache.cache[name] = len(source), None, source.splitlines(keepends=True), name


def compile_cell(source: str, name: str, flags: int = 0) -> CodeType:
    """Code of a cell, which leaves the value of a last expression in the namespace. Raises ``SyntaxError``.

    Args:
        source: Python; ``await`` may stand outside of functions.
        name: file name for tracebacks.
        flags: of the ``__future__`` that earlier cells asked for.
    """
    flags |= ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    tree = compile(source, name, "exec", flags | ast.PyCF_ONLY_AST, dont_inherit=True)
    if tree.body and isinstance(last := tree.body[-1], ast.Expr):
        target = ast.copy_location(ast.Name(_VALUE, ast.Store()), last)
        tree.body[-1] = ast.copy_location(ast.Assign([target], last.value), last)
    code: CodeType = compile(tree, name, "exec", flags, dont_inherit=True)
    return code


class _Space:
    """The namespace of a rank and the shell around it."""

    def __init__(self) -> None:
        import torch

        os.environ.setdefault("PLOTLY_RENDERER", "plotly_mimetype")  # else each rank sends plotly's 4 MB of JavaScript
        self.module = ModuleType("__main__")
        self._rank: Rank | None = None
        self._shell = _make_shell(self.module, self._send)  # which puts the module into sys.modules
        self._given: dict[str, Any] = {}
        self._runner = asyncio.Runner()
        self._flags = 0
        self._give({"torch": torch, "dist": torch.distributed})
        self._first_names = frozenset(vars(self.module))

    def execute(self, cell: Cell, rank: Rank) -> Any:
        __tracebackhide__ = True
        self.enter(rank)
        remember_source(cell.name, cell.source)
        code = compile_cell(cell.source, cell.name, self._flags)
        self._flags |= code.co_flags & _FUTURES
        names, events = vars(self.module), self._shell.events
        if cell.reloads != IN_PLACE.always:
            IN_PLACE.always = cell.reloads
            self._shell.extension_manager.load_extension("autoreload")
            self._shell.magics_manager.registry["AutoreloadMagics"]._reloader.old_objects = IN_PLACE.old_objects
            self._shell.run_line_magic("autoreload", "2" if cell.reloads else "0")
        with interrupts_held():  # which would only be printed there
            events.trigger("pre_run_cell", SimpleNamespace(raw_cell=cell.source))  # autoreload looks for edited files
        try:
            with _without_keyboard():
                if code.co_flags & inspect.CO_COROUTINE:
                    self._wait_for(eval(code, names))
                else:
                    exec(code, names)
        except BaseException as error:
            names.pop(_VALUE, None)
            error.__traceback__ = _from_file(error.__traceback__, cell.name)
            raise
        finally:
            events.trigger("post_execute")  # where matplotlib shows the figures that the cell has drawn
        value = names.pop(_VALUE, None)
        if cell.gives == "value":
            return value
        if value is not None:
            names["_"] = value
        return self._bundle(value) if cell.gives == "bundle" and value is not None else None

    def enter(self, rank: Rank) -> None:
        """The names that are there from the start, for the run that begins."""
        self._rank = rank
        self._give({"rank": rank, "world_size": rank.world_size, "device": rank.device, "store": rank.store})

    def names(self) -> list[str]:
        """What cells have defined."""
        given = self._first_names | {_VALUE, *self._given}
        return sorted(name for name in vars(self.module) if name not in given and not name.startswith("_"))

    def _give(self, values: Mapping[str, Any]) -> None:
        """Unless a cell has put something else in its place."""
        names = vars(self.module)
        for name, value in values.items():
            if name not in names or names[name] is self._given.get(name, names):
                names[name] = self._given[name] = value

    def _wait_for(self, coroutine: Any) -> None:
        __tracebackhide__ = True
        try:
            self._runner.run(coroutine)
        except KeyboardInterrupt:
            self._runner.close()  # what still waits in the loop would go on in the next cell
            self._runner = asyncio.Runner()
            raise

    def _bundle(self, value: Any) -> Bundle:
        formatter = self._shell.display_formatter
        formatter.ipython_display_formatter.enabled = False  # it would print here, where a figure can be shown there
        bundle, _ = formatter.format(value)
        text = bundle.get("text/plain", object.__repr__(value))  # without it the repr has failed, and has said so
        if len(text) > _LONGEST_TEXT:
            text = f"{text[:_LONGEST_TEXT]}… ({len(text) - _LONGEST_TEXT:,} more characters)"
        if sum(len(str(data)) for data in bundle.values()) > _LARGEST_BUNDLE:
            bundle = {}
        return {**bundle, "text/plain": text}

    def _send(self, **fields: Any) -> None:
        """What ``display`` comes to. Returns when the kernel has it: what is printed next goes another way, and would
        overtake it."""
        if self._rank is None:
            return
        self._rank.report(**fields)
        from torch.distributed.distributed_c10d import _get_default_store

        with suppress(Exception):  # the cell has taken its process group down
            _get_default_store().check(["any"])


_space: _Space | None = None


def _space_of(rank: Rank) -> _Space:
    global _space
    if _space is None:
        _space = _Space()
    _space.enter(rank)
    return _space


def _make_shell(module: ModuleType, send: Callable[..., None]) -> "InteractiveShell":
    from IPython.core.displaypub import DisplayPublisher
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    class Publisher(DisplayPublisher):  # type: ignore[misc]  # traitlets are not typed
        def publish(self, data: Bundle, *args: Any, **options: Any) -> None:
            again = {name: options[name] for name in ("transient", "update") if options.get(name)}
            send(tplab_display=data, **again)

        def clear_output(self, wait: bool = False) -> None:
            send(tplab_clear=wait)

    class Shell(InteractiveShell):  # type: ignore[misc]
        def enable_gui(self, gui: Any = None) -> None:
            """There are no windows here: `%matplotlib` asks for some."""

        def ask_exit(self) -> None:
            __tracebackhide__ = True
            raise SystemExit

    config = Config()
    config.HistoryManager.enabled = False  # ranks would write into the user's, all at once
    config.InteractiveShell.colors = "nocolor"
    shell = Shell.instance(config=config, user_module=module, user_ns=vars(module), display_pub_class=Publisher)
    vars(module)["display"] = _display
    return shell


def _display(*values: Any, **options: Any) -> Any:
    from IPython.display import display

    return display(*values, **options)


@contextmanager
def _without_keyboard() -> Iterator[None]:
    """``input`` and ``breakpoint`` would find an empty file: say so instead."""

    def refuse(what: str) -> Callable[..., Any]:
        def refused(*args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            raise RuntimeError(f"{what} cannot work on a rank, which has no keyboard: {_INSTEAD[what]}")

        return refused

    before = builtins.input, sys.breakpointhook
    builtins.input, sys.breakpointhook = refuse("input()"), refuse("breakpoint()")
    try:
        yield
    finally:
        builtins.input, sys.breakpointhook = before


_INSTEAD = {
    "input()": "ask in the notebook, and send the answer with `%ranks push`",
    "breakpoint()": "print there, or fetch values with `%ranks pull`",
}


def _from_file(traceback: TracebackType | None, name: str) -> TracebackType | None:
    """The part of a traceback that begins in a file, or all of it where none does."""
    part = traceback
    while part is not None and part.tb_frame.f_code.co_filename != name:
        part = part.tb_next
    return part or traceback
