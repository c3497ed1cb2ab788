"""What a run changed of the rank as a whole is put back when it is over: the next one finds what a fresh rank has.

Most of it lasts a few microseconds to read, so all of it is compared after every run. What stays is what a run leaves
on purpose: ``rank.store``, random generators, imported modules, printing options, new variables of the environment.

Imported on ranks only, because it needs torch.
"""

import faulthandler
import gc
import os
import resource
import signal
import sys
import threading
import types
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import get_debug_level, set_debug_level
from torch.distributed import device_mesh, distributed_c10d

# What makes a script connect, choose devices or count threads; what else a run adds stays, for what it made.
_READ_BY_TORCH = ("MASTER_", "RANK", "LOCAL_", "WORLD_SIZE", "GROUP_", "CUDA_", "NCCL_", "GLOO_", "OMP_", "MKL_")
_FP32_PRECISION = [(backend, op) for backend in ("cuda", "mkldnn") for op in ("matmul", "conv", "rnn", "all")]
_PASSES = 2  # torch's older and newer ways to set the same precision change each other


@dataclass(frozen=True, slots=True)
class _Knob:
    name: str
    get: Callable[[], Any]
    put: Callable[[Any], Any]
    was: Any


class Baseline:
    """The state of this rank now, as it is to be found by every run.

    Args:
        device: the rank's.
    """

    def __init__(self, device: torch.device) -> None:
        self._knobs: list[_Knob] = []
        self._folder = os.getcwd()
        self._kept = False
        self._add_process()
        self._process, self._knobs = self._knobs, []
        self._add_settings()
        self._add_torch()
        if device.type == "cuda":
            self._add_cuda(device)

    def enter(self, folder: str) -> None:
        """Work in the kernel's folder, if there is one."""
        if folder and folder != self._folder:
            self._folder = folder
            _change_folder(folder)

    def settings(self, *, kept: bool) -> AbstractContextManager[Any]:
        """Around the function: gradient and inference modes that it enters and does not leave end there.

        ``kept``: leave settings as they are until a function runs that does not want that, as cells of ``%%ranks`` do.
        """
        if self._kept and not kept:
            self._put_back(self._knobs)
        self._kept = kept
        return nullcontext() if kept else torch.inference_mode(False)

    def restore(self) -> str:
        """Put back what has changed. Returns what could not be; empty if all was."""
        faulthandler.cancel_dump_traceback_later()  # it may be told to end the process
        with suppress(ValueError, OSError):  # an alarm that rings later would ring in another run
            for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
                signal.setitimer(timer, 0)
        failed = self._put_back(self._process if self._kept else [*self._process, *self._knobs])
        closed = sys.stdout.closed or sys.stderr.closed
        return failed or ("the run has closed sys.stdout or sys.stderr" if closed else "")

    def _put_back(self, knobs: Sequence[_Knob]) -> str:
        failed = ""
        for _ in range(_PASSES):
            changed = [knob for knob in knobs if not self._is_as_it_was(knob)]
            if not changed:
                return ""
            failed = ""
            for knob in changed:
                try:
                    knob.put(knob.was)
                except Exception as error:
                    failed = f"the run has changed what cannot be put back, {knob.name} ({error!r})"
        return failed

    @staticmethod
    def _is_as_it_was(knob: _Knob) -> bool:
        try:
            return bool(knob.get() == knob.was)
        except Exception:  # torch refuses to say where two ways to set the same were mixed
            return False

    def _add(self, name: str, get: Callable[[], Any], put: Callable[[Any], Any]) -> None:
        """Nothing is added of what this version of torch, or this system, does not have."""
        with suppress(Exception):
            if put is not _absent:
                self._knobs.append(_Knob(name, get, put, get()))

    def _add_attributes(self, owner: Any, *names: str) -> None:
        for name in names:
            self._add(f"{owner.__name__}.{name}", partial(getattr, owner, name), partial(setattr, owner, name))

    def _add_process(self) -> None:
        self._add_attributes(sys, "stdout", "stderr", "stdin", "__stdout__", "__stderr__")
        self._add_attributes(sys, "excepthook", "unraisablehook", "displayhook")
        self._add_attributes(threading, "excepthook")
        for fd in (1, 2):
            self._add(f"file descriptor {fd}", partial(_identity, fd), partial(_point, fd, os.dup(fd)))
        self._add("signal handlers", _handlers, _set_handlers)
        self._add("blocked signals", partial(signal.pthread_sigmask, signal.SIG_BLOCK, []), _set_blocked)
        self._add("recursion limit", sys.getrecursionlimit, sys.setrecursionlimit)
        self._add("switch interval", sys.getswitchinterval, sys.setswitchinterval)
        self._add("trace function", sys.gettrace, sys.settrace)
        self._add("profile function", sys.getprofile, sys.setprofile)
        self._add("garbage collection", lambda: (gc.isenabled(), gc.get_threshold()), _set_gc)
        self._add("faulthandler", faulthandler.is_enabled, _set_faulthandler)
        if hasattr(os, "sched_getaffinity"):
            self._add("the cores it may run on", partial(os.sched_getaffinity, 0), partial(os.sched_setaffinity, 0))
        for limit in ("RLIMIT_AS", "RLIMIT_DATA", "RLIMIT_NOFILE", "RLIMIT_NPROC", "RLIMIT_CPU", "RLIMIT_STACK"):
            number = getattr(resource, limit)
            self._add(limit, partial(resource.getrlimit, number), partial(resource.setrlimit, number))

    def _add_settings(self) -> None:
        self._add("working directory", lambda: _folder_now() == self._folder, lambda _: _change_folder(self._folder))
        environment = dict(os.environ)
        data = getattr(os.environ, "_data", os.environ)
        at_first, seen = dict(data), dict(data)

        def same() -> bool:
            if data in (at_first, seen):
                return True
            changed = any(os.environ.get(name) != value for name, value in environment.items())
            new = any(name.startswith(_READ_BY_TORCH) and name not in environment for name in os.environ)
            return not changed and not new

        def put(_: bool) -> None:
            for name in [name for name in os.environ if name.startswith(_READ_BY_TORCH) and name not in environment]:
                del os.environ[name]
            os.environ.update(environment)
            seen.clear()
            seen.update(data)

        self._add("environment", same, put)

    def _add_torch(self) -> None:
        from torch import _C

        self._add("modes entered by hand", _num_modes, _leave_modes)
        self._add("default device", _default_device, _set_default_device)
        self._add("default tensor type", _C._get_default_device, _set_default_tensor_type)
        self._add("default dtype", torch.get_default_dtype, torch.set_default_dtype)
        self._add("number of threads", torch.get_num_threads, torch.set_num_threads)
        for backend, op in (("generic", "all"), *_FP32_PRECISION):
            get, put = (
                getattr(_C, "_get_fp32_precision_getter", _absent),
                getattr(_C, "_set_fp32_precision_setter", _absent),
            )
            self._add(f"fp32 precision of {backend} {op}", partial(get, backend, op), partial(put, backend, op))
        self._add("float32 matmul precision", torch.get_float32_matmul_precision, torch.set_float32_matmul_precision)
        for name in (
            *("cublas_allow_tf32", "cudnn_allow_tf32", "onednn_allow_tf32", "cudnn_enabled", "cudnn_benchmark"),
            *("cudnn_deterministic", "mkldnn_enabled", "mkldnn_deterministic", "cublas_allow_fp16_accumulation"),
        ):
            self._add(name, getattr(_C, f"_get_{name}", _absent), getattr(_C, f"_set_{name}", _absent))
        for name in ("fp16", "bf16"):
            full = f"cublas_allow_{name}_reduced_precision_reduction"
            self._add(
                full, getattr(_C, f"_get_{full}", _absent), partial(_spread, getattr(_C, f"_set_{full}", _absent))
            )
        for name in ("flash", "mem_efficient", "math", "cudnn"):
            get = getattr(_C, f"_get_{name}_sdp_enabled", _absent)
            self._add(f"{name} attention", get, getattr(_C, f"_set_sdp_use_{name}", _absent))
        self._add(
            "deterministic algorithms",
            lambda: (
                torch.are_deterministic_algorithms_enabled(),
                torch.is_deterministic_algorithms_warn_only_enabled(),
            ),
            lambda was: torch.use_deterministic_algorithms(was[0], warn_only=was[1]),
        )
        for device in ("cpu", "cuda"):
            self._add(
                f"autocast on {device}",
                partial(torch.is_autocast_enabled, device),
                partial(torch.set_autocast_enabled, device),
            )
            self._add(
                f"autocast dtype on {device}",
                partial(torch.get_autocast_dtype, device),
                partial(torch.set_autocast_dtype, device),
            )
        self._add("anomaly detection", torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly)
        self._add("warnings", torch.is_warn_always_enabled, torch.set_warn_always)
        self._add("debug level", get_debug_level, set_debug_level)
        for namespace in (dist, distributed_c10d):
            functions = {name: one for name, one in vars(namespace).items() if isinstance(one, types.FunctionType)}
            self._add(
                f"functions of {namespace.__name__}",
                partial(_current, vars(namespace), list(functions)),
                partial(_update, vars(namespace), list(functions)),
            )

    def _add_cuda(self, device: torch.device) -> None:
        self._add("CUDA device", torch.cuda.current_device, torch.cuda.set_device)
        self._add("CUDA stream", partial(torch.cuda.current_stream, device), torch.cuda.set_stream)
        self._add("CUDA sync debug mode", torch.cuda.get_sync_debug_mode, torch.cuda.set_sync_debug_mode)


