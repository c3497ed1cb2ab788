"""``%%ranks`` and ``%ranks``: cells that run on every rank of a notebook's cluster. ``%load_ext tplab`` brings them.

A cell goes the way of every function, ``cluster.submit``: its output, faults, interrupts and what holds for the next
run are the cluster's. What is added here is its text (see ``tplab.cluster.cells`` for what a rank does with it).
"""

import ast
import linecache
import re
import sys
import tokenize
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from html import escape
from io import StringIO
from itertools import count
from typing import Any, Literal

from IPython.core.error import UsageError
from IPython.core.magic import Magics, cell_magic, line_magic, magics_class, no_var_expand
from IPython.core.magic_arguments import argument, magic_arguments, parse_argstring
from traitlets import Float

from tplab.checks import ArgumentError
from tplab.cluster import Cluster, ClusterError, RankTimeout, Report, Run, State
from tplab.cluster.cells import Bundle, Cell, Push, compile_cell, describe, remember_source
from tplab.cluster.naming import label
from tplab.cluster.naming import several as in_words
from tplab.lab.target import Target

_COMMANDS = ("pull", "push", "use", "start", "restart", "stop", "status", "cluster")
_NAMES_SHOWN = 20
_LOST = "what earlier %%ranks cells defined is gone, and rank.store is empty: run those cells again."


