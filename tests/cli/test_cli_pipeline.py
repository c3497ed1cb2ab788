"""``tplab pipeline``: its trace is one that a notebook loads, its options are refused by name."""

import pytest

from tplab.cli import main
from tplab.pipeline import build_schedule
from tplab.pipeline.trace import Trace


def test_a_trace_and_a_figure(tmp_path, capsys, no_ranks_left):
    out = tmp_path / "trace.json"
    options = ["--backend", "gloo", "--micro-batches", "3", "--wait-ms", "2", "--message", "1KiB", "--out", str(out)]
    assert main(["pipeline", "1f1b", *options]) == 0
    trace = Trace.from_perfetto(out, build_schedule("1f1b", 2, 3))
    assert trace.measured
    assert trace.makespan_s > 3 * 6e-3  # three micro-batches of 2 + 4 ms on each rank
    assert trace.provenance["compute"] == "emulated"
    assert "plotly" in out.with_suffix(".html").read_text().lower()
    printed = capsys.readouterr().out
    assert "LIVE gloo · 2 ranks · emulated compute" in printed
    assert "measured" in printed
    assert "simulated" in printed


def test_blocks_compute(tmp_path, capsys, no_ranks_left):
    out = tmp_path / "trace.json"
    options = ["--backend", "gloo", "--chunks", "2", "--hidden", "64", "--tokens", "8", "--out", str(out)]
    assert main(["pipeline", "interleaved", *options]) == 0
    trace = Trace.from_perfetto(out, build_schedule("interleaved", 2, 4, 2))
    assert trace.provenance["compute"] == "real"
    assert "emulated" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["1f2b"], "SCHEDULE"),
        (["1f1b", "--message", "1KiB"], "--message must come with --wait-ms"),
        (["1f1b", "--wait-ms", "-1"], "--wait-ms"),
        (["1f1b", "--micro-batches", "0"], "--micro-batches"),
        (["1f1b", "--chunks", "2"], "num_chunks"),
        (["1f1b", "--out", "trace.html"], "--out must not end in .html"),
        (["decode-ring"], "must come with --wait-ms"),
    ],
)
def test_mistakes(options, said, tmp_path, monkeypatch, capsys, no_ranks_left):
    monkeypatch.chdir(tmp_path)
    assert main(["pipeline", "--backend", "gloo", *options]) == 2
    assert said in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]
