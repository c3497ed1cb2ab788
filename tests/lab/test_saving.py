"""Views are taken out of a notebook that is saved, where a picture of them stands beside them; nothing else is."""

import copy
import json
import logging
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_server.services.contents.filemanager import FileContentsManager
from jupyter_server.services.contents.largefilemanager import LargeFileManager
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tplab import __version__
from tplab.lab.saving import MARK, WIDGET_STATE, WIDGET_VIEW, _load_jupyter_server_extension, strip


def view(model: str, **other: Any) -> Any:
    return new_output("display_data", {WIDGET_VIEW: {"model_id": model}, "text/plain": "Box()"}, **other)


def still(model: str, **other: Any) -> Any:
    return new_output("display_data", {"text/html": f"still of {model}"}, metadata={MARK: {"still": model, **other}})


def words(text: str) -> Any:
    return new_output("stream", text=text)


def shown(notebook: Any) -> list[str]:
    """Each output in a word."""
    return [
        output.get("text") or output["data"].get(WIDGET_VIEW, {}).get("model_id") or output["data"]["text/html"]
        for cell in notebook["cells"]
        for output in cell.get("outputs", ())
    ]


def notebook() -> Any:
    cells = [
        new_markdown_cell("text"),
        new_code_cell(outputs=[words("a"), view("ours"), still("ours"), still("ours", empty=True), words("b")]),
        new_code_cell(outputs=[view("theirs")]),
        new_code_cell(outputs=[view("theirs too"), view("also ours"), still("also ours")]),
        new_code_cell(outputs=[view("without a picture")]),
        new_code_cell(outputs=[view("ours")]),  # the picture stands in another cell
    ]
    return new_notebook(cells=cells)


LEFT = ["a", "still of ours", "b", "theirs", "theirs too", "still of also ours", "without a picture", "ours"]


def test_views_with_a_picture_in_their_cell_go_and_nothing_else() -> None:
    saved = notebook()
    assert strip(saved) == 2
    assert shown(saved) == LEFT
    nbformat.validate(saved)
    again = copy.deepcopy(saved)
    assert strip(again) == 0
    assert again == saved


def test_a_notebook_without_pictures_stays_as_it_is() -> None:
    theirs = new_notebook(
        cells=[new_code_cell(outputs=[view("a"), view("b", metadata={MARK: "text", "other": 1})])],
        metadata={"widgets": {WIDGET_STATE: {"state": {"a": {}, "unused": {}}}}},
    )
    before = copy.deepcopy(theirs)
    assert strip(theirs) == 0
    assert theirs == before


def test_state_that_only_the_views_needed_goes_with_them() -> None:
    refers = {"children": ["IPY_MODEL_shared", "IPY_MODEL_leaf"]}
    state = {
        "ours": {"state": refers},
        "leaf": {"state": {"layout": "IPY_MODEL_ours"}},  # in a circle
        "shared": {"state": {}},
        "theirs": {"state": {"children": ["IPY_MODEL_shared"]}},
        "not shown": {"state": {"source": "IPY_MODEL_linked"}},
        "linked": {"state": {}},
    }
    refers["children"].append("IPY_MODEL_linked")
    saved = new_notebook(
        cells=[new_code_cell(outputs=[view("ours"), still("ours"), view("theirs")])],
        metadata={"widgets": {WIDGET_STATE: {"version_major": 2, "state": state}}},
    )
    strip(saved)
    assert set(saved.metadata.widgets[WIDGET_STATE].state) == {"shared", "theirs", "not shown", "linked"}
    alone = new_notebook(
        cells=[new_code_cell(outputs=[view("ours"), still("ours")])],
        metadata={"widgets": {WIDGET_STATE: {"state": {"ours": {}}}}},
    )
    strip(alone)
    assert "widgets" not in alone.metadata


class Server:
    """What the extension is given of a server."""

    log = logging.getLogger("a server")

    def __init__(self, contents_manager: Any) -> None:
        self.contents_manager = contents_manager


