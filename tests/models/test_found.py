"""Where models are looked for: names in any spelling, folders and headers, and a hub of one's own over HTTP."""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tplab.models.found import hub
from tplab.models.found.headers import read_tensors, stored
from tplab.models.found.named import find_model, preset_called
from tplab.models.spec import ModelConfig, ModelSpec
from tplab.topology import fits

CONFIG: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "vocab_size": 96,
    "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 4096, "torch_dtype": "bfloat16",
}  # fmt: skip
SHAPES = ModelConfig.from_hf(CONFIG).tensor_shapes()
SIZES = {"BF16": 2, "F32": 4, "F8_E4M3": 1, "I32": 4}


def safetensors(shapes=SHAPES, kind="BF16", *, data=True) -> bytes:
    header, at = {}, 0
    for name, shape in shapes.items():
        size = SIZES[kind]
        for n in shape:
            size *= n
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    return len(text).to_bytes(8, "little") + text + bytes(at if data else 0)


def sharded() -> dict[str, bytes]:
    names = list(SHAPES)
    parts = {"model-00001-of-00002.safetensors": names[:9], "model-00002-of-00002.safetensors": names[9:]}
    index = {"weight_map": {name: file for file, held in parts.items() for name in held}}
    files = {file: safetensors({name: SHAPES[name] for name in held}) for file, held in parts.items()}
    return {
        "config.json": json.dumps(CONFIG).encode(),
        "model.safetensors.index.json": json.dumps(index).encode(),
        **files,
    }


def whole(**keys: Any) -> dict[str, bytes]:
    return {"config.json": json.dumps(CONFIG | keys).encode(), "model.safetensors": safetensors()}


def put(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(autouse=True)
def no_hub(monkeypatch, tmp_path):
    """Nothing of this machine's settings, and no network."""
    for name in list(os.environ):
        if name.startswith(("HF_", "HUGGING", "TRANSFORMERS_", "HTTP", "HTTPS", "http", "https", "ALL_PROXY")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("Llama-3.1-70B-Instruct", "llama-3.1-70b"), ("llama3.1 70b", "llama-3.1-70b"), ("GPT3-175B", "gpt-3-175b"),
        ("Meta-Llama-3.1-8B", "llama-3.1-8b"), ("gemma-2-9b-it", "gemma-2-9b"), ("QWEN 2.5 7B", "qwen2.5-7b"),
        ("Llama-2-7b-chat-hf", "llama-2-7b"), ("Mistral-7B-Instruct-v0.1", "mistral-7b-v0.1"),
        ("Qwen/qwen3-32b", "qwen3-32b"), ("Llama-3.1-70B-AWQ", None), ("someone/Llama-3.1-70B", None),
        ("llama-3.1-71b", None), ("", None), ("/", None),
    ],
)  # fmt: skip
def test_presets_in_any_spelling(name, preset):
    assert preset_called(name) == preset


def test_a_name_that_is_nothing_gets_the_nearest():
    with pytest.raises(ValueError, match=r"did you mean .*llama-3\.1-70b"):
        find_model("llama-3.1-71b")


@pytest.mark.parametrize("files", [whole(), sharded()])
def test_a_folder_counts_by_its_headers_as_by_its_configuration(tmp_path, files):
    folder = put(tmp_path / "tiny", files)
    found = find_model(str(folder))
    assert found.name == "tiny"
    spec = ModelSpec.from_config(CONFIG)
    assert found.weights.total_bytes == 2 * spec.total_params
    by_file, by_config = fits(str(folder), "t4"), fits(str(folder / "config.json"), "t4")
    assert by_file.rank.weights == by_config.rank.weights == pytest.approx(2 * spec.total_params)
    assert by_file.notes == by_config.notes


def test_weights_in_float32_count_in_the_type_that_engines_turn_them_into(tmp_path):
    files = whole() | {"model.safetensors": safetensors(kind="F32")}
    assert fits(str(put(tmp_path, files)), "t4").rank.weights == fits(CONFIG, "t4").rank.weights


