"""``verify``: the advisor's layouts run for real, predicted beside measured.

A prediction that nobody checks is an opinion. Here the feasible layouts take turns on the cluster's ranks, with random
weights in the shapes of the user's model and as many layers as fit, and what comes out stands beside what was said: the
error of each, whether the order is right (Spearman), and what following the advice would have cost (regret).

More ranks than cores: stages wait as long as they were timed alone (``emulated compute`` on the badge); links can be
declared, so that a laptop shows where the best layout flips.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from tplab.cluster import Provenance, Report
from tplab.collectives.emulated_link import EmulatedLink, LinkTable
from tplab.measure import joined_badge, provenance_columns, samples_of
from tplab.models.spec import ModelConfig, ModelSpec
from tplab.topology.advisor.calibration import Calibration
from tplab.topology.advisor.workload import Workload
from tplab.topology.verification.plan import ClusterFacts, LayoutRun, Target, VerifyPlan, plan_verify

if TYPE_CHECKING:
    from tplab.cluster import Cluster, DerivedRun, Rank

MEASURES = ("tpot_ms", "ttft_ms", "output_tokens_per_s")


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """Predicted beside measured, over the layouts of one setting, or of several joined."""

    frame: pd.DataFrame
    """A row per layout: ``setting`` (links, in words), ``layout``, ``tp``, ``pp``, ``replicas``, ``batch`` (requests),
    ``layers``; for each of ``MEASURES`` ``predicted_...``, ``measured_...`` and ``..._error_pct``; ``scaled_tpot_ms``
    (measured, scaled up to all layers), ``samples``; ``badge`` and the provenance."""
    notes: tuple[str, ...]
    """Sentences to be shown with the result."""
    badge: str

    def mape_pct(self, measure: str = "tpot_ms") -> float:
        """Mean absolute error of the predictions, percent of what was measured."""
        return float(self.frame[f"{measure}_error_pct"].abs().mean())

    @property
    def spearman(self) -> float:
        """Rank correlation of predicted and measured tokens per second over all rows; NaN for fewer than two."""
        return spearman(self.frame["predicted_output_tokens_per_s"], self.frame["measured_output_tokens_per_s"])

    @property
    def regret_pct(self) -> float:
        """What following the prediction loses against the best layout that was measured, in tokens per second; mean
        over settings."""
        return float(self.choices()["regret_pct"].mean())

    def choices(self) -> pd.DataFrame:
        """A row per setting: ``setting``, ``advised`` (the best by prediction), ``best`` (as measured),
        ``regret_pct``."""
        rows = []
        for setting, group in self.frame.groupby("setting", sort=False):
            measured = group["measured_output_tokens_per_s"].to_numpy(float)
            advised, best = int(np.argmax(group["predicted_output_tokens_per_s"])), int(np.argmax(measured))
            rows.append(
                {
                    "setting": setting,
                    "advised": group["layout"].iloc[advised],
                    "best": group["layout"].iloc[best],
                    "regret_pct": 100 * (1 - measured[advised] / measured[best]),
                }
            )
        return pd.DataFrame(rows, columns=["setting", "advised", "best", "regret_pct"])

    @classmethod
    def joined(cls, parts: "Sequence[Verification]") -> "Verification":
        """Several settings as one. Raises ``ValueError`` for none."""
        if not parts:
            raise ValueError("there is no verification to join")
        return cls(
            frame=pd.concat([part.frame for part in parts], ignore_index=True),
            notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
            badge=" | ".join(dict.fromkeys(part.badge for part in parts)),
        )

    def __str__(self) -> str:
        columns = ["setting", "layout", "predicted_tpot_ms", "measured_tpot_ms", "tpot_ms_error_pct"]
        table = self.frame[columns].to_string(index=False, float_format=lambda value: f"{value:.3g}")
        words = (
            f"time per token: {self.mape_pct():.1f} % mean error; rank correlation {self.spearman:.2f}; following the "
            f"advice loses {self.regret_pct:.1f} %"
        )
        return "\n".join([self.badge, table, words, *self.notes])


def spearman(predicted: "Sequence[float] | pd.Series[float]", measured: "Sequence[float] | pd.Series[float]") -> float:
    """Correlation of the ranks, ties at their mean rank. NaN for fewer than two values, or all the same."""
    a, b = (pd.Series(list(values)).rank().to_numpy(float) for values in (predicted, measured))
    if len(a) != len(b):
        raise ValueError(f"predicted and measured must be as many; got {len(a)} and {len(b)}")
    if len(a) < 2:
        return float("nan")
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum() / norm) if norm else float("nan")


def verify(
    cluster: "Cluster",
    target: Target,
    model: ModelSpec | ModelConfig | None = None,
    workload: Workload | None = None,
    *,
    calibration: Calibration,
    links: LinkTable | EmulatedLink | None = None,
    timeout: float | None = 1200.0,
    **settings: Any,
) -> Verification:
    """Run layouts on ``cluster`` and set what was predicted beside what is measured.

    ::

        calibration = calibrate(cluster)
        advice = advise(model, machine_of(calibration), workload, calibration=calibration)
        verify(cluster, advice, calibration=calibration)

    Args:
        target: an ``Advice``, whose feasible layouts are run; or layouts, as such or as (tp, pp) or (tp, pp, replicas).
        model, workload: with a list of layouts. Random weights in the model's shapes; a batch of
            ``workload.concurrency`` requests, shared by the replicas.
        calibration: of this cluster, over the same links.
        links: declared links between the ranks; None: the backend's own.
        timeout: seconds for everything.
        settings: ``compute`` (``real``, ``emulated``: stages wait as long as they were timed alone, or ``auto``:
            emulated where more ranks would compute at once than there are cores), ``cuda_graphs`` (whether decode
            steps are replayed from graphs; by default where each rank has a GPU), ``layers`` (to run; by default as
            many as fit), ``tokens`` (new tokens at most, 16), ``rounds`` (turns of each layout, 3) and ``repeats``
            (generations in a turn, 2).

    Raises:
        ValueError: what :func:`~tplab.topology.verification.plan.plan_verify` says.
        ClusterError: the cluster's faults.
    """
    __tracebackhide__ = True
    return submit_verify(
        cluster, target, model, workload, calibration=calibration, links=links, timeout=timeout, **settings
    ).result()


def submit_verify(
    cluster: "Cluster",
    target: Target,
    model: ModelSpec | ModelConfig | None = None,
    workload: Workload | None = None,
    *,
    calibration: Calibration,
    links: LinkTable | EmulatedLink | None = None,
    timeout: float | None = 1200.0,
    on_report: Callable[[Report], None] | None = None,
    **settings: Any,
) -> "DerivedRun[Verification]":
    """Like :func:`verify`, without waiting: a handle with ``result()``, ``stop()`` and ``partial()``.

    Args:
        on_report: called with each report; those of rank 0 with ``phase`` have ``done`` and ``total`` turns.
    """
    provenance = cluster.provenance
    plan = plan_verify(
        target,
        model,
        workload,
        cluster=ClusterFacts(
            provenance=provenance,
            calibration=calibration,
            free_bytes=tuple(cluster.run(free_bytes)),
            links=links,
        ),
        **settings,
    )
    run = cluster.submit(verify_on_rank, plan, timeout=timeout, on_report=on_report)
    return run.map(lambda run: verification_of(plan, run.reports, provenance))


def verify_on_rank(rank: "Rank", plan: VerifyPlan) -> None:
    """What every rank does; see ``measure_layouts.run_layouts``."""
    from tplab.topology.verification.layouts import run_layouts

    run_layouts(rank, plan)


def free_bytes(rank: "Rank") -> float:
    """Free memory of this rank's device, in bytes, divided among the ranks that share the device."""
    if rank.device.type == "cuda":
        import torch

        torch.cuda.empty_cache()  # what earlier runs have given back to torch's allocator, and not to the device
        sharing = -(-rank.world_size // torch.cuda.device_count())
        return torch.cuda.mem_get_info(rank.device)[0] / sharing
    import psutil

    return psutil.virtual_memory().available / rank.world_size


def verification_of(plan: VerifyPlan, reports: Iterable[Report], provenance: Provenance) -> Verification:
    """What the ranks have reported so far; layouts without a whole sample are left out."""
    samples = samples_of(reports)
    badge = joined_badge(provenance.badge, *plan.parts_of_badge)
    setting = joined_badge(*plan.parts_of_badge, "" if plan.links is not None else provenance.link)
    about = {
        "badge": badge,
        **provenance_columns(provenance, link=plan.links, launch_mode="graph" if plan.cuda_graphs else None),
    }
    rows = []
    for row, run in enumerate(plan.runs):
        moments = [samples[row, what].us for what in ("start", "first", "last") if (row, what) in samples]
        if moments and len(moments[0]) == len(run.batches) * run.layout.gpus_per_replica:
            measured = np.median(_measured(plan, run, *moments), axis=1).tolist()
            rows.append(_row(plan, row, measured, moments[0].shape[1], setting) | about)
    return Verification(frame=pd.DataFrame(rows), notes=plan.notes, badge=badge)


def _measured(plan: VerifyPlan, run: LayoutRun, start_us: Any, first_us: Any, last_us: Any) -> list[Any]:
    """``MEASURES`` of every generation, of the slowest replica, from moments on (ranks, generations)."""
    began_us, ended_us = start_us.min(axis=0), last_us.max(axis=0)
    tpot_us = (last_us - first_us).max(axis=0) / (plan.output_length - 1)
    num_tokens = sum(run.batches) * plan.output_length
    return [tpot_us / 1e3, (first_us.max(axis=0) - began_us) / 1e3, num_tokens / (ended_us - began_us) * 1e6]


def _row(plan: VerifyPlan, row: int, measured: Sequence[float], samples: int, setting: str) -> dict[str, Any]:
    run = plan.runs[row]
    about: dict[str, Any] = {
        "setting": setting,
        "layout": str(run.sharding),
        "tp": run.sharding.tp,
        "pp": run.sharding.pp,
        "replicas": run.sharding.replicas,
        "batch": sum(run.batches),
        "layers": plan.config.num_layers,
    }
    for name, value in zip(MEASURES, measured, strict=True):
        predicted = getattr(run.predicted, name)
        about |= {
            f"predicted_{name}": predicted,
            f"measured_{name}": value,
            f"{name}_error_pct": 100 * (predicted / value - 1),
        }
    return about | {"scaled_tpot_ms": about["measured_tpot_ms"] * run.scale, "samples": samples}
