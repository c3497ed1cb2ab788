"""Notebook 00 as a visitor uses it: run all cells, press Run, press Stop."""

import re
import time
from collections.abc import Callable

import pytest
from playwright.sync_api import Locator, Page, expect

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]


def phase(page: Page) -> Locator:
    return page.locator(".tplab-panel .tplab-phase")


def test_run_and_stop_from_the_page(run_notebook: Callable[[str], Page]) -> None:
    page = run_notebook("00-start-here.ipynb")
    panel = page.locator(".tplab-panel")
    expect(page.locator(".tplab-pool")).to_contain_text("stopped")  # the last cell stops the pool

    # Run starts fresh ranks by itself, and the result and the time of the all-reduce appear.
    panel.locator("select").nth(0).select_option("MAX")
    expect(panel.locator(".tplab-ribbon")).to_contain_text("Settings changed")
    panel.locator(".tplab-run").click()
    expect(phase(page)).to_contain_text("Done in")
    expect(panel.locator(".tplab-ribbon")).to_have_text("")
    rows = panel.locator(".tplab-below tbody tr")
    expect(rows).to_have_count(2)
    for index in range(2):
        expect(rows.nth(index)).to_contain_text("✓")
        expect(rows.nth(index).locator("td").nth(4)).to_have_text("2")  # the maximum of 1 and 2
    expect(panel.locator(".js-plotly-plot")).to_contain_text("All-reduce (MAX) of 4 B")
    expect(panel.locator(".js-plotly-plot")).to_contain_text("LIVE")

    # A long run: progress moves, the kernel is free for other cells, Stop ends it, what was measured stays.
    panel.locator("select").nth(1).select_option("until Stop")
    panel.locator(".tplab-run").click()
    expect(phase(page)).to_contain_text("all-reduce:")
    before = phase(page).text_content()
    expect(phase(page)).not_to_have_text(before or "")
    first_code_cell = page.locator(".jp-CodeCell").first
    first_code_cell.locator(".cm-content").click()
    prompt = first_code_cell.locator(".jp-InputPrompt").text_content()
    page.keyboard.press("Control+Enter")
    expect(first_code_cell.locator(".jp-InputPrompt")).to_have_text(re.compile(r"\[\d+\]"))
    assert first_code_cell.locator(".jp-InputPrompt").text_content() != prompt
    expect(panel.locator(".tplab-stop")).to_be_enabled()  # it is still running
    panel.locator(".tplab-stop").click(no_wait_after=True)  # a busy page is slow to say that it goes nowhere
    pressed = time.monotonic()
    expect(phase(page)).to_have_text("Stopped.")
    assert time.monotonic() - pressed < 5  # as the page shows it; tests/lab holds the kernel to less
    expect(panel.locator(".js-plotly-plot")).to_contain_text("repetitions")

    # And Run works again.
    panel.locator("select").nth(1).select_option("10 times")
    panel.locator(".tplab-run").click()
    expect(phase(page)).to_contain_text("Done in")
    expect(panel.locator(".js-plotly-plot")).to_contain_text("10 repetitions")
    expect(panel.locator(".tplab-error")).to_have_text("")
