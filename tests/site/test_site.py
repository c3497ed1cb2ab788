"""The built site is whole: every page, every public name, every claim, and no link that leads nowhere."""

import gzip
import importlib
import json
import re
from functools import cache
from pathlib import Path

import pytest

from tests.site.pages import Page, broken, outside
from tplab.lab.claims import claims

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
WRITTEN = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("notebooks/*.md"), *NOTEBOOKS]
URL = re.compile(r"url\(\s*[\"']?(https?:)?//|@import\s+[\"']?(https?:)?//")
PAGE_MB = 1.5
"""What a page may transfer before a figure is drawn."""

pytestmark = pytest.mark.timeout(600)  # the first test waits for the site, which takes minutes on a busy machine


def rooms() -> list[str]:
    """The packages that say what is public, by their source."""
    files = [*ROOT.glob("tplab/__init__.py"), *ROOT.glob("tplab/*/__init__.py"), *ROOT.glob("tplab/lab/*/__init__.py")]
    public = [path for path in files if re.search(r"lazy_names\(__name__\)|^__all__ = ", path.read_text("utf-8"), re.M)]
    return [".".join(path.parent.relative_to(ROOT).parts) for path in public]


@pytest.fixture(scope="session")
def pages(site: Path) -> dict[Path, Page]:
    """All pages by their files."""
    return {
        path.resolve(): Page(path.resolve()) for path in sorted(site.rglob("*.html")) if "_static" not in path.parts
    }


def page_of(site: Path, source: Path) -> Path:
    return site / source.relative_to(ROOT).with_suffix(".html")


@pytest.mark.parametrize("source", WRITTEN, ids=lambda path: path.name)
def test_every_document_and_notebook_has_a_page(site: Path, source: Path) -> None:
    assert page_of(site, source).is_file()


def test_nothing_within_the_site_leads_nowhere(pages: dict[Path, Page]) -> None:
    assert broken(pages) == []


def test_the_checker_of_links_sees_what_is_broken(tmp_path: Path) -> None:
    (tmp_path / "b.html").write_text('<h2 id="here">b</h2>')
    (tmp_path / "a.html").write_text(
        '<a href="b.html#here">1</a><a href="b.html#gone">2</a><a href="c.html">3</a><a href="#top">4</a>'
        '<img src="d.png"><a href="https://example.org/none">5</a>'
    )
    found = {path.resolve(): Page(path.resolve()) for path in tmp_path.glob("*.html")}
    assert [fault.partition(": ")[2] for fault in broken(found)] == [
        "b.html#gone: no such place",
        "c.html: no such file",
        "#top: no such place",
        "d.png: no such file",
    ]


def test_no_page_loads_anything_from_elsewhere(site: Path, pages: dict[Path, Page]) -> None:
    assert [(page.path.name, load) for page in pages.values() for load in page.loads if outside(load)] == []
    styles = [path for path in site.rglob("*.css") if URL.search(path.read_text("utf-8"))]
    assert styles == []


@pytest.mark.parametrize("room", rooms())
def test_every_public_name_has_an_entry(site: Path, pages: dict[Path, Page], room: str) -> None:
    page = pages[(site / "docs" / "api" / f"{room.removeprefix('tplab.')}.html").resolve()]
    names = [name for name in importlib.import_module(room).__all__ if not name.startswith("__")]
    led_to = {link.partition("#")[2].rpartition(".")[2] for link in page.links}
    assert [name for name in names if f"{room}.{name}" not in page.ids and name not in led_to] == []
    assert names


def test_only_what_a_name_means_is_linked(site: Path, pages: dict[Path, Page]) -> None:
    def names(page: str) -> set[str]:
        return {
            link.partition("#")[2] for link in pages[(site / page).resolve()].links if "api/" in link and "#" in link
        }

    assert "tplab.pipeline.build_schedule" in names("docs/architecture.html")
    assert "tplab.cli.main" not in names("docs/architecture.html")  # it speaks of a rank's
    assert "tplab.topology.place" not in names("notebooks/08-capstone.html")  # a variable of its code
    assert not names("docs/claims.html")  # what is wrong there are the article's classes, not ours of these names


def test_fields_and_arguments_are_described(site: Path, pages: dict[Path, Page]) -> None:
    page = pages[(site / "docs" / "api" / "topology.html").resolve()]
    assert "tplab.topology.Workload.concurrency" in page.ids  # a slot, with its words under it
    assert "Parameters" in page.words
    assert "Raises" in page.words
    assert "source/tplab/topology/advisor/advice.py.html" in " ".join(page.links)
    assert "\ue000" not in page.words


def test_every_claim_stands_on_its_page_with_its_numbers(site: Path, pages: dict[Path, Page]) -> None:
    page = pages[(site / "docs" / "claims.html").resolve()]
    words = " ".join(page.words.split())
    for claim in claims().values():
        assert claim.id.lower() in page.ids
        assert claim.verdict in words
        for case in claim.finding().cases:
            assert case.right in words, f"{claim.id}: {case.what}"
        assert all(each.what.replace("`", "") in words for each in claim.evidence)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_lesson_shows_its_stored_outputs_and_how_to_run_it(
    site: Path, pages: dict[Path, Page], notebook: Path
) -> None:
    page = pages[page_of(site, notebook).resolve()]
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    described = {image.get("alt", "") for image in page.images}
    for output in outputs:
        if "image/png" in output.get("data", {}):
            plain = "".join(output["data"]["text/plain"])
            assert plain in described
    downloads = [link for link in page.links if "_downloads" in link]
    assert len(downloads) == 1
    assert json.loads((page.path.parent / downloads[0]).read_text("utf-8"))["cells"] == cells
    assert "need a kernel" in page.words
    assert "importlib.util.find_spec" not in page.words, "the cell that installs has nothing to do here"


def test_solutions_are_folded(site: Path) -> None:
    for notebook in NOTEBOOKS:
        text = page_of(site, notebook).read_text("utf-8")
        folds = re.findall(r"<details>\s*<summary>(Hint \d|Solution)</summary>", text)
        cells = json.loads(notebook.read_text("utf-8"))["cells"]
        hints = [c for c in cells if c["metadata"].get("tplab", {}).get("part") == "hints"]
        assert folds.count("Solution") == len(hints) > 0


def test_a_page_is_light(site: Path, pages: dict[Path, Page]) -> None:
    sizes = {}
    for page in pages.values():
        files = {
            page.path,
            *(page.path.parent / load.partition("?")[0] for load in page.loads if not load.startswith("data:")),
        }
        sizes[page.path.relative_to(site.resolve()).as_posix()] = sum(map(transferred, files)) / 1e6
    assert {name: size for name, size in sizes.items() if size > PAGE_MB} == {}


@cache
def transferred(path: Path) -> int:
    """Bytes as a server sends them: text packed."""
    return len(gzip.compress(path.read_bytes(), 6)) if path.suffix in (".html", ".css", ".js") else path.stat().st_size
