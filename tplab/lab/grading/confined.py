"""What a process that runs learners' code may no longer do, for itself and for all that it starts.

Limits of the system (sizes of files, processor time, core dumps), and on Linux 5.13 or newer Landlock: no file may be
written, made, renamed or removed but below one folder; from Linux 6.12 on no process outside may be sent a signal. See
landlock(7), https://man7.org/linux/man-pages/man7/landlock.7.html, and SECURITY.md for what this does not keep in.
"""

import ctypes
import os
import resource
import sys
from pathlib import Path

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # numbers of the system calls on every architecture
_PATH_BENEATH = 1
_NO_NEW_PRIVS = 38
_WRITE_FILE = 1 << 1
_CHANGES = sum(1 << bit for bit in (1, 4, 5, 6, 7, 8, 9, 10, 11, 12))  # write, remove, make; see linux/landlock.h
_REFER, _TRUNCATE = 1 << 13, 1 << 14  # from version 2 and 3
_SIGNALS = 1 << 1  # "scoped", from version 6
_MOST_FILE_BYTES = 256 << 20


class _Ruleset(ctypes.Structure):
    _fields_ = (("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32))


def landlock_version() -> int:
    """What this system's Landlock can do; 0 where there is none."""
    if sys.platform != "linux":
        return 0
    return max(0, int(ctypes.CDLL(None, use_errno=True).syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1)))


def isolation_in_words() -> str:
    """What holds here, for a report."""
    version = landlock_version()
    if version == 0:
        return "learners' code could write files and end processes as you can: this system has no Landlock"
    signals = "" if version >= 6 else ", but could end your processes (that takes Linux 6.12)"
    return f"learners' code could write only into a folder of its own and below /dev{signals}"


def confine(folder: Path, *, cpu_s: int) -> None:
    """Confine this process and all that it will start to writing below ``folder`` and ``/dev``, as far as the system
    can; with limits on what a file holds and on processor time in seconds."""
    for limit, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, _MOST_FILE_BYTES),
        (resource.RLIMIT_CPU, cpu_s),
    ):
        hard = resource.getrlimit(limit)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(limit, (most, most))
    version = landlock_version()
    if version == 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    changes = _CHANGES | _REFER * (version >= 2) | _TRUNCATE * (version >= 3)
    asked = _Ruleset(changes, 0, _SIGNALS * (version >= 6))
    size = 24 if version >= 6 else 8  # what the version knows of the structure
    rules = libc.syscall(_CREATE_RULESET, ctypes.byref(asked), ctypes.c_size_t(size), 0)
    if rules < 0:
        raise OSError(ctypes.get_errno(), "Landlock refused a ruleset")
    for path, allowed in ((folder, changes), (Path("/dev"), changes), (Path("/proc/self"), _WRITE_FILE)):
        if not path.exists():
            continue
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = _Beneath(allowed, fd)
        if libc.syscall(_ADD_RULE, rules, _PATH_BENEATH, ctypes.byref(rule), 0):
            raise OSError(ctypes.get_errno(), f"Landlock refused the rule for {path}")
        os.close(fd)
    if libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.syscall(_RESTRICT_SELF, rules, 0):
        raise OSError(ctypes.get_errno(), "Landlock refused to confine this process")
    os.close(rules)
