"""Device meshes: axis names and order, who is whose neighbour, and sizes that do not fit."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

pytestmark = pytest.mark.timeout(60)


def look(rank, tp, pp):
    """The mesh as this rank sees it, and a sum over each of its axes."""
    mesh = rank.mesh(tp=tp, pp=pp)
    sums, members = {}, {}
    for axis in ("tp", "pp"):
        x = torch.tensor([10.0**rank.index])
        dist.all_reduce(x, group=mesh.get_group(axis))
        sums[axis] = int(x.item())
        members[axis] = dist.get_process_group_ranks(mesh.get_group(axis))
    return {
        "is_mesh": isinstance(mesh, DeviceMesh),
        "names": mesh.mesh_dim_names,
        "ranks": mesh.mesh.tolist(),
        "device": mesh.device_type,
        "at": {axis: mesh.get_local_rank(axis) for axis in ("tp", "pp")},
        "members": members,
        "sums": sums,
    }


@pytest.mark.parametrize(
    ("n", "tp", "pp", "shape"),
    [
        (1, None, None, (1, 1)),
        (1, 1, 1, (1, 1)),
        (2, None, None, (1, 2)),
        (2, 2, None, (1, 2)),
        (2, None, 2, (2, 1)),
        (2, 1, 2, (2, 1)),
        (3, 3, None, (1, 3)),
        (3, None, 3, (3, 1)),
        (4, 2, 2, (2, 2)),
        (4, 2, None, (2, 2)),
        (4, None, 2, (2, 2)),
        (4, None, None, (1, 4)),
        (4, 4, 1, (1, 4)),
        (4, 1, None, (4, 1)),
    ],
)
def test_mesh(clusters, n, tp, pp, shape):
    """pp is the outer axis, tp the inner one, and a collective over an axis joins just the ranks along it."""
    pp_size, tp_size = shape
    rows = [[r * tp_size + c for c in range(tp_size)] for r in range(pp_size)]
    views = clusters(n).run(look, tp, pp, timeout=30)
    assert len(views) == n
    for index, view in enumerate(views):
        row, column = divmod(index, tp_size)
        tp_ranks, pp_ranks = rows[row], [r[column] for r in rows]
        assert view["is_mesh"]
        assert view["names"] == ("pp", "tp")
        assert view["ranks"] == rows
        assert view["device"] == "cpu"
        assert view["at"] == {"pp": row, "tp": column}
        assert view["members"] == {"tp": tp_ranks, "pp": pp_ranks}
        assert view["sums"] == {"tp": sum(10**r for r in tp_ranks), "pp": sum(10**r for r in pp_ranks)}


def test_same_shape_same_mesh(clusters):
    """Also in a later run, and however the shape is spelt: building a mesh is a collective."""

    def keep(rank):
        rank.store["mesh"] = rank.mesh(tp=2)
        return rank.mesh(tp=2, pp=2) is rank.mesh(tp=2)

    def compare(rank):
        return rank.mesh(pp=2) is rank.store["mesh"]

    cluster = clusters(4)
    assert cluster.run(keep, timeout=30) == [True] * 4
    assert cluster.run(compare, timeout=30) == [True] * 4


def test_two_shapes_in_one_run(clusters):
    def both(rank):
        return rank.mesh(tp=2).mesh.tolist(), rank.mesh(tp=4).mesh.tolist()

    assert clusters(4).run(both, timeout=30) == [([[0, 1], [2, 3]], [[0, 1, 2, 3]])] * 4


def test_mesh_after_the_ranks_were_replaced(cluster):
    cluster.run(look, 2, None, timeout=30)
    cluster.restart()
    assert [view["sums"]["tp"] for view in cluster.run(look, 2, None, timeout=30)] == [11, 11]


@pytest.mark.parametrize(
    ("sizes", "named"),
    [
        ({"tp": 3}, "tp"),
        ({"tp": 8}, "tp"),
        ({"pp": 3}, "pp"),
        ({"tp": 4, "pp": 4}, "tp.*pp"),
        ({"tp": 1, "pp": 1}, "tp.*pp"),
        ({"tp": 0}, "tp"),
        ({"pp": -2}, "pp"),
        ({"tp": 2.0}, "tp"),
        ({"tp": "2"}, "tp"),
        ({"pp": [2]}, "pp"),
        ({"tp": True}, "tp"),
    ],
    ids=str,
)
def test_sizes_that_do_not_fit(clusters, assert_works, sizes, named):
    """ValueError or TypeError on the ranks, naming the argument and what was given; the ranks stay."""
    cluster = clusters(4)
    pids = cluster.pids
    with pytest.raises(RuntimeError, match=named) as info:
        cluster.run(lambda rank: rank.mesh(**sizes) and None, timeout=5)
    assert isinstance(info.value.__cause__, ValueError | TypeError)
    message = str(info.value.__cause__)
    for name, size in sizes.items():
        assert name in message
        assert repr(size) in message
    assert_works(cluster)
    assert cluster.pids == pids
