"""Every writer of the house on a disk that is full, is interrupted or forbids it: the earlier file stays whole, nothing
is left beside it, the error names the file, and what was measured is printed."""

import errno
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import nbformat
import pandas as pd
import pytest

import tplab.cluster
from tests.notebooks import store_outputs
from tests.test_files_writing import no_larger_than
from tplab import files
from tplab.cli import main
from tplab.models.checkpoint import INDEX, Checkpoint, RandomWeights, save_checkpoint
from tplab.models.records import CheckpointError
from tplab.models.spec import ModelConfig
from tplab.pipeline import build_schedule, simulate
from tplab.topology.advisor.calibration import AllReduceTimes, Calibration
from tplab.topology.advisor.calibration import MatmulTimes as Matmul
from tplab.topology.verification import box

EARLIER = "the earlier one\n"
MADE = Calibration(
    machine="two", device="a CPU", backend="gloo", num_ranks=2, created="2026-11-24T12:00:00+00:00", versions={},
    all_reduce=(AllReduceTimes(num_ranks=2, nbytes=(1e3, 1e6), p50_us=(200.0, 2468.0), gpus=(0, 1)),),
    matmuls=(Matmul(precision="bf16", tokens=(1, 1), params=(1e4, 1e6), p50_us=(10.0, 500.0)),),
)  # fmt: skip
CONFIG = ModelConfig(
    model_type="llama", vocab_size=64, hidden_size=16, intermediate_size=16, num_layers=2, num_heads=2,
    num_kv_heads=2, head_dim=8, max_positions=16,
)  # fmt: skip


def store(path):
    store_outputs.store(path, draw=None)


def checkpoint(path):
    save_checkpoint(path.parent, CONFIG, RandomWeights(CONFIG))


# The name of the file, and what writes it at a path.
FUNCTIONS = {
    "write_text": ("a.txt", lambda path: files.write_text(path, "x" * 4000)),
    "schedule": ("table.csv", lambda path: build_schedule("1f1b", 4, 400).to_csv(path)),
    "trace": ("trace.json", lambda path: simulate(build_schedule("gpipe", 2, 8)).to_perfetto(path)),
    "calibration": ("calibration.json", lambda path: MADE.save(path)),
    "notebook": ("a.ipynb", store),
    "checkpoint": ("model.safetensors", checkpoint),
}


@pytest.fixture(autouse=True)
def no_kernel(monkeypatch):
    """A notebook that ran, with a long output."""

    def client(notebook, **_):
        notebook.cells[0].outputs = [nbformat.v4.new_output("stream", text="x" * 4000)]
        return SimpleNamespace(execute=lambda: None)

    monkeypatch.setattr(store_outputs, "NotebookClient", client)


