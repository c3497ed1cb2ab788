"""Text to tokens and back, beside the package that wrote the file."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tplab.checks import ArgumentError
from tplab.models import Tokenizer, trained_model
from tplab.models.records import CheckpointError

FOLDER = trained_model()
OURS = Tokenizer.of(FOLDER)
assert OURS is not None
ALPHABET = sorted({each for piece in OURS.pieces for each in piece})
WORDS = [piece for piece in OURS.pieces if len(piece) > 1]


@pytest.fixture(scope="module")
def theirs() -> Any:
    return pytest.importorskip("tokenizers").Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


TEXTS = st.lists(st.one_of(st.text(st.sampled_from(ALPHABET), max_size=12), st.sampled_from(WORDS))).map("".join)


@given(text=TEXTS)
@example(text="")
@example(text="  two spaces, and a line\n\nof its own ")
@example(text="aaaa eeee nnnnn")
@example(text='"Indeed!"--said Mrs. Bennet; "it\'s 1811."')
def test_tokens_are_those_of_the_package_and_go_back_to_the_text(theirs: Any, text: str) -> None:
    assert OURS is not None
    tokens = OURS.encode(text)
    assert tokens[0] == 0
    assert OURS.decode(tokens[1:]) == text
    assert tokens == theirs.encode(text).ids


def test_characters_that_are_in_no_token_are_named() -> None:
    assert OURS is not None
    with pytest.raises(
        ArgumentError, match="prompt has 'ä', '\U0001f642', which the model has never read: it knows un"
    ):
        OURS.encode("Käse \U0001f642 ä", name="prompt")
    with pytest.raises(ArgumentError, match="text must be"):
        OURS.encode(3)  # type: ignore[arg-type]


def _changed(found: dict[str, Any], change: str) -> str:
    match change:
        case "no object":
            return "[]"
        case "not JSON":
            return "{"
        case "a token too few":
            del found["model"]["vocab"]["e"]
        case "a number twice":
            found["model"]["vocab"]["e"] = 7
        case "no merges":
            del found["model"]["merges"]
        case "another kind":
            found["model"]["type"] = "WordPiece"
        case "other pieces":
            found["pre_tokenizer"]["type"] = "ByteLevel"
        case "bytes":
            found["model"]["byte_fallback"] = True
    return json.dumps(found)


@pytest.mark.parametrize("change", ["not JSON", "a token too few", "a number twice", "no merges"])
def test_a_damaged_file_is_said(change: str, tmp_path: Path) -> None:
    found = json.loads((FOLDER / "tokenizer.json").read_text("utf-8"))
    (tmp_path / "tokenizer.json").write_text(_changed(found, change))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer.of(tmp_path)


@pytest.mark.parametrize("change", ["no object", "another kind", "other pieces", "bytes"])
def test_other_kinds_are_left_to_transformers(change: str, tmp_path: Path) -> None:
    found = json.loads((FOLDER / "tokenizer.json").read_text("utf-8"))
    (tmp_path / "tokenizer.json").write_text(_changed(found, change))
    assert Tokenizer.of(tmp_path) is None
    assert Tokenizer.of(tmp_path / "nowhere") is None
