"""Images of figures and of moving pictures, drawn by plotly.js and by the pictures' own modules in a headless Chromium.

Not kaleido, the usual way: it drives a Chromium, too, draws no page, and the browser tests have one at hand.
"""

import io
import shutil
from base64 import b64decode, b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from html import unescape
from typing import Any

from PIL import Image
from playwright.sync_api import Page, sync_playwright
from plotly.offline import get_plotlyjs

WIDTH, HEIGHT = 700, 380
"""CSS pixels of a figure that does not say how large it is; a page of GitHub is about as wide."""
SCALE = 1.5


class Draw:
    """Draws one image after the other on two pages of a browser."""

    def __init__(self, figures: Page, pictures: Page) -> None:
        self._figures, self._pictures = figures, pictures
        figures.set_content("<!DOCTYPE html><body></body>")
        figures.add_script_tag(content=get_plotlyjs())

    def figure(self, content: dict[str, Any]) -> tuple[str, dict[str, int]]:
        """PNG (base64) of a figure as plotly's MIME type holds it, on its card, and its size in CSS pixels."""
        layout = content["layout"]
        size = {"width": int(layout.get("width") or WIDTH), "height": int(layout.get("height") or HEIGHT)}
        draw = "([figure, size]) => Plotly.toImage({data: figure.data, layout: figure.layout}, size)"
        url = self._figures.evaluate(draw, [content, size | {"format": "png", "scale": SCALE}])
        return small(b64decode(url.partition(",")[2])), size

    def page(self, text: str) -> tuple[str, dict[str, int]]:
        """PNG of a moving picture's page (escaped, as in an attribute), some way into it, and its size."""
        self._pictures.set_content(unescape(text))
        self._pictures.wait_for_selector(".tplab-picture")
        self._pictures.evaluate(
            """() => {
              document.querySelector("main").style.padding = "6px";
              for (const bar of document.querySelectorAll(".player input[type=range]")) {
                if (bar.value !== bar.min) continue; // it shows something as it is
                bar.value = Number(bar.min) + 0.3 * (Number(bar.max) - Number(bar.min));
                bar.dispatchEvent(new Event("input"));
              }
            }"""
        )
        self._pictures.wait_for_timeout(200)  # a picture may draw with the next frame
        shot = self._pictures.locator("main").screenshot()
        width, height = Image.open(io.BytesIO(shot)).size
        return small(shot), {"width": round(width / SCALE), "height": round(height / SCALE)}


def small(png: bytes) -> str:
    """The image with few colours, as text. An octree keeps thin lines' colours, which the methods that count lose."""
    image = Image.open(io.BytesIO(png)).convert("RGB").quantize(method=Image.Quantize.FASTOCTREE)
    image.putpalette([255 if value >= 250 else value for value in image.getpalette()])  # its white is 254
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return b64encode(file.getvalue()).decode("ascii") + "\n"


@contextmanager
def drawing() -> Iterator[Draw]:
    """A browser to draw with. Raises ``RuntimeError`` where there is none."""
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if executable is None:
        raise RuntimeError("no Chromium on the PATH (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        page = {
            "viewport": {"width": 900, "height": 900},
            "device_scale_factor": SCALE,
            "color_scheme": "light",
            "reduced_motion": "reduce",
        }
        yield Draw(browser.new_page(**page), browser.new_page(**page))
        browser.close()
