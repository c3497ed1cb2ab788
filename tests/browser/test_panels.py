"""What all panels share in the page: one plot that is kept, the theme, geometry, names for screen readers."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from playwright.sync_api import Locator, Page, expect

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

ABOUT = {"kernelspec": {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}}
WIDTHS = (900, 1000, 1080, 1280, 1440, 1600)
SCROLLING = """() => [...document.querySelectorAll('.tplab-columns, .tplab-columns *')].filter((each) => {
  const style = getComputedStyle(each);
  const bar = (overflow) => overflow === 'auto' || overflow === 'scroll';
  if (each.closest('select, textarea, .tplab-table, .tplab-ledger') || !each.clientWidth) return false;
  return (bar(style.overflowX) && each.scrollWidth > each.clientWidth)
    || (bar(style.overflowY) && each.scrollHeight > each.clientHeight);
}).map((each) => [each.className, each.scrollWidth, each.clientWidth, each.scrollHeight].join(' '))"""
CUT = """() => [...document.querySelectorAll('.tplab-columns .widget-label, .tplab-columns button')]
  .filter((each) => each.clientWidth && each.scrollWidth > each.clientWidth + 1).map((each) => each.textContent)"""
# Text of a plot that stands out of it, which the page would cut.
OUTSIDE = """() => [...document.querySelectorAll('.tplab-figure')].flatMap((view) => {
  const frame = view.getBoundingClientRect();
  return [...view.querySelectorAll('.gtitle, .annotation-text, .legendtext')].filter((each) => {
    const box = each.getBoundingClientRect();
    return box.width && (box.right > frame.right + 2 || box.left < frame.left - 2);
  }).map((each) => `${each.textContent} (${view.closest('.jp-Cell').innerText.slice(0, 60)})`);
})"""
COVERED = """() => [...document.querySelectorAll('.tplab-below')].filter((below) => {
  const figure = below.parentElement.querySelector('.tplab-figure .main-svg')?.getBoundingClientRect();
  const words = below.getBoundingClientRect();  // above the figure in one panel
  return figure && below.textContent && words.top < figure.bottom - 1 && words.bottom > figure.top + 1;
}).map((each) => each.textContent)"""


@pytest.fixture
def notebook(lab_root: Path) -> Iterator[Callable[..., str]]:
    made: list[Path] = []

    def write(*cells: str) -> str:
        file = lab_root / "notebooks" / f"panels-{len(made)}.ipynb"
        made.append(file)
        nbformat.write(new_notebook(cells=[new_code_cell(cell) for cell in cells], metadata=ABOUT), file)
        return file.name

    yield write
    for file in made:
        file.unlink()


def plots(page: Page) -> Locator:
    return page.locator(".tplab-figure [data-drawn]")


def test_one_plot_is_kept_follows_the_theme_and_is_named(
    notebook: Callable[..., str], run_notebook: Callable[[str], Page]
) -> None:
    page = run_notebook(
        notebook(
            "from tplab.lab import ChunkModel, HelloPanel, Pool\nmodel = ChunkModel()\nmodel",
            "pool = Pool(2, 'gloo')\npanel = HelloPanel(pool)\npanel",
            "got = panel.configure(repeats=10).run()",
        )
    )
    model = page.locator(".jp-CodeCell").nth(0)
    plot = model.locator("[data-drawn]")
    expect(plot).to_be_visible()
    plot.evaluate("each => { each.querySelector('.plot-container').mark = 'the first'; }")
    slider = model.get_by_role("slider", name="chunks")
    slider.focus()
    for chunks in (2, 3, 4):
        page.keyboard.press("ArrowRight")
        expect(plot).to_contain_text(f"{chunks} chunks")
    assert plot.evaluate("each => each.querySelector('.plot-container').mark") == "the first"
    expect(slider).to_have_attribute("aria-valuetext", "4")
    expect(plot).to_have_attribute("role", "img")
    expect(plot).to_have_attribute("aria-label", re.compile("4 chunks.*exposed"))

    # The camera, and nothing else, in the bar: it is no wider than that, and not over the title.
    plot.hover()
    buttons = plot.locator(".modebar-btn")
    expect(buttons).to_have_count(1)
    title, bar = plot.locator(".gtitle").bounding_box(), plot.locator(".modebar").bounding_box()
    assert title is not None
    assert bar is not None
    assert bar["x"] >= title["x"] + title["width"]

    # What is read out of a run.
    panel = page.locator(".tplab-panel")
    expect(panel.get_by_role("status")).to_contain_text("Done in")
    expect(panel.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "100")
    figure = panel.locator("[data-drawn]")
    expect(figure).to_have_attribute("aria-label", re.compile(r"All-reduce .SUM. of 4 B\. .*✓ as expected"))
    expect(panel.get_by_role("slider", name="Tensor")).to_be_visible()
    expect(panel.locator(".tplab-shown")).to_contain_text("LIVE gloo · 2 ranks: Reduction SUM")
    names = page.evaluate(
        "[...document.querySelectorAll('.tplab-columns :is(button, input, textarea, select, [role=slider])')]"
        ".filter((each) => !each.getAttribute('aria-label') && !each.textContent.trim() && !each.labels?.length"
        " && !each.title).map((each) => each.outerHTML)"
    )
    assert names == []

    # Dark: the page's own ground, light letters.
    page.click(".lm-MenuBar-itemLabel:text-is('Settings')")
    page.click(".lm-Menu-itemLabel:text-is('Theme')")
    page.click(".lm-Menu-itemLabel:text-is('JupyterLab Dark')")
    letters = plot.locator(".gtitle")
    expect(letters).to_have_css("fill", "rgb(228, 231, 236)")
    assert plot.locator(".main-svg").first.evaluate("each => getComputedStyle(each).backgroundColor") in (
        "rgba(0, 0, 0, 0)",
        "transparent",
    )
    assert plot.evaluate("each => each.querySelector('.plot-container').mark") == "the first"
    page.click(".lm-MenuBar-itemLabel:text-is('Settings')")
    page.click(".lm-Menu-itemLabel:text-is('Theme')")
    page.click(".lm-Menu-itemLabel:text-is('JupyterLab Light')")
    expect(letters).to_have_css("fill", "rgb(31, 36, 48)")


def test_a_page_without_plotly_is_given_it_by_the_kernel_once(
    notebook: Callable[..., str], open_notebook: Callable[[str], Page]
) -> None:
    page = open_notebook(notebook("from tplab.lab import ChunkModel\nChunkModel()", "ChunkModel()"))
    page.evaluate("delete globalThis._JUPYTERLAB['jupyterlab-plotly']")
    # Plain figures have a renderer all the same, which leaves its plotly to the page.
    page.evaluate("Object.defineProperty(globalThis, 'Plotly', { get: () => undefined, set() {} }); null")
    page.evaluate(
        "globalThis.imported = 0; const make = URL.createObjectURL;"
        "URL.createObjectURL = (blob) => { imported += blob?.size > 1e6; return make(blob); }; null"
    )
    page.click(".lm-MenuBar-itemLabel:text-is('Run')")
    page.click(".lm-Menu-itemLabel:text-is('Run All Cells')")
    expect(plots(page)).to_have_count(2, timeout=60_000)
    expect(plots(page).nth(1)).to_contain_text("communication")
    assert page.evaluate("imported") == 1


def test_stop_before_the_first_report_leaves_the_earlier_figure_and_says_so(
    notebook: Callable[..., str], run_notebook: Callable[[str], Page]
) -> None:
    page = run_notebook(
        notebook(
            "from tplab.lab import PipelinePanel, Pool\npool = Pool(2, 'gloo')\npanel = PipelinePanel(pool)\npanel",
            "got = panel.configure(m=2, forward_ms=2).run()\nblocker = pool.cluster.submit(lambda rank: "
            "__import__('time').sleep(300))",
        )
    )
    panel = page.locator(".tplab-panel")
    figure, status = panel.locator(".tplab-figure"), panel.get_by_role("status")
    expect(figure).to_contain_text("2 micro-batches")
    panel.get_by_role("slider", name="micro-batches").press("ArrowRight")
    expect(panel.locator(".tplab-ribbon")).to_contain_text("Settings changed since this run (micro-batches 2)")
    panel.locator(".tplab-run").click()
    expect(status).to_have_text("Waiting for another cell …")
    expect(panel.locator(".tplab-ribbon")).to_contain_text("Not of this run yet. Shown: the run before")
    panel.locator(".tplab-stop").click()
    expect(status).to_have_text("Stopped. Nothing was measured. The figure is of an earlier run.")
    expect(panel.locator(".tplab-ribbon")).to_contain_text("Nothing was measured in the run of")
    expect(panel.locator(".tplab-ribbon")).to_contain_text("(micro-batches 2)")
    expect(panel.locator(".tplab-error")).to_have_text("")
    expect(figure).to_contain_text("2 micro-batches")
    expect(panel.locator(".tplab-shown")).to_contain_text("micro-batches 2")


def test_no_scroll_bars_nothing_cut_nothing_covered_at_any_width(
    notebook: Callable[..., str], run_notebook: Callable[[str], Page]
) -> None:
    page = run_notebook(
        notebook(
            "from tplab.lab import *\npool = Pool(2, 'gloo')\npanels = [HelloPanel(pool), SweepPanel(pool), "
            "PipelinePanel(pool), ServingPanel(pool), PhasesPanel(pool), OverlapPanel(pool), ShardsPanel(pool), "
            "GenerationPanel(pool), CrossoverPanel(pool)]\npanels[0]",
            *(f"panels[{number}]" for number in range(1, 9)),
            "calibrated = CalibrationPanel(pool)\ncalibrated",
            "VerifyPanel(calibrated)",
            "ProfilePanel(pool, verified_model(256, 2))",
            "ChunkModel()",
            "MemoryWall()",
            "FitPanel().show(users=40)",
            "ScheduleStudio()",
            "machine = LinkPanel()\nmachine",
            "AdvisorPanel(machine)",
            "LedgerPanel(pool)",
            "panels[0].configure(repeats=10).run();\npanels[2].configure(forward_ms=2).run();",
            "panels[1].configure(sizes=(1024, 4096)).run();\npanels[7].configure(new_tokens=8).run();"
            "\npanels[8].configure(source='4xH200-2026-11-26, 4 ranks');",
        )
    )
    expect(plots(page)).to_have_count(10, timeout=60_000)
    found: dict[int, list[str]] = {}
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 1000})
        page.wait_for_function(
            "[...document.querySelectorAll('[data-drawn]')].every((each) => !each.clientWidth ||"
            " Math.abs(each.querySelector('.main-svg').clientWidth - each.parentElement.clientWidth) < 2)"
        )
        page.wait_for_timeout(300)
        faults = [fault for script in (SCROLLING, CUT, OUTSIDE, COVERED) for fault in page.evaluate(script)]
        if faults:
            found[width] = faults
    assert found == {}, "\n".join(f"{width}: {fault}" for width, faults in found.items() for fault in faults)
