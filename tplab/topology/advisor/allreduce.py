"""How long a tensor-parallel all-reduce takes, for many layouts at once, and a hop between pipeline stages. Pure.

By formula, since a layout's group may be of a size, on a link, that nobody measured; a calibration's curve goes before
it. Piecewise in size, because libraries and engines are:

  one-shot   a1 + s1·(n-1) + (n-1)·M/(share·B)            every rank reads all the others', engines' own kernel
  two-shot   a2 + s2·(n-1) + 2(n-1)/n·M/(share·B)         reduce-scatter and all-gather, engines' own kernel
  NCCL       the smaller of its low-latency and its bulk protocol, each base + step·(n-1) + 2(n-1)/n·M/(share·B)
  nodes      NCCL inside a node, and a ring of the nodes on an n/nodes-th of M per GPU: latencies add up, the transfers
             of a large message overlap
  declared   (emulated, or gloo on one host) a ring: 2(n-1)·latency + 2(n-1)/n·M/B

Not one alpha-beta line: it is 3-6 times off for the 16-256 KiB messages of decoding. Engines' own kernels are in CUDA
graphs; without graphs the launches of the whole block decide (see ``roofline``).

Known to be wrong: GPUs in NVLink meshes (DGX-1), where several rings run at once; sums in the switch (NVLS), which
engines use for large messages on some systems; PCIe boxes whose GPUs do not reach each other (one L40S box was 2-10
times slower than this with four and eight).

Letters: n ranks, M bytes, B the slowest link of the group in one direction.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tplab.topology.advisor.calibration import Calibration
from tplab.topology.advisor.constants import FAMILIES, FAMILY_OF, Constants, CustomAllReduce, LinkConstants
from tplab.topology.machine.machine import Link

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Members = tuple[int, ...]
OWN_KERNELS = ("one-shot", "two-shot")
"""Engines' own kernels, as ``EnginePolicy.all_reduce`` names them; ``auto`` takes the faster one where it beats
NCCL."""
_US = 1e-3  # microseconds per byte at 1 GB/s


@dataclass(frozen=True, kw_only=True, slots=True)
class Groups:
    """The all-reduce group of each of N layouts: arrays of N."""

    size: Ints
    """n, ranks of the group; 1 where nothing is reduced."""
    nodes: Ints
    """Number of nodes that the group spans."""
    family: Ints
    """Index into ``FAMILIES`` of the slowest link of the group's ring inside a node."""
    bandwidth_GBps: Floats
    """Bandwidth of that link in one direction, in GB/s."""
    latency_us: Floats
    """Latency of that link in us; used for declared links only, since the formulas of the others contain it."""
    direct: NDArray[np.bool_]
    """Whether NVLink joins every pair: engines' own kernels ask for that."""
    network_GBps: float = 1.0
    """Bandwidth between nodes per GPU, in GB/s."""
    scale: float = 1.0
    """Factor on fixed times, by generation of the GPU (``Constants.generation_scale``)."""
    width: float = 1.0
    """Factor on the bandwidth that was measured, for "what if": a sweep is then read at M/width."""
    members: tuple[frozenset[Members], ...] = ()
    """GPUs of all groups of each layout, for sweeps of those very groups; empty if all groups are alike."""

    @classmethod
    def of(
        cls,
        sizes: Sequence[int],
        links: "Sequence[Link | None]",
        *,
        direct: Sequence[bool],
        nodes: Sequence[int],
        network: Link | None = None,
        scale: float = 1.0,
        members: "tuple[frozenset[Members], ...]" = (),
    ) -> "Groups":
        """Groups from the slowest link of each one's ring (None for one rank)."""
        filler = Link(kind="host", bandwidth_GBps=1.0, latency_us=0.0)
        each = [link or filler for link in links]
        return cls(
            size=np.asarray(sizes, dtype=np.int64),
            nodes=np.asarray(nodes, dtype=np.int64),
            family=np.array([FAMILIES.index(FAMILY_OF[link.kind]) for link in each], dtype=np.int64),
            bandwidth_GBps=np.array([link.bandwidth_GBps for link in each]),
            latency_us=np.array([link.latency_us for link in each]),
            direct=np.asarray(direct, dtype=np.bool_),
            network_GBps=network.bandwidth_GBps if network else 1.0,
            scale=scale,
            members=members,
        )