def test_what_is_there_counts_more_than_what_the_configuration_says(tmp_path):
    folder = put(tmp_path, whole() | {"model.safetensors": safetensors(kind="F8_E4M3")})
    fit = fits(str(folder), "t4")
    assert fit.rank.weights < 0.8 * fits(CONFIG, "t4").rank.weights
    assert any("the files count" in note for note in fit.notes)
    asked = fit.again(precision="int4")
    assert asked.rank.weights == fits(CONFIG, "t4", precision="int4").rank.weights
    assert fit.again(precision="bf16").found.name == fit.found.name


def test_towers_stand_beside_the_language_model(tmp_path):
    shapes = SHAPES | {"vision_tower.layers.0.weight": (1000, 1000)}
    folder = put(tmp_path, whole() | {"model.safetensors": safetensors(shapes)})
    assert fits(str(folder), "t4").rank.weights == fits(CONFIG, "t4").rank.weights + 2e6
    assert fits(str(folder), "t4", 2).again(gpus=2).rank.weights < fits(CONFIG, "t4", 2).rank.weights + 2e6 + 1


def test_a_configuration_is_called_by_its_file_or_its_folder(tmp_path):
    put(tmp_path / "mine", {"config.json": json.dumps(CONFIG).encode(), "yours.json": json.dumps(CONFIG).encode()})
    names = [find_model(str(tmp_path / "mine" / file)).name for file in ("config.json", "yours.json")]
    assert names == ["mine", "yours"]


def test_a_family_that_is_not_known_is_weighed_and_nothing_is_guessed_of_its_cache(tmp_path):
    folder = put(tmp_path / "moe", whole(model_type="mixtral", num_local_experts=8))
    fit = fits(str(folder), "t4")
    assert (fit.fits, fit.max_users, fit.max_tokens) == (None, None, None)
    assert fit.rank.weights == 2 * ModelSpec.from_config(CONFIG).total_params
    assert "mixture of experts" in fit.sentence
    with pytest.raises(ValueError, match="counted all the same, by the headers"):
        fits(str(folder / "config.json"), "t4")
    big = put(
        tmp_path / "big", {"model.safetensors": safetensors({"model.layers.0.w": (100_000, 100_000)}, data=False)}
    )
    with open(big / "model.safetensors", "r+b") as file:
        file.truncate(30 * 10**9)  # a file with a hole: nothing is written, and nothing of it is read
    fit = fits(str(big), "t4")
    assert fit.fits is False
    assert fit.changes
    assert all(fit.again(**change.settings).fits is None for change in fit.changes)
    assert "they do" in fit.sentence  # its weights, not the model
    assert fit.again(**fit.changes[0].settings).changes == ()
    with pytest.raises(ValueError, match="precision must be left out"):
        fits(str(big), "t4", precision="fp8")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "shorter than 8 bytes"),
        (b"\xff" * 8 + b"{}", "header would have"),
        ((10**8).to_bytes(8, "little") + b"{}", "cut short"),
        ((4).to_bytes(8, "little") + b"[[]]", "holds no object"),
        ((4).to_bytes(8, "little") + b"{{{{", "not valid JSON"),
        ((2).to_bytes(8, "little") + b"\xff\xff", "not text in UTF-8"),
        (b"version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS"),
        (safetensors(data=False), "cut short"),
    ]
    + [
        (len(text).to_bytes(8, "little") + text + bytes(64), said)
        for tensor, said in (
            ({"dtype": "F99", "shape": [1], "data_offsets": [0, 1]}, "no type of safetensors"),
            ({"dtype": "U8", "shape": [2], "data_offsets": [0, 1]}, "does not take 1 bytes"),
            ({"dtype": "U8", "shape": [-1], "data_offsets": [0, 1]}, "must have dtype, shape"),
            ({"dtype": "U8", "shape": [True], "data_offsets": [0, 1]}, "must have dtype, shape"),
            ({"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}, "overlap or leave a hole"),
            ({"dtype": "U8", "shape": [2**62] * 50, "data_offsets": [0, 1]}, "does not take"),
            ({"dtype": ["U8"], "shape": [1], "data_offsets": [0, 1]}, "must have dtype, shape"),
            ("x", "must have dtype, shape"),
        )
        for text in [json.dumps({"a": tensor}).encode()]
    ],
)
def test_a_damaged_or_hostile_file_is_refused_by_name(tmp_path, data, said):
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=said) as info:
        find_model(str(path))
    assert "x.safetensors" in str(info.value)


