"""Numbers in the notebooks' prose: each is a given of the text, or quoted from an output that is stored beside it.

A markdown cell declares its numbers in its metadata: ``"tplab": {"given": ["30 ms"]}`` for what the text sets, or
cites with a link; ``"tplab": {"quotes": {"cell-24": ["14 µs"]}}`` for what it repeats of the cell
``cell-24``. Outputs that change with the machine are better not quoted at all: a code cell says them.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
UNIT = r"(?:ms|µs|us|ns|s|%|[KMGT]i?B/s|[KMG]b/s|[KMGT]i?B|tokens/s|tokens per second|times|TFLOPS)"
NUMBER = re.compile(rf"(?<![\w.])\d[\d,.]*(?:(?:–|-| to | and )\d[\d,.]*)?[ \u00a0\u202f]?{UNIT}(?![\w·/])")
CODE = re.compile(r"<details>.*?</details>|```.*?```|`[^`]*`", re.S)


def numbers(source: str) -> list[str]:
    """Numbers with a unit, outside code and what is folded away."""
    return [plain(found) for found in NUMBER.findall(CODE.sub(" ", source))]


def plain(text: str) -> str:
    """Without the differences that are none: spaces that do not break, µs written as us."""
    return re.sub(r"\bus\b", "µs", re.sub(r"[\u00a0\u202f]", " ", text))


def stands_in(text: str, whole: str) -> bool:
    """Whether ``text`` stands in ``whole``, and not as a part of another number."""
    return re.search(rf"(?<![\d.,]){re.escape(text)}(?!\d)", whole) is not None


def said(cell: nbformat.NotebookNode) -> str:
    """What a code cell's stored output says, as text."""
    parts = []
    for output in cell.outputs:
        data = output.get("data", {})
        parts += [
            output.get("text", ""),
            data.get("text/plain", ""),
            re.sub(r"<[^>]*>", " ", data.get("text/html", "")),
        ]
    return plain("\n".join(parts))


def faults(notebook: nbformat.NotebookNode) -> Iterator[str]:
    """What is wrong with the numbers in a notebook's prose, one sentence each."""
    cells = {cell.id: cell for cell in notebook.cells}
    for cell in notebook.cells:
        if cell.cell_type != "markdown":
            continue
        declared = cell.metadata.get("tplab", {})
        given, quotes = declared.get("given", []), declared.get("quotes", {})
        texts = [plain(text) for text in (*given, *(text for texts in quotes.values() for text in texts))]
        prose = plain(cell.source)
        for number in numbers(cell.source):
            if not any(stands_in(number, text) for text in texts):
                yield f"{cell.id}: {number} is neither given nor quoted"
        for text in texts:
            if text not in prose:
                yield f"{cell.id}: {text!r} is declared and does not stand there"
        for source, quoted in quotes.items():
            if source not in cells or cells[source].cell_type != "code":
                yield f"{cell.id}: quotes {source}, which is no code cell"
                continue
            for text in map(plain, quoted):
                if not stands_in(text, said(cells[source])):
                    yield f"{cell.id}: {text!r} does not stand in what {source} printed"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_number_in_the_prose_is_given_or_stands_in_the_output_it_quotes(path: Path) -> None:
    assert list(faults(nbformat.read(path, as_version=4))) == []


def made(prose: str, printed: str, **declared: object) -> nbformat.NotebookNode:
    output = new_output("stream", name="stdout", text=printed)
    markdown = new_markdown_cell(prose, metadata={"tplab": declared})
    markdown.id, code = "prose", new_code_cell("print()", outputs=[output])
    code.id = "printed"
    return new_notebook(cells=[code, markdown])


@pytest.mark.parametrize(
    ("prose", "printed", "declared"),
    [
        ("It takes 14 µs.", "NCCL 14 us\n", {"quotes": {"printed": ["14 µs"]}}),
        ("A link of 0.2 ms and 0.05 GB/s.", "", {"given": ["0.2 ms", "0.05 GB/s"]}),
        ("`sleep 10 s`, and <details>12 ms</details>", "", {}),
        ("C5 and 4xH200, 8 GPUs, Llama-3.1 70B", "", {}),
    ],
)
def test_a_number_may_be_given_or_quoted(prose: str, printed: str, declared: dict[str, object]) -> None:
    assert list(faults(made(prose, printed, **declared))) == []


@pytest.mark.parametrize(
    ("prose", "printed", "declared", "fault"),
    [
        ("It takes 14 µs.", "NCCL 14 us\n", {}, "neither given nor quoted"),
        ("It takes 14 µs.", "NCCL 15 us\n", {"quotes": {"printed": ["14 µs"]}}, "does not stand in what"),
        ("It takes 14 µs.", "NCCL 114 us\n", {"quotes": {"printed": ["14 µs"]}}, "does not stand in what"),
        ("It takes 4 µs.", "NCCL 1.4 us\n", {"quotes": {"printed": ["4 µs"]}}, "does not stand in what"),
        ("It takes long.", "NCCL 14 us\n", {"quotes": {"printed": ["14 µs"]}}, "is declared and does not stand"),
        ("It takes 14 µs.", "14 us", {"quotes": {"gone": ["14 µs"]}}, "no code cell"),
        (
            "Between 135-220 µs, 30 to 40 %, and 2.3 times as much",
            "",
            {"given": ["135-220 µs", "2.3 times"]},
            "30 to 40",
        ),
    ],
)
def test_other_numbers_are_faults(prose: str, printed: str, declared: dict[str, object], fault: str) -> None:
    assert any(fault in each for each in faults(made(prose, printed, **declared)))