def all_reduce_us(
    nbytes: ArrayLike,
    groups: Groups,
    *,
    kernel: str,
    graph: bool,
    custom: CustomAllReduce | None,
    constants: Constants,
    calibration: Calibration | None = None,
) -> Floats:
    """Time of one all-reduce of ``nbytes`` in each group.

    Args:
        nbytes: M: one number, or an array that broadcasts against the groups (its last axis).
        groups: of N layouts.
        kernel: as ``EnginePolicy.all_reduce``.
        graph: whether it is replayed from a CUDA graph: chooses among a calibration's sweeps.
        custom: the engine's own kernels; None: NCCL for every size.
        constants: of the formulas.
        calibration: its sweeps replace NCCL's formulas for the group sizes it has, and scale them for the others; the
            engine's own kernels, which it has not measured, stay beside them.

    Raises:
        ValueError: kernel ``measured`` without a calibration that has all-reduces.
    """
    M = np.asarray(nbytes, dtype=np.float64)
    if kernel == "measured" and not (calibration and calibration.all_reduce):
        raise ValueError(
            "all_reduce='measured' needs a calibration with all-reduce sweeps: run calibrate, or use 'auto'"
        )
    own = custom if kernel in ("auto", *OWN_KERNELS) else None
    if calibration is None or not calibration.all_reduce:
        return np.where(groups.size > 1, _formula_us(M, groups, kernel, own, constants), 0.0)

    time, _ = _nccl_measured(M, groups, graph, constants, calibration)
    if own is not None:  # by what the links fall short of their spec sheet, the engine's own kernels do
        large = np.asarray(groups.width * max(sweep.nbytes[-1] for sweep in calibration.all_reduce))
        measured, formula = _nccl_measured(large, groups, graph, constants, calibration)
        reached = np.minimum(1.0, np.divide(formula, measured, out=np.ones_like(measured), where=groups.size > 1))
        time = _with_own(time, M, replace(groups, bandwidth_GBps=groups.bandwidth_GBps * reached), kernel, own)
    return np.where(groups.size > 1, time, 0.0)


def _nccl_measured(
    M: Floats, groups: Groups, graph: bool, constants: Constants, calibration: Calibration
) -> tuple[Floats, Floats]:
    """NCCL's all-reduce by the sweeps, and by formula."""

    def formula_for(n: int) -> Floats:
        same = replace(groups, size=np.where(groups.size > 1, n, 1), nodes=np.minimum(groups.nodes, n))
        return _formula_us(M, same, "nccl", None, constants)

    formula = _formula_us(M, groups, "nccl", None, constants)
    return _measured_us(M, groups, formula, graph=graph, calibration=calibration, formula_for=formula_for), formula


def _formula_us(M: Floats, groups: Groups, kernel: str, own: CustomAllReduce | None, constants: Constants) -> Floats:
    table = [constants.links[name] for name in FAMILIES]
    n = groups.size / groups.nodes  # inside a node
    local = _nccl_us(M, n, groups.bandwidth_GBps, _pick(table, groups.family, groups.scale))
    declared = groups.family >= FAMILIES.index("host")
    ring = 2 * (groups.size - 1) * groups.latency_us + 2 * (1 - 1 / groups.size) * M * _US / groups.bandwidth_GBps
    local = np.where(declared, ring, local)
    local = _with_own(local, M, groups, kernel, own)
    if not (groups.nodes > 1).any():
        return local
    net = constants.links["network"]
    N = groups.nodes
    inner = np.where(n > 1, local, 0.0)
    share = 2 * (1 - 1 / N) * M / n * _US
    small = np.where(n > 1, constants.network_step_us, net.base_us + net.step_us) * np.ceil(np.log2(np.maximum(N, 1)))
    outer = share / (net.ring_share * groups.network_GBps)
    empty = _nccl_us(np.zeros(1), n, groups.bandwidth_GBps, _pick(table, groups.family, groups.scale))
    latency = np.where(n > 1, np.where(declared, 2 * (groups.size - 1) * groups.latency_us, empty), 0.0)
    across = latency + small + np.maximum(inner - latency, outer)
    return np.where(N > 1, across, local)


def _with_own(nccl: Floats, M: Floats, groups: Groups, kernel: str, own: CustomAllReduce | None) -> Floats:
    """The engine's own kernels where it has them and the group lets it: for ``auto``, where they are faster."""
    if own is None:
        return nccl
    n, B = groups.size, groups.bandwidth_GBps
    start = groups.scale * (own.one_shot_us + own.one_shot_step_us * (n - 1))
    one = start + (n - 1) * M * _US / (own.one_shot_share * B)
    start = groups.scale * (own.two_shot_us + own.two_shot_step_us * (n - 1))
    two = start + 2 * (1 - 1 / n) * M * _US / (own.two_shot_share * B)
    time = {"auto": np.minimum(one, two), "one-shot": one, "two-shot": two}[kernel]
    # Every pair joined, and sizes the kernels exist for: NVLink up to eight; over PCIe only two.
    declared = groups.family >= FAMILIES.index("host")
    able = ((groups.direct & (n <= 8)) | (~declared & (n == 2))) & (groups.nodes == 1)
    return np.asarray(np.where(able, np.minimum(time, nccl) if kernel == "auto" else time, nccl), dtype=np.float64)