@magics_class
class RanksMagics(Magics):
    """``%%ranks`` and ``%ranks``."""

    timeout = Float(
        None, allow_none=True, help="Seconds that a cell has if it does not say --timeout; None: no limit."
    ).tag(config=True)

    def __init__(self, shell: Any) -> None:
        super().__init__(shell)
        self._target = Target(shell)
        # Cluster -> a process id of the ranks whose namespace cells have used.
        self._used: weakref.WeakKeyDictionary[object, int] = weakref.WeakKeyDictionary()
        self._lost: weakref.WeakSet[object] = weakref.WeakSet()

    @no_var_expand
    @magic_arguments("%ranks")  # its help puts another % in front
    @argument("ranks", nargs="*", help="Only these: 0,2 or 0-1 or 0:2 (without 2); all of them if none is named.")
    @argument("--timeout", "-t", type=float, help="Seconds until ranks that still run are ended; default: no limit.")
    @argument("--num-ranks", "-n", type=int, help="The first N ranks, as if there were no others; starts them.")
    @argument("--help", "-h", action="store_true", help="Print this.")
    @cell_magic("ranks")
    def cell(self, line: str, cell: str) -> None:
        """Run the cell on every rank.

        Variables, functions, imports and classes live on the ranks from cell to cell. There from the start: ``rank``
        (a number, with ``rank.index``, ``rank.group``, ``rank.device``, ``rank.store``, ...), ``world_size``,
        ``device``, ``store``, ``torch`` and ``dist``. The last expression is shown for each rank, unless a ``;`` ends
        it, and is ``_`` there. ``!`` and magics run on the ranks.

        A rank that raises, dies or hangs gives one exception that names it, and the next cell works. There is no time
        limit unless you give one: the Stop button ends what hangs. Ranks that were inside a collective have to be
        replaced then, and their variables are gone.
        """
        arguments = parse_argstring(self.cell, line)
        if arguments.help:
            print(self.cell.parser.format_help())
        elif cell.strip():
            with _as_options():
                self._run(f"%%ranks {line}".strip(), cell, arguments)

    @no_var_expand
    @magic_arguments("ranks")
    @argument("command", nargs="*", help=f"{', '.join(_COMMANDS)}, or Python to run on every rank.")
    @argument("--ranks", "-r", default="", help="pull: only from these, as 0,2.")
    @argument("--num-ranks", "-n", type=int, help="start: how many.")
    @argument("--backend", default="auto", help="start: auto, gloo or nccl.")
    @argument("--help", "-h", action="store_true", help="Print this.")
    @line_magic("ranks")
    def line(self, line: str) -> Any:
        """Run a line on every rank, or do something about the ranks.

        ::

            %ranks print(rank)          runs on every rank, as a cell of %%ranks does
            values = %ranks pull x      an expression's values, in rank order; CUDA tensors come on the CPU
            %ranks push a b             variables of the notebook, to every rank
            %ranks use cluster          a Cluster or a Pool to run on from now on
            %ranks start -n 4           fresh ranks; those of the notebook's pool, if it has one
            %ranks restart              the same ranks anew, with nothing defined
            %ranks stop                 end them
            %ranks status               what they are doing, and hold
            cluster = %ranks cluster    the Cluster, for cluster.run
        """
        with _as_options():
            if _is_command(line) or not line.strip():
                return self._do(line)
            try:
                return self._run("%ranks", line, None)
            except SyntaxError as error:
                raise UsageError(f"%ranks {line}: neither {', '.join(_COMMANDS)} nor Python ({error.msg})") from None

    def _do(self, line: str) -> Any:
        command, _, rest = line.strip().partition(" ")
        if command == "pull":
            return self._pull(rest.strip())
        arguments = parse_argstring(self.line, line)
        if command in ("restart", "stop", "start"):
            self._forget()
        match command, arguments.command[1:]:
            case _ if arguments.help:
                print(self.line.parser.format_help())
            case "push", [_, *_] as names:
                self._push([each for name in names for each in name.split(",") if each])
            case "use", [_, *_]:
                self._target.use(self._evaluated(rest))
            case "start", []:
                self._target.start(arguments.num_ranks, arguments.backend)
            case "restart", []:
                self._target.cluster()[1].restart()
            case "stop", []:
                self._target.stop()
            case "status" | "", []:
                self._status()
            case "cluster", []:
                return self._target.cluster()[1]
            case _:
                raise UsageError(f"%ranks {line}: see %ranks --help")
        return None

    def _evaluated(self, text: str) -> Any:
        try:
            return self.shell.ev(text)
        except NameError as error:
            raise UsageError(f"%ranks use {text}: {error}") from None

    def _run(self, header: str, body: str, arguments: Any) -> None:
        __tracebackhide__ = True
        name, source = self._compile(header, body)
        cluster = self._ready(arguments and arguments.num_ranks)
        chosen = _chosen(arguments.ranks if arguments else [], cluster.num_ranks)
        timeout = self.timeout if arguments is None or arguments.timeout is None else arguments.timeout
        quiet = _ends_with_semicolon(source)
        gives: Literal["bundle", "nothing"] = "nothing" if quiet else "bundle"
        cell = self._cell(name=name, source=source, title=header.split()[0], ranks=chosen, gives=gives)
        for rank, bundle in enumerate(self._call(cluster, cell, ranks=chosen, timeout=timeout)):
            if bundle is not None:
                self._show(label(rank, cluster.hosts), bundle)

    def _pull(self, text: str) -> list[Any]:
        __tracebackhide__ = True
        match = re.fullmatch(r"(?:(?:-r|--ranks)[ =]+(\S+)\s+)?(.+)", text)
        if match is None:
            raise UsageError("%ranks pull: say what, as in `values = %ranks pull x`")
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        compile(match[2], "<%ranks pull>", "eval", flags)  # an expression, or a SyntaxError here
        name, source = self._compile("%ranks pull", match[2])
        cluster = self._ready()
        chosen = _chosen([match[1] or ""], cluster.num_ranks)
        cell = self._cell(name=name, source=source, title="%ranks pull", ranks=chosen, gives="value")
        values = self._call(cluster, cell, ranks=chosen, timeout=self.timeout)
        return [values[rank] for rank in chosen]

    def _cell(self, **fields: Any) -> Cell:
        autoreload = self.shell.magics_manager.registry.get("AutoreloadMagics")
        return Cell(**fields, reloads=bool(autoreload and autoreload._reloader.enabled))

    def _push(self, names: Sequence[str]) -> None:
        __tracebackhide__ = True
        for name in names:
            if name not in self.shell.user_ns:
                raise UsageError(f"%ranks push: this notebook has no variable {name!r}")
        cluster = self._ready()
        values = [self.shell.user_ns[name] for name in names]
        try:
            self._call(cluster, Push(tuple(names)), *values, ranks=range(cluster.num_ranks), timeout=self.timeout)
        except TypeError as error:
            text = re.sub(r"args\[(\d+)\]", lambda found: names[int(found[1])], str(error))
            raise TypeError(text) from None

    def _status(self) -> None:
        target = self._target.find()
        if target is None:
            return print("%ranks: no ranks are running; %%ranks starts two, `%ranks start -n 4` four.")
        cluster = self._target.cluster()[1]
        print(repr(cluster))
        if cluster.state is not State.READY:
            return None
        rows = self._call(cluster, describe, ranks=range(cluster.num_ranks), timeout=self.timeout)
        for rank, (pid, row) in enumerate(zip(cluster.pids, rows, strict=True)):
            memory = "" if row["memory_MB"] is None else f", {row['memory_MB']:,.0f} MB in tensors"
            more = ", ..." * (len(row["names"]) > _NAMES_SHOWN)
            names = f"defined: {', '.join(row['names'][:_NAMES_SHOWN])}{more}" if row["names"] else "nothing is defined"
            print(f"{label(rank, cluster.hosts)} process {pid}, {row['device']}{memory}; {names}")
        return None

    def _ready(self, num_ranks: int | None = None) -> Cluster:
        """The ranks, ready. Says so if they are not those that ran the last cell."""
        __tracebackhide__ = True
        owner, cluster = self._target.cluster(num_ranks)
        cluster.start()
        pid = next(iter(cluster.pids), 0)
        if self._used.get(owner, pid) != pid:
            self._lost.add(owner)
            print(f"%%ranks: the ranks were replaced (a fault, an interrupt, a restart): {_LOST}", file=sys.stderr)
        self._used[owner] = pid
        return cluster

    def _forget(self) -> None:
        """The ranks are about to be replaced because the user said so."""
        owner = self._target.find()
        if owner is not None and self._used.pop(owner, None) is not None:
            self._lost.add(owner)

    def _call(self, cluster: Cluster, fn: Any, *args: Any, ranks: Sequence[int], timeout: float | None) -> list[Any]:
        __tracebackhide__ = True
        runs: list[Run[Any]] = []
        try:
            runs.append(cluster.submit(fn, *args, timeout=timeout, on_report=partial(self._on_report, runs, cluster)))
            return runs[0].result()
        except KeyboardInterrupt as interrupt:
            for run in runs:
                run.stop()  # also where the interrupt came before result() could take it
            _render(interrupt)
            raise
        except ClusterError as error:
            if isinstance(error, RankTimeout) and len(ranks) < cluster.num_ranks:
                _append(error, f"Only {in_words(ranks)} took part: a collective of all ranks waits for the others.")
            if isinstance(error.__cause__, NameError):
                self._explain_missing(error)
            _render(error)
            raise

    def _explain_missing(self, error: ClusterError) -> None:
        match = re.search(r"name '(\w+)' is not defined", str(error.__cause__))
        if match is not None and match[1] in self.shell.user_ns:
            _append(error, f"`{match[1]}` is in the notebook: `%ranks push {match[1]}` sends it to the ranks.")
        elif self._lost:
            _append(error, "The ranks were replaced at some time: cells from before that have to run again.")

    def _compile(self, header: str, body: str) -> tuple[str, str]:
        """Name and Python of a cell, its lines numbered as in the notebook, the magic's own line among them."""
        lines = body.splitlines(keepends=True)
        blank = next((i for i, line in enumerate(lines) if line.strip()), 0)
        source = self.shell.transform_cell("".join(lines[blank:]))  # which would drop them, and their numbers
        if header.startswith("%%"):
            source = f"# {header}\n" + "\n" * blank + source
        title = f"{header.split()[0]} In[{self.shell.displayhook.prompt_count}]"
        name = next(each for each in _names(title) if "".join(linecache.getlines(each)) in ("", source))
        remember_source(name, source)
        compile_cell(source, name)
        return name, source

    def _on_report(self, runs: Sequence[Run[Any]], cluster: Cluster, report: Report) -> None:
        """What a rank shows or reports while its cell runs; ``runs`` has the run, as soon as there is one."""
        fields = dict(report.fields)
        name = label(report.rank, cluster.hosts)

        def write(text: str) -> None:
            if runs:
                runs[0].say(text, "stdout")
            else:
                print(text)

        if (bundle := fields.pop("tplab_display", None)) is not None:
            self._show(name, bundle, write, **fields)
        elif (wait := fields.pop("tplab_clear", None)) is not None:
            self.shell.display_pub.clear_output(wait)
        else:
            said = ", ".join(f"{name}={value!r}" for name, value in fields.items())
            write(f"{name} report: {said}")

    def _show(self, name: str, bundle: Bundle, write: Callable[[str], None] = print, **options: Any) -> None:
        """Show what a rank has to show, its name in front; ``options`` as of ``publish``."""
        text = f"{name} " + bundle.get("text/plain", "").replace("\n", "\n" + " " * (len(name) + 1))
        if bundle.keys() <= {"text/plain"} and not options:
            write(text)
            return
        shown = bundle | {"text/plain": text}
        if "text/html" in shown:
            shown["text/html"] = f"<div><code>{escape(name)}</code></div>{shown['text/html']}"
        elif len(shown) > 1 and not options.get("update"):
            write(name)  # above a picture
        self.shell.display_pub.publish(shown, **options)


