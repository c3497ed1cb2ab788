"""Values of the wrong type or size in what people download: each refused by the key or the file, within a second.

One line per fault; ``tests/fuzz`` tries many at random.
"""

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tplab import Machine, ModelSpec, Workload, advise
from tplab.cli import main
from tplab.collectives.sweep_plan import parse_bytes
from tplab.models.checkpoint import INDEX, Checkpoint
from tplab.models.records import CheckpointError
from tplab.models.spec import ModelConfig
from tplab.pipeline import Action, Op, Schedule, build_schedule, simulate, validate
from tplab.pipeline.trace import Trace
from tplab.topology.advisor.calibration import Calibration
from tplab.topology.published.benchmarks import beside_vllm, read_vllm
from tplab.topology.published.tables import read_folder

BASE: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
    "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 100, "max_position_embeddings": 4096,
}  # fmt: skip
RESULT = {
    "num_prompts": 160, "completed": 160, "total_input_tokens": 1600, "total_output_tokens": 1600, "max_concurrency": 4,
    "request_throughput": 3.1, "output_throughput": 800.0, "mean_ttft_ms": 50.0, "mean_tpot_ms": 9.0,
}  # fmt: skip
DEEP = "[" * 100_000
CLOSED = "[" * 200 + "]" * 200
ACTIONS = build_schedule("1f1b", 2, 2)


def models(**keys: Any) -> Callable[[Path], Any]:
    return lambda folder: ModelConfig.from_hf(BASE | keys)


def advisor(**keys: Any) -> Callable[[Path], Any]:
    def ask(folder: Path) -> None:
        spec = ModelSpec.from_config(BASE | keys)
        advise(spec, Machine.preset("h100", gpus=8), Workload(input_length=64, output_length=64, concurrency=2))

    return ask


def index(text: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> None:
        (folder / INDEX).write_text(text)
        Checkpoint(folder, ModelConfig.from_hf(BASE))

    return read


def weight_map(file: object) -> Callable[[Path], Any]:
    return index(json.dumps({"weight_map": dict.fromkeys(ModelConfig.from_hf(BASE).tensor_shapes(), file)}))


def file(read: Callable[[Path], Any], content: str | bytes, name: str = "some.json") -> Callable[[Path], Any]:
    def call(folder: Path) -> None:
        data = content.encode() if isinstance(content, str) else content
        (folder / name).write_bytes(data)
        read(folder / name)

    return call


def schedule(text: str) -> Callable[[Path], Any]:
    return lambda folder: validate(Schedule.from_text(text))


def topology(text: str) -> Callable[[Path], Any]:
    return lambda folder: Machine.from_topo(text)


def table(text: str) -> Callable[[Path], Any]:
    return file(lambda path: read_folder(path.parent), text, "table.csv")


def result(**keys: Any) -> Callable[[Path], Any]:
    def read(path: Path) -> None:
        beside_vllm(read_vllm(path), ModelSpec.from_config("llama-3.1-8b"), Machine.preset("h100"), tp=1)

    return file(read, json.dumps(RESULT | keys))


def trace(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], Any]:
    def read(folder: Path) -> None:
        made = Trace.from_spans(ACTIONS, simulate(ACTIONS).spans, measured=True, badge="LIVE").perfetto()
        change(made)
        (folder / "some.json").write_text(json.dumps(made))
        Trace.from_perfetto(folder / "some.json", ACTIONS)

    return read