def _nccl_us(M: Floats, n: Floats, B: Floats, k: dict[str, Floats]) -> Floats:
    wire = 2 * (1 - 1 / np.maximum(n, 1)) * M * _US
    bulk_share = np.where(n <= 2, k["pair_share"], k["ring_share"])
    small = k["base_us"] + k["step_us"] * (n - 1) + wire / (np.minimum(k["small_share"], bulk_share) * B)
    bulk = k["bulk_base_us"] + k["bulk_step_us"] * (n - 1) + wire / (bulk_share * B)
    return np.minimum(small, bulk)


def _pick(table: list[LinkConstants], family: Ints, scale: float) -> dict[str, Floats]:
    times = ("base_us", "step_us", "bulk_base_us", "bulk_step_us")
    shares = ("small_share", "pair_share", "ring_share")
    picked = {key: np.array([getattr(row, key) for row in table])[family] for key in times + shares}
    return picked | {key: picked[key] * scale for key in times}


def _measured_us(
    M: Floats,
    groups: Groups,
    formula: Floats,
    *,
    graph: bool,
    calibration: Calibration,
    formula_for: Callable[[int], Floats],
) -> Floats:
    """The sweeps where there are any; elsewhere the nearest one, times what the formulas say lies between the sizes."""
    out = np.broadcast_arrays(formula, M)[0].copy()
    wide = np.broadcast_to(M / groups.width, out.shape)
    sizes = sorted({sweep.num_ranks for sweep in calibration.all_reduce})
    for at, n, members in _alike(groups, calibration):
        near = min(sizes, key=lambda size: abs(math.log(size / n)))
        sweeps = [
            calibration.all_reduce_us(wide[..., at], near, graph=graph, gpus=gpus)
            for gpus in (members if near == n and members else [()])
        ]
        slowest = np.max([sweep for sweep in sweeps if sweep is not None], axis=0)
        ratio = 1.0 if near == n else formula[..., at] / np.broadcast_to(formula_for(near), out.shape)[..., at]
        out[..., at] = slowest * ratio
    return out


def _alike(groups: Groups, calibration: Calibration) -> "list[tuple[NDArray[np.intp], int, frozenset[Members]]]":
    """Layouts whose groups are of one size, and where sweeps tell groups apart, of the same GPUs."""
    apart = bool(groups.members) and any(sweep.gpus for sweep in calibration.all_reduce)
    found: dict[tuple[int, frozenset[Members]], list[int]] = {}
    for i, n in enumerate(groups.size):
        if n > 1:
            found.setdefault((int(n), groups.members[i] if apart else frozenset()), []).append(i)
    return [(np.array(at), n, members) for (n, members), at in found.items()]


def hop_us(
    nbytes: ArrayLike,
    family: Ints,
    bandwidth_GBps: Floats,
    latency_us: Floats,
    *,
    constants: Constants,
    calibration: Calibration | None = None,
    pairs: "Sequence[frozenset[tuple[int, int]]]" = (),
    width: float = 1.0,
) -> Floats:
    """Time of a message to the next stage: ``latency + software + bytes/(share·B)``; arrays of N layouts.

    A calibration's sends replace it: those between ``pairs`` of GPUs, given for every layout, else the slowest of all;
    ``width`` as in ``Groups``. Between nodes the formula stays: what was measured is one node.
    """
    M = np.asarray(nbytes, dtype=np.float64)
    table = [constants.links[name] for name in FAMILIES]
    software = np.array([row.send_us for row in table])[family]
    share = np.array([row.send_share for row in table])[family]
    formula = np.asarray(latency_us + software + M * _US / (share * bandwidth_GBps), dtype=np.float64)
    if calibration is None or not calibration.sends:
        return formula
    wide = np.broadcast_to(M / width, np.broadcast_shapes(M.shape, family.shape))
    each = [calibration.send_us(wide[..., i], pairs[i] if pairs else ()) for i in range(len(family))]
    measured = np.stack([column for column in each if column is not None], axis=-1)
    return np.where(family == FAMILIES.index("network"), formula, measured)