def listed(folder):
    """Everything in the folder, hidden or not."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def failing(call, error):
    """At the last moment, when everything was written: ``call`` of the system raises ``error``."""

    def fail(*_):
        raise error

    @contextmanager
    def context():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(files.os, call, fail)
            yield

    return context


FAULTS = {
    "full": (lambda: no_larger_than(300), Exception),
    "full at the end": (failing("fsync", OSError(errno.ENOSPC, "No space left on device")), Exception),
    "forbidden": (failing("open", PermissionError(errno.EACCES, "Permission denied")), Exception),
    "interrupted": (failing("fsync", KeyboardInterrupt()), KeyboardInterrupt),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("writer", FUNCTIONS)
def test_functions(tmp_path, writer, fault):
    name, write = FUNCTIONS[writer]
    path = tmp_path / name
    if writer == "notebook":
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")]), path)
    else:
        path.write_text(EARLIER)
    before = listed(tmp_path)
    context, kind = FAULTS[fault]
    with pytest.raises(kind) as caught, context():
        write(path)
    assert listed(tmp_path) == before
    if kind is Exception:
        assert isinstance(caught.value, CheckpointError if writer == "checkpoint" else OSError)
        assert str(tmp_path if writer == "checkpoint" else path) in str(caught.value)
    write(path)
    assert path.read_bytes() != before[name]


@pytest.mark.parametrize("fault", [name for name in FAULTS if name != "forbidden"])  # safetensors opens files itself
def test_an_earlier_checkpoint_of_several_files_stays_one(tmp_path, fault):
    save_checkpoint(tmp_path, CONFIG, RandomWeights(CONFIG), max_shard_bytes=3000)
    before = listed(tmp_path)
    assert INDEX in before
    context, kind = FAULTS[fault]

    class Late:
        """Tensors of another seed; the fault comes at the last."""

        def __init__(self):
            self.source, self.left = RandomWeights(CONFIG, seed=1), len(CONFIG.tensor_shapes())
            self.fault = context()

        def open(self, name):
            self.left -= 1
            if self.left == 0:
                self.fault.__enter__()
            return self.source.open(name)

    late = Late()
    try:
        with pytest.raises(kind):
            save_checkpoint(tmp_path, CONFIG, late, max_shard_bytes=3000)
    finally:
        late.fault.__exit__(None, None, None)
    assert listed(tmp_path) == before
    Checkpoint(tmp_path, CONFIG)


def test_a_checkpoint_over_the_one_it_is_read_from(tmp_path):
    save_checkpoint(tmp_path, CONFIG, RandomWeights(CONFIG))
    before = listed(tmp_path)
    save_checkpoint(tmp_path, CONFIG, Checkpoint(tmp_path, CONFIG))
    assert listed(tmp_path) == before


@pytest.fixture
def on_warm_ranks(cluster2, monkeypatch):
    """The commands' own ranks would only take longer; calibration takes half a minute."""
    for module in (tplab.cluster, box):
        monkeypatch.setattr(module, "Cluster", lambda *_: nullcontext(cluster2))
    monkeypatch.setattr(
        "tplab.topology.calibration.run.submit_calibrate", lambda *_, **__: SimpleNamespace(result=lambda: MADE)
    )


SWEEP = ("sweep", "--to-size", "2KiB", "--iterations", "2", "--out", "{folder}/sweep.csv")
# What is printed, and the command.
COMMANDS = {
    "sweep": ("sweep.csv", "torch_version", SWEEP),
    "calibrate": ("calibration.json", "2468.0", ("calibrate", "--out", "{folder}/calibration.json")),
    "advise": (
        "table.csv", "tokens_per_s",
        ("advise", "--model", "llama-3.1-8b", "--machine", "h100", "--csv", "{folder}/table.csv"),
    ),
    "box": ("point_to_point.csv", "latency_us", ("box", "{folder}", "--steps", "links,pipeline")),
}  # fmt: skip
BESIDE = {"sweep": ["sweep.html"], "box": ["links.csv", "pipeline.csv", "pipeline-gpipe.json.gz"]}


@pytest.mark.usefixtures("on_warm_ranks")
@pytest.mark.parametrize("fault", ["full at the end", "interrupted"])
@pytest.mark.parametrize("command", COMMANDS)
def test_commands(tmp_path, capsys, command, fault):
    name, printed, words = COMMANDS[command]
    for file in (name, *BESIDE.get(command, ())):
        (tmp_path / file).write_text(EARLIER)
    before = listed(tmp_path)
    with FAULTS[fault][0]():
        status = main([word.format(folder=tmp_path) for word in words])
    out, err = capsys.readouterr()
    assert listed(tmp_path) == before
    assert "Traceback" not in err
    if fault == "interrupted":
        assert (status, err.splitlines()[-1]) == (130, f"tplab {command}: interrupted")
        return
    assert status == 2
    assert printed in out
    assert str(tmp_path / name) in err
    assert "No space left on device (make room, or write to another disk)" in err


