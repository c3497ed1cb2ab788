"""How ``tplab`` talks: options by the name that the command line gives them, plain numbers, what is refused at once."""

import argparse
import inspect

import pandas as pd
import pytest

from tplab.checks import ArgumentError
from tplab.cli import main
from tplab.cli.words import check, options, table
from tplab.cluster import Cluster
from tplab.cluster.hosts.connect import where
from tplab.collectives.crossover import engine_losses
from tplab.collectives.emulated_link import EmulatedLink
from tplab.collectives.nccl_tests import read_nccl
from tplab.collectives.sweep import read_sweep
from tplab.collectives.sweep_plan import plan_crossover, plan_sweep
from tplab.lab.claims.ledger import claims_of, filtered
from tplab.lab.cluster_checks import cluster_preflight
from tplab.lab.demo import serve_demo
from tplab.lab.grading.export import export_nbgrader, export_otter, write_solutions
from tplab.lab.grading.grades import grade_folder
from tplab.lab.grading.sources import stubs_of
from tplab.lab.progress_view import progress_table
from tplab.lab.recorded import recorded
from tplab.lab.shipped.copying import copy_notebooks
from tplab.lab.sizing import measure_notebooks
from tplab.layers.overlap import StackPlan
from tplab.models.spec import ModelSpec
from tplab.pipeline import BlockStages, Costs, build_schedule
from tplab.shown import duration, fixed
from tplab.topology.advisor.advice import advise
from tplab.topology.advisor.workload import EnginePolicy, Workload
from tplab.topology.calibration.from_nccl import calibration_of_nccl
from tplab.topology.calibration.plan import plan_calibration
from tplab.topology.calibration.run import submit_calibrate
from tplab.topology.capacity.asked import fits
from tplab.topology.machine.machine import Machine
from tplab.topology.published.benchmarks import beside_benchmark
from tplab.topology.published.scoreboard import score
from tplab.topology.verification.box import measure_box
from tplab.topology.verification.box_layouts import BoxCase

TAKEN = {
    "fits": (fits,),
    "advise": (ModelSpec.from_config, Machine.preset, Machine.from_topo, EnginePolicy, Workload, advise),
    "validate": (ModelSpec.from_config, Machine.preset, Machine.from_topo, EnginePolicy, beside_benchmark, score),
    "calibrate": (Cluster, where, EmulatedLink, plan_calibration, submit_calibrate),
    "box": (measure_box, where, Workload, BoxCase),
    "sweep": (Cluster, plan_sweep, where),
    "pipeline": (Cluster, where, build_schedule, StackPlan, BlockStages, Costs),
    "read-nccl": (read_nccl, calibration_of_nccl),
    "crossover": (Cluster, plan_crossover, recorded, read_sweep, engine_losses, ModelSpec.from_config),
    "progress": (progress_table,),
    "claims": (claims_of, filtered),
    "grade": (grade_folder, stubs_of),
    "solutions": (write_solutions,),
    "export": (export_nbgrader, export_otter),
    "size": (measure_notebooks,),
    "lab": (copy_notebooks,),
    "doctor": (cluster_preflight,),
    "demo": (serve_demo,),
}
"""Functions that a command calls with what its options say, and that may refuse it."""
OWN = {
    *(
        "help",
        "call",
        "out",
        "csv",
        "most",
        "no_ranks",
        "json",
        "report",
        "beside",
        "html",
        "markdown",
        "calibration",
        "percentiles",
        "reset",
    ),  # files and what is printed
    *("topo", "eager", "paths", "no_refit", "from_size", "to_size", "names"),  # which another argument is made from
    "wait_ms",  # seconds of Costs
    *("notebooks", "grader", "reports"),  # where files are, and which function is called
    *("fresh", "copy_only", "no_browser", "port", "ip"),  # which function is called, and what a server is told
}
"""Destinations that no such function takes under that name."""


@pytest.fixture
def parsers(monkeypatch):
    """By command."""
    made = {}

    def parse(parser, argv=None):
        made.update(parser._subparsers._group_actions[0].choices)
        raise SystemExit

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    with pytest.raises(SystemExit):
        main([])
    return made


@pytest.mark.parametrize("command", TAKEN)
def test_options_store_under_the_names_of_the_arguments(parsers, command):
    """So that what a function refuses is said by the option that it came from."""
    taken = {name for function in TAKEN[command] for name in inspect.signature(function).parameters}
    assert set(options(parsers[command])) - OWN <= taken


def test_every_command_is_looked_at(parsers):
    assert set(parsers) == set(TAKEN)


def test_names_of_arguments_on_the_command_line():
    parser = argparse.ArgumentParser()
    parser.add_argument("-o", "--out-file")
    parser.add_argument("--weights", dest="weight_precision")
    parser.add_argument("paths", metavar="PATH", nargs="*")
    assert options(parser) == {
        "help": "-h", "out_file": "-o", "weight_precision": "--weights", "paths": "PATH"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (402700.0, "402,700"), (17430.4, "17,430"), (100.0, "100"), (73.08, "73.1"), (9.53, "9.53"), (0.0421, "0.0421"),
        (-23.456, "-23.5"), (0.0, "0"), (float("nan"), "nan"), (float("inf"), "inf"), (1e-9, "0.000000"),
    ],
)  # fmt: skip
def test_numbers_have_no_exponent(value, text):
    assert fixed(value) == text


def test_a_duration_from_a_second_on_is_in_seconds():
    assert (duration(9.531), duration(999.4), duration(17_430.0), duration(3.27e6)) == (
        "9.53 ms", "999 ms", "17.4 s", "3,270 s",
    )  # fmt: skip


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_tables_fit_the_terminal(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    frame = pd.DataFrame({f"a_column_of_some_width_{i}": [123456.0, float("nan")] for i in range(7)})
    text = table(frame)
    assert max(map(len, text.splitlines())) <= max(columns, 80)
    assert "123,456" in text
    assert "e+" not in text
    assert "nan" not in text


@pytest.mark.parametrize(
    ("given", "argument"),
    [({"machine": ""}, "machine"), ({"csv": " "}, "csv"), ({"paths": ["a", ""]}, "paths"), ({"folder": ""}, "folder")],
)
def test_what_no_command_can_mean(given, argument):
    with pytest.raises(ArgumentError, match="must not be empty") as info:
        check(argparse.Namespace(**given))
    assert info.value.argument == argument


def test_what_may_be_left_out_or_zero():
    check(argparse.Namespace(machine=None, csv=None, gpus=None, nodes=1, most=0, eager=False, paths=["a"]))