def test_what_lies_elsewhere_is_not_opened(tmp_path):
    for name in ("../x.safetensors", "/etc/passwd", "a\\b.safetensors", "x.bin"):
        index = {"weight_map": {"a": name}}
        folder = put(tmp_path, {"config.json": b"{}", "model.safetensors.index.json": json.dumps(index).encode()})
        with pytest.raises(ValueError, match="no safetensors file beside it"):
            find_model(str(folder))


def test_a_download_that_is_incomplete_says_what_to_do(tmp_path):
    files = sharded()
    del files["model-00002-of-00002.safetensors"]
    with pytest.raises(ValueError, match=r"model-00002-of-00002\.safetensors, which is not there.*config\.json"):
        find_model(str(put(tmp_path, files)))


def test_parts_of_a_download_and_adapters_are_not_taken_for_the_model(tmp_path):
    files = sharded()
    del files["model.safetensors.index.json"], files["model-00002-of-00002.safetensors"]
    with pytest.raises(ValueError, match="1 file of weights, whose names count 2: the download may be incomplete"):
        find_model(str(put(tmp_path / "part", files)))
    files = {"config.json": files["config.json"], "adapter_model.safetensors": safetensors({"a": (2, 2)})}
    assert find_model(str(put(tmp_path / "lora", files))).weights is None


def test_pipes_folders_and_other_formats(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + bytes(64))
    (tmp_path / "b.json").write_bytes(b"GGUF" + bytes(64))
    (tmp_path / "empty").mkdir()
    for name, said in (
        ("pipe.safetensors", "no file of weights"),
        ("folder.safetensors", "config.json or safetensors files"),
        ("a.gguf", "must not be a GGUF file: give the config.json"),
        ("b.json", "weights in GGUF: give the config.json"),
        ("empty", "config.json or safetensors files"),
        ("gone.json", "must be a file that is there"),
        ("gone.safetensors", "must be a file that is there"),
    ):
        with pytest.raises(ValueError, match=said):
            find_model(str(tmp_path / name))


def test_only_the_header_is_read(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors(data=False))
    with open(path, "r+b") as file:
        file.truncate(10**12)
    start = time.perf_counter()
    assert stored([read_tensors(path)]).total_bytes == 2 * ModelSpec.from_config(CONFIG).total_params
    assert time.perf_counter() - start < 1


class Hub:
    """A server that plays the hub, as told."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str | None, str | None]] = []
        """Path, token and range of each request."""
        self.sent = 0
        self.ignores_range = False
        self.redirects_to = ""
        self.status = 0
        self.kind = ""
        self.wait_s = 0.0
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                wanted = self.headers.get("Range")
                hub.asked.append((self.path, self.headers.get("Authorization"), wanted))
                time.sleep(hub.wait_s)
                name = self.path.rpartition("/")[2]
                if hub.status or name not in hub.files:
                    self.send_response(hub.status or 404)
                    self.send_header("X-Error-Code", hub.kind or "EntryNotFound")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                elif hub.redirects_to:
                    self.send_response(302)
                    self.send_header("Location", f"{hub.redirects_to}/{name}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                else:
                    data = hub.files[name]
                    part = bool(wanted) and not hub.ignores_range
                    if part:
                        data = data[: int(str(wanted).rpartition("-")[2]) + 1]
                    self.send_response(206 if part else 200)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    try:
                        for at in range(0, len(data), 1 << 16):
                            self.wfile.write(data[at : at + (1 << 16)])
                            hub.sent += len(data[at : at + (1 << 16)])
                    except OSError:
                        self.close_connection = True

            def log_message(self, *_: Any) -> None:
                """Not to the test's output."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def two_hubs(monkeypatch) -> Iterator[tuple[Hub, Hub]]:
    """The hub that is asked, and another host."""
    pair = Hub(), Hub()
    monkeypatch.setenv("HF_ENDPOINT", pair[0].address + "/")
    yield pair
    for each in pair:
        each.close()


