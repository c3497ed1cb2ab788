"""Figures as plotly draws them: what a stored figure looks like where the window has another width."""

import json
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext
from plotly.offline import get_plotlyjs

from tplab.lab.figures import algorithms_figure, gantt, latency_figure, verification_figure
from tplab.lab.recorded import recorded, recorded_badge
from tplab.pipeline import Costs, build_schedule, simulate

pytestmark = [pytest.mark.browser, pytest.mark.timeout(60)]

BOX = "4xH200-2026-11-26"
# Words of the horizontal axes that the legend lies on, and how far it reaches out of the figure.
COVERED = """() => {
  const place = (element) => element.getBoundingClientRect();
  const figure = document.getElementById("figure");
  const legend = place(figure.querySelector(".legend .bg"));
  const words = [...figure.querySelectorAll(".xtick text, .g-xtitle text")].filter((each) => {
    const box = place(each);
    return box.width && box.left < legend.right && box.right > legend.left
      && box.top < legend.bottom - 2 && box.bottom > legend.top + 2;
  });
  return [words.map((each) => each.textContent), Math.max(0, legend.bottom - place(figure).bottom)];
}"""


def test_no_legend_lies_on_an_axis_at_any_width(browser: BrowserContext, tmp_path: Path) -> None:
    sweep, layouts = recorded(BOX, "sweep"), recorded(BOX, "layouts")
    sweep = sweep[(sweep.num_ranks == 4) & (sweep.launch_mode == "eager")]
    costs = Costs(forward_s=0.01, input_grad_s=0.01, weight_grad_s=0.01)
    figures = {
        "latency": latency_figure(sweep, badge=recorded_badge(BOX)),
        "layouts": verification_figure(layouts[layouts.model == "llama-3.1-8b"], badge=recorded_badge(BOX)),
        "formulas": algorithms_figure(n=8, alpha_us=3.0, beta_GBps=150.0),
        "gantt": gantt(*(simulate(build_schedule(name, 4, 8), costs) for name in ("1f1b", "zb-h1"))),
    }
    page = browser.new_page()
    page.set_content('<div id="figure"></div>')
    page.add_script_tag(content=get_plotlyjs())
    for name, figure in figures.items():
        page.set_viewport_size({"width": 560, "height": 900})
        page.evaluate("(figure) => Plotly.newPlot('figure', figure.data, figure.layout)", json.loads(figure.to_json()))
        for width in (560, 900, 1400, 560):  # as a window is made wider and narrower again
            page.set_viewport_size({"width": width, "height": 900})
            page.evaluate("() => Plotly.Plots.resize('figure')")
            assert (name, width, page.evaluate(COVERED)) == (name, width, [[], 0])
    page.close()
