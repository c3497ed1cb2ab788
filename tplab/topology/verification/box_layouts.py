"""Whole models on all GPUs of a machine in every layout: advised before, measured, and predicted again once calibrated.

What an advisor is worth on a machine it has never seen, and what half a minute of calibration adds: the same terms for
the same batch, once by spec sheet and once by what was measured here, beside what the lab's engine then does.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from tplab.checks import check_count
from tplab.cluster import Cluster, ClusterError
from tplab.models.shards import Layout
from tplab.models.spec import ModelConfig, ModelSpec
from tplab.topology.advisor.advice import advise
from tplab.topology.advisor.calibration import Calibration
from tplab.topology.advisor.workload import Workload
from tplab.topology.machine.machine import Machine
from tplab.topology.verification.box_time import BoxTime, as_far_as_it_came
from tplab.topology.verification.plan import in_precision, runs_whole
from tplab.topology.verification.run import MEASURES, Verification, free_bytes, submit_verify
from tplab.topology.verification.static_batch import LAB, machine_of, predict_batch, requests_by_replica, runnable

_LIMIT_S = 400.0
"""Longest time of one case."""
PREDICTED_FROM = ("spec sheet", "calibrated")
"""What predictions were made from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BoxCase:
    """A model and what is asked of it."""

    model: str | ModelConfig
    """The model: path of a ``config.json`` or of its folder, a preset's name, or a description."""
    workload: Workload

    def __post_init__(self) -> None:
        check_count("output_length", self.workload.output_length, least=2)  # or there is no time between tokens
        requests_by_replica(self.workload, 1)
        runnable(self.spec, 1, self.workload.context_length, "float32")

    @property
    def spec(self) -> ModelSpec:
        """The model's sizes."""
        return ModelSpec.from_config(self.model)

    @property
    def label(self) -> str:
        """Words that distinguish this case from others."""
        w = self.workload
        return f"{self.spec.name}, {w.concurrency} x {w.input_length} in, {w.output_length} out"


def measure_cases(
    cluster: Cluster,
    cases: Sequence[BoxCase],
    calibration: Calibration,
    **settings: Any,
) -> pd.DataFrame:
    """Run each case in every layout that takes all ranks and fits.

    Rows as ``verify`` has them, ``setting`` the case's label, with ``model`` and the workload's ``input_length``,
    ``output_length`` and ``concurrency`` in front; ``advised_rank`` (by ``advise``, for a server whose requests come
    and go; 1 is best); and, with ``sheet``, for each of ``MEASURES`` ``spec_sheet_...``, the same prediction of the
    batch without the calibration.

    A model that does not fit in two layouts at least is run with half of its layers, or a quarter, ...; ``layers`` says
    so. A case that fails is said and left out; of one that fails halfway, or takes too long, there are the layouts that
    were run until then, the best advised first.

    Arguments and errors as of :func:`each_case`.
    """
    return pd.concat(each_case(cluster, cases, calibration, **settings), ignore_index=True)


def each_case(
    cluster: Cluster,
    cases: Sequence[BoxCase],
    calibration: Calibration,
    *,
    sheet: Machine | None = None,
    repeats: int = 3,
    say: Callable[[str], None] = print,
    time_left: BoxTime | None = None,
) -> Iterator[pd.DataFrame | None]:
    """Like :func:`measure_cases`, a frame as soon as a case is done, and None while there is no room for the next.

    Args:
        cluster: the ranks.
        cases: the most telling first.
        calibration: of this cluster.
        sheet: the machine as its driver and spec sheet have it, a GPU per rank.
        repeats: generations of each layout.
        say: called with notes and failures.
        time_left: in which to run them; None: as long as it takes.

    Raises:
        ValueError: no case could be run.
    """
    time_left = time_left or BoxTime(None, {}, say)
    nothing = True
    for case in time_left.parts(cases, lambda case: case.label):
        if case is None:
            yield None
            continue
        try:
            frame = _measure(cluster, case, calibration, sheet, repeats, time_left, say)
        except (ClusterError, ValueError) as error:
            time_left.came_to_nothing()
            say(f"{case.label}: left out: {time_left.why(error)}")
            continue
        nothing = False
        yield frame
    if nothing:
        raise ValueError("none of the models could be run, for the reasons above")


