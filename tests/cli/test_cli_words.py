"""How ``tplab`` talks: options by the name that the command line gives them, plain numbers, what is refused at once."""

import argparse

import pandas as pd
import pytest

from tplab.cli.words import OPTIONS, PHRASES, check, in_options, table
from tplab.topology.advisor.wording import duration, fixed

DESTS = {said[2:].replace("-", "_") for said in OPTIONS.values()}


@pytest.mark.parametrize(("name", "said"), OPTIONS.items())
def test_every_argument_has_its_option(name, said):
    assert in_options(f"{name} must be at least 1, got 0", DESTS) == f"{said} must be at least 1, got 0"
    assert in_options(f"a node has 1 to 8, got {name}=0", DESTS) == f"a node has 1 to 8, got {said} 0"
    assert in_options(f"{name}='fp3' is not known", DESTS) == f"{said} 'fp3' is not known"
    assert in_options(f"use {name}= for more", DESTS) == f"use {said} for more"
    assert in_options(f"`{name}` is missing", DESTS) == f"{said} is missing"
    assert in_options(f"my_{name}=0, the {name}th of max-{name}=2", DESTS).count("--") == 0
    assert in_options(f"{name}=0", DESTS - {said[2:].replace("-", "_")}) == f"{name}=0"  # a command without it


@pytest.mark.parametrize(("phrase", "instead"), PHRASES.items())
def test_advice_for_python_becomes_advice_for_the_shell(phrase, instead):
    assert in_options(f"it cannot be: {phrase}", ()) == f"it cannot be: {instead}"


def test_longer_names_are_not_cut_up():
    said = in_options("give either concurrency (requests) or request_rate (per second)", DESTS)
    assert said == "give either concurrency (requests) or --rate (per second)"
    assert in_options("run it with --metadata tensor_parallel_size=4", DESTS).endswith("tensor_parallel_size=4")
    assert in_options("gpus=2 and gpu=h100", DESTS) == "--gpus 2 and --gpu h100"


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
    ("given", "message"),
    [
        ({"machine": ""}, "--machine must not be empty"),
        ({"csv": " "}, "--csv must not be empty"),
        ({"ttft_limit_ms": ""}, "--ttft-limit-ms must not be empty"),
        ({"paths": ["a", ""]}, "PATH must not be empty"),
        ({"folder": ""}, "FOLDER must not be empty"),
        ({"gpus": 0}, "--gpus must be at least 1, got 0"),
        ({"nodes": -2}, "--nodes must be at least 1, got -2"),
        ({"tp": 0}, "--tp must be at least 1, got 0"),
        ({"pp": 0}, "--pp must be at least 1, got 0"),
        ({"most": -1}, "--most must be at least 0, got -1"),
    ],
)
def test_what_no_command_can_mean(given, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        check(argparse.Namespace(**given))


def test_what_may_be_left_out_or_zero():
    check(argparse.Namespace(machine=None, csv=None, gpus=None, nodes=1, most=0, eager=False, paths=["a"]))
