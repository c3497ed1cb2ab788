"""The way in, notebook 00: it explains every badge that a stored figure wears, and ends where a reader goes on."""

import json
import re
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).parents[2] / "notebooks"
BADGE = re.compile(r"<b>((?:LIVE|RECORDED|MODEL|COUNTED)[^<]*)</b>")


@pytest.fixture(scope="module")
def start() -> nbformat.NotebookNode:
    return nbformat.read(FOLDER / "00-start-here.ipynb", as_version=4)


def kind(badge: str) -> str:
    """A badge without its numbers, dates and machine: RECORDED # #, LIVE gloo · # ranks."""
    badge = re.sub(r"\d+x\w+ [\d-]+", "#", badge)
    badge = re.sub(r"\d(?:[\d,.-]*\d)?", "#", badge)
    return re.sub(r"#(?:, #)* and #", "#", badge.replace("1 rank", "1 ranks")).replace("rank ", "ranks ")


def parts(badge: str) -> set[str]:
    return {re.sub(r"\brank\b", "ranks", kind(part)) for part in badge.split(" · ")}


def test_every_badge_of_a_stored_figure_is_explained(start: nbformat.NotebookNode) -> None:
    table = next(cell.source for cell in start.cells if "| badge | meaning |" in cell.source)
    explained = set().union(*(parts(code.removeprefix("· ")) for code in re.findall(r"`([^`]+)`", table)))
    worn = {badge for path in FOLDER.glob("*.ipynb") for badge in BADGE.findall(text_of(path))}
    assert len(worn) > 5
    # Where a calibration was made is the machine's own; that it is one is explained.
    assert {
        badge: missing
        for badge in worn
        if (missing := {part for part in parts(badge) - explained if not part.startswith("measured:")})
    } == {}
    assert any(part.startswith("measured:") for part in explained)


def text_of(path: Path) -> str:
    notebook = nbformat.read(path, as_version=4)
    return "\n".join(
        json.dumps(output, ensure_ascii=False) for cell in notebook.cells for output in cell.get("outputs", [])
    )


def test_pictures_are_there_and_say_in_words_what_they_show(start: nbformat.NotebookNode) -> None:
    source = "\n".join(cell.source for cell in start.cells if cell.cell_type == "markdown")
    pictures = re.findall(r"!\[([^]]*)\]\(([^)]+)\)", source)
    assert len(pictures) >= 4
    for words, path in pictures:
        assert (FOLDER / path).is_file()
        assert len(words.split()) > 10


def test_the_last_cell_is_for_reading_and_ranks_are_left_for_who_scrolls_back(start: nbformat.NotebookNode) -> None:
    assert start.cells[-1].cell_type == "markdown"
    assert "## Further reading" in start.cells[-1].source
    assert not any("pool.stop()" in cell.source for cell in start.cells)


def test_readme_opens_with_the_recording_in_a_picture_that_needs_no_script() -> None:
    """A page like README's shows it as an image: styles move it, scripts would not run."""
    root = FOLDER.parent
    first = re.search(r"!\[[^]]+\]\(([^)]+)\)", (root / "README.md").read_text("utf-8"))
    assert first is not None
    text = (root / first[1]).read_text("utf-8")
    assert len(text) < 500_000
    assert "<script" not in text
    assert "href=" not in text
    assert "prefers-reduced-motion" in text
    frames = set(re.findall(r'<g id="(f\d+)"', text))
    assert len(frames) > 50
    assert frames == set(re.findall(r"@keyframes (f\d+)", text))
    scenes = [scene for _, scene in json.loads((root / "tplab/lab/pictures/two_ranks.json").read_text("utf-8"))]
    processes = {f"process {rank['pid']}" for scene in scenes for rank in scene["ranks"] if rank["pid"]}
    assert len(processes) == 4
    assert processes == set(re.findall(r"process \d+", text))
    assert all(scene["card"]["title"] in text for scene in scenes if scene["card"])
