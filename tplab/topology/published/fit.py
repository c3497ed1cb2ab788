"""Computes the fitted constants from published tables: ``python -m tplab.topology.published.fit FOLDER``.

What is fitted on what, and nothing else:

  engines     hbm_share and one mfu of 8 and 16 bits for all; step_us, sequence_us and, where it runs 8 bits,
              small_batch_slowdown of each engine
              on served tables: time per token, and with half the weight the time of a whole request
  generated   step_us, light_kernels and mfu of FasterTransformer, the rest held
              on generated tables
  kernels     matmul_fixed_us and sharpness; kv_share and attention_fixed_us; attention_share
              on gemm_latency_*.csv and attention_latency_*.csv (columns as AIConfigurator exports them), bf16
  all-reduce  NCCL's protocols and the engines' own kernels, up to 8 MiB
              on allreduce_latency.csv

Least squares of ln(predicted / measured), flattened beyond ``_ROBUST`` so that one odd cell bends nothing. Few
constants for many cells on purpose: two shared ones and two or three per engine for 537 cells of two models, two GPUs,
three engines, four TP degrees and some twenty lengths. None per model, GPU or degree: the rest is structure. Each of
them is held near what it is known to be otherwise (``PRIORS``), as strongly as a few dozen cells would: a table of one
model cannot tell an engine's own time from that model's kernels, and what it cannot tell stays where it was.

The tables are not part of this project. ``main`` prints what comes out beside ``constants.DEFAULT``, for a person to
judge; the scoreboard (``validate``) calls ``fit_engines`` without the part that it then predicts.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tplab.frames import read_frame
from tplab.models.shards import Layout
from tplab.topology.advisor.constants import (
    DEFAULT,
    Constants,
    EngineConstants,
    mfu_table,
)
from tplab.topology.advisor.latency import Server
from tplab.topology.advisor.layouts import Layouts, layout_arrays
from tplab.topology.advisor.memory import LayoutMemory
from tplab.topology.advisor.roofline import NARROW
from tplab.topology.published.fit_kernels import (
    all_reduce_table,
    fit_attention,
    least_squares,
    matmul_lines,
    rounded,
)
from tplab.topology.published.tables import Case, read_folder

Floats = NDArray[np.float64]


class Bench:
    """Cases with their layouts, grouped so that each model, GPU, engine and length is computed in one go."""

    def __init__(self, cases: Sequence[Case], constants: Constants = DEFAULT) -> None:
        self.cases = tuple(cases)
        groups: dict[Any, list[int]] = {}
        for i, case in enumerate(self.cases):
            w = replace(case.workload, concurrency=1)
            groups.setdefault((case.model, case.machine.gpu, case.machine.network, w, case.kind), []).append(i)
        self._groups = [(at, *self._layouts([self.cases[i] for i in at], constants)) for at in groups.values()]

    @staticmethod
    def _layouts(cases: Sequence[Case], constants: Constants) -> tuple[LayoutMemory, Layouts]:
        parts: dict[tuple[int, int], Layouts] = {}
        for case in cases:
            layout = Layout.of(case.model, case.tp, case.pp)
            memory = LayoutMemory.of(case.model, case.machine.gpu, case.workload, layout)
            if (case.tp, case.pp) not in parts:
                parts[case.tp, case.pp] = layout_arrays(case.machine, [memory], constants)
        return memory, Layouts.joined([parts[case.tp, case.pp] for case in cases])

    def predict(self, constants: Constants) -> Floats:
        """Rows: time per token and to the first one in ms, output tokens per second; one column per case.

        Of static batches the first is the call's time over its tokens, and the second is nan.
        """
        made = np.full((3, len(self.cases)), np.nan)
        for at, memory, layouts in self._groups:
            first = self.cases[at[0]]
            server = Server.of(first.machine, [memory], calibration=None, constants=constants, layouts=layouts)
            requests = np.array([float(self.cases[i].workload.concurrency or 1) for i in at])
            tokens = first.workload.output_length
            if first.static:
                call = server.generate_us(requests)
                made[0, at], made[2, at] = call / tokens / 1e3, requests * tokens / call * 1e6
            else:
                served = server.serve(requests)
                rate = served.requests_per_s * tokens
                if first.kind == "saturated":
                    rate = rate * _share_of_waves(requests / served.running)
                made[:, at] = served.tpot_us / 1e3, served.ttft_us / 1e3, rate
        return made


def _share_of_waves(waves: Floats) -> Floats:
    """Mean throughput over the steady one, of a benchmark that sends all its requests at once, ``waves`` times what can
    run: while the last of them end, fewer and fewer run."""
    waves = np.maximum(waves, 1.0)
    return waves / (waves + (1 - 1 / waves) / 2)


PRIORS = {
    "hbm_share": (0.88, 0.05),  # a copy on one H200: 0.88; single matmuls [K] 0.84
    "mfu": (0.65, 0.1),  # [K]: 0.8 for single matmuls of any precision; served ones run into each other's tails
    "step_us": (500.0, 0.6),
    "sequence_us": (50.0, 0.7),
    "small_batch_slowdown": (1.05, 0.1),  # [K] single matmuls: 1 to 1.25
}
"""Constant -> where it is held, and the standard deviation of its logarithm there."""
_SERVERS = ("vllm", "sglang", "trtllm", "generic")
"""Engines that run the same libraries' matmuls, and share ``mfu``."""
_PRIOR_CELLS = 54
"""So many cells does each prior weigh as much as, at a residual of one ``_SPREAD``."""
_SPREAD = 0.07
"""Residual of ln(predicted / measured) that a good prediction has."""


