"""The rank's side of ``Cluster.resized``: for each number of ranks a world of its own, in which no other ranks exist.

torch.distributed keeps all it knows of groups in one object, ``distributed_c10d._world``, which it documents as the
point to override it at. A run on the first n ranks finds another such object there: with their default group, the
groups that were made in it, and names that no other world gives. So whatever takes the default group, or asks for the
world's size, works unchanged.

Imported on ranks only, because it needs torch.
"""

import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import _unregister_process_group
from torch.distributed import distributed_c10d

from tplab.cluster.backends import Share, torchrun_environment
from tplab.cluster.rank import Rank

# Groups of all worlds have their names in one C++ table and their keys in one store.
_NAMES_PER_SIZE = 10**12
_NAMES_PER_ATTEMPT = 10**6
_NAMES_OF_RUNS = 10**15
_NAMES_PER_WORLD_OF_RUN = 10**3
_init, _destroy = dist.init_process_group, dist.destroy_process_group  # torch's; runs find others (see ``Worlds``)


class _Names(dict[Any, str]):
    """Group -> name. torch makes names of the ranks in a group and of how many groups there are, which no two worlds
    must agree on: NCCL's groups of a mesh would take those of another world for their own."""

    def __init__(self, first_name: int) -> None:
        super().__init__()
        self._first_name = first_name

    def __len__(self) -> int:
        return self._first_name + super().__len__()


class _World(distributed_c10d._World):
    """What torch knows of groups, in attributes; torch's own class has it in globals of its module."""

    pg_map = pg_names = pg_group_ranks = pg_backend_config = tags_to_pg = pg_to_tag = None  # type: ignore[assignment]
    group_count = 0

    def __init__(self, first_name: int) -> None:
        super().__init__()
        for name in ("pg_map", "pg_group_ranks", "pg_backend_config", "tags_to_pg", "pg_to_tag"):
            setattr(self, name, {})
        self.pg_names = _Names(first_name)
        self.group_count = first_name