@pytest.fixture
def one_hub(two_hubs) -> Hub:
    return two_hubs[0]


@pytest.mark.parametrize("files", [whole(), sharded()])
def test_a_repository_is_read_by_its_headers_alone(one_hub, files):
    padding = 5_000_000
    one_hub.files = {name: data + bytes(padding * name.endswith("safetensors")) for name, data in files.items()}
    found = find_model("me/tiny")
    assert found.weights.total_bytes == 2 * ModelSpec.from_config(CONFIG).total_params
    assert found.source == f"{one_hub.address}/me/tiny"
    assert fits(found, "t4").rank.weights == fits(CONFIG, "t4").rank.weights
    assert one_hub.sent < 1_000_000
    assert all(wanted for path, _, wanted in one_hub.asked if path.endswith(".safetensors"))


def test_the_address_of_a_page_is_as_good_as_a_name(one_hub):
    one_hub.files = whole()
    for address in (
        "https://huggingface.co/me/tiny",
        f"{one_hub.address}/me/tiny/tree/main",
        "https://hf.co/me/tiny?x=1",
    ):
        assert find_model(address).source == f"{one_hub.address}/me/tiny"
    for address in ("https://example.org/me/tiny", "https://huggingface.co/tiny", "ftp://huggingface.co/me/tiny"):
        with pytest.raises(ValueError, match="must be the name of a model that is known"):
            find_model(address)


def test_a_long_or_odd_text_is_refused_at_once():
    for text in ("x" * 1_000_000, "a/b" * 100_000, "\0", "llama\0", "..", "a/..", "-", "\u202e"):
        start = time.perf_counter()
        with pytest.raises(ValueError, match=r"model must be|model cannot be looked up") as info:
            find_model(text)
        assert time.perf_counter() - start < 2
        assert len(str(info.value)) < 2000


def test_a_server_that_ignores_range_is_not_listened_to(one_hub):
    one_hub.files = whole() | {"model.safetensors": safetensors() + bytes(200_000_000)}
    one_hub.ignores_range = True
    assert find_model("me/tiny").weights.num_tensors == len(SHAPES)
    time.sleep(0.2)
    assert one_hub.sent < 50_000_000  # what the sockets hold


def test_a_header_longer_than_what_is_asked_for_first(one_hub):
    shapes = SHAPES | {f"model.layers.0.some.extra.tensor.of.a.long.name.{i}": (1,) for i in range(3000)}
    one_hub.files = whole() | {"model.safetensors": safetensors(shapes)}
    assert find_model("me/tiny").weights.num_tensors == len(shapes)


def test_the_token_goes_to_the_hub_and_not_to_where_it_redirects(two_hubs, monkeypatch):
    here, there = two_hubs
    monkeypatch.setenv("HF_TOKEN", "hf_secret\n")
    here.files = there.files = whole()
    here.redirects_to = there.address
    assert find_model("me/tiny").weights is not None
    assert {token for _, token, _ in here.asked} == {"Bearer hf_secret"}
    assert {token for _, token, _ in there.asked} == {None}
    here.redirects_to = "ftp://127.0.0.1/x"
    with pytest.raises(ValueError, match="no address of the web"):
        find_model("me/tiny")


def test_a_token_that_would_split_a_header_is_refused(one_hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "a\r\nX-Evil: 1")
    with pytest.raises(ValueError, match="HF_TOKEN must be one word") as info:
        find_model("me/tiny")
    assert "Evil" not in str(info.value)


