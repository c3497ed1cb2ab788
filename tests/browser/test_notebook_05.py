"""Notebook 05 as a visitor uses it: the studio's sliders, a schedule drawn and run, others run and stopped, a ring."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]


def test_studio_run_and_ring_from_the_page(run_notebook: Callable[[str], Page]) -> None:
    page = run_notebook("05-pipelines.ipynb")
    studio = page.locator(".tplab-studio")
    figure = studio.locator(".js-plotly-plot")
    expect(figure).to_contain_text("1F1B: 4 ranks, 8 micro-batches")
    handles = studio.locator(".noUi-handle")
    handles.nth(1).press("ArrowRight")
    expect(figure).to_contain_text("4 ranks, 9 micro-batches")
    studio.locator("select").select_option("interleaved 1F1B")
    expect(studio.locator(".tplab-error")).to_contain_text("with 4 ranks take 8 or 12 micro-batches")
    expect(figure).to_contain_text("1F1B: 4 ranks, 9 micro-batches")  # the last that could be drawn
    handles.nth(1).press("ArrowLeft")
    expect(figure).to_contain_text("interleaved 1F1B, 2 chunks: 4 ranks, 8 micro-batches")
    expect(studio.locator(".tplab-error")).to_have_text("")
    studio.locator("button", has_text="infer").click()
    expect(figure).to_contain_text("forward only")

    drawn, runs, serving = (page.locator(".tplab-panel").nth(place) for place in range(3))
    drawn.locator("button", has_text="Split all backwards").click()
    expect(drawn.locator(".verdict")).to_contain_text("1F1B is beaten: 30 F instead of 33 F")
    drawn.locator(".tile[data-key='3W0']").focus()
    for _ in range(22):  # keys that JupyterLab would take for its own
        page.keyboard.press("Alt+ArrowRight")
    expect(drawn.locator(".verdict")).to_contain_text("29 F instead of 33 F")
    page.keyboard.press("s")  # joins the halves; in JupyterLab's command mode it is Save
    expect(drawn.locator(".message")).to_contain_text("B0 of rank 3 is whole again")
    page.keyboard.press("Control+z")
    expect(drawn.locator(".verdict")).to_contain_text("29 F instead of 33 F")
    drawn.locator(".tplab-run").click()
    expect(drawn.locator(".tplab-phase")).to_contain_text("Done in", timeout=60_000)
    expect(drawn.locator(".js-plotly-plot")).to_contain_text("your schedule: 4 ranks, 8 micro-batches")
    expect(drawn.locator(".tplab-below")).to_contain_text("580 ms simulated")  # 29 forwards of 20 ms
    drawn.locator("button", has_text="Undo").click()
    expect(drawn.locator(".tplab-ribbon")).to_contain_text("another table")

    played = page.locator(".tplab-picture:has(.player)")
    expect(played).to_have_count(3)
    played.nth(1).get_by_label("time", exact=True).press("End")
    expect(played.nth(1).locator(".status")).to_contain_text("rank 0 idle, holds 0")

    phase = runs.locator(".tplab-phase")
    runs.locator(".tplab-run").click()
    expect(phase).to_contain_text("Done in", timeout=60_000)
    runs.locator("select").first.select_option("ZB-H1")
    expect(runs.locator(".tplab-ribbon")).to_contain_text("Settings changed")
    runs.locator(".tplab-run").click()
    expect(phase).to_contain_text("Done in", timeout=60_000)
    chart = runs.locator(".js-plotly-plot")
    expect(chart).to_contain_text("ZB-H1: 4 ranks, 8 micro-batches")
    for word in ("simulated", "measured", "memory", "emulated compute"):
        expect(chart).to_contain_text(word)
    expect(runs.locator(".tplab-below")).to_contain_text("ZB-H1: ")
    # What stands below the figure does not lie on it.
    below, drawn = runs.locator(".tplab-below").bounding_box(), chart.bounding_box()
    assert below["y"] >= drawn["y"] + drawn["height"] - 1

    serving.locator(".tplab-run").click()
    expect(serving.locator(".tplab-phase")).to_contain_text("run:")
    serving.locator(".tplab-stop").click()
    expect(serving.locator(".tplab-phase")).to_contain_text("Stopped.")
    serving.locator("select").select_option("prefill")
    serving.locator(".tplab-run").click()
    expect(serving.locator(".tplab-phase")).to_contain_text("Done in", timeout=60_000)
    expect(serving.locator(".js-plotly-plot")).to_contain_text("Prefill: makespan")
