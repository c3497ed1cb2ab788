"""What a user gives is read as it was meant, or refused by name."""

import gzip
import io
import json
import zipfile
from pathlib import Path

import pytest

from tplab.files import MAX_BYTES, parse_json, parse_json_documents, read_bytes, read_json, read_text
from tplab.frames import read_frame
from tplab.models.spec import ModelConfig
from tplab.shown import check_depth, listed, shown
from tplab.topology.advisor.calibration import Calibration

TEXT = "GPU0 naïve 有\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_byte_order_marks_are_no_part_of_the_text(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "some.txt"
    path.write_text(TEXT, encoding=encoding)
    assert read_text(path) == TEXT


def test_what_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "some.txt"
    path.write_bytes(b"abc\xff\xfe")
    with pytest.raises(ValueError, match=r"some\.txt is not text in UTF-8 \(invalid start byte at byte 3\): save it"):
        read_text(path)
    assert read_text(path, errors="replace").startswith("abc")


def test_too_long_a_folder_and_nothing(tmp_path: Path) -> None:
    (tmp_path / "some.txt").write_bytes(bytes(1001))
    assert len(read_bytes(tmp_path / "some.txt", limit=1001)) == 1001
    with pytest.raises(ValueError, match=r"some\.txt is longer than 1,000 bytes"):
        read_bytes(tmp_path / "some.txt", limit=1000)
    with pytest.raises(IsADirectoryError, match="it is a folder, not a file"):
        read_bytes(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_bytes(tmp_path / "none")
    for path in ("a\0", "a" * 300):
        with pytest.raises(ValueError, match="is no path of a file"):
            read_bytes(path)


def test_json(tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    path.write_text('{"a": [1, 1764312345123456789, 1.5e3, null]}')
    assert read_json(path) == {"a": [1, 1764312345123456789, 1500.0, None]}
    assert parse_json("[" * 99 + "]" * 99, "it")
    for text, message in (
        ("{", "it is not valid JSON: Expecting"),
        (str(1 << 63), "it is not valid JSON: a whole number of 19 digits, more than 64 bits hold"),
        ("9" * 20, "it is not valid JSON: a whole number of 20 digits"),
        ("-" + "1" * 5000, "it is not valid JSON: a whole number of 5000 digits"),
        ("[" * 101 + "]" * 101, "it: lists and objects in it are nested more than 100 deep"),
        ('{"a":' * 100_000, "it: the JSON in it is nested too deep"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_json(text, "it")


def test_a_mark_in_a_text_that_was_read_as_it_is() -> None:
    assert parse_json('\ufeff{"a": 1}', "it") == {"a": 1}
    assert parse_json_documents('\ufeff{"a": 1} 2', "it", most=2) == [{"a": 1}, 2]


def test_weights_that_were_not_fetched(tmp_path: Path) -> None:
    from tplab.models.checkpoint import Checkpoint, RandomWeights, save_checkpoint
    from tplab.models.records import CheckpointError

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = ModelConfig.from_hf({"model_type": "llama", "vocab_size": 100, "max_position_embeddings": 64, **sizes})
    (file,) = save_checkpoint(tmp_path, config, RandomWeights(config))
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    message = r"model\.safetensors is a pointer of Git LFS.*git lfs pull"
    with pytest.raises(CheckpointError, match=message), Checkpoint(tmp_path, config).open("model.norm.weight"):
        pass


def test_one_document_after_the_other() -> None:
    assert parse_json_documents(' {"a": 1}\n[2] 3\r\n\t', "it", most=3) == [{"a": 1}, [2], 3]
    assert parse_json_documents("", "it", most=3) == []
    with pytest.raises(ValueError, match="it is not valid JSON: more than 2 documents in one file"):
        parse_json_documents("1 2 3", "it", most=2)
    with pytest.raises(ValueError, match="it is not valid JSON: Expecting value"):
        parse_json_documents('{"a": 1} x', "it", most=2)


def test_tables(tmp_path: Path) -> None:
    path = tmp_path / "some.csv"
    path.write_text("# said first\n\na,b\n1,x\n2,\n", encoding="utf-8-sig")
    assert read_frame(path, comment="#").to_dict("list")["a"] == [1, 2]
    assert list(read_frame(path, comment="#", rows=0).columns) == ["a", "b"]
    path.write_text("# said first\n" + "a," * 2000)
    with pytest.raises(ValueError, match=r"some\.csv cannot be read as a table: it has 2,001 columns, more than 1,000"):
        read_frame(path, comment="#")
    with pytest.raises(ValueError, match=r"none\.csv cannot be read: No such file"):
        read_frame(tmp_path / "none.csv")


def test_values_in_errors_are_short_whatever_they_are() -> None:
    assert (shown("fp3"), shown([2, 4]), shown({"weights": 8})) == ("'fp3'", "[2, 4]", "{'weights': 8}")
    endless: list[object] = []
    endless.append(endless)
    deep = json.loads("[" * 900 + "]" * 900)
    for value in (endless, deep, "x" * 10**6, list(range(10**5)), {i: i for i in range(10**5)}, 10**5000, -(10**5000)):
        assert len(shown(value)) < 200
    assert listed("abcdef") == "a, b, c, d and 2 more"
    assert len(listed(["x" * 10**6] * 10**4)) < 400
    for value in (endless, deep):
        with pytest.raises(ValueError, match="it: lists and objects in it are nested more than 100 deep"):
            check_depth(value, "it")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32"])
def test_encodings_of_other_systems(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "some.json").write_bytes('{"hidden": 64, "of": "naïve"}\r\n'.encode(encoding))
    assert read_json(tmp_path / "some.json") == {"hidden": 64, "of": "naïve"}


def test_ends_of_lines(tmp_path: Path) -> None:
    (tmp_path / "some.txt").write_bytes(b"a\r\nb\rc\n")
    assert read_text(tmp_path / "some.txt") == "a\nb\nc\n"


@pytest.mark.parametrize("name", ["some.json.gz", "SOME.JSON.GZ"])
@pytest.mark.parametrize(
    "data",
    [
        gzip.compress(b'{"hidden": 64}'),
        gzip.compress(b'{"hidden"') + gzip.compress(b": 64}") + bytes(512),
        b'{"hidden": 64}',
    ],
    ids=["packed", "in two parts, filled up", "not packed"],
)
def test_gzip_files_by_their_name_and_beginning(data: bytes, name: str, tmp_path: Path) -> None:
    """Browsers may unpack what they fetch and keep the name."""
    (tmp_path / name).write_bytes(data)
    assert read_json(tmp_path / name) == {"hidden": 64}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (gzip.compress(b'{"hidden": 64}' * 100)[:-9], "is no whole gzip file: its end is missing"),
        (gzip.compress(b'{"hidden": 64}')[:12] + bytes(30), "is no whole gzip file"),
        (b"\x1f\x8b", "is no whole gzip file"),
        (gzip.compress(b"") * 100_000, "is more than 16 gzip files in one"),
        (gzip.compress(bytes(MAX_BYTES + 1)), r"is longer than [\d,]+ bytes when it is unpacked"),
        (gzip.compress(gzip.compress(b"{}")), "is packed with gzip"),
    ],
)
def test_gzip_files_that_are_none(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "some.json.gz").write_bytes(data)
    for read in (read_text, read_json, Calibration.load, ModelConfig.from_hf):
        with pytest.raises(ValueError, match=rf"some\.json\.gz {message}"):
            read(tmp_path / "some.json.gz")


def packed(name: str) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("[Content_Types].xml", "")
        archive.writestr(name, "x")
    return made.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (gzip.compress(b"{}"), r"is packed with gzip: unpack it first"),
        (packed("a.csv"), "is a zip archive: unpack it"),
        (packed("xl/workbook.xml"), "is an Excel workbook: save the sheet as 'CSV UTF-8'"),
        (b"PAR1\x15\x04", "is a Parquet table: write it as CSV"),
        ((80).to_bytes(8, "little") + b'{"__metadata__":{}}', r"is weights in safetensors: give the config\.json"),
        (b"\n<!DOCTYPE html>\n<html><body>GPU0</body></html>", r"is a web page \(HTML\): take the file itself"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "is a pointer of Git LFS.*lfs pull"),
        (b"404: Not Found", r"is an answer of a server \(404: Not Found\), not the file"),
        (b'{"error":"Entry not found"}', "is an answer of a server"),
        (b'{"payload":{"repo":{"id":1},"blob":{"rawLines":["{"]}}}', "is GitHub's page about a file: take"),
        ("Temperatur 40 °C".encode("latin-1"), r"is not text in UTF-8 .*: save it as such; it is line 1"),
    ],
)
def test_something_else_under_the_name(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "some.json").write_bytes(data)
    for read in (read_text, read_json, read_frame, Calibration.load, ModelConfig.from_hf):
        with pytest.raises(ValueError, match=rf"some\.json {message}"):
            read(tmp_path / "some.json")


