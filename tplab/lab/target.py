"""Which ranks ``%%ranks`` runs on: those that the notebook has, or some that it starts."""

import sys
import weakref
from typing import TYPE_CHECKING, Any

from IPython.core.error import UsageError

from tplab.cluster import Cluster
from tplab.cluster.idle import default_minutes

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from tplab.lab.panels.pool import Pool

_DEFAULT_RANKS = 2


class Target:
    """The pool or the cluster of a notebook.

    In this order: what was named by :meth:`use` or started by :meth:`start`; what the notebook has in a variable, the
    one of the last cell if it is still there, else the newest; two ranks that are started, and ended with the kernel.

    Args:
        shell: whose variables are looked through.
    """

    def __init__(self, shell: "InteractiveShell") -> None:
        self._shell = shell
        self._named: Pool | Cluster | None = None
        self._started: Cluster | None = None
        self._last: weakref.ref[Pool | Cluster] | None = None  # a cluster that nobody else holds must be free to go

    def cluster(self, num_ranks: int | None = None) -> tuple[Any, Cluster]:
        """What owns the ranks, and the ranks, started if need be; with ``num_ranks`` the first so many of them."""
        target = self.find()
        too_few = target is not None and num_ranks is not None and num_ranks > target.num_ranks
        if target is None or (too_few and target is self._started):
            target = self.start(num_ranks)
        if num_ranks is not None and (_is_pool(target) or num_ranks != target.num_ranks):
            ranks = target.resized(num_ranks)
        else:
            ranks = target.cluster if _is_pool(target) else target
        return target if _is_pool(target) else target.whole, ranks

    def find(self) -> Any:
        """The pool or the cluster that there is."""
        if self._named is not None and not _is_open(self._named):
            print("%ranks: the cluster that was in use is closed.", file=sys.stderr)
            self._named = None
        if self._named is not None:
            return self._named
        found = {name: value for name, value in self._shell.user_ns.items() if _is_open(value) and name[:1] != "_"}
        last = self._last and self._last()
        if _is_open(last) and any(last is each for each in (self._started, *found.values())):
            return last
        if not found:
            return None
        name, target = found.popitem()
        if any(each is not target for each in found.values()):
            print(f"%%ranks runs on `{name}`; `%ranks use {next(iter(found))}` takes the other.")
        self._last = weakref.ref(target)
        return target

    def use(self, target: Any) -> None:
        """Run on these ranks from now on. Raises ``UsageError`` for what has none."""
        if not isinstance(target, Cluster) and not _is_pool(target):
            raise UsageError(f"%ranks use takes a Cluster or a Pool; got {type(target).__name__}")
        if not _is_open(target):
            raise UsageError("%ranks use: that cluster is closed, make a new one with Cluster(n)")
        self._named = target

    def start(self, num_ranks: int | None = None, backend: str = "auto") -> Any:
        """Start fresh ranks: the notebook's pool anew, if it has one, else a cluster. Says what it started."""
        target = self.find()
        if _is_pool(target):
            if backend not in ("auto", target.choice.backend):
                raise UsageError(f"--backend {backend}: choose it in the pool, which says what this machine has")
            if num_ranks is not None:
                target.num_ranks = num_ranks
            target.start()
            return target
        if self._started is not None:
            self._started.close()
        self._started = cluster = Cluster(
            _DEFAULT_RANKS if num_ranks is None else num_ranks, backend, idle_minutes=default_minutes()
        )
        self._last, self._named = weakref.ref(cluster), None
        hint = "; `%ranks start -n 4` starts four" if num_ranks is None else ""
        print(f"%%ranks started {cluster.badge.removeprefix('LIVE ')}{hint}.")
        return cluster

    def stop(self) -> None:
        """End the ranks that there are."""
        target = self.find()
        if target is None:
            print("%ranks: there are no ranks.")
        elif _is_pool(target):
            target.stop()
        else:
            target.close()


def _is_pool(value: Any) -> bool:
    module = sys.modules.get("tplab.lab.panels.pool")  # whoever has a pool has loaded it, with the widgets
    return module is not None and isinstance(value, module.Pool)


def _is_open(value: Any) -> bool:
    return _is_pool(value) or (isinstance(value, Cluster) and not value.closed)
