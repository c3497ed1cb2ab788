"""What of the kernel's process a run depends on: its modules, import path, folder and environment."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from tplab.cluster.sources import Versions, kernel_modules
from tplab.cluster.wire import import_path

# Set by shells, Jupyter, debuggers, test runners and libraries when they are imported, or by tplab for every rank.
_NOT_THE_USERS = (
    *("COLUMNS", "LINES", "MPLBACKEND", "QT_API", "TERM", "CLICOLOR", "CLICOLOR_FORCE", "FORCE_COLOR", "PAGER"),
    *("GIT_PAGER", "PWD", "OLDPWD", "SHLVL", "_", "PYTEST_CURRENT_TEST", "CUDA_MODULE_LOADING"),
    *("TORCHINDUCTOR_CACHE_DIR", "DISABLE_CUPTI_LAZY_REINIT", "TEARDOWN_CUPTI", "KMP_INIT_AT_FORK"),
    *("KMP_DUPLICATE_LIB_OK", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "TORCH_GLOO_LAZY_INIT"),
)
_PREFIXES_NOT_THE_USERS = ("JPY_", "PYDEVD_", "JUPYTER_", "IPY")
_NAMES_SHOWN = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Surroundings:
    """The kernel's, at the moment in which a run was asked for."""

    modules: Versions
    """What it has loaded of the user's modules."""
    sys_path: tuple[str, ...]
    folder: str
    """Working directory; empty where that was deleted."""
    environment: dict[str, str]

    @classmethod
    def now(cls) -> "Surroundings":
        try:
            folder = os.getcwd()
        except OSError:
            folder = ""
        return cls(
            modules=kernel_modules.versions(),
            sys_path=tuple(import_path()),
            folder=folder,
            environment=dict(os.environ),
        )


def describe_changes(before: Mapping[str, str], now: Mapping[str, str]) -> tuple[str, str]:
    """Which variables of the environment the user changed: a key that differs for every change, and a sentence, empty
    where there are none. (Names alone: some values are secrets.)"""
    if before == now:
        return "", ""
    names = [
        name
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
        and name not in _NOT_THE_USERS
        and not name.startswith(_PREFIXES_NOT_THE_USERS)
    ]
    if not names:
        return "", ""
    changes = [f"{name} ({'new' if name not in before else 'changed' if name in now else 'removed'})" for name in names]
    more = f" and {len(changes) - _NAMES_SHOWN} more" if len(changes) > _NAMES_SHOWN else ""
    way_out = "cluster.restart() takes them over (rank.store is empty then)"
    if "CUDA_VISIBLE_DEVICES" in names:
        way_out = "A new Cluster takes them over"  # whose ranks get their devices when it is made
    key = str(hash(tuple((name, now.get(name)) for name in names)))
    return key, (
        f"variables of the environment differ from those that the ranks were started with: "
        f"{', '.join(changes[:_NAMES_SHOWN])}{more}. {way_out}."
    )
