"""``tplab fits`` as a command: what it prints where, its exit status, and what it does without."""

import json
import os
import subprocess
import sys
import time

import pytest

from tplab.cli import main
from tplab.topology.machine.machine import Gpu, Link, Machine

HEAVY = ("numpy", "pandas", "torch", "plotly", "ipywidgets", "tqdm", "psutil", "urllib.request", "ssl")


@pytest.fixture(autouse=True)
def no_gpus(monkeypatch):
    core = Gpu(name="cpu core", memory_GB=4.0, hbm_GBps=8.0, bf16_TFLOPS=0.05, kind="cpu")
    link = Link(kind="host", bandwidth_GBps=2.0, latency_us=60.0)
    monkeypatch.setattr(Machine, "detect", lambda: Machine.uniform(core, 2, link))


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ("llama-3.1-8b --gpu h100", 0),
        ("llama-3.1-70b --gpu h100", 1),
        ("llama-3.1-70b --gpu h100 --gpus 4", 0),
        ("llama-3.1-70b --gpu h100 --precision int4", 0),
        ("llama-3.1-70b", 0),
        ("llama-3.1-405b --users 5000", 1),
        ("llama-3.1-71b --gpu h100", 2),
        ("llama-3.1-70b --gpus 4", 2),
        ("llama-3.1-70b --gpu h1000", 2),
    ],
)
def test_the_exit_status_is_for_scripts(words, status, capsys):
    assert main(["fits", *words.split()]) == status
    out, err = capsys.readouterr()
    assert bool(err) == (status == 2)
    assert bool(out) == (status != 2)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--context 200000", "--context must be at most 131,072 tokens"),
        ("--precision fp3", "--precision must be one of"),
        ("--kv fp3", "--kv must be one of"),
        ("--users 0", "--users must be a whole number"),
        ("--gpus 0", "--gpus must be a whole number"),
        ("--engine ollama", "--engine must be one of"),
        ("--gpu-memory-utilization 0", "--gpu-memory-utilization must be a number above 0"),
    ],
)
def test_what_is_refused_is_said_by_its_option(words, said, capsys):
    assert main(["fits", "llama-3.1-8b", "--gpu", "h100", *words.split()]) == 2
    assert said in capsys.readouterr().err


def test_a_home_of_nobody_is_a_folder_that_is_not_there(capsys):
    assert main(["fits", "~nobody-here/model"]) == 2
    assert "there is no folder ~nobody-here" in capsys.readouterr().err


def test_sentence_bar_and_changes(capsys):
    main(["fits", "llama-3.1-70b", "--gpu", "h100"])
    sentence, bar, changes = capsys.readouterr().out.split("\n\n")
    assert sentence.startswith("Llama 3.1 70B in bf16 does not fit on one H100")
    assert "█" in bar
    assert "--pipeline-parallel-size 2" in changes


def test_json(capsys):
    main(["fits", "llama-3.1-70b", "--gpu", "h100", "--json"])
    assert json.loads(capsys.readouterr().out)["fits"] is False
    main(["fits", "llama-3.1-70b", "--json"])
    assert {row["gpu"] for row in json.loads(capsys.readouterr().out)} >= {"h100", "t4"}


def test_without_a_gpu_the_gpus_of_this_machine(monkeypatch, capsys):
    pytest.importorskip("pynvml")
    monkeypatch.setattr(Machine, "detect", lambda: Machine.preset("l40s", gpus=2))
    assert main(["fits", "llama-3.1-8b"]) == 0
    assert "fits on 2 × L40S" in capsys.readouterr().out


def test_only_weights_known_is_neither_yes_nor_no(tmp_path, capsys):
    header = json.dumps({"model.layers.0.x.weight": {"dtype": "BF16", "shape": [64, 64], "data_offsets": [0, 8192]}})
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(8192))
    assert main(["fits", str(file), "--gpu", "t4"]) == 3
    out = capsys.readouterr().out
    assert "is not known here" in out
    assert "What to change" not in out  # nothing is known to be enough
    assert main(["fits", str(file)]) == 3
    assert "?" in capsys.readouterr().out


def run(*words, **env):
    command = [sys.executable, "-m", "tplab.cli", "fits", *words]
    return subprocess.run(command, capture_output=True, check=False, timeout=60, env=os.environ | env)


def test_the_exit_status_counts_where_the_output_is_closed():
    command = [sys.executable, "-m", "tplab.cli", "fits", "llama-3.1-8b", "--gpu", "h100"]
    done = subprocess.run(["sh", "-c", '"$@" >&-', "sh", *command], capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("words", [("llama-3.1-70b", "--gpu", "h100"), ("llama-3.1-70b",)])
def test_ascii_where_the_output_has_no_other_characters(words):
    done = run(*words, PYTHONIOENCODING="ascii")
    assert done.stderr == b""
    assert done.stdout.isascii()
    assert b"?" not in done.stdout
    assert b"\x1b" not in done.stdout


def test_nothing_heavy_is_imported_and_it_is_quick():
    script = (
        "import sys, time; start = time.perf_counter(); from tplab.cli import main; status = main(sys.argv[1:]);"
        f"print(time.perf_counter() - start, status, [name for name in {HEAVY} if name in sys.modules])"
    )
    times = []
    for _ in range(3):
        command = [sys.executable, "-c", script, "fits", "llama-3.1-70b", "--gpu", "h100"]
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        times.append(time.perf_counter() - start)
        assert done.stdout.splitlines()[-1].endswith(" 1 []")
    print(f"tplab fits: {min(times):.2f} s")
    assert min(times) < 2  # 0.2 s on two quiet cores; the machine may be busy


@pytest.mark.parametrize("command", ["--help", "--version", "claims --help"])
def test_other_commands_help_without_what_they_need_later(command):
    script = (
        "import sys\nfrom tplab.cli import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    command_line = [sys.executable, "-c", script, *command.split()]
    done = subprocess.run(command_line, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"