@pytest.mark.parametrize(
    ("status", "kind", "said"),
    [
        (403, "", "is gated: accept its terms at .*/me/llama-3.1-70b-x, and set HF_TOKEN"),
        (401, "GatedRepo", "is gated"),
        (401, "RepoNotFound", "set HF_TOKEN if it is private"),
        (404, "RepoNotFound", "did you mean llama-3.1-70b"),
        (500, "", "answers with HTTP 500"),
        (429, "", "answers with HTTP 429"),
        (404, "", "neither a config.json nor safetensors"),
    ],
)
def test_what_the_hub_does_not_show_says_what_to_do(one_hub, status, kind, said):
    one_hub.status, one_hub.kind = status, kind
    with pytest.raises(ValueError, match=said):
        find_model("me/llama-3.1-70b-x")


def test_a_slow_hub_is_not_waited_for(one_hub, monkeypatch):
    monkeypatch.setattr(hub, "TIMEOUT_S", 0.2)
    one_hub.files, one_hub.wait_s = whole(), 1.0
    start = time.perf_counter()
    with pytest.raises(ValueError, match=r"did not answer in time\. Give its config\.json"):
        find_model("me/tiny")
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize("before", [b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: "])
def test_a_hub_that_drips_ends_with_the_deadline(monkeypatch, before):
    monkeypatch.setattr(hub, "DEADLINE_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{listening.getsockname()[1]}")
        ended = threading.Event()

        def drip() -> None:
            client, _ = listening.accept()
            with client:
                client.recv(1 << 16)
                client.sendall(before)
                while not ended.wait(0.05):
                    try:
                        client.sendall(b" ")
                    except OSError:
                        return

        threading.Thread(target=drip, daemon=True).start()
        start = time.perf_counter()
        with pytest.raises(ValueError, match="did not answer in time"):
            find_model("me/tiny")
        ended.set()
        assert time.perf_counter() - start < 2


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"<!doctype html><html>", "a web page"),
        (b"[1]", "must hold a JSON object"),
        (b"{", "not valid JSON"),
        (b" " * (5 << 20), "longer than"),
        (b"[" * 5000, "nested too deep|not valid JSON"),
    ],
)
def test_a_mirror_that_answers_nonsense(one_hub, data, said):
    one_hub.files = {"config.json": data}
    with pytest.raises(ValueError, match=said):
        find_model("me/tiny")


def test_headers_that_cannot_be_had_are_counted_by_the_configuration(one_hub):
    one_hub.files = whole() | {"model.safetensors": b"\xff" * 64}
    fit = fits("me/tiny", "t4")
    assert fit.rank.weights == fits(CONFIG, "t4").rank.weights
    assert any("counted by the configuration" in note for note in fit.notes)
    one_hub.files = whole(num_local_experts=8) | {"model.safetensors": b"\xff" * 64}
    with pytest.raises(ValueError, match=r"mixture of experts.*headers of its weights could not be read") as error:
        fits("me/tiny", "t4")
    assert "OWNER/NAME" not in str(error.value)


def cached(tmp_path, files, repo="models--me--tiny"):
    of_it = tmp_path / "home" / "hub" / repo
    put(of_it / "snapshots" / "abc", files)
    put(of_it / "refs", {"main": b"abc"})


def test_a_cached_snapshot_is_taken_before_the_network(tmp_path, one_hub):
    cached(tmp_path, whole())
    assert find_model("me/tiny").weights is not None
    assert one_hub.asked == []


def test_offline_the_cache_answers_and_else_the_preset_of_that_name(tmp_path, one_hub, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    cached(tmp_path, {"config.json": json.dumps(CONFIG).encode()})
    assert find_model("me/tiny").spec.num_layers == 3
    found = find_model("someone/Llama-3.1-70B-Instruct")
    assert found.name == "llama-3.1-70b"
    assert "HF_HUB_OFFLINE is set" in found.notes[0]
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set"):
        find_model("me/other")
    assert one_hub.asked == []


def test_without_a_network_there_is_a_way_out():
    with pytest.raises(ValueError, match=r"cannot be reached .*Give its config\.json or its folder, or a preset"):
        find_model("me/tiny")
    assert find_model("someone/Llama-3.1-70B-Instruct").name == "llama-3.1-70b"


def test_an_endpoint_that_is_none(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "file:///etc")
    with pytest.raises(ValueError, match="HF_ENDPOINT must be an address"):
        find_model("me/tiny")
