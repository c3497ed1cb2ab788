"""Notebook 07 as a visitor uses it: paste a table, move limits, read the ranked layouts, calibrate and verify."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tplab.lab.panels.links import EXAMPLE_TOPO

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]


def test_paste_move_and_measure(run_notebook: Callable[[str], Page]) -> None:
    page = run_notebook("07-topology-and-advisor.ipynb")
    links, advisor = page.locator(".tplab-links").first, page.locator(".tplab-advisor").first
    heat, answer = links.locator(".js-plotly-plot"), advisor.locator(".tplab-below")

    # A GPU is dragged across the sockets of a DGX-1, and the prediction follows.
    dgx = page.locator(".tplab-links").nth(1)
    numbers = dgx.locator(".numbers b")
    expect(numbers).to_contain_text("ms per token")
    before = numbers.inner_text()
    dgx.locator(".chip[data-gpu='0']").scroll_into_view_if_needed()
    dgx.locator(".chip[data-gpu='0'] .body").drag_to(dgx.locator(".chip[data-gpu='5'] .body"))
    expect(numbers).not_to_have_text(before)
    expect(dgx.get_by_role("status")).to_contain_text("now crosses from socket to socket")
    dgx.locator("button", has_text="Best placement").click()
    expect(numbers).to_have_text(before)
    # By keyboard, where digits are shortcuts of the notebook's own.
    dgx.locator(".chip[data-gpu='0']").focus()
    page.keyboard.press("1")
    expect(dgx.locator(".numbers")).to_contain_text(
        "Unfinished: group 0 needs one GPU more, group 1 has one GPU too many"
    )
    dgx.get_by_role("button", name="Reset", exact=True).press("Enter")
    expect(numbers).to_have_text(before)
    assert page.locator(".jp-MarkdownCell .jp-InputArea-editor", has_text="# # ").count() == 0

    # The machine above is followed below.
    links.locator("select").first.select_option("DGX-1 (V100)")
    expect(links.locator(".heading")).to_contain_text("8 × V100 32 GB")
    links.locator("button", has_text="bandwidth").click()
    expect(heat).to_contain_text("NV2")
    expect(links.locator(".tplab-below")).to_contain_text("8 of 28 pairs have the fastest link")
    advisor.get_by_role("button", name="placement", exact=True).click()
    expect(advisor.locator(".heading")).to_contain_text("8 × V100 32 GB")
    expect(answer).to_contain_text("The slowest link inside a group")

    links.locator("button", has_text="paste").click()
    expect(heat).to_contain_text("NV4")
    text = links.locator("textarea")
    text.fill("GPU0 GPU1\nGPU0 X")
    text.blur()
    expect(links.locator(".tplab-error")).to_contain_text("line")
    expect(heat).to_contain_text("NV4")
    text.fill(EXAMPLE_TOPO.replace("NV4", "NV2"))
    text.blur()
    expect(links.locator(".tplab-error")).to_have_text("")
    expect(heat).to_contain_text("NV2")

    links.locator("button", has_text="preset").click()
    links.locator("select").first.select_option("H100")
    advisor.locator("button", has_text="one step").click()
    expect(advisor.locator(".js-plotly-plot")).to_contain_text("all-reduces")
    before = answer.inner_text()
    advisor.locator(".noUi-handle").nth(2).press("ArrowRight")  # requests in flight
    expect(answer).not_to_have_text(before)
    advisor.locator("summary", has_text="that do not fit, and why").click()
    expect(advisor.locator(".tplab-table")).to_contain_text("does not fit")
    advisor.locator("summary", has_text="Commands that start").click()
    expect(advisor.locator("pre").first).to_contain_text("vllm serve meta-llama/Llama-3.1-70B --tensor-parallel-size")
    advisor.locator(".noUi-handle").nth(2).press("End")
    for _ in range(4):  # 15 ms per token, which so many cannot keep
        advisor.locator(".noUi-handle").nth(3).press("ArrowRight")
    expect(answer).to_contain_text("it admits")
    advisor.locator(".noUi-handle").nth(3).press("Home")  # no limit per token
    expect(answer).not_to_contain_text("it admits")
    advisor.locator("button", has_text="what would change my mind").click()
    expect(answer).to_contain_text("Along link bandwidth")
    expect(advisor.locator(".js-plotly-plot")).to_contain_text("this machine, 450 GB/s")

    calibrated, verified = page.locator(".tplab-calibration"), page.locator(".tplab-verify").first
    calibrated.locator("select").first.select_option("2 ms, 0.2 GB/s")
    expect(calibrated.locator(".tplab-ribbon")).to_contain_text("Settings changed")
    calibrated.locator(".tplab-run").click()
    expect(calibrated.locator(".tplab-phase")).to_contain_text("Done in", timeout=120_000)
    expect(calibrated.locator(".js-plotly-plot")).to_contain_text("emulated link 2,000 us")
    verified.locator("select").first.select_option("256")
    verified.locator(".tplab-run").click()
    expect(verified.locator(".tplab-phase")).to_contain_text("Done in", timeout=120_000)
    expect(verified.locator(".tplab-below")).to_contain_text("3 layouts run")
