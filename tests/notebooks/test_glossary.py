"""The first use of a word in a notebook is a link to the glossary, whose short form it carries."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import nbformat
import pytest
from nbformat.v4 import new_markdown_cell, new_notebook

HERE = Path(__file__).parent
NOTEBOOKS = sorted((HERE.parents[1] / "notebooks").glob("*.ipynb"))


def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("link_glossary", HERE / "link_glossary.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GLOSSARY = tool()
WORDS = GLOSSARY.entries(GLOSSARY.GLOSSARY.read_text("utf-8"))


def linked(*texts: str) -> list[str]:
    notebook = new_notebook(cells=[new_markdown_cell(text) for text in texts])
    return [
        cell.source for cell in GLOSSARY.linked(notebook, {"rank": "A process.", "rank correlation": "Order."}).cells
    ]


def test_the_glossary_has_short_forms() -> None:
    assert len(WORDS) > 60
    assert [word for word, short in WORDS.items() if len(short) > 140 or not short.endswith(".")] == []


def test_each_letter_has_one_meaning() -> None:
    table = re.findall(r"^\| ([^|]+) \|", GLOSSARY.GLOSSARY.read_text("utf-8"), re.M)
    letters = [letter.strip() for row in table for letter in row.split(",") if len(letter.strip()) == 1]
    assert len(letters) > 15
    assert sorted(set(letters)) == sorted(letters)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_first_uses_are_linked(path: Path) -> None:
    """Otherwise: ``python tests/notebooks/link_glossary.py notebooks/*.ipynb``."""
    stored = nbformat.read(path, as_version=4)
    texts = [cell.source for cell in stored.cells]
    assert [cell.source for cell in GLOSSARY.linked(stored, WORDS).cells] == texts


def test_only_the_first_use_is_linked_and_longer_words_come_first() -> None:
    rank, order = '[Rank](glossary.md#rank "A process.")', '[rank correlation](glossary.md#rank-correlation "Order.")'
    assert linked("Rank 0, rank 1.", "The rank correlation of ranks.") == [
        f"{rank} 0, rank 1.",
        f"The {order} of ranks.",
    ]


def test_code_headings_links_and_longer_words_are_left_alone() -> None:
    text = "# Rank\n\n`rank`, ranked, [a rank](there), <details>rank</details>, ![rank](x.svg) and\n```\nrank\n```"
    assert linked(text) == [text]


def test_a_ring_that_decodes_is_not_explained_as_an_all_reduce() -> None:
    words = {"ring": "Of an all-reduce.", "decoding ring": "Of stages."}
    for text, links in (("A decoding ring. A ring.", 1), ("A ring.", 1), ("A ring, a decoding ring.", 1)):
        cell = new_markdown_cell(text)
        GLOSSARY.linked(new_notebook(cells=[cell]), words)
        assert cell.source.count("](glossary.md#") == links
    assert "glossary.md#ring" not in cell.source


def test_the_tool_can_be_run_again_after_a_change() -> None:
    assert linked('Now a rank, then a [rank](glossary.md#rank "Old (short) form; of 2(n-1).").') == [
        'Now a [rank](glossary.md#rank "A process."), then a rank.'
    ]