@pytest.mark.usefixtures("on_warm_ranks")
def test_the_steps_of_a_box_before_and_after_the_disk_was_full(tmp_path, monkeypatch):
    """Links can be written, the first pipeline cannot: the files of the first step are there, the others are said."""
    real, calls = files.os.fsync, []

    def once_full(fd):
        calls.append(fd)
        if len(calls) == 4:  # after point_to_point.csv, and links.csv twice
            raise OSError(errno.ENOSPC, "No space left on device")
        real(fd)

    monkeypatch.setattr(files.os, "fsync", once_full)
    said = []
    with pytest.raises(OSError, match=r"make room.*pipeline-forward-only\.json\.gz"):
        box.measure_box(tmp_path, num_ranks=2, steps=["links", "pipeline"], say=said.append)
    there = ["links.csv", "pipeline-1f1b.json.gz", "pipeline-gpipe.json.gz", "pipeline.csv", "point_to_point.csv"]
    assert sorted(path.name for path in tmp_path.iterdir()) == there
    assert len(pd.read_csv(tmp_path / "pipeline.csv")) == 3
    assert any("pipeline-forward-only.json.gz cannot be written" in line and "traceEvents" in line for line in said)


@pytest.mark.usefixtures("on_warm_ranks")
def test_a_fault_in_the_middle_of_a_sweep_and_a_full_disk_are_both_said(tmp_path, capsys, monkeypatch):
    from tplab.collectives import sweep as sweeps

    real = sweeps.submit_sweep

    def submit(*arguments, **options):
        run = real(*arguments, **options)
        run.result()

        def interrupted():
            raise KeyboardInterrupt

        return SimpleNamespace(result=interrupted, reports=run.reports)

    monkeypatch.setattr(sweeps, "submit_sweep", submit)
    words = [word.format(folder=tmp_path) for word in SWEEP]
    with FAULTS["full at the end"][0]():
        assert main(words) == 130
    out, err = capsys.readouterr()
    assert "torch_version" in out
    assert [line.split(":")[0] for line in err.splitlines() if line.startswith("tplab")] == ["tplab sweep"] * 2
    assert list(tmp_path.iterdir()) == []
    assert main(words) == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sweep.csv", "sweep.html"]


@pytest.mark.usefixtures("on_warm_ranks")
def test_a_figure_that_cannot_be_written_beside_rows_that_can(tmp_path, capsys, monkeypatch):
    real, calls = files.os.replace, []

    def once(*paths):
        calls.append(paths)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*paths)

    monkeypatch.setattr(files.os, "replace", once)
    assert main([word.format(folder=tmp_path) for word in SWEEP]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.csv"]
    assert f"{tmp_path}/sweep.html cannot be written" in capsys.readouterr().err


def no_ranks(*_):
    raise AssertionError("ranks were started although the file cannot be written")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ((*SWEEP[:-1], "{folder}/gone/a.csv"), "gone/a.csv"),
        ((*SWEEP[:-1], "{folder}"), "it is a folder"),
        ((*SWEEP[:-1], "{folder}/a.html"), "must not end in .html"),
        ((*SWEEP[:-1], "{folder}/page.csv"), "page.html"),
        (("calibrate", "--out", "{folder}/gone/a.json"), "gone/a.json"),
        (("box", "{folder}", "--steps", "links"), "links.csv"),
        (("box", "{folder}", "--steps", "layouts"), "calibration.json"),
        (("box", "{folder}/file"), "cannot be made a folder"),
        (("advise", "--model", "llama-3.1-8b", "--csv", "{folder}/gone/a.csv"), "gone/a.csv"),
        (("validate", "{folder}", "--csv", "{folder}/gone/a.csv"), "gone/a.csv"),
    ],
)
def test_commands_ask_before_they_measure(tmp_path, capsys, monkeypatch, words, named):
    for module in (tplab.cluster, box):
        monkeypatch.setattr(module, "Cluster", no_ranks)
    for name in ("page.html", "links.csv", "calibration.json"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").touch()
    before = sorted(path.name for path in tmp_path.iterdir())
    assert main([word.format(folder=tmp_path) for word in words]) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert named in err
    assert sorted(path.name for path in tmp_path.iterdir()) == before
