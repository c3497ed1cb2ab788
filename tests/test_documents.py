"""The documents, held to the code: what they name exists, and what they say of docstrings is so.

A page about code is wrong one rename later and nobody notices. So every path, module and function that a document puts
into backticks is looked up here, and so is every link between documents.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "tplab"
DOCUMENTS = sorted(path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")))

CODE = re.compile(r"`([^`\n]+)`")
FENCED = re.compile(r"^```.*?^```$", re.M | re.S)
LINK = re.compile(r"\]\(([^)\s]+)\)")
FILE = re.compile(r"[\w./*-]+\.(?:py|ipynb|md|toml|txt|yml)|(?:tplab|tests|notebooks|docs|binder)/[\w./*-]*")


@pytest.fixture(params=DOCUMENTS)
def document(request: pytest.FixtureRequest) -> Path:
    return ROOT / request.param


def test_there_are_documents() -> None:
    assert {"README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/article.md", "docs/glossary.md"} <= set(DOCUMENTS)


def test_links_between_documents_lead_somewhere(document: Path) -> None:
    links = [link for link in LINK.findall(document.read_text("utf-8")) if "://" not in link]
    assert [link for link in links if not (document.parent / link.partition("#")[0]).exists()] == []


def test_files_in_backticks_exist(document: Path) -> None:
    missing = []
    for code in CODE.findall(FENCED.sub("", document.read_text("utf-8"))):
        for word in code.split():
            # NN and FOLDER stand for what a reader fills in.
            if FILE.fullmatch(word) and not re.search(r"NN|[A-Z]{4}", Path(word).stem) and not list(ROOT.glob(word)):
                missing.append(word)
    assert missing == []


def test_the_codes_of_the_article_are_all_explained() -> None:
    article = (ROOT / "docs/article.md").read_text("utf-8")
    rows = re.findall(r"^\| ([SC]\d+) \|", article, re.M)
    assert rows == [f"S{number}" for number in range(1, 10)] + [f"C{number}" for number in range(1, 23)]


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text("utf-8"))


def test_modules_that_use_the_codes_say_where_they_are_explained() -> None:
    code = re.compile(r"\(C\d+\)|\bsystem S\d|\bclaims? C\d|\bsystems? S\d|\bC\d\d?\b(?= to C\d)")
    bare = [
        path
        for path, _ in modules()
        if code.search(text := (ROOT / path).read_text("utf-8")) and "docs/article.md" not in text
    ]
    assert bare == []
