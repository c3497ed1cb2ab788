"""A ``Calibration`` of links from what nccl-tests printed, for people who may run nothing else; the formula beside it.

``all_reduce_perf`` gives the all-reduces, ``sendrecv_perf`` the messages; on several hosts, those over the network.
Rates of processors and memory stay the spec sheet's, and the notes say so. Where no size was measured that a decode
step sends, or none that a prompt sends, the formula goes on: a curve's own end would be wrong by any factor there.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from tplab.checks import ArgumentError
from tplab.collectives.nccl_tests import NcclTest
from tplab.shown import listed
from tplab.topology.advisor.allreduce import Groups, Times, all_reduce, hop
from tplab.topology.advisor.calibration import AllReduceTimes, Calibration, SendTimes
from tplab.topology.advisor.constants import DEFAULT, FAMILIES, FAMILY_OF
from tplab.topology.machine.gpu_names import known_gpu
from tplab.topology.machine.machine import MOST_GPUS, Machine
from tplab.topology.machine.placement import place

_SMALL, _LARGE = 8 << 10, 64 << 20
"""Bytes that sizes must reach down and up to, else the formula goes on: of a token's all-reduce, and of a prompt's."""
_ENDS = 1 << 11, 1 << 28
"""Bytes from which, and to which, it does."""
_LAUNCHED = "calls one by one: what the host takes to launch may be in short ones, and is not in CUDA graphs (-G 20)"
_ONE_DOMAIN = ("gb200", "gb300")
"""GPUs that NVLink joins over hosts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Curve:
    """What is known of one group or pair."""

    times_us: Mapping[float, float]
    note: str


