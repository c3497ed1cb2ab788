"""The process that runs one learner's answer to one exercise: never the teacher's own.

``python -m tplab.lab.grading.inside``, started by ``outside``, reads what to do from its standard input and writes one
line of JSON to file descriptor 3. Two processes: the first waits and then ends whatever the second has left; so the
parent that the learner's code could kill is not the teacher's.
"""

import ctypes
import json
import linecache
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tplab.lab.grading.confined import confine

RESULT_FD = 3
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of prctl(2)


def main() -> int:
    """Fork, wait, tidy up; returns the exit status of the process that ran the answer."""
    task = json.loads(sys.stdin.read())
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
    child = os.fork()
    if child == 0:
        run(task)
        os._exit(0)  # no exit functions of a learner's
    os.close(RESULT_FD)
    status = os.waitpid(child, 0)[1]
    _end_descendants()
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def run(task: dict[str, Any]) -> None:
    """Check the answer and send the verdict."""
    folder = Path(task["folder"])
    os.chdir(folder)
    confine(folder, cpu_s=task["cpu_s"])
    os.set_inheritable(RESULT_FD, False)  # ranks and what the answer starts have no part in it
    own_pid = os.getpid()
    # The checker is loaded before the answer, and looked at again after it.
    from tplab.cluster import Cluster
    from tplab.lab.exercises.registry import EXERCISES

    exercise = EXERCISES[task["exercise"]]
    checker = exercise.check_function
    before = _fingerprint()
    began = time.monotonic()
    passed, message, details = False, "", ""
    try:
        function = _defined(task["pieces"], exercise.function)
    except BaseException as error:
        message = f"{_where(error)}{type(error).__name__}: {error}".rstrip(": ") + ", while the cells were read."
    else:
        try:
            if exercise.num_ranks:
                with Cluster(exercise.num_ranks) as cluster:
                    passed, message, details = exercise.grade(cluster, function)
            else:
                passed, message, details = exercise.grade(None, function)
        except BaseException as error:
            message = f"{_where(error)}{type(error).__name__}: {error}".rstrip(": ")
    after = _fingerprint()
    if passed and (
        exercise.check_function is not checker or any(after.get(name) != was for name, was in before.items())
    ):
        passed, message = False, "the checker was changed while it ran: leave tplab's own functions as they are."
    if os.getpid() == own_pid:  # and not a copy that the answer has forked
        verdict = {
            "secret": task["secret"],
            "passed": passed is True,
            "message": str(message),
            "details": str(details),
            "seconds": time.monotonic() - began,
        }
        os.write(RESULT_FD, json.dumps(verdict).encode() + b"\n")


def _defined(pieces: list[dict[str, Any]], function: str) -> Any:
    """The exercise's function, out of a namespace with nothing but the learner's definitions.

    They are ``__main__``'s: so functions go to the ranks by value, as from a notebook.
    """
    scope = vars(sys.modules["__main__"])
    scope.clear()
    scope |= {"__name__": "__main__", "__builtins__": __builtins__}
    for piece in pieces:
        name = f"<cell {piece['cell']}>"
        text = piece["source"]
        # Tracebacks show its lines, as a notebook's do.
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
        exec(compile(text, name, "exec", dont_inherit=True), scope)
    return scope[function]


def _where(error: BaseException) -> str:
    """The learner's own line that raised."""
    at, trace = "", error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename.startswith("<cell "):
            at = f"{trace.tb_frame.f_code.co_filename.strip('<>')}, line {trace.tb_lineno}: "
        trace = trace.tb_next
    if not at and isinstance(error, SyntaxError) and error.filename:
        at = f"{error.filename.strip('<>')}, line {error.lineno}: "
    return at


def _fingerprint() -> dict[str, int]:
    """Which functions and classes tplab's checkers consist of at the moment."""
    found: dict[str, int] = {}
    for name, module in list(sys.modules.items()):
        if not name.startswith(("tplab.lab.exercises", "tplab.pipeline", "tplab.cluster")) or module is None:
            continue
        for key, value in list(vars(module).items()):
            if getattr(value, "__module__", None) == name:
                found[f"{name}.{key}"] = id(getattr(value, "__code__", value))
                if isinstance(value, type):
                    inner = [(each, thing) for each, thing in vars(value).items() if _acts(thing)]
                    found |= {f"{name}.{key}.{each}": id(getattr(thing, "__code__", thing)) for each, thing in inner}
    return found


def _acts(thing: Any) -> bool:
    return callable(thing) or isinstance(thing, staticmethod | classmethod | property)


def _end_descendants() -> None:
    """End what the answer has left behind: all of it comes to this process when its parents are gone."""
    import psutil

    for _ in range(100):
        left = psutil.Process().children(recursive=True)
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not left:
            return
        time.sleep(0.02)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the teacher's to carry out
    # Under its own name: the answer's definitions are those of ``__main__``.
    from tplab.lab.grading import inside

    sys.exit(inside.main())
