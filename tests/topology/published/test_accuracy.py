"""The page about the advisor's error, on tables whose errors are planted: the page must show them."""

import numpy as np
import pandas as pd
import pytest

from tplab.topology.advisor.constants import DEFAULT
from tplab.topology.published.accuracy import accuracy_page, read_beside
from tplab.topology.published.fit import Bench
from tplab.topology.published.scoreboard import predictions
from tplab.topology.published.tables import CELL, read_folder

OFF = {"vllm": 1.25, "trtllm": 0.8}
"""Engine -> predicted time over measured time."""


SERVED = [("Llama-3.1-70B", "vllm"), ("Qwen3-32B", "vllm"), ("Qwen3-32B", "trtllm"), ("DeepSeek-V3", "vllm")]


def write(folder, name, table):
    (folder / f"{name}.csv").write_text(f"# {name} by TensorRT-LLM, commit 1234 | v1\n{table.to_csv(index=False)}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two engines, two models, servers of one and four stages. Measured is what the model predicts, over ``OFF``."""
    path = tmp_path_factory.mktemp("tables")
    served = pd.DataFrame(
        {"model_path": model, "system": "h100_sxm", "backend": engine, "gemm_quant_mode": "fp8", "isl": 1024,
         "osl": 257, "concurrency": requests, "tp_size": tp, "silicon_ttft_ms": 1.0, "silicon_tpot_ms": 1.0}
        for model, engine in SERVED for requests in (1, 16, 100) for tp in (2, 4)
    )  # fmt: skip
    saturated = pd.DataFrame(
        {"model": "Llama-3.3-70B", "gpu": "rtx-pro-6000", "precision": "fp4", "tp": 1, "pp": pp, "isl": 128,
         "osl": 2048, "value": 1.0, "unit": "tok_s"}
        for pp in (1, 4)
    )  # fmt: skip
    write(path, "served", served)
    write(path, "saturated", saturated)
    cases = read_folder(path).cases
    tpot, ttft, rate = Bench(cases, DEFAULT).predict(DEFAULT)
    known = [i for i, case in enumerate(cases) if case.kind == "served"]
    off = np.array([OFF[cases[i].engine] for i in known])
    rows = served.index[: len(known)]
    served.loc[rows, "silicon_tpot_ms"] = tpot[known] / off
    served.loc[rows, "silicon_ttft_ms"] = ttft[known] / off
    saturated["value"] = rate[[i for i, case in enumerate(cases) if case.kind == "saturated"]] / 1.1
    write(path, "served", served)
    write(path, "saturated", saturated)
    return path


@pytest.fixture(scope="module")
def tables(folder):
    return read_folder(folder)


@pytest.fixture(scope="module")
def rows(tables):
    return predictions(tables, leave_out=["model", "pp"])


def beside_file(path, tables, factor=1.5, **more):
    """Another tool's answers: ``factor`` times what was measured, and one failure."""
    made = []
    for i, case in enumerate(tables.cases):
        row = case.cell | {"source": "Other 2.0", "predicted_tpot_ms": 10.0, "predicted_ttft_ms": 10.0, "failure": None}
        row["predicted_tok_s"] = (case.output_tokens_per_s or 1.0) * factor
        if case.tpot_ms:
            row |= {"predicted_tpot_ms": case.tpot_ms * factor, "predicted_ttft_ms": case.ttft_ms * factor}
        if i == 0:
            row |= dict.fromkeys(("predicted_tpot_ms", "predicted_ttft_ms", "predicted_tok_s"), None)
            row["failure"] = "no | table"
        row["note"] = "a\nguess" if i == 5 else None
        made.append(row | more)
    pd.DataFrame(made).to_csv(path, index=False)
    return path


def row_of(page, section, *first):
    """Cells of the row that begins with ``first``, in the section of that heading."""
    part = page.partition(f"## {section}")[2].partition("\n## ")[0]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line[:1] == "|"]
    found = [line for line in lines if tuple(line[: len(first)]) == first]
    assert found, (section, first, part)
    return found[0]