def fit_engines(cases: Sequence[Case], constants: Constants = DEFAULT) -> Constants:
    """``hbm_share``, ``mfu``, and what each engine among the served ``cases`` adds.

    Servers that are not among them, ``generic`` too, are left with what is known of any (``PRIORS``). The search begins
    at ``constants``, for it is short from there; from ``PRIORS`` it ends within 0.2 % of the same times.

    Raises:
        ValueError: no served case.
    """
    served = [case for case in cases if case.kind == "served"]
    if not served:
        raise ValueError(f"none of {len(cases)} cases is of a served model: nothing to fit engines on")
    narrow = {case.workload.engine.name for case in served if case.model.weight_precision in NARROW}
    keys = [("", "hbm_share"), ("", "mfu")]
    for name in sorted({case.workload.engine.name for case in served}):
        keys += [(name, "step_us"), (name, "sequence_us")]
        keys += [(name, "small_batch_slowdown")] if name in narrow else []
    center, spread = np.array([PRIORS[key] for _, key in keys]).T
    unknown: dict[str, Any] = {key: PRIORS[key][0] for key in ("step_us", "sequence_us", "small_batch_slowdown")}

    def made(x: Floats) -> Constants:
        values = dict(zip(keys, np.exp(x).tolist(), strict=True))
        mfu = mfu_table(values.pop(("", "mfu")))
        engines = dict(constants.engines)
        for name in _SERVERS:
            engines[name] = replace(engines[name], mfu=mfu, **unknown)
        hbm_share = values.pop(("", "hbm_share"))
        for (name, key), value in values.items():
            engines[name] = replace(engines[name], **{key: value})
        return replace(constants, hbm_share=hbm_share, engines=engines)

    bench = Bench(served, constants)
    tpot = np.array([case.tpot_ms or np.nan for case in served])
    more = np.array([case.workload.output_length - 1 for case in served])
    whole = np.array([case.ttft_ms or np.nan for case in served]) + more * tpot

    def residuals(x: Floats) -> Floats:
        time, first, _ = bench.predict(made(x))
        requests = np.nan_to_num(np.log((first + more * time) / whole))
        held = np.sqrt(_PRIOR_CELLS) * _SPREAD * (x - np.log(center)) / spread
        return np.concatenate([np.log(time / tpot), requests / 2, held])

    mine = np.array([[name in ("", case.workload.engine.name) for case in served] for name, _ in keys])
    touches = np.hstack([mine, mine, np.eye(len(keys), dtype=bool)])
    now = [
        constants.engines[_SERVERS[0]].mfu["fp8"]
        if key == "mfu"
        else float(getattr(constants.engines[name] if name else constants, key))
        for name, key in keys
    ]
    least = [1.0 if key == "small_batch_slowdown" else 1e-3 * PRIORS[key][0] for _, key in keys]
    start, low, high = (np.log(x).tolist() for x in (now, least, 1e3 * center))
    return made(least_squares(residuals, start, low, high, touches))


