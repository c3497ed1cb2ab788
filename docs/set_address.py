"""Write the project's public address wherever it is needed, and say what it is.

``python docs/set_address.py OWNER/REPO`` (or the repository's https address) when the project is published or moves;
``--none`` takes it out again; without an argument the command says what is set and which files agree.

A clone line, badges, links of packages and of citations need an address that nobody knows before the project is
published, and that a fork changes. So each stands in a region, ``<!-- address NAME -->`` to ``<!-- /address -->`` in
Markdown and ``# address NAME`` to ``# /address`` in TOML and YAML, and is written by this command alone. What is set is
said in one place: ``[project.urls]`` in pyproject.toml. Before that, regions hold what is true without an address, and
no link that is broken. Notebooks have a cell with the metadata ``{"tplab": {"address": "open"}}`` instead of a region.

Colab, Kaggle, Binder and Codespaces open notebooks from GitHub alone, so addresses elsewhere are refused.
"""

import argparse
import json
import os
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

ROOT = Path(__file__).resolve().parents[1]

PLACES = ("*.md", "*.toml", "*.cff", "docs/*.md", "notebooks/**/*.ipynb")
"""The files that may have regions or cells of the address."""
BRANCH = "main"
FIRST = "notebooks/00-start-here.ipynb"

# The names that GitHub gives: https://docs.github.com/en/get-started/learning-about-github/types-of-github-accounts
SLUG = re.compile(r"[A-Za-z0-9](?:-?[A-Za-z0-9]){0,38}/(?!\.{1,2}$)[A-Za-z0-9_.-]{1,100}")
REGION = re.compile(
    r"^(?P<start><!-- address (?P<md>\w+) -->|# address (?P<hash>\w+))\n.*?^(?P<end><!-- /address -->|# /address)$",
    re.M | re.S,
)


def address(root: Path = ROOT) -> str | None:
    """Return ``OWNER/REPO`` as pyproject.toml has it, or None before the project is published."""
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    repository = project.get("urls", {}).get("Repository")
    return None if repository is None else repository.removeprefix("https://github.com/")


def open_links(notebook: str, slug: str | None) -> dict[str, str]:
    """Return the addresses that open a notebook, by the name of who opens it; none before the project is published.

    The forms are those of Colab (https://colab.research.google.com/github/), Kaggle
    (https://www.kaggle.com/product-feedback/295170), Binder (https://mybinder.readthedocs.io/en/latest/howto/) and
    Codespaces (https://docs.github.com/en/codespaces), which opens the whole repository.

    Args:
        notebook: Path below the repository's root.
        slug: ``OWNER/REPO`` or None, as :func:`address` returns it.
    """
    if slug is None:
        return {}
    on_github = f"{slug}/blob/{BRANCH}/{quote(notebook)}"
    return {
        "Colab": f"https://colab.research.google.com/github/{on_github}",
        "Kaggle": f"https://kaggle.com/kernels/welcome?src=https://github.com/{on_github}",
        "Binder": f"https://mybinder.org/v2/gh/{slug}/{BRANCH}?urlpath={quote(f'lab/tree/{notebook}', safe='')}",
        "Codespaces": f"https://codespaces.new/{slug}",
    }


def _urls(slug: str | None, place: str) -> str:
    """The table of pyproject.toml, from which package indexes and ``pip show`` take their links."""
    if slug is None:
        return ""
    owner, name = slug.split("/")
    home = f"https://github.com/{slug}"
    links = {
        "Repository": home,
        "Documentation": f"https://{owner.lower()}.github.io/{name}/",
        "Changelog": f"{home}/blob/{BRANCH}/CHANGELOG.md",
        "Issues": f"{home}/issues",
    }
    return "\n".join(["[project.urls]", *(f'{key} = "{link}"' for key, link in links.items())]) + "\n"


def _citation(slug: str | None, place: str) -> str:
    return "" if slug is None else f'repository-code: "https://github.com/{slug}"\n'


def _clone(slug: str | None, place: str) -> str:
    said = "" if slug else "The address of the repository is on the page that you read this on.\n\n"
    return f"{said}```sh\ngit clone {f'https://github.com/{slug}' if slug else 'ADDRESS'} tplab && cd tplab\n```\n"


