"""``tplab read-nccl``: what is printed and written, and what ``advise`` makes of it."""

import pandas as pd
import pytest

from tests.collectives.nccl_output import as_json, printed
from tplab.cli import main


@pytest.fixture
def out(tmp_path):
    path = tmp_path / "all_reduce.txt"
    path.write_text(printed() + printed("sendrecv"))
    return path


def test_curve_fit_and_formula(out, capsys):
    assert main(["read-nccl", str(out)]) == 0
    said = capsys.readouterr().out
    assert "RECORDED nccl-tests · 8 x NVIDIA H100 80GB HBM3 · 1 host: all-reduce, 26 sizes." in said
    assert "Short ones take 20 us, long ones go at 200 GB/s" in said
    assert "The advisor's formula for 8 x h100 is" in said
    assert "point-to-point" in said


def test_another_machine_than_the_output_names_is_said(out, capsys):
    assert main(["read-nccl", str(out), "--machine", "p5.48xlarge"]) == 0
    assert "that was given" not in capsys.readouterr().out
    assert main(["read-nccl", str(out), "--machine", "l4"]) == 0
    said = capsys.readouterr().out.replace("\n  ", " ")
    assert "the output is of NVIDIA H100 80GB HBM3, the machine that was given has l4." in said


def test_a_calibration_that_advise_takes(out, tmp_path, capsys):
    made = str(tmp_path / "c.json")
    assert main(["read-nccl", str(out), "--calibration", made]) == 0
    assert "not measured, so by spec sheet" in capsys.readouterr().out.replace("\n  ", " ")
    assert main(["advise", "--model", "llama-3.1-70b", "--calibration", made, "--concurrency", "1"]) == 0
    said = capsys.readouterr().out.replace("\n  ", " ")
    assert "measured: nccl, 8 x NVIDIA H100 80GB HBM3" in said
    assert "messages, each way at once, measured from" in said


def test_rows_and_figure(out, tmp_path, capsys):
    csv, html = tmp_path / "r.csv", tmp_path / "f.html"
    assert main(["read-nccl", str(out), "--csv", str(csv), "--html", str(html)]) == 0
    assert len(pd.read_csv(csv)) == 52
    assert "formula, 8 x h100" in html.read_text()
    assert "Wrote" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such-file"], "no-such-file cannot be read"),
        (["{out}", "--machine", "h1000"], "h1000"),
        (["{out}", "--collective", "all"], "--collective must be one of"),
        (
            ["{out}", "--calibration", "/no/such/folder/c.json"],
            "--calibration /no/such/folder/c.json cannot be written",
        ),
        (["{empty}"], "no table of nccl-tests"),
        (["{gather}", "--calibration", "{made}"], "must have an all_reduce_perf or a sendrecv_perf"),
    ],
)
def test_what_is_refused(out, tmp_path, capsys, arguments, message):
    (tmp_path / "empty.txt").write_text("nothing\n")
    (tmp_path / "gather.txt").write_text(printed("all_gather"))
    places = {
        "out": out,
        "empty": tmp_path / "empty.txt",
        "gather": tmp_path / "gather.txt",
        "made": tmp_path / "c.json",
    }
    assert main(["read-nccl", *(each.format(**places) for each in arguments)]) == 2
    assert message in capsys.readouterr().err


def test_rows_are_printed_also_where_they_calibrate_nothing(tmp_path, capsys):
    (tmp_path / "gather.txt").write_text(printed("all_gather"))
    assert main(["read-nccl", str(tmp_path / "gather.txt"), "--calibration", str(tmp_path / "c.json")]) == 2
    assert "all-gather, 26 sizes" in capsys.readouterr().out
    assert not (tmp_path / "c.json").exists()


def test_json_and_text_together(out, tmp_path, capsys):
    data = tmp_path / "j.json"
    data.write_text(as_json())
    assert main(["read-nccl", str(out), str(data)]) == 0
    assert capsys.readouterr().out.count("RECORDED") == 3
