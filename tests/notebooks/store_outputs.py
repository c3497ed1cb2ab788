"""Execute notebooks and store their outputs: ``python tests/notebooks/store_outputs.py notebooks/00-start-here.ipynb``.

What is stored are the outputs of a real run, small and readable without running anything: no widget state (megabytes of
it), and no widget views, which without that state would show as errors; a line says that running the cell gives the
panel. Figures stay as plotly's own MIME type.
"""

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from tplab.files import check_writable, replacing

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
PLACEHOLDER = "<i>A live panel: run the notebook (Run ▸ Run All Cells) to use it.</i>"


def store(path: Path) -> None:
    """Run the notebook beside its file and write it back with outputs; it stays as it was if that cannot be done."""
    check_writable(path)
    os.environ["TPLAB_PROGRESS"] = "off"  # for the kernel: this is no learner, and shows none's progress
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook,
        timeout=120,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        store_widget_state=False,
        record_timing=False,
    ).execute()
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [without_widget_view(output) for output in cell.outputs]
    notebook.metadata.language_info = {"name": "python"}  # not the version of whoever stored it
    with replacing(path) as partial:
        nbformat.write(notebook, partial)


def without_widget_view(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Put a line of text in the place of a live widget."""
    data = output.get("data", {})
    if WIDGET_VIEW in data:
        output.data = {"text/html": PLACEHOLDER, "text/plain": "A live panel: run the notebook to use it."}
    return output


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        store(Path(argument))
