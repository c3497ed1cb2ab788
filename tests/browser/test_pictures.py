"""What all moving pictures share: a page without a kernel, its controls, the words for numbers."""

import math
from collections.abc import Callable

import pytest
import traitlets
from playwright.sync_api import Page, expect

from tplab.lab.pictures import Picture, picture
from tplab.shown import bytes_text, number, time_text

pytestmark = [pytest.mark.browser, pytest.mark.timeout(60)]

MODULE = """
function render({ model, el }) {
  const root = frame(el, "a ball", ".tplab-picture circle { fill: rgb(255, 0, 0); }");
  globalThis.words = { number, timeText, bytesText };
  const ball = svg("circle", { r: 5 });
  const said = statusLine();
  const size = slider({ label: "size", min: 1, max: 1e6, value: model.get("size"), log: true,
    onInput: (value) => { model.set("size", value); model.save_changes(); } });
  const draw = (t) => { put(ball, { cx: t }); said.say(`at ${number(t)}`); };
  const time = player({ duration: 10, seconds: 0.5, onTime: draw });
  root.append(size.element, time.element, svg("svg", { viewBox: "0 0 10 10" }, ball), said.element);
  return time.destroy;
}
"""


class Ball(Picture):
    """A picture that has everything in it once."""

    caption = "A ball </title>"
    size = traitlets.Float(1000.0).tag(sync=True)
    words = traitlets.Unicode("</script><script>globalThis.stolen = true</script>").tag(sync=True)


@pytest.fixture
def ball(monkeypatch: pytest.MonkeyPatch) -> Ball:
    text = picture.module_text("common").replace("export default { render };", MODULE)
    monkeypatch.setattr(picture, "module_text", lambda name: text)
    Ball.module = "ball"
    Ball._esm = text
    return Ball()


def test_a_picture_is_a_page_of_its_own(ball: Ball, open_picture: Callable[[Picture], Page]) -> None:
    page = open_picture(ball)
    assert page.title() == "A ball </title>"
    assert page.evaluate("globalThis.stolen") is None  # a text in the state stays text
    assert page.evaluate("tplab.get('words')") == ball.words
    expect(page.get_by_label("size")).to_have_attribute("aria-valuetext", "1,000")
    page.get_by_label("size").press("End")
    assert page.evaluate("tplab.get('size')") == pytest.approx(1e6)


def test_the_style_of_a_picture_is_for_it_alone(ball: Ball, open_picture: Callable[[Picture], Page]) -> None:
    """All notebooks that are open in JupyterLab are one document."""
    page = open_picture(ball)
    other = '<div class="tplab-picture"><svg><circle id="other"></circle></svg></div>'
    page.evaluate("(other) => document.body.insertAdjacentHTML('beforeend', other)", other)
    assert page.evaluate("getComputedStyle(document.querySelector('circle')).fill") == "rgb(255, 0, 0)"
    assert page.evaluate("getComputedStyle(document.getElementById('other')).fill") == "rgb(0, 0, 0)"


def test_numbers_are_written_as_python_writes_them(ball: Ball, open_picture: Callable[[Picture], Page]) -> None:
    page = open_picture(ball)
    values = [digits * 10.0**power for power in range(-7, 10) for digits in (1, 1.26, 9.996, 2.503, -4.1)]
    values += [0, 999.6, 999.4, 1023, 1024, 1023.9 * 1024, 65536, 1.5 * 2**20]
    for name, function in {"number": number, "timeText": time_text, "bytesText": bytes_text}.items():
        told = page.evaluate("([name, values]) => values.map((value) => words[name](value))", [name, values])
        assert told == [function(value) for value in values]
    assert page.evaluate("words.number(Infinity)") == number(math.inf) == "∞"


def test_the_player_plays_stops_and_takes_the_keyboard(ball: Ball, open_picture: Callable[[Picture], Page]) -> None:
    page = open_picture(ball)
    bar, circle = page.get_by_label("time", exact=True), page.locator("circle")
    bar.press("ArrowRight")
    expect(circle).to_have_attribute("cx", "1")
    bar.press("End")
    expect(page.get_by_role("status")).to_have_text("at 10")
    bar.press("Home")
    page.get_by_role("button", name="Play").press("Enter")
    expect(circle).to_have_attribute("cx", "10")  # after half a second
    expect(page.get_by_role("button", name="Play")).to_be_visible()


def test_with_less_motion_it_goes_from_stop_to_stop(ball: Ball, open_picture: Callable[[Picture], Page]) -> None:
    page = open_picture(ball)
    page.emulate_media(reduced_motion="reduce")
    page.evaluate(
        "globalThis.seen = new Set(); new MutationObserver(() => seen.add(document.querySelector('circle')"
        ".getAttribute('cx'))).observe(document.querySelector('circle'), { attributes: true })"
    )
    page.get_by_role("button", name="Play").click()
    expect(page.locator("circle")).to_have_attribute("cx", "2")
    page.get_by_role("button", name="Pause").click()
    assert page.evaluate("[...seen]") == ["1", "2"]


def test_the_notebooks_theme_decides(ball: Ball, open_picture: Callable[[Picture], Page]) -> None:
    page = open_picture(ball)
    page.emulate_media(color_scheme="light")
    shown = page.evaluate(
        """themes => themes.map(([name, value]) => {
          document.body.setAttribute(name, value);
          const scheme = getComputedStyle(document.querySelector(".tplab-picture")).colorScheme;
          document.body.removeAttribute(name);
          return scheme;
        })""",
        [
            ["data-jp-theme-light", "false"],
            ["data-vscode-theme-kind", "vscode-dark"],
            ["data-vscode-theme-kind", "vscode-high-contrast"],
            ["theme", "dark"],
        ],
    )
    assert shown == ["dark"] * 4
