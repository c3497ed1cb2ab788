"""Notebook 03 as a visitor uses it: paint another block, measure the phases."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]


def test_paint_and_measure(run_notebook: Callable[[str], Page]) -> None:
    page = run_notebook("03-tensor-parallel-layers.ipynb")
    painter = page.locator(".tplab-painter")
    figure = painter.locator(".js-plotly-plot")
    choices = painter.locator("select")

    # Column, row, column, row: the figure follows each control at once.
    for index, choice in enumerate(("column", "row", "column", "row")):
        choices.nth(index).select_option(choice)
    expect(figure).to_contain_text("2 all-reduces")
    choices.nth(3).select_option("column")
    expect(figure).to_contain_text("all-gather")
    expect(painter).to_contain_text("canonical: 2 all-reduces")

    panel = page.locator(".tplab-panel")
    phase = panel.locator(".tplab-phase")
    panel.locator("select").nth(0).select_option(["1", "64"])
    expect(panel.locator(".tplab-ribbon")).to_contain_text("Settings changed")
    panel.locator(".tplab-run").click()
    expect(phase).to_contain_text("Done in", timeout=60_000)
    expect(panel.locator(".tplab-ribbon")).to_have_text("")
    expect(panel.locator(".tplab-below")).to_contain_text("64 tokens")