def fit_generated(cases: Sequence[Case], constants: Constants = DEFAULT) -> Constants:
    """``step_us``, ``light_kernels`` and fp16 mfu of FasterTransformer, on its static batches.

    Raises:
        ValueError: no such case.
    """
    name = "fastertransformer"
    static = [case for case in cases if case.static and case.workload.engine.name == name]
    if not static:
        raise ValueError(f"none of {len(cases)} cases is a static batch of {name}")
    old = constants.engines[name]

    measured, bench = np.array([case.tpot_ms for case in static]), Bench(static, constants)

    def made(x: Floats) -> Constants:
        step, kernels, mfu = (float(value) for value in x)
        engine = replace(old, step_us=step, light_kernels=kernels, mfu={**old.mfu, "fp16": mfu, "bf16": mfu})
        return replace(constants, engines={**constants.engines, name: engine})

    def residuals(x: Floats) -> Floats:
        return np.asarray(np.log(bench.predict(made(x))[0] / measured), dtype=np.float64)

    start = [old.step_us, old.light_kernels, old.mfu["fp16"]]
    return made(least_squares(residuals, start, [50.0, 5.0, 0.2], [5000.0, 60.0, 0.95]))


# --- the report -------------------------------------------------------------------------------------------------------


def report(folder: Path) -> list[str]:
    """One line per fitted group, beside what ``constants.DEFAULT`` has. Groups whose table is missing are left out."""
    lines = []
    tables = read_folder(folder)
    for fitted, names in ((fit_engines, None), (fit_generated, ["fastertransformer"])):
        try:
            made = fitted(tables.cases)
        except ValueError as error:
            lines.append(f"left out: {error}")
            continue
        lines.append(f"hbm_share {made.hbm_share:.3f} (in use: {DEFAULT.hbm_share})")
        for name in names or sorted(made.engines):
            if made.engines[name] != DEFAULT.engines[name]:
                lines.append(f"{name}: {_engine(made.engines[name])} (in use: {_engine(DEFAULT.engines[name])})")
    for pattern, lines_of in (
        ("gemm_latency_*.csv", matmul_lines),
        ("attention_latency_*.csv", lambda table: [f"attention: {rounded(fit_attention(table))}"]),
        ("allreduce_latency.csv", all_reduce_table),
    ):
        for file in sorted(folder.glob(pattern)):
            table = read_frame(file, comment="#")
            try:
                lines += lines_of(table)
            except KeyError as error:
                raise ValueError(f"{file} lacks the column {error}") from None
            except (TypeError, ValueError) as error:
                raise ValueError(f"{file}: {error}") from None
    return lines


def _engine(engine: EngineConstants) -> str:
    values = {
        "step_us": engine.step_us,
        "sequence_us": engine.sequence_us,
        "light_kernels": engine.light_kernels,
        "mfu": engine.mfu["fp16"],
        "small_batch_slowdown": engine.small_batch_slowdown,
    }
    return rounded(values)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tplab.topology.published.fit FOLDER")
    try:
        print("\n".join(report(Path(sys.argv[1]))))
    except ValueError as error:
        sys.exit(str(error))
