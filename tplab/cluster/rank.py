"""What a function sees of the rank it runs on."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

from tplab.checks import check_count

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh


class Rank(int):
    """First argument of every function that runs on a cluster: its own number, with what belongs to it.

    A number, so that ``if rank == 0`` and ``x * (rank + 1)`` say what they say in other people's scripts. Not a
    dataclass: it lives as long as the rank and caches its meshes, because building one is itself a collective.

    Args:
        index, world_size: this rank's number and how many there are.
        group: process group of all ranks.
        device: the device for this rank's tensors.
        send_report: called with the fields of every report.
        store, meshes: those of the rank, where a run is given a ``Rank`` of its own; new ones by default.
    """

    def __new__(cls, *, index: int, **others: Any) -> Self:
        return super().__new__(cls, index)

    def __init__(
        self,
        *,
        index: int,
        world_size: int,
        group: "ProcessGroup",
        device: "torch.device",
        send_report: Callable[[dict[str, Any]], None],
        store: dict[Any, Any] | None = None,
        meshes: "dict[tuple[int, int], DeviceMesh] | None" = None,
    ) -> None:
        self.index = index
        """This rank's number, 0 to ``world_size - 1``."""
        self.world_size = world_size
        """How many ranks run the function."""
        self.group = group
        """Process group of all ranks; also torch's default group on this rank."""
        self.device = device
        """The device for this rank's tensors: ``cpu`` with gloo, ``cuda:i`` with NCCL."""
        self.store: dict[Any, Any] = {} if store is None else store
        """A dict that lives on the rank between runs, so that loaded weights stay loaded; empty once ranks were
        replaced."""
        self._send_report = send_report
        self._meshes: dict[tuple[int, int], DeviceMesh] = {} if meshes is None else meshes

    def in_run(self, send_report: Callable[[dict[str, Any]], None]) -> "Rank":
        """The same rank, store and meshes, as given to one run: what it reports is that run's, also afterwards."""
        return Rank(
            index=self.index,
            world_size=self.world_size,
            group=self.group,
            device=self.device,
            send_report=send_report,
            store=self.store,
            meshes=self._meshes,
        )

    def report(self, **fields: Any) -> None:
        """Send ``fields`` to the kernel while the function still runs.

        They arrive in ``run.reports`` and at ``submit(on_report=...)``. By convention ``phase``, ``done`` and ``total``
        drive a progress bar; anything else is a partial result that survives a stop. A thread that goes on after its
        run reports to that run, whichever runs by then. A forked process cannot report (``RuntimeError``), and a field
        that cannot be pickled is refused by name (``TypeError``).
        """
        self._send_report(fields)

    def mesh(self, tp: int | None = None, pp: int | None = None) -> "DeviceMesh":
        """Device mesh with axes ``pp`` (outer) and ``tp`` (inner: neighbouring ranks), on every rank of the cluster.

        The axis left out takes the ranks that are left; with both left out, ``tp`` takes all. The same shape gives the
        same mesh again. Raises ``ValueError`` when ``tp * pp`` is not the world size, and ``RuntimeError`` once the
        function has taken down the default process group.
        """
        shape = degrees(self.world_size, tp, pp)[::-1]
        if shape not in self._meshes or not _is_whole(self._meshes[shape]):
            import torch.distributed
            from torch.distributed.device_mesh import init_device_mesh

            if not torch.distributed.is_initialized():
                raise RuntimeError("a mesh needs the default process group: make it before destroy_process_group()")
            self._meshes[shape] = init_device_mesh(self.device.type, shape, mesh_dim_names=("pp", "tp"))
        return self._meshes[shape]

    def __str__(self) -> str:
        return str(self.index)

    def __repr__(self) -> str:
        return f"Rank({self.index} of {self.world_size}, {self.device})"

    def __reduce__(self) -> tuple[type, tuple[int]]:
        return int, (self.index,)  # what else it has stays on its rank

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


def _is_whole(mesh: "DeviceMesh") -> bool:
    """Whether the mesh's groups are there: a run may have destroyed them."""
    from torch.distributed import distributed_c10d

    try:
        return all(group in distributed_c10d._world.pg_map for group in mesh.get_all_groups())
    except RuntimeError:  # torch looks them up by their names
        return False


def degrees(num_ranks: int, tp: int | None, pp: int | None) -> tuple[int, int]:
    """Tensor- and pipeline-parallel degree: the one left out takes the ranks that are left, ``tp`` all if both are.

    Raises ``ValueError`` where their product is not ``num_ranks``.
    """
    for name, size in (("tp", tp), ("pp", pp)):
        if size is not None:
            check_count(name, size, least=1)
    made = tp or num_ranks // (pp or 1), pp or num_ranks // (tp or num_ranks)
    if made[0] * made[1] != num_ranks:
        raise ValueError(
            f"tp={made[0]} times pp={made[1]} must be the {num_ranks} ranks of the cluster: use sizes that divide it, "
            f"or a cluster of another size"
        )
    return made