def _is_command(line: str) -> bool:
    """Whether a line is one of the commands, and no Python that begins with such a name."""
    command = rf"(?:{'|'.join(_COMMANDS)})(?!\s*(?:[=.,:+*/%<>!&|]|-\s|(?:in|is|if|and|or|not)\b))"
    return re.match(rf"\s*(?:-h|--help|{command})(?:\s|$)", line) is not None


def _chosen(words: Sequence[str], num_ranks: int) -> tuple[int, ...]:
    """The ranks that ``0,2``, ``0-1``, ``0:2`` or ``[0, 1]`` names."""
    text = " ".join(words).strip(" []")
    if text in ("", "all"):
        return tuple(range(num_ranks))
    chosen: set[int] = set()
    for part in re.split(r"[,\s]+", text):
        if match := re.fullmatch(r"(\d+)(?:-(\d+))?", part):
            chosen.update(range(int(match[1]), int(match[2] or match[1]) + 1))
        elif match := re.fullmatch(r"(\d*):(\d*)", part):
            chosen.update(range(int(match[1] or 0), int(match[2] or num_ranks)))
        else:
            raise UsageError(f"%%ranks {text}: {part!r} names no ranks; write 0,2 or 0-1 or 0:2")
    if not chosen or max(chosen) >= num_ranks:
        raise UsageError(f"%%ranks {text}: there are {num_ranks} ranks, 0 to {num_ranks - 1}")
    return tuple(sorted(chosen))