def _absent(*_: Any) -> Any:
    raise AttributeError


def _spread(put: Callable[..., Any], was: Any) -> None:
    """torch 2.11 has one value here, later versions two."""
    put(*(was if isinstance(was, tuple) else (was,)))


def _folder_now() -> str:
    try:
        return os.getcwd()
    except OSError:
        return ""


def _change_folder(folder: str) -> None:
    with suppress(OSError):  # it was deleted
        os.chdir(folder)


def _identity(fd: int) -> tuple[int, int] | None:
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _point(fd: int, spare: int, _: object) -> None:
    os.dup2(spare, fd)


_SIGNALS = [
    number
    for number in signal.valid_signals()
    # Data loaders notice the end of their workers by SIGCHLD; whoever keeps one in rank.store needs it.
    if number < signal.SIGRTMIN and number not in (signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD)
]


def _handlers() -> list[Any]:
    return [signal.getsignal(number) for number in _SIGNALS]


def _set_handlers(was: list[Any]) -> None:
    for number, handler in zip(_SIGNALS, was, strict=True):
        if handler is not None and signal.getsignal(number) != handler:  # None: compiled code has its own
            signal.signal(number, handler)


def _set_blocked(was: Any) -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, was)


def _set_faulthandler(was: bool) -> None:
    (faulthandler.enable if was else faulthandler.disable)()


