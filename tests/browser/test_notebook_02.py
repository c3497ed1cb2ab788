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
    the_race(page)
    panel = page.locator(".tplab-panel").nth(1)
    phase, figure = panel.locator(".tplab-phase"), panel.locator(".js-plotly-plot")

    def tick(name: str) -> None:
        panel.get_by_label(name, exact=True).click()

    # The map of a recording, without a run: another model draws it anew.
    crossover = page.locator(".tplab-panel").nth(2)
    crossover.locator("select").nth(0).select_option("4xH200-2026-11-26, 4 ranks")
    expect(crossover.locator(".js-plotly-plot")).to_contain_text("over 4 ranks")
    expect(crossover.locator(".tplab-below")).to_contain_text("at batch 16: one-shot")
    crossover.locator("select").nth(1).select_option("Llama 3.1 8B")
    expect(crossover.locator(".tplab-below")).to_contain_text("vLLM loses at most 0.12 ms per step")

    # Run with other settings: the ribbon shows before, the figure changes after.
    expect(panel.get_by_label("our one-shot kernel")).to_be_disabled()
    expect(panel.locator(".tplab-check-boxes").nth(1)).to_contain_text("Need a GPU per rank")
    tick("bfloat16")
    tick("float32")
    expect(panel.locator(".tplab-ribbon")).to_contain_text("Settings changed")
    panel.locator(".tplab-run").click()
    expect(phase).to_contain_text("Done in", timeout=60_000)
    expect(panel.locator(".tplab-ribbon")).to_have_text("")
    expect(figure).to_contain_text("library, bfloat16")
    expect(panel.locator(".tplab-below")).to_contain_text("Every result was checked on every rank")

    # Stop in the midst of it: what was measured stays.
    others = ("ring", "two-shot", "one-shot", "recursive doubling")
    for name in others:
        tick(name)
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
    for name in others:
        tick(name)
    panel.locator(".tplab-run").click()
    expect(phase).to_contain_text("Done in", timeout=60_000)
    expect(panel.locator(".tplab-error")).to_have_text("")


def the_race(page: Page) -> None:
    """In JupyterLab: what was measured stands beside the racers, bytes are covered, the keyboard moves the race."""
    race = page.locator(".tplab-panel").first
    expect(race.locator(".race-lane strong")).to_have_text(["One-shot", "Recursive doubling", "Ring"])
    expect(race.locator(".race-measured-time").last).to_contain_text("LIVE gloo · 4 ranks")
    link = race.get_by_label("link", exact=True)
    expect(link.locator("option:checked")).to_have_text("this machine")
    expect(race.locator(".race-foot").last).to_contain_text("Bytes are counted here once you have predicted them")
    guess = page.locator(".tplab-predict").first
    guess.locator("input").fill("3")
    guess.locator(".tplab-predict-commit").click()
    expect(race.locator(".race-foot").last).to_contain_text("6 steps, 1.5 S")
    link.select_option("NVLink 4 (H100)")
    race.get_by_label("size S").press("Home")
    expect(race.locator(".race-verdict")).to_contain_text("1 KiB on 4 GPUs: one-shot wins")
    expect(race.locator(".tplab-ribbon")).to_contain_text("Settings changed since this run (size S 256 KiB)")
    clock = race.get_by_label("race clock", exact=True)
    clock.press("End")
    expect(race.locator(".race-place")).to_have_text(["1st", "2nd", "3rd"])
    assert race.evaluate("(panel) => panel.scrollWidth <= panel.clientWidth")
