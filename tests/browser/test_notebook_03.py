"""Notebook 03 as a visitor uses it: paint another block, measure the phases."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]


def test_paint_and_measure(run_notebook: Callable[[str], Page]) -> None:
    page = run_notebook("03-tensor-parallel-layers.ipynb")
    # The painter waits for the prediction, then a key turns a matrix, and Python has the plan.
    painter = page.get_by_role("group", name="Shard painter")
    output = painter.locator("[data-matrix=out]")
    output.press("Enter")
    expect(output).to_have_attribute("data-choice", "column")
    fewest = page.locator(".tplab-predict").first
    fewest.locator(".tplab-predict-field input").fill("3")
    fewest.locator(".tplab-predict-commit").click()
    expect(painter.get_by_role("button", name="Paint without predicting")).to_have_count(0)
    output.press("Enter")
    expect(output).to_have_attribute("data-choice", "row")
    expect(painter).to_contain_text("2 of 81 paintings tried")

    panel = page.locator(".tplab-panel")
    phase = panel.locator(".tplab-phase")
    panel.get_by_role("checkbox", name="64", exact=True).check()
    for tokens in ("16", "128", "512"):
        panel.get_by_role("checkbox", name=tokens, exact=True).uncheck()
    expect(panel.locator(".tplab-ribbon")).to_contain_text("Settings changed")
    panel.locator(".tplab-run").click()
    expect(phase).to_contain_text("Done in", timeout=60_000)
    expect(panel.locator(".tplab-ribbon")).to_have_text("")
    expect(panel.locator(".tplab-below")).to_contain_text("64 tokens")
