"""The demo's page: every section runs, nothing starts ranks until it is asked for, and the template asks no network."""

import re
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import nbformat
import pytest

from tplab.lab import Pool, demo
from tplab.lab.demo import SECTIONS, demo_notebook, serve_demo
from tplab.lab.demo.ranks import RanksOnRequest


def run(notebook: dict[str, Any]) -> dict[str, Any]:
    """Execute a page's cells, as Voila does. Gives the last value of each, by cell, and all names."""
    names: dict[str, Any] = {}
    shown = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            *before, last = cell["source"].split("\n")
            exec("\n".join(before), names)
            if last.startswith("VBox("):
                shown.append(eval(last, names))
            else:
                exec(last, names)
    return names | {"shown": shown}


def test_every_section_shows_a_panel_and_no_rank_starts() -> None:
    notebook = demo_notebook()
    nbformat.validate(nbformat.from_dict(notebook))
    names = run(notebook)
    assert len(names["shown"]) == len(SECTIONS)
    assert all(isinstance(box.children[0], widgets.DOMWidget) for box in names["shown"])
    pool = names["pool"]
    assert pool._cluster is None
    assert pool._idle_minutes == demo.IDLE_MINUTES


def test_the_contents_lead_to_the_sections() -> None:
    cells = demo_notebook()["cells"]
    headings = [re.match("## (.*)", cell["source"])[1] for cell in cells if cell["source"].startswith("## ")]
    assert re.findall(r"\]\(#(.*?)\)", cells[0]["source"]) == [heading.replace(" ", "-") for heading in headings]


def test_without_ranks_no_panel_has_a_button_for_them() -> None:
    notebook = demo_notebook(ranks=False)
    names = run(notebook)
    assert len(names["shown"]) == len([section for section in SECTIONS if not section.asks_ranks])
    names["pool"].close()

    def below(widget: Any) -> list[Any]:
        return [widget, *(each for child in getattr(widget, "children", ()) for each in below(child))]

    buttons = [each for box in names["shown"] for each in below(box) if isinstance(each, widgets.Button)]
    assert not [button for button in buttons if button.description in ("Run", "Start", "Start 2 ranks")]
    assert "pool" not in "".join(section.code for section in SECTIONS if not section.asks_ranks)


def test_ranks_come_at_the_press_of_the_button_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setattr(Pool, "cluster", property(lambda pool: started.append(pool)))
    pool = Pool(2, "gloo")
    box = RanksOnRequest(pool)
    assert started == []
    button = box.children[0]
    button.click()
    button.click()
    assert started == [pool]
    assert box.children[0] is pool
    assert len(box.children) == 5


def test_voila_is_told_limits_and_finds_the_template(monkeypatch: pytest.MonkeyPatch) -> None:
    app = pytest.importorskip("voila.app")
    seen: dict[str, Any] = {}

    def launch(argv: list[str]) -> None:
        from voila.paths import collect_template_paths

        seen["page"] = nbformat.read(argv[0], as_version=4)
        seen["options"] = argv[1:]
        seen["folder"] = Path(argv[0]).parent
        seen["templates"] = collect_template_paths(["voila", "nbconvert"], "tplab", prune=True)

    for name in ("JUPYTER_PATH", "TPLAB_PROGRESS"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(app.Voila, "launch_instance", launch)
    serve_demo(["--port=1"], ranks=False)
    assert seen["page"]["cells"][0]["source"].startswith("# ")
    assert seen["options"][0] == "--template=tplab"
    assert seen["options"][-1] == "--port=1"
    assert "--MappingKernelManager.cull_idle_timeout=600" in seen["options"]
    assert seen["templates"][0].endswith("demo/jupyter/voila/templates/tplab")
    assert any(path.endswith("voila/templates/lab") for path in seen["templates"])
    assert not seen["folder"].exists()
