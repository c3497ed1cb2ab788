"""Saved, reopened without its kernel, run again: panels are pictures of themselves, and come back."""

import io
import json
import re
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output
from PIL import Image
from playwright.sync_api import Locator, Page, expect

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

CELLS = (
    "from tplab.lab import ChunkModel, HelloPanel, Pool, Predict\nimport ipywidgets\npool = Pool(2)\npool",
    "panel = HelloPanel(pool)\npanel",
    "got = panel.run()",
    "print('before')\nmodel = ChunkModel()\nmodel",
    "guess = Predict('how long', unit='ms')\nguess",
    "guess.compare(3.0, source='model', shown=model.figure)",
    "from tplab.lab.pictures import Race\nRace()",
    "ipywidgets.IntSlider(description='somebody else')",
)
ABOUT = {"kernelspec": {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}}
ERROR = "Error displaying widget"


@pytest.fixture
def notebook(lab_root: Path) -> str:
    cells = [new_code_cell(source) for source in CELLS]
    nbformat.write(new_notebook(cells=cells, metadata=ABOUT), lab_root / "notebooks" / "reopened.ipynb")
    return "reopened.ipynb"


def save(page: Page) -> None:
    page.keyboard.press("Control+S")
    expect(page.locator(".lm-TabBar-tab.jp-mod-current")).not_to_have_class(re.compile("jp-mod-dirty"))


def stills(page: Page) -> Locator:
    return page.locator(".tplab-still:not(:empty)")


def test_saved_and_reopened_without_its_kernel(
    notebook: str, run_notebook: Callable[[str], Page], lab_root: Path, shut_down_kernels: Callable[[], None]
) -> None:
    page = run_notebook(notebook)
    # Live: panels, and none of their pictures.
    expect(page.locator(".tplab-live")).to_have_count(6)
    expect(stills(page).first).to_be_attached()
    expect(page.locator(".tplab-still >> visible=true")).to_have_count(0)
    expect(page.locator(".jp-OutputArea-child .js-plotly-plot >> visible=true")).to_have_count(2)
    expect(page.get_by_text("before", exact=True)).to_be_visible()  # another output of a panel's cell

    # A move is in the picture once it has settled.
    page.locator(".jp-CodeCell", has_text="ChunkModel()").locator(".widget-slider [role=slider]").first.focus()
    page.keyboard.press("ArrowRight")
    chunks = page.locator(".jp-CodeCell", has_text="ChunkModel()")
    expect(chunks.locator(".tplab-live .js-plotly-plot")).to_contain_text("2 chunks")
    expect(chunks.locator(".tplab-still").first).to_contain_text("chunks 2", timeout=10_000)
    page.locator(".tplab-predict input").first.fill("5")
    page.locator(".tplab-predict input").first.press("Enter")
    expect(page.locator(".tplab-comparison")).to_contain_text("You predicted 5 ms")
    save(page)

    saved = nbformat.read(lab_root / "notebooks" / notebook, as_version=4)
    views = [output.data for cell in saved.cells for output in cell.outputs if "widget-view" in json.dumps(output)]
    assert len(views) == 1  # somebody else's

    shut_down_kernels()
    page.reload()
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
    expect(stills(page).first).to_be_visible()
    expect(page.locator(".jp-CodeCell", has_text="ChunkModel()")).not_to_contain_text(ERROR)
    expect(page.locator(".jp-OutputArea", has_text=ERROR)).to_have_count(1)  # somebody else's
    expect(page.locator(".js-plotly-plot >> visible=true")).to_have_count(3)
    expect(page.locator(".tplab-still", has_text="Run ▸ Run All Cells brings the controls back")).to_have_count(2)
    expect(chunks).to_contain_text("chunks 2")
    expect(page.locator(".tplab-still", has_text="You predicted 5 ms. Computed: 3 ms")).to_be_visible()

    race = page.frame_locator("iframe[title='All-reduce race']")
    race.get_by_role("button", name="step forward").click()  # a moving picture moves without a kernel
    expect(race.locator(".tplab-picture")).to_contain_text("Ring")

    page.click(".lm-MenuBar-itemLabel:text-is('Run')")
    page.click(".lm-Menu-itemLabel:text-is('Run All Cells')")
    expect(page.locator(".tplab-live")).to_have_count(6, timeout=60_000)
    expect(page.locator(".tplab-still >> visible=true")).to_have_count(0)
    expect(page.locator(".jp-OutputArea", has_text=ERROR)).to_have_count(0)


def test_a_stored_image_is_as_wide_as_the_page_and_the_pointer_makes_it_a_plot(
    open_notebook: Callable[[str], Page], lab_root: Path
) -> None:
    file = io.BytesIO()
    Image.new("RGB", (2400, 800), "white").save(file, "PNG")
    figure = {"data": [{"y": [1, 2]}], "layout": {"title": {"text": "a line"}}}
    bundle = {"application/vnd.plotly.v1+json": figure, "image/png": b64encode(file.getvalue()).decode()}
    cell = new_code_cell("figure", outputs=[new_output("display_data", bundle)])
    nbformat.write(new_notebook(cells=[cell], metadata=ABOUT), lab_root / "notebooks" / "stored.ipynb")
    page = open_notebook("stored.ipynb")
    image = page.locator(".jp-RenderedPlotly img")
    assert image.evaluate("image => image.clientWidth") <= min(820, page.viewport_size["width"])
    assert image.evaluate("image => image.clientWidth / image.clientHeight") == pytest.approx(3, rel=0.02)
    image.dispatch_event("mouseenter")
    expect(page.locator(".jp-RenderedPlotly .plot-container")).to_contain_text("a line")
