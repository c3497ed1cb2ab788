"""A panel's figure in a page that is neither JupyterLab nor has plotly.js, as Colab's: the kernel sends it."""

import base64
import zlib

import plotly.graph_objects as go
import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tplab.lab.panels.figure_view import FigureView, packed

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

STUB = "() => ({ react(plot) { plot.textContent = 'drawn'; }, purge() {} })"
FORMS = {
    "plotly.js 2": "!function(t,e){'object'==typeof exports&&'object'==typeof module?module.exports=e():"
    f"'function'==typeof define&&define.amd?define([],e):t.Plotly=e()}}(self,{STUB});",
    "plotly.js 3": "(function(root, factory) { if (typeof module === 'object' && module.exports) "
    f"module.exports = factory(); else root.moduleName = factory(); }}(self, {STUB}));",
}
"""How plotly.js gives itself to a page: by which names it asks has changed."""
PAGE = """async ([esm, plot, code]) => {
  const bytes = (text) => new DataView(Uint8Array.from(atob(text), (each) => each.charCodeAt(0)).buffer);
  const url = URL.createObjectURL(new Blob([esm], { type: "text/javascript" }));
  const plotted = bytes(plot); // the same object at each asking, as of a model
  const listeners = [];
  const model = {
    get: (name) => ({ _plot: plotted, alt: "a line" })[name],
    on: (name, call) => name === "msg:custom" && listeners.push(call),
    off() {},
    send: () => { for (const call of listeners) call({ kind: "plotly.js" }, [bytes(code)]); },
  };
  (await import(url)).default.render({ model, el: document.getElementById("figure") });
}"""


def drawn(browser: BrowserContext, code: str) -> Page:
    page = browser.new_page()
    page.set_content('<div class="tplab-live"><div id="figure" style="width: 500px"></div></div>')
    sent = [packed(go.Figure(go.Scatter(y=[1, 2]))), zlib.compress(code.encode())]
    page.evaluate(PAGE, [str(FigureView._esm), *(base64.b64encode(each).decode() for each in sent)])
    return page


@pytest.mark.parametrize("form", FORMS)
def test_plotly_of_the_kernel_draws(browser: BrowserContext, form: str) -> None:
    page = drawn(browser, FORMS[form])
    expect(page.locator("#figure")).to_have_text("drawn")
    page.close()


def test_where_it_does_not_load_the_plain_figure_below_is_uncovered(browser: BrowserContext) -> None:
    page = drawn(browser, "throw new Error('refused')")
    expect(page.locator("#figure")).to_contain_text("cannot be drawn here (refused)")
    expect(page.locator(".tplab-live")).to_have_count(0)
    page.close()
