"""The teacher's side of a process that runs a learner's answer: its time, its memory, what it prints, what it says.

Nothing that comes from there is unpickled or run: one line of JSON with a secret in it, and text.
"""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import psutil

from tplab.lab.exercises.registry import Exercise
from tplab.lab.grading.answers import Answer
from tplab.lab.grading.inside import RESULT_FD

_MARK = "TPLAB_GRADE"
"""Variable in the environment of all that an answer starts, by which it is found and ended."""
_KEPT = 4000  # characters of what was printed
_LOOK_EVERY_S = 0.2
_MOST_PROCESSES = 200
_MOST_RESULT = 1 << 20
_PASSED_ON = ("PATH", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "LANG", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of one answer."""

    passed: bool
    """What the checker said; False also where it could not say anything."""
    message: str
    """Words of the checker, or why there are none."""
    details: str = ""
    """What is folded away: a traceback, the last of what was printed."""
    seconds: float = 0.0
    """How long it took, with the start of the ranks."""


def run_answer(exercise: Exercise, answer: Answer, *, timeout: float, memory_bytes: float) -> Outcome:
    """Check ``answer`` in a process of its own, on ranks of its own.

    Args:
        exercise: which.
        answer: what of the notebook is run.
        timeout: seconds that all of it may take.
        memory_bytes: memory that its processes may take together.
    """
    began = time.monotonic()
    mark, secret = secrets.token_hex(8), secrets.token_hex(16)
    folder = Path(tempfile.mkdtemp(prefix="tplab-grade-"))
    # HOME and TMPDIR: libraries keep their files in the one folder that may be written.
    own = {
        "HOME": str(folder),
        "TMPDIR": str(folder),
        _MARK: mark,
        "TPLAB_PROGRESS": "off",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ} | own
    task = {
        "exercise": exercise.name,
        "pieces": [asdict(piece) for piece in answer.pieces],
        "folder": str(folder),
        "secret": secret,
        "cpu_s": int(timeout * max(4, exercise.num_ranks)) + 1,
    }
    read, write = os.pipe()
    try:
        process = _start(environment, write)
        printed, said = _Kept(process.stdout), _Kept(os.fdopen(read, "rb", buffering=0), most=_MOST_RESULT)
        with suppress(BrokenPipeError):
            assert process.stdin is not None
            process.stdin.write(json.dumps(task).encode())
            process.stdin.close()
        cut = _watch(process, mark, timeout=timeout, memory_bytes=memory_bytes)
    finally:
        _end_marked(mark)
        shutil.rmtree(folder, ignore_errors=True)
    seconds = time.monotonic() - began
    tail = f"Printed at the end:\n{printed.text[-_KEPT:]}" if printed.text else ""
    verdict = next((line for line in map(_parsed, said.text.splitlines()) if line.get("secret") == secret), None)
    if verdict is not None and not cut:
        details = "\n\n".join(filter(None, (str(verdict.get("details", "")), tail)))
        return Outcome(
            passed=verdict.get("passed") is True,
            message=str(verdict.get("message", "")),
            details=details,
            seconds=seconds,
        )
    message = cut or f"the answer ended the process that checks it ({_ending(process.returncode)})."
    return Outcome(passed=False, message=message, details=tail, seconds=seconds)


def _start(environment: dict[str, str], result: int) -> "subprocess.Popen[bytes]":
    """The process, with ``result`` as its descriptor 3."""
    path = json.dumps([entry or os.getcwd() for entry in sys.path])
    start = (
        "import sys, os, json; sys.path[:] = json.loads(sys.argv[1]); "
        f"fd = int(sys.argv[2]); fd == {RESULT_FD} or (os.dup2(fd, {RESULT_FD}), os.close(fd)); "
        "from tplab.lab.grading import inside; import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
        "sys.exit(inside.main())"
    )
    try:
        return subprocess.Popen(
            [sys.executable, "-c", start, path, str(result)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            pass_fds=(result,),
            start_new_session=True,
        )
    finally:
        os.close(result)


class _Kept:
    """What comes out of a pipe, read as it comes; of much only the first and the last."""

    def __init__(self, pipe: IO[bytes] | None, most: int = 2 * _KEPT) -> None:
        assert pipe is not None
        self._pipe, self._most, self._data = pipe, most, b""
        self._thread = threading.Thread(target=self._read, name="tplab-grade-output", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with self._pipe:
            while chunk := self._pipe.read(1 << 16) if not hasattr(self._pipe, "read1") else self._pipe.read1(1 << 16):
                self._data += chunk
                if len(self._data) > 2 * self._most:
                    self._data = self._data[: self._most // 2] + b"\n ...\n" + self._data[-self._most // 2 :]

    @property
    def text(self) -> str:
        """So far; waits for the end of the pipe, which comes when all that could write is gone."""
        self._thread.join(2.0)
        return self._data.decode(errors="replace")


def _watch(process: "subprocess.Popen[bytes]", mark: str, *, timeout: float, memory_bytes: float) -> str:
    """Wait for the end; says why, where it was not the process's own."""
    deadline = time.monotonic() + timeout
    try:
        while True:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_LOOK_EVERY_S)
                return ""
            if time.monotonic() > deadline:
                return f"not done after {timeout:g} s: does it wait for something, or go round in a loop?"
            tree = _tree(process.pid)
            if len(tree) > _MOST_PROCESSES:
                return f"the answer started more than {_MOST_PROCESSES} processes."
            used = sum(map(_private_bytes, tree))
            if used > memory_bytes:
                return f"the answer took more than {memory_bytes / 1e9:g} GB of memory."
    finally:
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        _end_marked(mark)
        process.wait()


def _tree(pid: int) -> list[psutil.Process]:
    with suppress(psutil.Error):
        top = psutil.Process(pid)
        return [top, *top.children(recursive=True)]
    return []


def _private_bytes(process: psutil.Process) -> int:
    with suppress(psutil.Error):
        memory = process.memory_info()
        return int(memory.rss - getattr(memory, "shared", 0))
    return 0


def _end_marked(mark: str) -> None:
    for _ in range(50):
        left = list(_marked(mark))
        if not left:
            return
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        time.sleep(0.02)


def _marked(mark: str) -> Iterable[psutil.Process]:
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(_MARK) == mark:
                yield process


def _parsed(line: str) -> dict[str, Any]:
    with suppress(ValueError, RecursionError):
        found = json.loads(line)
        if isinstance(found, dict):
            return found
    return {}


def _ending(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}" if code is None or code < 128 else f"signal {code - 128}"
    return f"signal {-code}"