def _badges(slug: str | None, place: str) -> str:
    """Badges that open notebook 00. Their images are ours: pages that show them ask nobody else for anything."""
    if slug is None:
        return (
            "Colab, Kaggle, Binder and Codespaces open the notebooks once the project has a public address:\n"
            "`python docs/set_address.py OWNER/REPO` puts their badges here.\n"
        )
    images = Path(os.path.relpath("docs/badges", Path(place).parent)).as_posix()
    links = open_links(FIRST, slug).items()
    return "\n".join(f"[![Open in {who}]({images}/{who.lower()}.svg)]({link})" for who, link in links) + "\n"


WRITERS: dict[str, Callable[[str | None, str], str]] = {
    "urls": _urls,
    "citation": _citation,
    "clone": _clone,
    "badges": _badges,
}
"""What stands in a region, by its name: from ``OWNER/REPO`` or None, and the file's path below the root."""


def in_text(text: str, slug: str | None, place: str) -> str:
    """Return a text with its regions written for an address. Raises ``ValueError`` for a region of an unknown name."""

    def written(found: re.Match[str]) -> str:
        name = found["md"] or found["hash"]
        if name not in WRITERS:
            raise ValueError(f"{place}: no region is called {name!r}; there are {', '.join(WRITERS)}")
        return f"{found['start']}\n{WRITERS[name](slug, place)}{found['end']}"

    return REGION.sub(written, text)


def in_notebook(text: str, slug: str | None, place: str) -> str:
    """Return a notebook (JSON) with its cell of links written for an address. What it does not touch stays bytewise."""
    notebook = json.loads(text)
    cells = [cell for cell in notebook["cells"] if cell["metadata"].get("tplab", {}).get("address") == "open"]
    if not cells:
        return text
    links = open_links(place, slug)
    home = Path(os.path.relpath("README.md", Path(place).parent)).as_posix()
    if links:
        source = "Open this notebook in " + " · ".join(f"[{who}]({link})" for who, link in links.items()) + "."
    else:
        source = f"Other ways to open this notebook: [README]({home}#open-the-lab)."
    for cell in cells:
        cell["source"] = [source]
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def rewritten(slug: str | None, root: Path = ROOT) -> Iterator[tuple[str, str, str]]:
    """Every file that has a place of the address: its path below ``root``, its text, and its text for ``slug``."""
    for path in sorted({path for pattern in PLACES for path in root.glob(pattern) if path.is_file()}):
        place, text = path.relative_to(root).as_posix(), path.read_text("utf-8")
        write = in_notebook if path.suffix == ".ipynb" else in_text
        # Whatever is there, another address changes a file that has a place for it.
        if write(text, "a/b", place) != write(text, "c/d", place):
            yield place, text, write(text, slug, place)


def as_slug(text: str) -> str:
    """Return ``OWNER/REPO`` of that or of an address on GitHub. Raises ``ValueError``."""
    slug = (
        re.sub(r"^(?:https://github\.com/|git@github\.com:)", "", text.strip()).removesuffix("/").removesuffix(".git")
    )
    if not SLUG.fullmatch(slug):
        raise ValueError(f"{text!r} is neither OWNER/REPO nor the address of a repository on github.com")
    return slug


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Run the command and return its exit status: 0, or 1 where files do not agree with what is set."""
    parser = argparse.ArgumentParser(prog="python docs/set_address.py", description="The project's public address.")
    parser.add_argument("address", nargs="?", metavar="OWNER/REPO", help="write this one wherever it is needed")
    parser.add_argument("--none", action="store_true", help="take the address out again")
    parser.add_argument("--write", action="store_true", help="write what is set into places that are new")
    given = parser.parse_args(arguments)
    if bool(given.address) + given.none + given.write > 1:
        parser.error("OWNER/REPO, --none and --write exclude each other")
    try:
        slug = as_slug(given.address) if given.address else None if given.none else address(root)
    except ValueError as error:
        parser.error(str(error))
    places = list(rewritten(slug, root))
    differing = [(place, new) for place, old, new in places if old != new]
    print(f"The address is {slug or 'not set'}; {len(places)} files have a place for it.")
    if not (given.address or given.none or given.write):
        for place, _ in differing:
            print(f"{place} does not agree: python docs/set_address.py --write")
        return int(bool(differing))
    for place, new in differing:
        (root / place).write_text(new, "utf-8", newline="\n")
        print(f"{place} written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
