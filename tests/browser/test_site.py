"""The built site, opened from disk with no network: its pictures move, judge and recolour as in a notebook."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from playwright.sync_api import BrowserContext, Locator, Page, expect

from tplab.lab.pictures import Race, WillItFit
from tplab.lab.saving import PICTURE
from tplab.shown import time_text

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]  # the first waits for the site

Open = Callable[..., Page]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def open_page(site: Path, browser: BrowserContext) -> Iterator[Open]:
    """Open a page of the site from its file; nothing may be asked of a network, nor a console hear of an error."""
    pages: list[Page] = []
    heard: list[str] = []

    def open_(name: str, *, width: int = 1400, dark: bool = False) -> Page:
        page = browser.new_page()
        pages.append(page)
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme="dark" if dark else "light", reduced_motion="no-preference")
        page.on("pageerror", lambda error: heard.append(str(error)))
        page.on("console", lambda message: message.type == "error" and heard.append(message.text))
        asked = ("file:", "data:", "blob:")
        page.on("request", lambda each: each.url.startswith(asked) or heard.append(f"asked for {each.url}"))
        page.goto(f"{site.as_uri()}/{name}")
        return page

    yield open_
    for page in pages:
        page.close()
    assert heard == []


def picture(page: Page, module: str) -> Locator:
    """A picture of the page, which is drawn once it is scrolled near."""
    place = page.locator(f".tplab-place[data-picture={module}]").first
    place.scroll_into_view_if_needed()
    expect(place.locator(".tplab-picture")).to_be_visible()
    return place


def middle(locator: Locator) -> tuple[float, float]:
    box = locator.bounding_box()
    assert box is not None
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def pull(page: Page, source: Locator, to: tuple[float, float]) -> None:
    """Drag by mouse, in steps, as a hand does."""
    page.wait_for_timeout(250)  # tiles glide
    page.mouse.move(*middle(source))
    page.mouse.down()
    page.mouse.move(*to, steps=4)
    page.mouse.up()


def swipe(page: Page, source: Locator, to: tuple[float, float]) -> None:
    """The same with a finger."""
    page.wait_for_timeout(250)
    session = page.context.new_cdp_session(page)
    session.send("Emulation.setTouchEmulationEnabled", {"enabled": True})
    (x, y), (to_x, to_y) = middle(source), to

    def touch(kind: str, *points: tuple[float, float]) -> None:
        parts = [{"x": x, "y": y} for x, y in points]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": parts})

    touch("touchStart", (x, y))
    for part in (0.25, 0.5, 0.75, 1.0):
        touch("touchMove", (x + part * (to_x - x), y + part * (to_y - y)))
        page.wait_for_timeout(40)
    touch("touchEnd")
    session.detach()


def tile(editor: Locator, key: str) -> Locator:
    return editor.locator(f".tile[data-key='{key}']")


def before(target: Locator, y_of: Locator) -> tuple[float, float]:
    """Just before a tile, as high as the one that is dragged."""
    box = target.bounding_box()
    assert box is not None
    return box["x"] + 2, middle(y_of)[1]


def test_the_race_says_what_python_says(open_page: Open) -> None:
    page = open_page("docs/index.html")
    race = picture(page, "race")
    here = race.locator(".race-verdict")
    said = here.inner_text()
    race.get_by_label("size S").press("Home")
    expect(here).not_to_have_text(said, use_inner_text=True)
    race.get_by_label("race clock", exact=True).press("End")
    for name, us in Race(nbytes=1 << 10, algorithms=["one-shot", "ring"]).times_us.items():
        lane = race.locator(".race-lane", has_text={"one-shot": "One-shot", "ring": "Ring"}[name])
        expect(lane.locator(".race-head")).to_contain_text(time_text(us))


def test_the_fit_says_what_python_says(open_page: Open) -> None:
    fit = picture(open_page("docs/index.html"), "fit")
    fit.get_by_label("model").select_option("Llama 3.1 70B")
    fit.get_by_label("GPU").select_option("H100")
    fit.get_by_label("TP").select_option("4")
    fit.get_by_label("context").press("End")
    asked = WillItFit().ask(model="llama-3.1-70b", gpu="h100", tp=4, context=131072)
    expect(fit.locator(".answer")).to_contain_text(f"only {asked.max_requests} would fit")


def test_the_editor_judges_a_drag(open_page: Open) -> None:
    page = open_page("docs/pictures.html")
    editor = picture(page, "editor")
    message, yours = editor.locator(".message"), editor.locator("tr.mine")
    pull(page, tile(editor, "0B0"), before(tile(editor, "0F0"), tile(editor, "0B0")))
    expect(message).to_contain_text("Refused: B0 on rank 0 needs F0")
    expect(yours).to_contain_text("33 F")
    pull(page, tile(editor, "1B0"), before(tile(editor, "1F2"), tile(editor, "1B0")))
    expect(message).to_contain_text("It ends at")
    expect(yours).not_to_contain_text("33 F")


def test_a_gpu_is_dragged_and_the_play_head_plays(open_page: Open) -> None:
    page = open_page("docs/pictures.html")
    drawing = picture(page, "topology")
    numbers = drawing.locator(".numbers")
    said = numbers.inner_text()
    drawing.locator("svg.machine").scroll_into_view_if_needed()
    pull(page, drawing.locator(".chip[data-gpu='3'] .body"), middle(drawing.locator(".chip[data-gpu='6'] .body")))
    expect(numbers).not_to_have_text(said, use_inner_text=True)

    head = picture(page, "playhead")
    head.get_by_role("button", name="Play").click()
    expect(head.get_by_role("button", name="Pause")).to_be_visible()
    expect(head.get_by_label("time", exact=True)).not_to_have_value("0")


def test_the_sites_switch_recolours_pictures_and_figures(open_page: Open) -> None:
    page = open_page("docs/pictures.html")
    shown = picture(page, "race").locator(".tplab-picture")
    ink = "element => getComputedStyle(element).color.match(/\\d+/g).map(Number)"
    assert max(shown.evaluate(ink)) < 80
    switch = "theme => document.documentElement.setAttribute('data-theme', theme)"
    page.evaluate(switch, "dark")
    assert min(shown.evaluate(ink)) > 200

    page = open_page("docs/measured.html", dark=True)
    figure = page.locator(".tplab-place").first
    title = figure.locator(".gtitle")
    fill = "element => getComputedStyle(element).fill"
    expect(title).to_be_visible()
    assert title.evaluate(fill) == "rgb(228, 231, 236)"
    page.evaluate(switch, "light")
    expect(title).to_have_css("fill", "rgb(31, 36, 48)")


def test_on_a_phone_nothing_is_wider_and_a_finger_drags(open_page: Open) -> None:
    page = open_page("docs/pictures.html", width=390)
    places = page.locator(".tplab-place").all()
    for place in places:
        place.scroll_into_view_if_needed()
        expect(place.locator(".tplab-picture")).to_be_visible()
    wider = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(wider) == 0
    editor = picture(page, "editor")
    tile(editor, "1B0").scroll_into_view_if_needed()
    swipe(page, tile(editor, "1B0"), before(tile(editor, "1F2"), tile(editor, "1B0")))
    expect(editor.locator(".message")).to_contain_text("It ends at")
    swipe(page, tile(editor, "2B0"), before(tile(editor, "2F0"), tile(editor, "2B0")))  # told in several lines
    expect(editor.locator(".message")).to_contain_text("Refused: B0 on rank 2 needs F0")
    chip = picture(page, "topology").locator(".chip[data-gpu='3'] .body")
    chip.scroll_into_view_if_needed()
    said = page.locator(".numbers").inner_text()
    swipe(page, chip, middle(page.locator(".chip[data-gpu='6'] .body")))
    expect(page.locator(".numbers")).not_to_have_text(said, use_inner_text=True)


def test_what_was_not_scrolled_to_is_printed(open_page: Open) -> None:
    page = open_page("docs/pictures.html")
    event = "name => { dispatchEvent(new Event(name)); return document.querySelectorAll('.tplab-printed img').length }"
    assert page.evaluate(event, "beforeprint") == 6  # stored images, should the printer be quicker; one has none
    for place in page.locator(".tplab-place").all():
        expect(place.locator(".tplab-picture")).to_be_visible()
    expect(page.locator(".tplab-printed:visible")).to_have_count(0)
    assert page.evaluate(event, "afterprint") == 0


def test_an_address_sets_what_it_may(open_page: Open) -> None:
    asked = "#fit:model=llama-3.1-70b&gpu=h200&tp=2&batch=3&context=-5&cache=<img src=x onerror=alert(1)>&answer=x"
    page = open_page(f"docs/pictures.html{asked}")
    fit = page.locator(".tplab-place[data-picture=fit]")
    answer = fit.locator(".answer")
    expect(answer).to_be_in_viewport()
    expect(answer).to_contain_text(
        "Llama 3.1 70B in bf16 fits on 2 × H200 (TP 2 × PP 1) with 3 requests of 4,096 tokens"
    )
    assert fit.locator("img").count() == 0
    page.evaluate("location.hash = '#fit:gpu=h100&tp=4&constructor=1'")  # somebody pastes another one
    expect(answer).to_contain_text("on 4 × H100")
    fit.get_by_role("button", name="Link to these settings").click()
    made = page.evaluate("location.hash")
    said = answer.inner_text()
    fit.get_by_label("TP").select_option("1")
    expect(answer).not_to_have_text(said, use_inner_text=True)
    page.evaluate("location.hash = ''")
    page.go_back()  # to the link that the button made
    expect(answer).to_have_text(said, use_inner_text=True)
    expect(open_page(f"docs/pictures.html{made}").locator(".answer")).to_have_text(
        answer.inner_text(), use_inner_text=True
    )


def test_an_address_carries_a_schedule_or_none_that_cannot_run(open_page: Open) -> None:
    page = open_page("docs/pictures.html#editor:text=0F0,0B0,0F1,0B1%0A1F0,1B0,1F1,1B1%0A&cap=1")
    editor = picture(page, "editor")
    expect(editor.locator("tr.mine")).to_contain_text("12 F")
    message = editor.locator(".message")
    for wrong in ("0B0,0F0", "9F9", "0F0%0A0F0", "999F999,999B999"):
        page.evaluate("wrong => { location.hash = `#editor:text=${wrong}` }", wrong)
        expect(message).to_contain_text("The table that was sent cannot run")
        page.evaluate("location.hash = '#editor:cap=2'")
        expect(editor.locator("tr.mine")).to_contain_text("12 F")  # it is the one before
    said = message.inner_text()
    for nothing in ("0F0<b>", "", "0F0," * 20000):
        page.evaluate("nothing => { location.hash = `#editor:text=${nothing}` }", nothing)
    expect(message).to_have_text(said, use_inner_text=True)
    page.evaluate("location.hash = '#topology:groups=0,1,2,3,0,1,2,3'")
    drawing = picture(page, "topology")
    expect(drawing.locator(".group[data-group='0']")).to_contain_text("GPUs 0, 4")
    page.evaluate("location.hash = '#topology:groups=0,1,2,3,0,1,2,9'")
    expect(drawing.locator(".group[data-group='3']")).to_contain_text("GPUs 3, 7")


def test_a_notebooks_figures_are_live_where_their_images_stood(open_page: Open) -> None:
    page = open_page("notebooks/04-cheaper-communication.html")
    place = page.locator(".tplab-place[data-picture=figure]").first
    place.scroll_into_view_if_needed()
    expect(place.locator(".gtitle")).to_be_visible()
    cell: Any = page.locator(".cell_output", has=place)
    expect(cell.locator("img").first).to_be_hidden()


@pytest.mark.parametrize("path", sorted(ROOT.glob("notebooks/*.ipynb")), ids=lambda path: path.stem)
def test_a_lessons_pictures_are_live_as_its_run_left_them(open_page: Open, path: Path) -> None:
    outputs = [output for cell in nbformat.read(path, 4).cells for output in cell.get("outputs", ())]
    stored = [output.data[PICTURE] for output in outputs if PICTURE in output.get("data", {})]
    page = open_page(f"notebooks/{path.stem}.html")
    places = page.locator(".tplab-place:not([data-picture=figure])")
    assert [each.get_attribute("data-picture") for each in places.all()] == [each["picture"] for each in stored]
    for place in places.all():
        place.scroll_into_view_if_needed()
        expect(place.locator(".tplab-picture")).to_be_visible()
    for race in (each["state"] for each in stored if each["picture"] == "race"):
        expect(page.locator(".race-lane")).to_have_count(len(race["algorithms"]))