def _measure(
    cluster: Cluster,
    case: BoxCase,
    calibration: Calibration,
    sheet: Machine | None,
    repeats: int,
    time_left: BoxTime,
    say: Callable[[str], None],
) -> pd.DataFrame:
    asked = case.workload.engine
    workload = replace(case.workload, engine=replace(LAB, pp_micro_batches=asked.pp_micro_batches))
    whole, notes = in_precision(case.spec, calibration)
    spec, layouts = _advised(cluster, whole, sheet or machine_of(calibration), workload)
    run = submit_verify(
        cluster,
        layouts,
        spec,
        workload,
        calibration=calibration,
        cuda_graphs=None if asked.cuda_graphs else False,
        tokens=workload.output_length,
        rounds=1,
        repeats=repeats,
        timeout=time_left.limit_s(cluster, _LIMIT_S),
    )
    made, fault = as_far_as_it_came(run)
    if fault is not None:
        if made.frame.empty:
            raise fault
        time_left.came_to_nothing()
        say(f"{case.label}: {len(made.frame)} of {len(layouts)} layouts, then {time_left.why(fault)}")
    for note in dict.fromkeys((*notes, *made.notes)):
        say(f"{case.label}: {note}")
    frame = made.frame.assign(setting=case.label)
    about: dict[str, Any] = {
        "model": case.spec.name,
        "input_length": workload.input_length,
        "output_length": workload.output_length,
        "concurrency": workload.concurrency,
        "advised_rank": frame["layout"].map({str(layout): place for place, layout in enumerate(layouts, 1)}),
    }
    for place, (name, value) in enumerate(about.items()):
        frame.insert(place, name, value)
    if sheet is not None:
        as_run = spec.with_layers(int(frame["layers"].iloc[0]))
        graphs = (frame["launch_mode"] == "graph").all()
        before = predict_batch(as_run, sheet, workload, layouts, calibration=None, cuda_graphs=bool(graphs))
        by_layout = {str(layout): times for layout, times in zip(layouts, before, strict=True)}
        for measure in MEASURES:
            frame[f"spec_sheet_{measure}"] = [getattr(by_layout[layout], measure) for layout in frame["layout"]]
    return frame


def _advised(cluster: Cluster, spec: ModelSpec, machine: Machine, workload: Workload) -> tuple[ModelSpec, list[Layout]]:
    """The model with as many layers as two layouts hold, and the layouts to run, in the advisor's order."""
    free = cluster.run(free_bytes)
    depth = spec.num_layers
    why: ValueError | None = None
    while depth:
        shallow = spec.with_layers(depth)
        try:
            options = advise(shallow, machine, workload).options
        except ValueError as error:  # nothing fits
            why, options = error, ()
        chosen = [
            option.layout
            for option in options
            if option.layout.num_gpus == cluster.num_ranks and runs_whole(shallow, option.layout, workload, free)
        ]
        if len(chosen) > 1:
            return shallow, chosen
        depth //= 2
    raise why or ValueError(f"fewer than two layouts of {cluster.num_ranks} ranks hold a layer of {spec.name}")


def scores(frame: pd.DataFrame) -> pd.DataFrame:
    """What the predictions were worth, a row per case and kind of prediction.

    ``model``, ``concurrency``, ``input_length``, ``output_length``, ``prediction`` (one of ``PREDICTED_FROM``),
    ``layouts``, ``tpot_mape_pct``, ``ttft_mape_pct``, ``spearman`` (tokens per second), ``chosen``, ``best`` and
    ``regret_pct``.
    Without predictions by spec sheet there are no rows of them.
    """
    rows = []
    keys = ["model", "concurrency", "input_length", "output_length"]
    for key, group in frame.groupby(keys, sort=False):
        for mode in PREDICTED_FROM if "spec_sheet_tpot_ms" in frame else PREDICTED_FROM[1:]:
            columns = _predicted(group, mode)
            whole = Verification(frame=columns.assign(setting=""), notes=(), badge="")
            (choice,) = whole.choices().to_dict("records")
            rows.append(
                dict(zip(keys, key, strict=True))
                | {
                    "prediction": mode,
                    "layouts": len(group),
                    "tpot_mape_pct": whole.mape_pct("tpot_ms"),
                    "ttft_mape_pct": whole.mape_pct("ttft_ms"),
                    "spearman": whole.spearman,
                    "chosen": choice["advised"],
                    "best": choice["best"],
                    "regret_pct": choice["regret_pct"],
                }
            )
    return pd.DataFrame(rows)


def _predicted(group: pd.DataFrame, mode: str) -> pd.DataFrame:
    """The frame as if that kind of prediction were the only one."""
    if mode == "calibrated":
        return group
    made = group.copy()
    for measure in MEASURES:
        made[f"predicted_{measure}"] = group[f"spec_sheet_{measure}"]
        made[f"{measure}_error_pct"] = 100 * (group[f"spec_sheet_{measure}"] / group[f"measured_{measure}"] - 1)
    return made
