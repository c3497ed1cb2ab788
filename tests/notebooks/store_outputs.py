"""Execute notebooks and store their outputs: ``python -m tests.notebooks.store_outputs notebooks/05-pipelines.ipynb``.

What is stored are the outputs of a real run, whole for readers without a kernel (GitHub, nbviewer, nbconvert): neither
widget state nor widget views, but the pictures that stand beside them, and for every figure a PNG beside plotly's own
MIME type, which few front ends draw. A figure that is stored already keeps its PNG, so that storing again changes only
what changed.
"""

import json
import os
import re
import sys
from collections.abc import Iterable
from html import unescape
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_output

from tests.notebooks.images import Draw, drawing
from tplab.files import check_writable, replacing
from tplab.lab.panels.figure_view import plain
from tplab.lab.saving import MARK, PICTURE, PLOTLY, strip

ROOT = Path(__file__).parents[2]
RENEW = "from tplab.lab.still import renew\n\nrenew()"
FRAME = re.compile(r'<iframe title="([^"]*)"[^>]* srcdoc="([^"]*)"[^>]*></iframe>')
STATE = re.compile(r'<script type="application/json" id="state" data-picture="(\w+)">(.*?)</script>', re.S)


def store(path: Path, draw: Draw) -> None:
    """Run the notebook beside its file and write it back with outputs; it stays as it was if that cannot be done."""
    check_writable(path)
    os.environ["TPLAB_PROGRESS"] = "off"  # for the kernel: this is no learner, and shows none's progress
    notebook = nbformat.read(path, as_version=4)
    before = stored_images(notebook)
    notebook.cells.append(new_code_cell(RENEW))  # what moved last has not settled yet
    NotebookClient(
        notebook,
        timeout=120,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        store_widget_state=False,
        record_timing=False,
    ).execute()
    notebook.cells.pop()
    finish(notebook, draw, before)
    with replacing(path) as partial:
        # Tracebacks name files: within the project, and not where it lies on this machine.
        partial.write_text(without_places(nbformat.writes(notebook)) + "\n", "utf-8")


def without_places(text: str) -> str:
    """With the places of a reader's own installation in the stead of this machine's."""
    for here, there in ((f"{ROOT}/", ""), (f"{sys.prefix}/", ".venv/"), (f"{sys.base_prefix}/", "/usr/")):
        text = text.replace(here, there)
    return text


def finish(notebook: nbformat.NotebookNode, draw: Draw, before: dict[str, Any]) -> None:
    """Make an executed notebook whole for readers without a kernel.

    Args:
        notebook: with the outputs of its run; changed in place.
        draw: makes the images.
        before: images that were stored already, see ``stored_images``.
    """
    strip(notebook)
    notebook.metadata.pop("widgets", None)
    notebook.metadata.language_info = {"name": "python"}  # not the version of whoever stored it
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [each for output in cell.outputs for each in whole(output, draw, before)]


def whole(output: nbformat.NotebookNode, draw: Draw, before: dict[str, Any]) -> Iterable[nbformat.NotebookNode]:
    """The output with an image of its figure; a moving picture becomes a still one."""
    yield output
    data = output.get("data", {})
    if MARK in output.get("metadata", {}):
        output.metadata[MARK] = {"still": True}  # the widget's name is another one in every run
    if PLOTLY in data:
        title = data[PLOTLY]["layout"].get("title", {}).get("text", "")
        data.setdefault("text/plain", plain(title) or "A figure")
        known = before.get(json.dumps(data[PLOTLY], sort_keys=True))
        data["image/png"], size = known or draw.figure(data[PLOTLY])
        output.metadata["image/png"] = size | {"alt": data["text/plain"]}
    for title, page in FRAME.findall(data.get("text/html", "")):
        data["text/html"] = FRAME.sub("", data["text/html"])
        image, size = draw.page(page)
        title = unescape(title)
        about = {"image/png": size | {"alt": title}, MARK: {"still": True}}
        data = {"image/png": image, "text/plain": title} | {PICTURE: picture_of(unescape(page))}
        yield new_output("display_data", data, metadata=about)


def picture_of(page: str) -> dict[str, Any]:
    """Which picture a page shows, and its state: with these a site draws it live (``docs/_ext/tplab_pictures.py``)."""
    found = STATE.search(page)
    assert found is not None, "a page of a picture that says no state"
    return {"picture": found[1], "state": json.loads(found[2])}


def stored_images(notebook: nbformat.NotebookNode) -> dict[str, Any]:
    """Image and size of each figure that has one, by the figure."""
    found = {}
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if PLOTLY in data and "image/png" in data:
                size = {name: output.metadata["image/png"][name] for name in ("width", "height")}
                found[json.dumps(data[PLOTLY], sort_keys=True)] = data["image/png"], size
    return found


if __name__ == "__main__":
    with drawing() as draw:
        for argument in sys.argv[1:]:
            store(Path(argument), draw)
