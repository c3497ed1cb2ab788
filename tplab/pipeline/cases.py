"""Several tables one after the other in one run on a cluster: for frames and panels that compare them.

One run and not one each: a Stop button stops all, a bar shows how far, and rounds take turns among the tables, so that
a busy spell of the machine spoils a sample of many tables and not most samples of one.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tplab.checks import check_count
from tplab.pipeline.job import Job, RunPlan, make_job
from tplab.pipeline.run import MeasuredTrace, run_trace

if TYPE_CHECKING:
    from tplab.cluster import Cluster, Rank, Run


def submit_cases(cluster: "Cluster", plans: Sequence[RunPlan], *, rounds: int = 1, **callbacks: Any) -> "Run[None]":
    """Start ``rounds`` runs of each plan, in turns; :func:`case_traces` makes the traces of those that are complete.

    Raises like :func:`~tplab.pipeline.run.run_schedule`, before any rank starts, for every plan.
    """
    if not plans:
        raise ValueError("plans must hold at least one RunPlan; it is empty")
    check_count("rounds", rounds, least=1)
    jobs = [make_job(cluster, plan) for plan in plans]
    return cluster.submit(run_cases, jobs, rounds, timeout=None, **callbacks)


def run_cases(rank: "Rank", jobs: list[Job], rounds: int) -> None:
    """Runs on the ranks. Reports carry ``case``, the index of the job, and ``round``."""
    from tplab.pipeline.executor import run_job

    for turn in range(rounds):
        for case, job in enumerate(jobs):
            if rank.index == 0:
                rank.report(phase="run", done=turn * len(jobs) + case, total=rounds * len(jobs))
            run_job(rank, job, case=case, round=turn)
    if rank.index == 0:
        rank.report(phase="run", done=rounds * len(jobs), total=rounds * len(jobs))


def case_traces(plans: Sequence[RunPlan], reports: Sequence[Any], provenance: Any) -> list[list[MeasuredTrace]]:
    """The traces of each plan's complete rounds so far."""
    groups: dict[tuple[int, int], list[Any]] = {}
    for report in list(reports):
        if "case" in report.fields:
            groups.setdefault((report.fields["case"], report.fields["round"]), []).append(report)
    traces: list[list[MeasuredTrace]] = [[] for _ in plans]
    for (case, _), mine in sorted(groups.items()):
        trace = run_trace(plans[case], mine, provenance)
        wanted = sum(action.op.is_compute for _, _, action in plans[case].schedule.actions())
        if int(trace.is_compute.sum()) == wanted:
            traces[case].append(trace)
    return traces
