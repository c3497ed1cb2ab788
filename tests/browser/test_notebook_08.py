"""Notebook 08 as a visitor uses it: generate in another layout, compare, ask for what cannot work."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]


def test_generate_from_the_page(run_notebook: Callable[[str], Page]) -> None:
    page = run_notebook("08-capstone.ipynb")
    panel = page.locator(".tplab-panel").first
    phase, figure = panel.locator(".tplab-phase"), panel.locator(".js-plotly-plot")
    tp = panel.locator("select").nth(2)
    expect(figure).to_contain_text("TP 1 x PP 2")  # what the last cells configured and ran

    tp.select_option("2")
    expect(panel.locator(".tplab-ribbon")).to_contain_text("Settings changed")
    panel.locator(".tplab-run").click()
    expect(phase).to_contain_text("Done in", timeout=60_000)
    expect(figure).to_contain_text("TP 2 x PP 2")  # of four ranks: a cell below has asked for them
    expect(panel.locator(".tplab-below")).to_contain_text("communication and waiting")
    panel.get_by_text("Layouts", exact=True).click()
    expect(figure).to_contain_text("Time per output token")

    tp.select_option("8")
    panel.locator(".tplab-run").click()
    expect(panel.locator(".tplab-error")).to_contain_text("does not divide the pool's 4 ranks")

    ledger = page.locator(".tplab-ledger").first
    expect(ledger).to_contain_text("C4 on these ranks")  # counted by the last cell
    ledger.locator("select").nth(0).select_option("wrong")
    ledger.locator("select").nth(1).select_option("memory")
    expect(ledger).to_contain_text("1 of 33 claims")
    ledger.locator("select").nth(4).select_option(label="X2: both all-reduces; bytes are counted")
    ledger.get_by_text("Try it", exact=True).click()
    expect(ledger).to_contain_text("4 times the bytes of a ring", timeout=60_000)