@pytest.mark.parametrize("manager", [FileContentsManager, LargeFileManager])
def test_a_contents_manager_saves_without_views_and_runs_the_hooks_that_it_had(
    manager: type[FileContentsManager], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "data"))  # signatures are kept there
    ran = []
    contents = manager(root_dir=str(tmp_path), pre_save_hook=lambda **_: ran.append("configured"))
    contents.register_pre_save_hook(lambda **_: ran.append("registered"))
    _load_jupyter_server_extension(Server(contents))
    model = {"type": "notebook", "format": "json", "content": json.loads(nbformat.writes(notebook()))}
    contents.save(model, "a.ipynb")
    contents.create_checkpoint("a.ipynb")
    assert shown(nbformat.read(tmp_path / "a.ipynb", as_version=4)) == LEFT
    (checkpoint,) = (tmp_path / ".ipynb_checkpoints").glob("*.ipynb")
    assert shown(nbformat.read(checkpoint, as_version=4)) == LEFT
    contents.save({"type": "file", "format": "text", "content": "no notebook"}, "a.txt")
    assert (tmp_path / "a.txt").read_text() == "no notebook"
    assert ran == ["configured", "registered"] * 2


@pytest.mark.parametrize("damaged", [None, 3, "text", [], {}, {"data": "text", "metadata": ["list"]}])
def test_what_is_damaged_is_saved_as_it_is_and_keeps_no_view_elsewhere(damaged: Any) -> None:
    cells = [damaged, {"outputs": damaged}, {"outputs": [damaged, view("ours"), still("ours")]}]
    saved = {"cells": copy.deepcopy(cells), "metadata": {"widgets": damaged}}
    assert strip(saved) == 1
    assert saved == {"cells": [*cells[:2], {"outputs": [damaged, still("ours")]}], "metadata": {"widgets": damaged}}
    for odd in (
        {"cells": damaged},
        {"cells": [], "metadata": damaged},
        {"metadata": {"widgets": {WIDGET_STATE: damaged}}},
    ):
        assert strip({"cells": []} | copy.deepcopy(odd)) == 0


def test_a_notebook_that_the_hook_does_not_understand_is_saved_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "data"))
    contents = FileContentsManager(root_dir=str(tmp_path))
    _load_jupyter_server_extension(Server(contents))
    odd = json.loads(nbformat.writes(notebook()))
    odd["metadata"]["widgets"] = {WIDGET_STATE: "broken"}
    contents.save({"type": "notebook", "format": "json", "content": odd}, "a.ipynb")
    assert json.loads((tmp_path / "a.ipynb").read_text())["cells"][0]["source"]


def test_a_contents_manager_without_hooks_is_left_alone() -> None:
    _load_jupyter_server_extension(Server(object()))


def test_a_server_imports_nothing_of_the_lab_for_it() -> None:
    code = "import sys, tplab.lab.saving; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"torch", "numpy", "pandas", "plotly", "ipywidgets", "anywidget", "IPython"}.isdisjoint(loaded)


def test_what_the_front_end_loads_is_of_this_version() -> None:
    """A style only: JupyterLab catches and logs its errors, as it does not for every fault of a plugin."""
    folder = Path(__file__).parents[2] / "share/jupyter/labextensions/tplab"
    about = json.loads((folder / "package.json").read_text())
    assert about["version"] == __version__
    build = about["jupyterlab"]["_build"]
    assert build.keys() == {"load", "style"}
    assert (folder / build["load"]).is_file()


def test_it_takes_no_time_that_somebody_would_notice() -> None:
    saved = notebook()
    saved.cells *= 200
    began = time.perf_counter()
    assert strip(saved) == 2
    took = time.perf_counter() - began
    print(f"{len(saved.cells)} cells: {1000 * took:.1f} ms")
    assert took < 0.1
