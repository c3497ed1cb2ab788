"""Notebooks as pages: what JupyterLab does with them by itself, and a page without a kernel has to be told.

Links lead to headings as JupyterLab names them (``#KV-cache``); Sphinx names them as GitHub does (``#kv-cache``).
Images have their alternative text in the output's metadata. What JupyterLab keeps covered remains so, and below
the title stands how to run the notebook.
"""

import json
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from myst_parser.slugs import github_slugify
from set_address import address, open_links
from sphinx.application import Sphinx

LINK = re.compile(r"(?<=\]\()([^)#\s:]*)#([^)\s]+)")


def read(app: Sphinx, docname: str, source: list[str]) -> None:
    """Changes a notebook's text before MyST-NB reads it."""
    if not docname.startswith("notebooks/"):
        return
    if app.env.doc2path(docname).suffix != ".ipynb":
        source[0] = LINK.sub(_as_on_github, source[0])
        return
    notebook = json.loads(source[0])
    # How to open it stands below the title, and nothing is installed for a page.
    notebook["cells"] = [cell for cell in notebook["cells"] if "address" not in cell["metadata"].get("tplab", {})]
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = LINK.sub(_as_on_github, "".join(cell["source"]))
            continue
        if cell["metadata"].get("jupyter", {}).get("outputs_hidden"):
            cell["metadata"].setdefault("tags", []).append("hide-output")
    notebook["metadata"]["language_info"]["pygments_lexer"] = "ipython3"  # which knows lines that begin with !
    first = notebook["cells"][0]
    title, _, rest = first["source"].partition("\n")
    first["source"] = f"{title}\n\n{how_to_run(docname)}\n\n{rest}"
    source[0] = json.dumps(notebook)


def how_to_run(docname: str) -> str:
    """What stands below the title: where the notebook runs, and what does not work without a kernel."""
    doors = [f"[{name}]({link})" for name, link in open_links(f"{docname}.ipynb", address()).items()]
    doors.append("[on your machine](../README.md#open-the-lab)")
    return (
        f":::{{container}} how-to-run\nOpen it: {' · '.join(doors)} · "
        f"{{download}}`the file <{Path(docname).name}.ipynb>`. On this page nothing runs: the outputs are of a run on "
        "two CPU cores. Run buttons and boxes for numbers need a kernel, moving pictures do not.\n:::"
    )


def _as_on_github(link: re.Match[str]) -> str:
    return f"{link[1]}#{github_slugify(link[2].replace('-', ' '))}"


def describe_images(app: Sphinx, doctree: nodes.document) -> None:
    """Alternative texts: an output's image is described by the plain text beside it."""
    for bundle in doctree.findall(lambda node: node.get("nb_element") == "mime_bundle" if _is(node) else False):
        kinds: dict[str, Any] = {child.get("mime_type"): child for child in bundle.children if _is(child)}
        if "image/png" in kinds and "text/plain" in kinds:
            for image in kinds["image/png"].findall(nodes.image):
                image["alt"] = kinds["text/plain"].astext()


def _is(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Element)


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("source-read", read)
    app.connect("doctree-read", describe_images, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