class Worlds:
    """The worlds of one rank.

    Args:
        whole: the rank among all, whose default group exists.
        store: keys through which the ranks of a new world find each other.
        backend: ``gloo`` or ``nccl``.
        share: the ranks of this host.
    """

    def __init__(self, whole: Rank, store: Any, backend: str, share: Share) -> None:
        self._share = share
        self._whole = whole
        self._store = store
        self._backend = backend
        self._entered: dict[int, tuple[Any, Rank]] = {whole.world_size: (distributed_c10d._world, whole)}
        self._inside = whole.world_size
        self._attempts: dict[str, int] = {}
        self._run_id = self._others = 0
        for namespace in (dist, distributed_c10d):
            for function, in_run in ((_init, self._init_in_run), (_destroy, self._destroy_in_run)):
                setattr(namespace, function.__name__, _stand_in(function, in_run))

    def enter(self, num_ranks: int, run_id: int) -> Rank:
        """Make the first ``num_ranks`` the world, until the next call; the first time they all connect to each other.

        Returns the rank as it is among these. It stays their world after the run, too, for threads that go on.
        """
        self._run_id, self._others = run_id, 0
        if num_ranks not in self._entered:
            self._entered[num_ranks] = self._make(num_ranks)
        self._inside = num_ranks
        world, rank = self._entered[num_ranks]
        distributed_c10d._world = world
        if os.environ.get("WORLD_SIZE") != str(num_ranks):
            os.environ.update(torchrun_environment(rank.index, num_ranks, self._share))
        return rank

    def close(self) -> None:
        """End the groups of all worlds but the one of all ranks, which is entered."""
        whole = self._entered.pop(self._whole.world_size)
        for world, _ in self._entered.values():
            distributed_c10d._world = world
            self._end_other()
        distributed_c10d._world = whole[0]
        self._entered = {self._whole.world_size: whole}

    def leave(self) -> str:
        """The run is over: whatever it did to the default group, the ranks' own is that again.

        Returns what the run broke that cannot be had again; empty if nothing.
        """
        world, rank = self._entered[self._inside]
        if distributed_c10d._world is not world:
            self._end_other()
            distributed_c10d._world = world
        distributed_c10d._backend = world.pg_map.get(rank.group, (distributed_c10d._backend,))[0]
        intact = world.default_pg is rank.group and rank.group in world.pg_map
        return "" if intact else "the run has broken the process group of the ranks"

    def _init_in_run(self, backend: str | None = None, *args: Any, **kwargs: Any) -> None:
        """``init_process_group`` of a script that was written for ranks of its own: here they are connected already.

        Where it asks for this very group, it gets that, and otherwise a group of its own, for the length of the run.
        """
        given = dict(zip(("init_method", "timeout", "world_size", "rank"), args, strict=False)) | kwargs
        world, me = self._entered[self._inside]
        now = distributed_c10d._world
        if now is world or now.default_pg is None:
            if self._is_own(backend, given.get("world_size"), given.get("rank"), me):
                distributed_c10d._world = world
                return
            distributed_c10d._world = self._other()
        _init(backend, *args, **kwargs)
        _say_ranks(me.device)

    def _is_own(self, backend: object, world_size: object, rank: object, me: Rank) -> bool:
        kind = me.device.type
        same = backend is None or str(backend).lower() in (self._backend, f"{kind}:{self._backend}")
        if kind == "cpu":
            same = same or f"cpu:{self._backend}" in str(backend).lower().split(",")
        return same and world_size in (None, -1, me.world_size) and rank in (None, -1, me.index)

    def _destroy_in_run(self, group: Any = None) -> None:
        """``destroy_process_group``: of the default group only as far as the run can tell."""
        now, world = distributed_c10d._world, self._entered[self._inside][0]
        if now.default_pg is None or (group is not None and group is not now.default_pg):
            _destroy(group)
            return
        if now is not world:
            self._end_other()
        distributed_c10d._world = self._other()

    def _other(self) -> _World:
        """An empty world, for the length of this run."""
        self._others += 1
        return _World(_NAMES_OF_RUNS + self._run_id * _NAMES_PER_ATTEMPT + self._others * _NAMES_PER_WORLD_OF_RUN)

    def _end_other(self) -> None:
        """End the groups of a world that the run has made. (torch's own way ends those of all worlds.)"""
        for group in [*distributed_c10d._world.pg_map][::-1]:
            group.shutdown()
            _unregister_process_group(group.group_name)

    def sequences(self) -> dict[str, int]:
        """How many operations each process group of this rank has been handed. Gloo counts collectives and
        point-to-point, NCCL collectives (what else it left undone keeps the device from settling)."""
        counts = dict(self._attempts)
        for num_ranks, (world, _) in self._entered.items():
            for group, name in world.pg_names.items():
                if hasattr(group, "_get_sequence_number_for_group"):
                    counts[name] = group._get_sequence_number_for_group()
            counts[f"groups among {num_ranks}"] = world.group_count  # the next group's name comes from it
        return counts

    def _make(self, num_ranks: int) -> tuple[_World, Rank]:
        attempt = f"attempts at {num_ranks}"  # ranks that disagree on it would look for each other in vain
        self._attempts[attempt] = self._attempts.get(attempt, 0) + 1
        world = _World(num_ranks * _NAMES_PER_SIZE + self._attempts[attempt] * _NAMES_PER_ATTEMPT)
        before, hook = distributed_c10d._world, sys.excepthook
        distributed_c10d._world = world
        try:
            group = join(self._backend, self._store, self._whole.index, num_ranks, self._whole.device)
        except BaseException:
            distributed_c10d._world = before
            raise
        finally:
            sys.excepthook = hook  # torch puts the rank's number in front of a traceback once for every world
        whole = self._whole
        rank = Rank(
            index=whole.index,
            world_size=num_ranks,
            group=group,
            device=whole.device,
            send_report=whole._send_report,
            store=whole.store,
        )
        return world, rank


def _stand_in(function: Callable[..., None], in_run: Callable[..., None]) -> Callable[..., None]:
    @wraps(function)
    def called(*args: Any, **kwargs: Any) -> None:
        in_run(*args, **kwargs)

    return called


def join(backend: str, store: Any, index: int, num_ranks: int, device: torch.device) -> dist.ProcessGroup:
    """Make the default group.

    Args:
        backend: ``gloo`` or ``nccl``.
        store: keys through which its ranks find each other.
        index, num_ranks: this rank's number, and how many there are.
        device: this rank's.
    """
    _init(
        backend,
        store=store,
        rank=index,
        world_size=num_ranks,
        # With a device NCCL connects now, not in the first collective: a bad link is then an error of the start.
        device_id=device if device.type == "cuda" else None,
    )
    group = dist.group.WORLD
    assert group is not None
    _say_ranks(device)
    return group


def _say_ranks(device: torch.device) -> None:
    """Tell the default group which ranks it has.

    Of the first NCCL group of a process torch knows that it has all ranks; of another it splits off ranks that it looks
    up in an empty list, and crashes (ProcessGroupNCCL::groupRanks, torch 2.11).
    """
    group = dist.group.WORLD
    if group is not None and device.type == "cuda" and torch.device(device.type) in group._device_types:
        group._get_backend(device).options.global_ranks_in_group = [*range(group.size())]
