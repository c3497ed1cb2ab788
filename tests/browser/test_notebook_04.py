"""Notebook 04 as a visitor uses it: move a slider of the model, measure other chunks, stop."""

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]


def test_chunks_from_the_page(run_notebook: Callable[[str], Page]) -> None:
    page = run_notebook("04-cheaper-communication.ipynb")
    model = page.locator(".tplab-chunk-model")
    expect(model.locator(".js-plotly-plot")).to_contain_text("1 chunk")
    model.locator(".noUi-handle").first.press("ArrowRight")
    expect(model.locator(".js-plotly-plot")).to_contain_text("2 chunks")
    expect(model).to_contain_text("Only the last chunk's communication is exposed")

    panel = page.locator(".tplab-panel")
    phase = panel.locator(".tplab-phase")
    for chunks in ("2", "8", "16"):
        panel.get_by_role("checkbox", name=chunks, exact=True).uncheck()
    panel.get_by_label("Tokens").select_option("256")
    expect(panel.locator(".tplab-ribbon")).to_contain_text("Settings changed")
    panel.locator(".tplab-run").click()
    expect(phase).to_contain_text("Done in", timeout=90_000)
    expect(panel.locator(".tplab-below")).to_contain_text(re.compile("of what can be hidden|as good as the bound"))
    expect(panel.locator(".js-plotly-plot")).to_contain_text("bound")

    panel.get_by_label("Tokens").select_option("2048")
    panel.locator(".tplab-run").click()
    expect(phase).to_contain_text("measure", timeout=60_000)
    panel.locator(".tplab-stop").click()
    expect(phase).to_have_text("Stopped. What was measured until then is shown.")
    expect(panel.locator(".tplab-error")).to_have_text("")