def test_a_name_that_is_like_another(tmp_path: Path) -> None:
    (tmp_path / "bench.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"did you mean bench\.json\?"):
        read_text(tmp_path / "bench.jsn")
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        read_text(tmp_path / "nowhere" / "bench.json")


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ('{"a": 1,}', "no comma before a closing bracket"),
        ('{"a": 1 // one\n}', "JSON has no comments"),
        ("{'a': 1}", "what Python prints"),
        ('{"a": True}', "what Python prints"),
        ('{"a": [1, 2', "cut off"),
        ('{"a": 1}\n{"a": 2}', "one JSON per line"),
        ("  \n", "the file is empty"),
    ],
)
def test_what_is_wrong_with_the_json(text: str, hint: str) -> None:
    with pytest.raises(ValueError, match=rf"it is not valid JSON: .*{hint}"):
        parse_json(text, "it")


@pytest.mark.parametrize(
    "text",
    [
        "name,ms,n\na,1.5,3\nb,20.25,4\n",
        "name;ms;n\na;1,5;3\nb;20,25;4\n",
        "name;ms;n\r\na;1.5;3\r\nb;20.25;4\r\n\r\n",
        "sep=;\nname;ms;n\na;1,5;3\nb;20,25;4\n",
        "name\tms\tn\na\t1.5\t3\nb\t20.25\t4",
        '"name","ms","n"\n"a","1.5","3"\n"b","20.25","4"\n',
        "name,ms,n,\na,1.5,3,\nb,20.25,4,\n\n",
        "name,ms,n\na,1.5,3,\nb,20.25,4,\n",
        "name, ms, n\na, 1.5, 3\nb, 20.25, 4\n",
        "# said\nname;ms;n;;\na;1,5;3;;\nb;20,25;4;;\n;;;;\n",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_tables_as_spreadsheets_write_them(text: str, encoding: str, tmp_path: Path) -> None:
    (tmp_path / "some.csv").write_text(text, encoding=encoding, newline="")
    frame = read_frame(tmp_path / "some.csv", comment="#").dropna()
    assert frame.to_dict("list") == {"name": ["a", "b"], "ms": [1.5, 20.25], "n": [3, 4]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a;b\n1,5;2.5\n", r"'1,5', '2\.5' stand in one table"),
        ("a;b\n1.234,5;2\n", r"'1\.234,5' has its thousands marked"),
        ("a;b\n-1.234,5;2\n", r"'-1\.234,5' has its thousands marked"),
        ("a;b\n1,234,567;2\n", "'1,234,567' has its thousands marked"),
        ('a,b\n"1,234",2\n', '"1,234" may be a number in thousands or with decimals'),
        ("a,b\n1,2,3\n4,5,6\n", "line 2 has 3 cells, the header 2"),
    ],
)
def test_numbers_that_may_mean_two_things(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "some.csv").write_text(text)
    with pytest.raises(ValueError, match=rf"some\.csv.*{message}"):
        read_frame(tmp_path / "some.csv")
