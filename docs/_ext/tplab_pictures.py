"""What moves on the site: the very modules that notebooks use, without a kernel and from a file, too.

A browser imports no ES module from a file, so each picture's modules become one plain script, written at build time
into ``_static/pictures/`` (nothing of them is kept here twice); so does the view of plotly's figures in panels. A page
holds places with name and state as JSON; ``static/places.js`` fetches the script once a place is scrolled near.
Pictures are drawn into a shadow tree: the site's style and theirs do not meet, and those of several pictures do not,
either. Plotly's are not, it puts its style into the page.

- ``{picture} Race`` in a Markdown page, with traits as JSON in its body; ``figure_place`` for a figure.
- In notebooks, after every stored image of a picture or figure: the image is what readers without JavaScript see.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from functools import cache
from html import escape
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, ClassVar

import traitlets
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from tplab.lab import pictures
from tplab.lab.pictures.editor import MOST_ACTIONS
from tplab.lab.pictures.picture import MOVES, Picture, module_text
from tplab.lab.pictures.race import RACERS
from tplab.lab.saving import PICTURE, PLOTLY

STATIC = Path(__file__).parent / "static"
SCRIPTS = "pictures"
"""Folder of the pictures' scripts in the site's static files."""
FIGURE = "figure"
"""What a plotly figure is called where pictures have the name of their module."""
LINKED: Mapping[str, Mapping[str, Any]] = {
    "race": {
        "num_ranks": None,
        "nbytes": {"least": 1, "most": 2**40, "whole": True},
        "alpha_us": {"least": 0, "most": 1e6},
        "beta_GBps": {"least": 1e-3, "most": 1e5},
        "own_links": None,
        "algorithms": {"some_of": RACERS},
    },
    "fit": {
        **dict.fromkeys(("gpu", "weights", "cache", "tp", "pp", "batch", "context")),
        "model": {"key_of": ["known", "models"]},
    },
    "painter": {
        "choices": {"each_of": ["column", "row", "replicated"], "count": 4},
        **dict.fromkeys(("ranks", "tokens", "model")),
        "link": {"key_of": ["links"]},
    },
    "editor": {"text": {"table": MOST_ACTIONS}, "cap": {"least": 1, "most": 256, "whole": True}},
    "topology": {"groups": {"groups": True}},
}
"""Traits that a page's address may set, by picture, and to what: ``None`` stands for what the trait itself allows."""


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("picture", PictureDirective)
    app.connect("config-inited", lambda _, config: config.html_static_path.append(str(STATIC)))
    app.connect("source-read", _live_in_notebooks)
    app.connect("build-finished", _write_scripts)
    app.add_js_file("places.js", loading_method="defer")
    app.add_css_file("places.css")
    return {"parallel_read_safe": True, "parallel_write_safe": True}