def machine_of_test(test: NcclTest, name: str | None = None) -> Machine | None:
    """The usual machine of the GPUs that took part; None where they are not known, or no such node is.

    Args:
        test: the test.
        name: a machine's or GPU's preset, in the place of the GPU that the test names.

    Raises:
        ValueError: a ``name`` that is none, or whose nodes do not hold so many GPUs.
    """
    gpu = name or known_gpu(test.device)
    if gpu is None:
        return None
    n, hosts = test.num_ranks, test.num_hosts
    usual = Machine.preset(gpu)
    if hosts is None:
        hosts = 1 if n <= usual.gpus_per_node else math.ceil(n / usual.gpus_per_node)
    if usual.gpu.name in _ONE_DOMAIN:
        hosts = math.ceil(n / 72)
    if n % hosts:
        if name is None:
            return None
        raise ArgumentError("machine", name, f"must hold {n} ranks on {hosts} hosts evenly, which no machine does")
    try:
        return Machine.preset(gpu, gpus=n // hosts, nodes=hosts)
    except ValueError:
        if name is None:
            return None
        raise


def formula_of_test(test: NcclTest, machine: Machine) -> Times | None:
    """Microseconds by bytes that the advisor's formula gives for the test's group; None for what it has none for."""
    return formula_of(machine, test.num_ranks, test.collective, graph=test.graph)


def formula_of(machine: Machine, num_ranks: int, collective: str = "all-reduce", *, graph: bool) -> Times | None:
    """Microseconds by bytes that the advisor's formula gives by spec sheet for so many of the machine's GPUs; None for
    what it has none for.

    Without sums in the switch; NCCL's own kernels, which are what nccl-tests times.

    Args:
        machine: all of whose nodes take part.
        num_ranks: of the group, a GPU each.
        collective: ``all-reduce`` or ``point-to-point``; there is no formula for others.
        graph: whether it is replayed from a CUDA graph.
    """
    n, per_node = num_ranks, machine.gpus_per_node
    if n > machine.num_gpus or n < 2:
        return None
    if collective == "point-to-point":
        link = machine.network if machine.nodes > 1 else machine.slowest_link(range(per_node))
        assert link is not None, "two ranks at least"
        return hop(
            np.array([FAMILIES.index(FAMILY_OF[link.kind])]),
            np.array([link.bandwidth_GBps]),
            np.array([link.latency_us]),
            constants=DEFAULT,
        )
    if collective != "all-reduce":
        return None
    where = place(machine, min(n, per_node), 1, 1) if per_node > 1 else None
    groups = Groups.of(
        [n],
        [(where.slowest_ring_link if where else None) or machine.network],
        direct=[False],
        nodes=[machine.nodes],
        network=machine.network,
        scale=DEFAULT.generation_scale.get(machine.gpu.generation or "", 1.0),
    )
    return all_reduce(groups, kernel="nccl", graph=graph, custom=None, constants=DEFAULT)


def beside_formula(test: NcclTest, machine: Machine) -> pd.DataFrame:
    """``bytes``, ``measured_us``, ``formula_us`` and ``off_pct`` = formula / measured - 1; empty without a formula."""
    formula, curve = formula_of_test(test, machine), test.curve
    if formula is None:
        return pd.DataFrame(columns=["bytes", "measured_us", "formula_us", "off_pct"])
    made = [float(formula(float(size))[0]) for size in curve]
    frame = pd.DataFrame({"bytes": list(curve), "measured_us": list(curve.values()), "formula_us": made})
    return frame.assign(off_pct=100 * (frame["formula_us"] / frame["measured_us"] - 1))


def calibration_of_nccl(
    tests: Sequence[NcclTest], *, machine: str | None = None, name: str | None = None
) -> Calibration:
    """The links that these tests measured, as ``advise`` and ``predict`` take them.

    Args:
        tests: of one machine: ``all_reduce_perf`` and ``sendrecv_perf``; others are left out, and named in the notes.
        machine: preset of the machine or GPU, where the tests name none, or another.
        name: what to call the machine; by default ranks and GPU.

    Raises:
        ValueError: neither of the two tests, GPUs of several kinds, or sizes too far from those of inference while no
            machine is known whose formula could go on.
    """
    used = [test for test in tests if test.collective in ("all-reduce", "point-to-point")]
    if not used:
        found = listed(dict.fromkeys(test.collective for test in tests)) or "none"
        raise ArgumentError("tests", found, "must have an all_reduce_perf or a sendrecv_perf: those calibrate links")
    devices = list(dict.fromkeys(test.device for test in used if test.device))
    if len(devices) > 1 or any(" and " in device for device in devices):
        raise ArgumentError("tests", listed(devices), "must be of GPUs of one kind")
    most = max(test.num_ranks for test in used)
    if most > MOST_GPUS:
        raise ArgumentError("tests", most, f"must be of at most {MOST_GPUS} ranks")
    gpu = machine or (known_gpu(devices[0]) if devices else None)
    sweeps: dict[tuple[int, int, str], _Curve] = {}
    sends: dict[int, _Curve] = {}
    named: list[str] = []
    for i, test in enumerate(used):
        where = machine_of_test(test) if machine is None and test.device else machine_of_test(test, gpu)
        nodes = where.nodes if where is not None else test.num_hosts or 1
        named += [] if where is None else [where.gpu.name]
        formula = formula_of_test(test, where) if where is not None else None
        try:
            curve = _continued(test, formula)
        except ArgumentError:
            if not (sweeps or sends) and i == len(used) - 1:
                raise
            continue
        if test.collective == "all-reduce":
            sweeps.setdefault((test.num_ranks, nodes, "graph" if test.graph else "eager"), curve)
        else:
            sends.setdefault(min(nodes, 2), curve)
    device = next(iter([*devices, *named]), "GPUs that nccl-tests did not name")
    first = used[0]
    return Calibration(
        machine=name or f"{most} x {device}",
        device=device,
        backend="nccl",
        num_ranks=most,
        created=first.started or "not dated",
        versions={"nccl-tests": "", **first.versions},
        all_reduce=tuple(
            AllReduceTimes(
                num_ranks=n,
                nodes=nodes,
                launch=launch,
                nbytes=tuple(curve.times_us),
                p50_us=tuple(curve.times_us.values()),
                link="NCCL",
            )
            for (n, nodes, launch), curve in sweeps.items()
        ),
        sends=tuple(
            SendTimes(
                source=0, target=1, nodes=nodes, nbytes=tuple(curve.times_us), p50_us=tuple(curve.times_us.values())
            )
            for nodes, curve in sends.items()
        ),
        notes=_notes(used, sweeps, sends),
    )


def _continued(test: NcclTest, formula: Times | None) -> _Curve:
    """The measured curve, and where it ends too early, the formula from there on."""
    times = {float(size): us for size, us in test.curve.items()}
    small, large = min(times), max(times)
    said = f"measured from {_size(small)} to {_size(large)}"
    if formula is None:
        if small > 8 * _SMALL or large < _LARGE / 64:
            raise ArgumentError(
                "machine",
                None,
                f"must be named: the {test.collective} was {said}, decode steps send {_size(_SMALL)} and prompts "
                f"{_size(_LARGE)}, and without the machine no formula can go on. Or run it with -b 8K -e 256M -f 2",
            )
        return _Curve(times_us=times, note=said)
    if small > _SMALL:
        scale = times[small] / float(formula(small)[0])
        sizes = [size for size in _between(_ENDS[0], small) if size < small]
        times |= {size: min(float(formula(size)[0]) * scale, times[small]) for size in sizes}
        said += f"; below, the formula times {scale:.2f}"
    if large < _LARGE:
        sizes = [size for size in _between(large, _ENDS[1]) if size > large]
        beyond = max(0.0, times[large] - float(formula(large)[0]))
        times |= {size: max(float(formula(size)[0]) + beyond, times[large]) for size in sizes}
        said += f"; above, the formula and {beyond:.3g} us" if beyond else "; above, the formula"
    return _Curve(times_us=dict(sorted(times.items())), note=said)


def _between(low: float, high: float) -> list[float]:
    return [float(4**power * 2) for power in range(5, 15) if low <= 4**power * 2 <= high]


def _size(nbytes: float) -> str:
    for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if nbytes >= 1 << power:
            return f"{nbytes / (1 << power):.3g} {unit}"
    return f"{nbytes:g} bytes"


def _notes(
    used: Sequence[NcclTest], sweeps: Mapping[tuple[int, int, str], _Curve], sends: Mapping[int, _Curve]
) -> tuple[str, ...]:
    """What was measured, what not, and what the tests' own notes say."""

    def over(nodes: int) -> str:
        return " over nodes" if nodes > 1 else ""

    parts = [
        f"all-reduces of {n}{over(nodes)}{' in CUDA graphs' if launch == 'graph' else ''}, {curve.note}"
        for (n, nodes, launch), curve in sweeps.items()
    ]
    parts += [f"messages{over(nodes)}, each way at once, {curve.note}" for nodes, curve in sends.items()]
    lacking = [] if sweeps else ["all-reduces (all_reduce_perf)"]
    lacking += [] if sends else ["messages between stages (sendrecv_perf)"]
    lacking += ["GEMMs", "memory", "the engine's own time"]
    launched = [] if any(test.graph for test in used) else [_LAUNCHED]
    return (
        f"of nccl-tests, means of calls in a row: {'; '.join(parts)}",
        f"not measured, so by spec sheet and formula: {', '.join(lacking)} (tplab calibrate measures those)",
        *launched,
        *dict.fromkeys(note for test in used for note in test.notes),
    )
