"""``calibrate``: what a machine's links and processors really do, in about half a minute, for the advisor.

All-reduces in groups of every size and messages between every pair; matmuls with cold weights, alone and with several
ranks at once; copies, reading the cache, light CUDA kernels; and what the lab's engine adds per block, step and
hand-over. Not the spec sheet: gloo and NCCL miss it by different factors at different sizes, and a CPU has none.

No torch here: the notebook's kernel plans and puts together; the ranks measure (``links``, ``compute``, ``engine``).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tplab.cluster import Report
from tplab.collectives.emulated_link import EmulatedLink, LinkTable
from tplab.topology.advisor.calibration import Calibration
from tplab.topology.calibration.assemble import calibration_of
from tplab.topology.calibration.plan import PHASES, CalibrationPlan, plan_calibration

if TYPE_CHECKING:
    from tplab.cluster import Cluster, DerivedRun, Rank


def calibrate(
    cluster: "Cluster",
    *,
    links: LinkTable | EmulatedLink | None = None,
    machine: str | None = None,
    timeout: float | None = 600.0,
    **settings: Any,
) -> Calibration:
    """Measure the machine that ``cluster`` runs on, through its ranks; about half a minute.

    ::

        with Cluster(2) as cluster:
            calibration = calibrate(cluster)
        calibration.save("calibration.json")
        advise(model, machine_of(calibration), workload, calibration=calibration)

    Args:
        links: declared links between the ranks instead of the real ones, for what-if on a laptop; the notes say so.
        machine: what to call it; by default ranks and device.
        timeout: seconds for everything; None: no limit.
        settings: ``model``, ``rounds``, ``sizes``, ``tokens``, ``widths``, ``shapes`` of
            :func:`~tplab.topology.calibration.plan.plan_calibration`.

    Raises:
        ValueError: an argument that cannot work, before anything is started.
        ClusterError: the cluster's faults.
    """
    __tracebackhide__ = True
    return submit_calibrate(cluster, links=links, machine=machine, timeout=timeout, **settings).result()


def submit_calibrate(
    cluster: "Cluster",
    *,
    links: LinkTable | EmulatedLink | None = None,
    machine: str | None = None,
    timeout: float | None = 600.0,
    on_report: Callable[[Report], None] | None = None,
    **settings: Any,
) -> "DerivedRun[Calibration]":
    """Like :func:`calibrate`, without waiting: a handle with ``result()``, ``stop()`` and ``partial()``.

    Args:
        on_report: called with each report; those of rank 0 with a ``phase`` (one of ``PHASES``) have ``done`` and
            ``total``.
    """
    provenance = cluster.provenance
    plan = plan_calibration(provenance, links=links, hosts=cluster.hosts, **settings)
    run = cluster.submit(calibrate_on_rank, plan, timeout=timeout, on_report=on_report)
    return run.map(lambda run: calibration_of(plan, run.reports, provenance, machine=machine))


def calibrate_on_rank(rank: "Rank", plan: CalibrationPlan) -> None:
    """What every rank does.

    Everything comes through ``rank.report``, so that a calibration that is stopped keeps what it has.
    """
    from tplab.topology.calibration import compute, engine, links

    steps: tuple[Callable[[], None], ...] = (
        lambda: links.time_all_reduces(rank, plan),
        lambda: links.time_sends(rank, plan),
        lambda: compute.time_matmuls(rank, plan),
        lambda: compute.time_kernels(rank, plan),
        lambda: engine.time_engine(rank, plan),
    )
    for done, (phase, step) in enumerate(zip(PHASES, steps, strict=True)):
        rank.report(phase=phase, done=done, total=len(PHASES))
        step()
    rank.report(phase=PHASES[-1], done=len(PHASES), total=len(PHASES))