def _set_gc(was: tuple[bool, tuple[int, int, int]]) -> None:
    gc.set_threshold(*was[1])
    (gc.enable if was[0] else gc.disable)()


def _num_modes() -> tuple[int, int, int]:
    from torch import _C

    device_context = getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)
    functions = _C._len_torch_function_stack() - (device_context is not None)
    return functions, _C._len_torch_dispatch_stack(), len(device_mesh._mesh_resources.mesh_stack)


def _leave_modes(was: tuple[int, int, int]) -> None:
    from torch import _C

    _set_default_device(None)
    while _C._len_torch_function_stack() > was[0]:
        _C._pop_torch_function_stack()
    while _C._len_torch_dispatch_stack() > was[1]:
        torch.utils._python_dispatch._pop_mode()
    del device_mesh._mesh_resources.mesh_stack[was[2] :]


def _default_device() -> Any:
    return getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)


def _set_default_device(_: object) -> None:
    torch.set_default_device(None)


def _set_default_tensor_type(was: str) -> None:
    if was == "cpu" and torch._C._get_default_device() != was:
        torch.set_default_tensor_type("torch.FloatTensor")


def _current(namespace: Mapping[str, Any], names: list[str]) -> list[Any]:
    return [namespace.get(name) for name in names]


def _update(namespace: dict[str, Any], names: list[str], was: list[Any]) -> None:
    namespace.update(zip(names, was, strict=True))
