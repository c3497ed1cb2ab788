"""Source files as pages: where pages link to ``../tplab/pipeline/article.py``, and [source] beside documented names.

Not ``sphinx.ext.viewcode``: it has pages for modules with documented objects only, and Sphinx makes of a link to any
other file a download.
"""

import importlib
import inspect
import re
import shutil
from pathlib import Path
from typing import Any

from docutils import nodes
from myst_parser.slugs import github_slugify
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_for_filename
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.osutil import relative_uri

ROOT = Path(__file__).resolve().parents[2]
SHOWN = {".py", ".js", ".yaml", ".toml", ".json"}
"""Files of other kinds remain downloads."""
IMAGES = "notebooks/images"
LINKED_FROM = "docs/api/any"
"""The pages of names are all in one folder, so their links to sources look alike."""
PAGE = """<!DOCTYPE html>
<html lang="en" data-theme="light"><head><meta charset="utf-8"><title>{name} · tplab</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="stylesheet" href="{up}_static/pygments.css"><link rel="stylesheet" href="{up}_static/site.css">
<script>
let mode = null; try {{ mode = localStorage.getItem("mode"); }} catch (error) {{ /* it is kept nowhere */ }}
if (mode !== "dark" && mode !== "light") mode = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
document.documentElement.dataset.theme = mode;
</script></head>
<body class="source">
<header><a href="{up}docs/index.html">tplab</a> <h1>{name}</h1></header><main>{code}</main>
</body></html>
"""
HREF = re.compile(r'(?<=href=")[^":]+(?=")')
"""A link of HTML that stays within the site."""

_wanted: set[str] = set()


def page_of(path: Path | str) -> str:
    """The name of the page for a file of the repository."""
    return f"source/{path}"


def linkcode_resolve(domain: str, info: dict[str, str]) -> str | None:
    """Where [source] beside a documented name leads, from a page in ``docs/api``; None without a source of ours."""
    try:
        found: Any = importlib.import_module(info["module"])
        for part in info["fullname"].split("."):
            found = getattr(found, part)
        found = inspect.unwrap(getattr(found, "fget", None) or found)
        path = Path(inspect.getsourcefile(found) or "").resolve().relative_to(ROOT)
        line = inspect.getsourcelines(found)[1]
    except (AttributeError, OSError, TypeError, ValueError):
        return None
    _wanted.add(path.as_posix())
    return f"{relative_uri(f'{LINKED_FROM}.html', f'{page_of(path)}.html')}#L-{line}"


def link_sources(app: Sphinx, doctree: nodes.document) -> None:
    """Links to files, which Sphinx would make downloads, lead to the pages of those files; so do links in HTML, which
    it leaves as they are, and there those to documents and notebooks, too.
    """
    for download in list(doctree.findall(addnodes.download_reference)):
        if (uri := _uri(app.env, download["reftarget"])) is not None:
            download.replace_self(nodes.reference("", "", *download.children, refuri=uri, internal=True))
    for html in list(doctree.findall(nodes.raw)):
        if 'href="' in html.astext():
            html.children = [
                nodes.Text(HREF.sub(lambda link: _uri(app.env, link[0], pages=True) or link[0], html.astext()))
            ]


def _uri(env: BuildEnvironment, link: str, *, pages: bool = False) -> str | None:
    """Where a link to a file of the repository leads on the site; None for one that is to stay as it is."""
    target, _, fragment = link.partition("#")
    path = (ROOT / env.docname).parent.joinpath(target).resolve()
    if not target or not path.is_file() or not path.is_relative_to(ROOT):
        return None
    name = path.relative_to(ROOT)
    page = name.with_suffix("").as_posix()
    if path.suffix in SHOWN:
        page = page_of(name)
        _sources(env).setdefault(env.docname, set()).add(name.as_posix())
    elif not pages or page not in env.found_docs:
        return None
    if not fragment and page == env.docname:
        return "#"
    place = f"#{github_slugify(fragment.replace('-', ' '))}" if fragment else ""
    return relative_uri(f"{env.docname}.html", f"{page}.html") + place


def _sources(env: BuildEnvironment) -> dict[str, set[str]]:
    if not hasattr(env, "tplab_sources"):
        env.tplab_sources = {}  # type: ignore[attr-defined]
    found: dict[str, set[str]] = env.tplab_sources  # type: ignore[attr-defined]
    return found


def write_pages(app: Sphinx, failed: Exception | None) -> None:
    """A page for every file that is linked to, not one of the theme's, which takes a fifth of a second for each. And
    the images that HTML shows, which Sphinx leaves where they are.
    """
    shape = HtmlFormatter(linespans="L")
    shutil.copytree(ROOT / IMAGES, Path(app.outdir, IMAGES), dirs_exist_ok=True)
    for name in sorted(_wanted.union(*_sources(app.env).values())) if failed is None else ():
        page = Path(app.outdir, f"{page_of(name)}.html")
        page.parent.mkdir(parents=True, exist_ok=True)
        code = highlight((ROOT / name).read_text("utf-8"), get_lexer_for_filename(name), shape)
        up = "../" * page_of(name).count("/")
        page.write_text(PAGE.format(name=name, up=up, code=code), "utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("doctree-read", link_sources)
    app.connect("build-finished", write_pages)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
