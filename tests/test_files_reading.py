"""What a user gives is read as it was meant, or refused by name."""

import json
from pathlib import Path

import pytest

from tplab.files import parse_json, parse_json_documents, read_bytes, read_frame, read_json, read_text
from tplab.shown import check_depth, listed, shown

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
