"""Notebook 01 as a visitor uses it: move a slider past what can be, look along TP, build other shards."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]


def test_move_and_build(run_notebook: Callable[[str], Page]) -> None:
    page = run_notebook("01-memory-wall.ipynb")
    fit = page.get_by_role("group", name="Will it fit?")
    expect(fit.get_by_text("It fits.")).to_be_visible()
    fit.get_by_label("batch").press("End")
    expect(fit.get_by_text("It does not fit.")).to_be_visible()
    expect(fit.locator(".answer .status")).to_contain_text("1,024 requests of 4,096 tokens")
    fit.get_by_role("button", name="a batch of at most").click()
    expect(fit.get_by_text("It fits.")).to_be_visible()

    wall = page.locator(".tplab-memory-wall")
    figure, below = wall.locator(".js-plotly-plot"), wall.locator(".tplab-below")

    # It begins at TP 8, for the notebook asks what TP 4 holds: one step further is 9, by which no head count divides.
    expect(below).to_contain_text("fits")
    wall.locator(".noUi-handle").nth(2).press("ArrowRight")
    expect(wall.locator(".tplab-error")).to_contain_text("tp must divide the model's 64 query heads")
    expect(figure).to_contain_text("TP 8 × PP 1")
    wall.locator(".noUi-handle").nth(2).press("ArrowLeft")
    expect(wall.locator(".tplab-error")).to_have_text("")
    wall.locator("select").nth(0).select_option("Llama 3.1 405B")
    expect(figure).to_contain_text("Llama 3.1 405B")
    expect(below).to_contain_text("does not fit")
    wall.locator("button", has_text="every rank").click()
    expect(figure).to_contain_text("over by")

    panel = page.locator(".tplab-panel")
    panel.locator("select").nth(0).select_option("12 heads, 1 key-value")
    expect(panel.locator(".tplab-ribbon")).to_contain_text("Settings changed")
    panel.locator(".tplab-run").click()
    expect(panel.locator(".tplab-phase")).to_contain_text("Done in", timeout=60_000)
    expect(panel.locator(".tplab-below")).to_contain_text("byte for byte")