def test_the_page_says_where_its_numbers_are_from(tables, rows):
    page = accuracy_page(tables, rows)
    sources = page.partition("## What was measured")[2].partition("\n## ")[0]
    assert "**served.csv**: 18 cells, 18 of which the constants were fitted on" in sources
    assert "llama-3.1-70b in fp8, qwen3-32b in fp8; h100; TensorRT-LLM, vLLM; TP 2 to 4, PP 1." in sources
    assert "**saturated.csv**: 2 cells, none of which" in sources
    assert "> served by TensorRT-LLM, commit 1234 | v1" in sources
    assert page.index("## What was measured") < page.index("## In short")


def test_errors_that_were_planted_are_on_the_page(tables, rows):
    page = accuracy_page(tables, rows)
    cells, tpot, whole, rate, _, left, *_ = row_of(page, "Where the error is", "vLLM")[1:]
    assert (cells, tpot, whole, rate, left) == ("12", "25.0", "25.0", "", "12")
    assert row_of(page, "Where the error is", "TensorRT-LLM")[1:5] == ["8", "20.0", "20.0", "10.0"]
    assert row_of(page, "Where the error is", "saturated")[1:5] == ["2", "", "", "10.0"]
    assert row_of(page, "Where the error is", "65 and more")[1] == "6"
    mean = (12 * 25 - 6 * 20) / 18
    assert row_of(page, "In short", "in use, cells they were fitted on")[1:4] == ["18", "23.3", f"{mean:+.1f}"]
    assert row_of(page, "Pipelines", "llama-3.3-70b in fp4", "rtx-pro-6000", "1", "4")[7] == "+10.0"


def test_what_was_left_out_is_named_and_predicted_without(tables, rows):
    page = accuracy_page(tables, rows)
    assert "Without qwen3-32b nothing is left of TensorRT-LLM: predicted in that way." in page
    assert "Without llama-3.1-70b" not in page
    assert row_of(page, "What was left out", "llama-3.1-70b", "vLLM")[2] == "6"
    left = row_of(page, "In short", "fitted without the model")
    assert left[1] == "18"
    assert f"TPOT of a cell is {left[2]} % off and a whole request {left[4]} %; {left[7]} % of" in page
    assert row_of(page, "In short", "fitted on PP 1 alone, pipelines predicted")[1] == "1"
    assert row_of(page, "What could not be scored", "6") == ["6", "model DeepSeek-V3 is not a preset"]
    assert "None of the 20 measured cells would have been refused" in page


def test_cells_that_would_have_been_refused_are_counted(tables, rows):
    page = accuracy_page(tables, rows.assign(fits=rows["tp"] > 2))
    assert "11 of the 20 measured cells would have been refused" in page


def test_another_tool_stands_beside_ours(tmp_path, tables, rows):
    beside = read_beside(beside_file(tmp_path / "beside.csv", tables))
    assert (beside.source, beside.failures) == ("Other 2.0", {"no | table": 1})
    page = accuracy_page(tables, rows, beside)
    assert "Of 20 cells that it was asked 19 are compared; on 1 it failed:\n- 1 cells: no | table" in page
    assert "With 1 of the others it says: a guess." in page
    cells = row_of(page, "Beside Other 2.0", "Engine TensorRT-LLM")[1:]
    assert cells[:2] == ["7", "20.0"]
    theirs = [cells[i] for i in (3, 6, 8, 10)]  # TPOT, whole request, TTFT, throughput
    assert theirs == ["50.0"] * 4
    assert cells[9] == "10.0"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"predicted_tpot_ms": "fast"}, "predicted_tpot_ms must be numbers above 0"),
        ({"predicted_ttft_ms": -1.0}, "predicted_ttft_ms must be numbers above 0"),
    ],
)
def test_times_that_are_none_are_refused(tmp_path, tables, more, message):
    with pytest.raises(ValueError, match=message):
        read_beside(beside_file(tmp_path / "beside.csv", tables, **more))


def test_a_file_of_another_form_is_refused(tmp_path):
    (tmp_path / "beside.csv").write_text("tp,pp\n1,1\n")
    with pytest.raises(ValueError, match=r"beside\.csv lacks the columns table, kind, model"):
        read_beside(tmp_path / "beside.csv")
    (tmp_path / "beside.csv").write_text(
        ",".join([*CELL, "source", "predicted_tpot_ms", "predicted_ttft_ms", "predicted_tok_s", "failure"]) + "\n"
    )
    with pytest.raises(ValueError, match="has no rows"):
        read_beside(tmp_path / "beside.csv")
