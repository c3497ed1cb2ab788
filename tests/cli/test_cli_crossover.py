"""``tplab crossover``: from a recording, from a file, and measured on two ranks."""

import pytest

from tplab.cli import main

BOX = "4xH200-2026-11-26"


def test_of_a_recording(capsys):
    assert main(["crossover", "--recorded", BOX, "--batches", "1,16"]) == 0
    said = capsys.readouterr().out
    assert "RECORDED 4xH200 2026-11-26 · graph · bfloat16" in said
    assert "Fastest here: torch's two-shot up to 25.5 MiB, library above." in said
    assert "160 all-reduces of batch x 16,384 bytes" in said
    assert (
        "vLLM loses at most 0.58 ms per step, 3.6 µs per call, at batch 16: one-shot where torch's two-shot is faster"
        in said
    )
    for engine in ("vLLM: csrc", "SGLang: python", "TensorRT-LLM: cpp"):
        assert engine in said


def test_ranks_choose_rows_of_a_recording(capsys):
    assert main(["crossover", "--recorded", BOX, "--ranks", "2", "--model", "llama-3.1-8b"]) == 0
    assert "64 all-reduces of batch x 8,192 bytes" in capsys.readouterr().out


@pytest.mark.timeout(120)
def test_measured_here_written_and_read_again(tmp_path, capsys):
    path = tmp_path / "here.csv"
    small = ["--backend", "gloo", "--to-size", "4KiB", "--iterations", "3"]
    assert main(["crossover", *small, "--csv", str(path)]) == 0
    said = capsys.readouterr().out
    assert "(15 rows)" in said  # five algorithms, three sizes
    assert "LIVE gloo · 2 ranks · eager · bfloat16" in said
    assert "vLLM, SGLang and TensorRT-LLM: no threshold for" in said
    assert main(["crossover", "--file", str(path)]) == 0
    again = capsys.readouterr().out
    assert again.startswith(f"FILE {path}")
    assert again.splitlines()[1:] == said.splitlines()[2:]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--recorded", "8xH100"], "must be one of"),
        (["--recorded", BOX, "--ranks", "3"], "no exact, right results for 3"),
        (["--recorded", BOX, "--file", "x"], "must not be given together"),
        (["--recorded", BOX, "--iterations", "3"], "--iterations must not come with"),
        (["--recorded", BOX, "--backend", "gloo", "--csv", "rows.csv"], "--backend, --csv must not come with"),
        (["--recorded", BOX, "--batches", "1,x"], "--batches must be whole numbers above 0"),
        (["--recorded", BOX, "--model", "llama-9"], "llama-9"),
        (["--file", "/nowhere.csv"], "cannot be read"),
        (["--from-size", "2KiB", "--to-size", "1KiB", "--backend", "gloo"], "--from-size must not be above"),
    ],
)
def test_what_cannot_be_is_one_line(arguments, said, capsys):
    assert main(["crossover", *arguments]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert errors[0].startswith("tplab crossover: ")
    assert said in errors[0]