def spans(**values: Any) -> Callable[[Path], Any]:
    return trace(lambda made: [event.update(values) for event in made["traceEvents"] if event["ph"] == "X"])


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    # The same fault in every reader.
    "config of the advisor, nested": (file(ModelSpec.from_config, DEEP), r"some\.json: the JSON in it is nested too"),
    "config of models, nested": (file(ModelConfig.from_hf, DEEP), r"some\.json: the JSON in it is nested too deep"),
    "result, nested": (file(read_vllm, DEEP), r"some\.json: the JSON in it is nested too deep"),
    "calibration, nested": (lambda folder: Calibration.from_json(DEEP), "a calibration: the JSON in it is nested"),
    "index, nested": (index('{"weight_map":' + DEEP), r"index\.json is damaged: .*nested too deep"),
    "config of the advisor, nested and closed": (file(ModelSpec.from_config, CLOSED), "more than 100 deep"),
    "config of models, a value nested": (file(ModelConfig.from_hf, f'{{"x": {CLOSED}}}'), "more than 100 deep"),
    "config, given nested": (models(x=json.loads(CLOSED)), "the config: .* more than 100 deep"),
    "config, a number of 5,000 digits": (file(ModelConfig.from_hf, '{"a": ' + "1" * 5000 + "}"), "number of 5000 dig"),
    "calibration, a number of 1,000 digits": (file(Calibration.load, "1" * 1000), r"some\.json: .* number of 1000 dig"),
    "config, a zero byte in the path": (lambda folder: ModelConfig.from_hf("a\0b"), "is no path of a file"),
    "config, a path of 300 letters": (lambda folder: ModelConfig.from_hf("a" * 300), "'a.*a' is no path of a file"),
    "advisor, a path of 300 letters": (lambda folder: ModelSpec.from_config("a" * 300), "'a.*a' is no path of a file"),
    "schedule, a path of 300 letters": (lambda folder: Schedule.from_csv("a" * 300), "'a.*a' is no path of a file"),
    "result, binary": (file(read_vllm, bytes(range(256))), r"some\.json is not text in UTF-8"),
    "trace, binary": (file(lambda path: Trace.from_perfetto(path, ACTIONS), b"\x80" * 9), r"some\.json is no trace"),
    "table, binary": (file(lambda path: read_folder(path.parent), b"\x80,\n", "t.csv"), r"t\.csv is not text in UTF-8"),
    # Configurations.
    "10^9 + 7 heads": (advisor(num_attention_heads=10**9 + 7, head_dim=64, num_key_value_heads=1), "num_attention_he"),
    "65,521 heads": (advisor(num_attention_heads=65521, head_dim=2, num_key_value_heads=1, intermediate_size=65521,
                             num_hidden_layers=10_000, hidden_size=1 << 20), "does not fit on"),
    "hidden 10^18": (advisor(hidden_size=10**18, head_dim=64), "hidden_size must be a whole number from 1 to"),
    "vocabulary 10^30": (advisor(vocab_size=10**30), "vocab_size must be a whole number from 1 to"),
    "vocabulary 10^5000": (advisor(vocab_size=10**5000), "vocab_size must be .* from 1 to .* some 4,983 digits"),
    "layer_types 1, advisor": (advisor(layer_types=1), "layer_types must be a list"),
    "layer_types too few, advisor": (advisor(layer_types=["full_attention"], sliding_window=3), "layer_types must"),
    "layer_types too few, models": (models(layer_types=["full_attention"]), "layer_types must be 3 times"),
    "sizes as text": (models(num_hidden_layers="3", hidden_size="64"), "hidden_size must be a whole number"),
    "size as 64.0": (models(hidden_size=64.0), r"hidden_size must be a whole number .* got 64\.0"),
    "0 heads": (models(num_attention_heads=0), "num_attention_heads must be a whole number"),
    "head_dim []": (models(head_dim=[]), r"head_dim must be a whole number .* got \[\]"),
    "rope_parameters 3": (models(rope_parameters=3), "rope_parameters must be an object"),
    "rope_scaling []": (models(rope_scaling=[]), r"rope_scaling must be an object; got \[\]"),
    "rope_type {}": (models(rope_scaling={"rope_type": {}}), "rope_type of rope_scaling must be a text"),
    "factor NaN": (models(rope_scaling={"type": "linear", "factor": float("nan")}), "factor of rope_scaling must be"),
    "factor 10^300": (advisor(rope_scaling={"type": "yarn", "factor": 1e300}), "factor of rope_scaling must be"),
    "rope_theta as text": (models(rope_theta="1e4"), "rope_theta must be a number"),
    "eos_token_id {}": (models(eos_token_id={}), "eos_token_id must be a whole number"),
    "eos_token_id [[1]]": (models(eos_token_id=[[1]]), "eos_token_id must be a whole number"),
    "10^18 layers": (models(model_type="mistral", num_hidden_layers=10**18), "layers must be .* from 1 to 10,000"),
    "torch_dtype 7, models": (models(torch_dtype=7), "torch_dtype must be a text"),
    "torch_dtype 7, advisor": (advisor(torch_dtype=7), "torch_dtype must be a text"),
    "tie_word_embeddings as text, models": (models(tie_word_embeddings="false"), "tie_word_embeddings must be true"),
    "tie_word_embeddings as text, advisor": (advisor(tie_word_embeddings="false"), "tie_word_embeddings must be true"),
    "quantization_config x": (models(quantization_config="x"), "quantization_config: quantised"),
    "quant_method 3": (advisor(quantization_config={"quant_method": 3}), "quant_method must be a text"),
    "model_type {}": (advisor(model_type={}), "model_type must be a text"),
    "an unknown key of a million letters": (models(**{"k" * 10**6: "x" * 10**6}), "kkk.* is not known here"),
    # Checkpoints.
    "index, a file name of 300 letters": (weight_map("a" * 300), "aaa.* named in .*, but not there"),
    "index, out of the folder": (weight_map("../secret"), "must be in a file of this folder, .* got '../secret'"),
    "index, an absolute path": (weight_map("/etc/passwd"), "must be in a file of this folder, .* got '/etc/passwd'"),
    "index, the folder above": (weight_map(".."), r"must be in a file of this folder, .* got '\.\.'"),
    "index, 3 for a file": (weight_map(3), "must be in a file of this folder, .* got 3"),
    "index, a list": (index('{"weight_map": []}'), r"weight_map must be an object, got \[\]"),
    # Schedules.
    "a cell of 200,000 letters": (schedule("0F0," + "x" * 200_000), r"row 1 \(rank 0\): field larger"),
    "an id of 20 digits": (schedule("99999999999999999999F0"), "ids .* at most 9 digits; got '9+F0'"),
    "stage 9999999": (schedule("9999999F0"), "9999999F0 makes it a table of 10,000,000 stages"),
    "micro-batch 999999999": (schedule("0F0,1F999999999"), "1F999999999 makes it a table .* mistyped"),
    "stage 1023, micro-batch 1023": (schedule("1023F1023"), "1023F1023: of 1,024 stage ids up to its own, 1 occur"),
    "10,000 ranks": (schedule("0F0\n" * 10_000), "row 4097: the table has more than 4,096 rows"),
    "two million cells": (schedule("0F0" + "," * 2_000_000), "row 1: the table has more than"),
    "a schedule of 10^12 micro-batches": (
        lambda folder: Schedule(name="x", num_stages=1, num_micro_batches=10**12, ranks=((),)),
        "num_micro_batches must be .* from 1 to 1,048,576; got 10"),
    "an action of 10^30": (
        lambda folder: validate(Schedule(name="x", num_stages=1, num_micro_batches=1,
                                         ranks=((Action(10**30, Op.F, 0),),))), "more than 64 bits"),
    # Topologies.
    "30,000 columns": (topology(" ".join(f"GPU{i}" for i in range(30_000))), "line 1: the header lists 30,000"),
    "a million lines": (topology("\n" * 1_000_000 + "GPU0\nGPU0 X"), "1,000,001 lines"),
    "9,000 lines after columns": (topology(" ".join(f"GPU{i}" for i in range(200)) + "\nx" * 9000), "is .* cut off"),
    "a bond of 10^5000": (topology("GPU0 GPU1\nGPU0 X NV" + "9" * 5000 + "\nGPU1 NV1 X"), "line 2: .* no link"),
    "a bond of none": (topology("GPU0 GPU1\nGPU0 X NV0\nGPU1 NV0 X"), "line 2: .*'NV0' is no link"),
    "10^9 nodes": (lambda _: Machine.preset("h100", nodes=10**9), "nodes must be .* from 1 to 512; got 1000000000"),
    # Results, calibrations, traces, tables.
    "result, a list for a number": (result(mean_ttft_ms=[1]), r"mean_ttft_ms must be a number .*; got \[1\]"),
    "result, true for a number": (result(mean_ttft_ms=True), "mean_ttft_ms must be a number .*; got True"),
    "result, 10^300 tokens": (result(total_input_tokens=1e300), "total_input_tokens must be a number of at least 0"),
    "result, 10^14 tokens a request": (result(total_input_tokens=1e15, completed=1), r"input_length must .*some\.json"),
    "result, a model_id {}": (result(model_id={}), "model_id must be a text"),
    "result, half a GPU": (result(tp=0.5), "tp must be a whole number"),
    "result, 20,000 of them": (file(read_vllm, "{}" * 20_000), r"some\.json is not valid JSON: more than 500 doc"),
    "calibration, a size NaN": (
        file(Calibration.load, json.dumps({"format": "tplab-calibration/1", "machine": "", "device": "", "backend": "",
             "num_ranks": 2, "created": "", "versions": {},
             "sends": [{"source": 0, "target": 1, "nbytes": [float("nan")], "p50_us": [1]}]})), r"sends\[0\]: nbytes"),
    "calibration, 10^18 ranks": (
        file(Calibration.load, json.dumps({"format": "tplab-calibration/1", "machine": "", "device": "", "backend": "",
             "num_ranks": 10**17, "created": "", "versions": {}})), "num_ranks must lie between 1 and 512"),
    "trace, a rank []": (spans(pid=[]), r"pid of .* must be a whole number of at least 0; got \[\]"),
    "trace, a start NaN": (spans(ts=float("nan")), "ts and dur of"),
    "trace, a name 3": (spans(name=3), r"some\.json is no trace"),
    "trace, provenance {}": (trace(lambda made: made["otherData"].update(torch={})), "otherData holds more than"),
    "table, 30,000 columns": (table(",".join(map(str, range(30_000)))), r"table\.csv .* 30,000 columns"),
    "table, empty": (table(""), r"table\.csv cannot be read as a table"),
    "table, rows of unequal length": (table("model,gpu,tp,pp,isl,osl,throughput\n1,2\n" + "1," * 20),
                                      r"table\.csv cannot be read as a table"),
    # What is typed.
    "a size of 5,000 digits": (lambda folder: parse_bytes("--to-size", "1" * 5000), "--to-size must be a positive"),
    "a size of 10^15 GiB": (lambda folder: parse_bytes("--to-size", "1" * 15 + "GiB"), "--to-size .* at most 1024GiB"),
    "10^30 tokens": (lambda folder: Workload(input_length=10**30, output_length=1, concurrency=1), "input_length must"),
    "10^300 requests a second": (
        lambda folder: Workload(input_length=1, output_length=1, request_rate=1e300),
        "request_rate must be a number above 0 and at most",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_refused_by_name_within_a_second(name: str, tmp_path: Path) -> None:
    call, message = FAULTS[name]
    began = time.process_time()
    with pytest.raises(ValueError, match=message) as caught:
        call(tmp_path)
    assert time.process_time() - began < 1.0
    assert len(str(caught.value)) < 3000


def test_rows_of_a_table_that_cannot_be_are_counted_by_column(tmp_path: Path) -> None:
    head = "model,gpu,tp,isl,osl,throughput"
    good, *bad = "1,128,128,900", "1e18,128,128,900", "-1,128,128,900", "1.5,128,128,900", "1,9e99,128,900", "x,1,1,9"
    rows = [f"llama-3.1-8b,{gpu},{row}" for gpu in ("h100", "gb200") for row in (good, *bad)]
    (tmp_path / "table.csv").write_text("\n".join([head, *rows]))
    tables = read_folder(tmp_path)
    assert len(tables.cases) == 2
    assert sum(tables.skipped.values()) == 10
    assert all(reason.startswith(("tp must be", "isl must be")) for reason in tables.skipped)


def test_a_named_pipe_is_read_like_a_file(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=lambda: path.write_text(json.dumps(BASE)))
    writer.start()
    assert ModelConfig.from_hf(path).num_layers == 3
    writer.join()


def test_a_named_pipe_that_nobody_writes_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tplab.files._PIPE_PATIENCE_S", 0.05)
    os.mkfifo(tmp_path / "config.json")
    for read in (ModelConfig.from_hf, ModelSpec.from_config, Schedule.from_csv, read_vllm, Calibration.load):
        with pytest.raises(ValueError, match=r"config\.json: nothing came out of this pipe"):
            read(tmp_path / "config.json")


def test_an_index_may_name_links_as_caches_have_them(tmp_path: Path) -> None:
    """Hugging Face's cache: plain names in ``snapshots``, links to ``blobs`` beside it."""
    from tplab.models.checkpoint import RandomWeights, save_checkpoint

    config = ModelConfig.from_hf(BASE)
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    for number, path in enumerate(save_checkpoint(blobs, config, RandomWeights(config), max_shard_bytes=60_000)):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(Path("..", "..", "blobs", str(number)))
    (blobs / INDEX).rename(snapshot / INDEX)
    source = Checkpoint(snapshot, config)
    with source.open("model.norm.weight") as full:
        assert full[:].shape == (64,)
    (snapshot / path.name).unlink()
    with pytest.raises(CheckpointError, match=rf"{path.name} is named in .*, but not there"):
        Checkpoint(snapshot, config)


@pytest.mark.parametrize("content", [None, b"", b"{", b"[" * 100_000, b"\xff\xfe", b'{"model": 3}'])
def test_a_tokenizer_that_cannot_be_read(content: bytes | None, tmp_path: Path) -> None:
    from tplab.models.generation import _tokenizer
    from tplab.models.records import Weights

    (tmp_path / "config.json").write_text(json.dumps(BASE))
    if content is not None:
        (tmp_path / "tokenizer.json").write_bytes(content)
    _, weights = Weights.of(tmp_path)
    with pytest.raises(CheckpointError, match=f"no tokenizer can be read from {tmp_path}: "):
        _tokenizer(weights)


@pytest.mark.parametrize(
    "words",
    [
        ["--input", "9" * 30],
        ["--nodes", "1000000000"],
        ["--rate", "1e300"],
        ["--tpot-limit-ms", "nan"],
        ["--most", "x"],
    ],
)
def test_numbers_typed_on_the_command_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status: Any = main(["advise", "--model", "qwen3-0.6b", "--machine", "h100", *words])
    except SystemExit as end:
        status = end.code
    assert status == 2
    assert words[0] in capsys.readouterr().err.splitlines()[-1]
