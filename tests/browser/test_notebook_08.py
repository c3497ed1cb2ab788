"""Notebook 08 as a visitor uses it: write words, generate in another layout, compare, ask for what cannot work."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]


def test_generate_from_the_page(run_notebook: Callable[[str], Page]) -> None:
    page = run_notebook("08-capstone.ipynb")
    writer = page.locator(".tplab-writing-panel").first
    columns, verdict = writer.locator(".tplab-writing section"), writer.locator(".tplab-writing .status")
    expect(columns).to_have_count(3)
    expect(verdict).to_contain_text("TP 1 × PP 1, TP 2 × PP 1 and TP 1 × PP 2 wrote the same")
    writer.get_by_label("Prompt").fill("Zürich was not a place which Mr. Knightley")
    writer.locator(".tplab-run").click()
    expect(writer.locator(".tplab-error")).to_contain_text("prompt has 'ü', which the model has never read")
    writer.get_by_label("Prompt").fill("London was not a place which Mr. Knightley")
    writer.locator(".tplab-run").click()
    expect(writer.locator(".tplab-phase")).to_contain_text("Done in", timeout=60_000)
    expect(columns).to_have_count(4)  # of four ranks: a cell below has asked for them
    expect(columns.first).to_contain_text("London was not a place which Mr. Knightley")
    expect(verdict).to_contain_text("and TP 1 × PP 4 wrote the same")

    panel = page.locator(".tplab-panel:not(.tplab-writing-panel)").first
    phase, figure = panel.locator(".tplab-phase"), panel.locator(".js-plotly-plot")
    tp = panel.locator("select").nth(2)
    expect(figure).to_contain_text("TP 2 × PP 1")  # what a cell has run

    tp.select_option("4")
    expect(panel.locator(".tplab-ribbon")).to_contain_text("Settings changed")
    panel.locator(".tplab-run").click()
    expect(phase).to_contain_text("Done in", timeout=60_000)
    expect(figure).to_contain_text("TP 4 × PP 1")
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
