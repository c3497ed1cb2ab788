"""Notebook 02 as a visitor uses it: run, change, stop, lose a rank, run again."""

import os
import re
import signal
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]


def test_sweep_from_the_page(run_notebook: Callable[[str], Page]) -> None:
    page = run_notebook("02-collectives.ipynb")
    panel = page.locator(".tplab-panel").first
    phase, figure = panel.locator(".tplab-phase"), panel.locator(".js-plotly-plot")
    dtypes, algorithms = panel.locator("select").nth(0), panel.locator("select").nth(1)

    # The map of a recording, without a run: another model draws it anew.
    crossover = page.locator(".tplab-panel").nth(1)
    crossover.locator("select").nth(0).select_option("4xH200-2026-11-26, 4 ranks")
    expect(crossover.locator(".js-plotly-plot")).to_contain_text("over 4 ranks")
    expect(crossover.locator(".tplab-below")).to_contain_text("at batch 16: one-shot")
    crossover.locator("select").nth(1).select_option("llama-3.1-8b")
    expect(crossover.locator(".tplab-below")).to_contain_text("vLLM loses at most 0.12 ms per step")

    # Run with other settings: the ribbon shows before, the figure changes after.
    dtypes.select_option("bfloat16")
    expect(panel.locator(".tplab-ribbon")).to_contain_text("Settings changed")
    panel.locator(".tplab-run").click()
    expect(phase).to_contain_text("Done in", timeout=60_000)
    expect(panel.locator(".tplab-ribbon")).to_have_text("")
    expect(figure).to_contain_text("library, bfloat16")
    expect(panel.locator(".tplab-below")).to_contain_text("Every result was checked on every rank")

    # Stop in the midst of it: what was measured stays.
    algorithms.select_option(["library", "ring", "two-shot", "one-shot", "recursive-doubling"])
    panel.locator(".tplab-run").click()
    expect(phase).to_contain_text("measure:", timeout=60_000)
    panel.locator(".tplab-stop").click()
    expect(phase).to_have_text("Stopped. What was measured until then is shown.")
    expect(panel.locator(".tplab-error")).to_have_text("")
    expect(figure).to_contain_text("measured: library, bfloat16")

    # A rank is killed: plain words, and Run works again.
    panel.locator(".tplab-run").click()
    expect(phase).to_contain_text("measure:", timeout=60_000)
    pids = re.search(r"process ids (\d+), (\d+)", page.locator(".tplab-pool").inner_text())
    assert pids is not None
    os.kill(int(pids[2]), signal.SIGKILL)
    expect(panel.locator(".tplab-error")).to_contain_text("Rank 1 died")
    algorithms.select_option("library")
    panel.locator(".tplab-run").click()
    expect(phase).to_contain_text("Done in", timeout=60_000)
    expect(panel.locator(".tplab-error")).to_have_text("")
