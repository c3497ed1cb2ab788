"""Notebook 00 as a visitor uses it: run all cells, press Run, press Stop; predict, solve, and find it kept."""

import re
import time
from collections.abc import Callable

import pytest
from playwright.sync_api import Locator, Page, expect

# In one line: the editor indents what is typed.
SOLUTION = "reduce = lambda rank, x: (dist.all_reduce(x, op=dist.ReduceOp.PRODUCT, group=rank.group), x)[1]"
pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]


def phase(page: Page) -> Locator:
    return page.locator(".tplab-panel .tplab-phase")


def menu(page: Page, name: str, item: str) -> None:
    page.click(f".lm-MenuBar-itemLabel:text-is('{name}')")
    page.click(f".lm-Menu-itemLabel:text-is('{item}')")


def test_run_and_stop_from_the_page(run_notebook: Callable[[str], Page]) -> None:
    page = run_notebook("00-start-here.ipynb")
    panel = page.locator(".tplab-panel")
    expect(page.locator(".tplab-pool")).to_contain_text("ready")
    expect(page.locator("summary", has_text="checks:")).to_be_visible()  # what was found, in one line

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
    expect(page.locator(".jp-InputPlaceholder").first).to_contain_text("For Colab and Kaggle")  # folded: a line
    first_code_cell = page.locator(".jp-CodeCell:not(:has(.jp-InputPlaceholder))").first
    first_code_cell.locator(".cm-content").click()
    prompt = first_code_cell.locator(".jp-InputPrompt").text_content()
    page.keyboard.press("Control+Enter")
    expect(first_code_cell.locator(".jp-InputPrompt")).to_have_text(re.compile(r"\[\d+\]"))
    assert first_code_cell.locator(".jp-InputPrompt").text_content() != prompt
    expect(panel.locator(".tplab-stop")).to_be_enabled()  # it is still running
    panel.locator(".tplab-stop").click(no_wait_after=True)  # a busy page is slow to say that it goes nowhere
    pressed = time.monotonic()
    expect(phase(page)).to_contain_text("Stopped.")
    assert time.monotonic() - pressed < 5  # as the page shows it; tests/lab holds the kernel to less
    expect(panel.locator(".js-plotly-plot")).to_contain_text("repetitions")

    # And Run works again.
    panel.locator("select").nth(1).select_option("10 times")
    panel.locator(".tplab-run").click()
    expect(phase(page)).to_contain_text("Done in")
    expect(panel.locator(".js-plotly-plot")).to_contain_text("10 repetitions")
    expect(panel.locator(".tplab-error")).to_have_text("")


def test_a_prediction_and_an_exercise_are_kept_over_a_reload(run_notebook: Callable[[str], Page]) -> None:
    page = run_notebook("00-start-here.ipynb")
    comparison = page.locator(".tplab-comparison")
    table = page.locator(".jp-OutputArea-output", has_text="Exercises").locator("table")
    first = table.locator("tbody tr").first

    # Run All left the prediction open: nothing of the answer is in the page, in either place.
    expect(comparison).to_contain_text("The answer is covered until you commit a number")
    assert "Measured" not in comparison.inner_text()
    assert "A call took" not in page.locator(".jp-Notebook").inner_text()
    expect(page.locator(".tplab-predict-commit").last).to_be_disabled()
    expect(first).to_contain_text("0 of 1")

    # Typed beside the answer, it stands above, too; Enter commits.
    field = comparison.get_by_label("Your prediction in ms")
    field.fill("lots")
    expect(comparison).to_contain_text("lots is not a number")
    field.fill("25")
    expect(page.locator(".tplab-predict input").first).to_have_value("25")
    field.press("Enter")
    expect(comparison).to_contain_text("You predicted 25 ms. Measured:")
    expect(comparison).to_contain_text("LIVE gloo · 2 ranks")
    expect(comparison).to_contain_text("A call took")
    expect(comparison.locator(".js-plotly-plot")).to_contain_text("your prediction")
    expect(page.locator(".tplab-predict")).to_contain_text("Committed: 25 ms")

    # The exercise: the stub fails, the solution passes.
    stub = page.locator(".jp-CodeCell", has_text="def reduce(rank, x)")
    check = page.locator(".jp-CodeCell", has_text="check_reduction(pool.cluster, reduce)")
    expect(check).to_contain_text("not yet")
    stub.locator(".cm-content").click()
    page.keyboard.press("Control+A")
    page.keyboard.insert_text(SOLUTION)
    page.keyboard.press("Control+Enter")
    check.locator(".cm-content").click()
    page.keyboard.press("Control+Enter")
    expect(check).to_contain_text("passed")

    # Saved and reloaded: the saved page needs no kernel to show what was done ...
    progress = page.locator(".jp-CodeCell", has_text="progress_table()")
    progress.locator(".cm-content").click()
    page.keyboard.press("Control+Enter")
    expect(first.locator("td").nth(1)).to_have_text("1 of 1")
    expect(first.locator("td").nth(2)).to_have_text("1 of 1")
    expect(progress).to_contain_text("Next: 01")
    page.keyboard.press("Control+S")
    expect(page.locator(".lm-TabBar-tab.jp-mod-current")).not_to_have_class(re.compile("jp-mod-dirty"))
    page.reload()
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
    expect(first.locator("td").nth(1)).to_have_text("1 of 1")

    # ... and a new kernel finds it in the file: the earlier number is offered, and does not count by itself.
    menu(page, "Kernel", "Restart Kernel…")
    page.locator(".jp-Dialog button", has_text="Restart").click()
    page.wait_for_selector("text=/Python 3 .ipykernel. \\| Idle/", timeout=60_000)
    for cell in (page.locator(".jp-CodeCell", has_text="guess = Predict("), progress):
        cell.locator(".cm-content").click()
        page.keyboard.press("Control+Enter")
    expect(page.locator(".tplab-predict")).to_contain_text("Last time you said 25 ms")
    expect(first.locator("td").nth(2)).to_have_text("1 of 1")
    page.locator(".tplab-predict-again").click()
    expect(page.locator(".tplab-predict")).to_contain_text("Committed: 25 ms")