class PictureDirective(SphinxDirective):
    """``{picture} Race``: a picture of :mod:`tplab.lab.pictures`, its traits set by the JSON in the directive's body.

    For readers without JavaScript: ``:still:``, an image by its path from the page, or ``:cell:``, the notebook and the
    id of the cell whose stored image it is (``02-collectives cell-06``).
    """

    required_arguments = 1
    has_content = True
    option_spec: ClassVar[dict[str, Any]] = {"still": directives.unchanged, "cell": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        offered = {each.__name__: each for each in _classes().values()}
        if name not in offered:
            raise self.error(f"there is no picture {name!r}: take one of {', '.join(offered)}")
        picture = offered[name]()
        try:
            for trait, value in json.loads("\n".join(self.content) or "{}").items():
                picture.set_trait(trait, value)
        except (ValueError, traitlets.TraitError) as error:
            raise self.error(f"picture {name}: {error}") from error
        caption = escape(picture.caption)
        without = f"<p>{caption}: a moving picture, drawn by JavaScript.</p>"
        if source := self._stored(picture) if "cell" in self.options else self.options.get("still"):
            without = f'<img src="{escape(source)}" alt="{caption}">'
        html = place(picture.module, picture.still_state(), f"<noscript>{without}</noscript>")
        return [nodes.raw("", html, format="html")]

    def _stored(self, picture: Picture) -> str:
        """The image stored with a cell, as a data URL."""
        name, _, cell_id = self.options["cell"].partition(" ")
        path = Path(self.env.srcdir, "notebooks", f"{name}.ipynb")
        if not path.is_file():
            raise self.error(f"there is no notebook {path.name}")
        self.env.note_dependency(str(path))
        for cell in json.loads(path.read_text("utf-8"))["cells"]:
            for output in cell.get("outputs", ()) if cell["id"] == cell_id else ():
                about = output.get("metadata", {}).get("image/png", {})
                if about.get("alt") == picture.caption:
                    return "data:image/png;base64," + "".join(output["data"]["image/png"]).strip()
        raise self.error(f"{path.name} stores no image of {picture.caption!r} with a cell {cell_id!r}")


def figure_place(content: Mapping[str, Any], alt: str) -> str:
    """The HTML of a place for a figure as plotly's MIME type holds it, with words for those who do not see it."""
    figure = {name: content[name] for name in ("data", "layout")}
    return place(FIGURE, {"figure": figure, "alt": alt})


def place(module: str, state: Mapping[str, Any], inside: str = "") -> str:
    """The HTML of a place where a picture is drawn once it is scrolled near.

    Args:
        module: the picture's module, or ``FIGURE``.
        state: its traits.
        inside: HTML that stands there until then.
    """
    about = json.dumps({"state": state, "rules": rules(module)}).replace("<", "\\u003c")
    source = f"{SCRIPTS}/{module}.js?v={_digest(module)}"
    return (
        f'<div class="tplab-place" data-picture="{module}" data-script="{source}">{inside}'
        f'<script type="application/json">{about}</script></div>'
    )


@cache
def rules(module: str) -> dict[str, Any]:
    """What an address may set of a picture, and to what, as ``static/places.js`` checks it."""
    made: dict[str, Any] = {}
    for name, rule in LINKED.get(module, {}).items():
        trait = _classes()[module].class_traits()[name]
        if rule is not None:
            made[name] = rule
        elif isinstance(trait, traitlets.Bool):
            made[name] = {"one_of": [False, True]}
        elif isinstance(trait, traitlets.Enum):
            made[name] = {"one_of": list(trait.values)}
        else:
            made[name] = {"least": trait.min, "most": trait.max, "whole": True}
    return made


@cache
def _classes() -> dict[str, type[Picture]]:
    """The pictures by their module."""
    found = [getattr(pictures, name) for name in pictures.__all__ if name != "Picture"]
    return {each.module: each for each in found}


@cache
def script(module: str) -> str:
    """A picture's modules as one plain script, which registers ``render`` and ``localModel`` by the module's name."""
    if module == FIGURE:
        view = files("tplab.lab.panels").joinpath("figure_view.js").read_text("utf-8")
        text = view.replace("export default { render };", "return { render };")
    else:
        text = module_text(module).replace("export default { render };", "return { render, localModel };")
    return f"(globalThis.tplabPictures ??= {{}}).{module} = (() => {{\n{text}}})();\n"


def _digest(module: str) -> str:
    return hashlib.sha256(script(module).encode()).hexdigest()[:8]


def _write_scripts(app: Sphinx, exception: Exception | None) -> None:
    if exception is None and app.builder.format == "html":
        folder = Path(app.outdir, "_static", SCRIPTS)
        folder.mkdir(parents=True, exist_ok=True)
        for module in (FIGURE, *_classes()):
            (folder / f"{module}.js").write_text(script(module), "utf-8")
        with as_file(files("plotly").joinpath("package_data", "plotly.min.js")) as plotly:
            shutil.copyfile(plotly, folder / "plotly.min.js")


def _live_in_notebooks(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put a place after each stored image of a picture or figure; the script hides the image once it is drawn."""
    if not str(app.env.doc2path(docname)).endswith(".ipynb"):
        return
    notebook = json.loads(source[0])
    for cell in notebook["cells"]:
        cell["outputs"] = [each for output in cell.get("outputs", ()) for each in _with_place(output)]
        if cell["cell_type"] != "code":
            del cell["outputs"]
    source[0] = json.dumps(notebook)


def _with_place(output: dict[str, Any]) -> list[dict[str, Any]]:
    data = output.get("data", {})
    if "text/html" in data:  # a site has no menu Run
        data["text/html"] = "".join(data["text/html"]).replace(MOVES, "")
    picture, figure = data.pop(PICTURE, None), data.pop(PLOTLY, None)
    if picture is not None:
        html = place(picture["picture"], picture["state"])
    elif figure is not None:
        html = figure_place(figure, "".join(data.get("text/plain", "")))
    else:
        return [output]
    return [output, {"output_type": "display_data", "metadata": {}, "data": {"text/html": html}}]