def _ends_with_semicolon(source: str) -> bool:
    """Whether a cell wants its value unsaid, as in IPython (Colab's, 7.34, has no function for it)."""
    between = (tokenize.ENDMARKER, tokenize.NL, tokenize.NEWLINE, tokenize.COMMENT)
    words = [token.string for token in tokenize.generate_tokens(StringIO(source).readline) if token.type not in between]
    return words[-1:] == [";"]


def _names(title: str) -> Iterator[str]:
    """File names for a cell: one number may stand for several texts, where a line is run in a loop."""
    yield f"<{title}>"
    yield from (f"<{title}.{number}>" for number in count(2))


@contextmanager
def _as_options() -> Iterator[None]:
    """What is wrong with an argument is said of the option that it came from."""
    try:
        yield
    except ArgumentError as error:
        options = {"n": "-n", "num_ranks": "-n", "timeout": "--timeout", "backend": "--backend"}
        raise UsageError(error.named(options.get(error.argument, error.argument))) from None


def _append(error: ClusterError, text: str) -> None:
    error.args = (f"{error}\n\n{text}",)


def _render(error: BaseException) -> None:
    """Have IPython show the error, which has the ranks' own tracebacks, without the frames of magic and cluster."""

    def lines() -> list[str]:
        said = [f"{type(error).__name__}: {error}".removesuffix(": "), *getattr(error, "__notes__", ())]
        return "\n".join(said).splitlines()

    error._render_traceback_ = lines  # type: ignore[attr-defined]
