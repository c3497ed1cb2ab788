"""Two ranks talking, in the browser: the recording as a page of its own, and real ranks in JupyterLab, by mouse and by
keyboard alone."""

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Locator, Page, expect

from tplab.lab.pictures import Picture, TwoRanks
from tplab.lab.pictures.picture import module_text

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

# Sums up what the frames of a page cost, from the first line of its own script on.
TIMED = """
globalThis.frames = [];
const real = requestAnimationFrame;
globalThis.requestAnimationFrame = (callback) => real((stamp) => {
  const began = performance.now();
  callback(stamp);
  frames.push(performance.now() - began);
});
"""


def at(two: TwoRanks, wanted: Callable[[dict], bool], *, last: bool = False) -> float:
    """When the recording first (or last) shows such a scene."""
    times = [seconds for seconds, scene in two.recording if wanted(scene)]
    return times[-1 if last else 0]


def test_the_recording_is_a_page_that_moves_what_was_recorded(open_picture: Callable[[Picture], Page]) -> None:
    two = TwoRanks()
    page = open_picture(two)
    page.get_by_role("button", name="Pause").click()
    chips = page.locator(".chip")

    flight = at(two, lambda scene: scene["flight"] == 1)
    page.evaluate("t => tplab.set('at', t)", flight + 0.45)
    expect(chips).to_have_text(["1", "2"])
    assert abs(chips.nth(0).bounding_box()["x"] - chips.nth(1).bounding_box()["x"]) < 40  # they meet half-way
    expect(page.locator(".two-ranks .held")).to_have_text(["1", "2"])
    page.evaluate("t => tplab.set('at', t)", flight + 1.0)
    expect(chips).to_have_count(0)
    expect(page.locator(".two-ranks .held")).to_have_text(["3", "3"])
    expect(page.locator(".two-ranks .check")).to_have_text(["✓", "✓"])
    expect(page.locator(".time")).to_have_text(re.compile(r"^\d+ µs$"))
    expect(page.locator(".badge")).to_have_text(re.compile(r"^RECORDED gloo · 2 ranks · 20\d\d-"))

    page.evaluate("t => tplab.set('at', t)", at(two, lambda scene: scene["card"] is not None, last=True))
    expect(page.get_by_role("alert")).to_contain_text("Rank 1 was killed by SIGKILL. Noticed")
    expect(page.locator(".dead .name")).to_have_text("rank 1")
    expect(page.get_by_role("img")).to_have_attribute("aria-label", re.compile("rank 0: ended with it.*rank 1: dead"))
    for press in ("Kill rank 1", "Run"):
        expect(page.get_by_role("button", name=press)).to_have_count(0)  # nothing to press that would do nothing
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_of_live_ranks_a_page_shows_the_moment(open_picture: Callable[[Picture], Page]) -> None:
    two = TwoRanks()
    two.live, two.scene = True, two.scene | {"badge": "LIVE gloo · 2 ranks"}
    page = open_picture(two)
    expect(page.locator(".badge")).to_have_text("LIVE gloo · 2 ranks")
    expect(page.locator(".two-ranks .held")).to_have_text(["3", "3"])
    expect(page.get_by_role("button")).to_have_count(0)


# The module around a model of a live kernel, which changes the scene before the page has laid the picture out.
LIVE = """
async ([module, scenes]) => {
  const { default: { render } } = await import(URL.createObjectURL(new Blob([module], { type: "text/javascript" })));
  const values = { live: true, recording: [], until_stop: true, scene: scenes[0] };
  const handlers = {};
  const model = { get: (name) => values[name], on: (name, handler) => { handlers[name] = handler; }, off() {} };
  document.body.replaceChildren();
  render({ model, el: document.body });
  globalThis.show = (scene) => { values.scene = scene; handlers["change:scene"](); };
  show(scenes[1]);
}
"""


def test_a_flight_that_began_before_the_picture_had_a_width_ends(open_picture: Callable[[Picture], Page]) -> None:
    page = open_picture(TwoRanks())
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    last = next(scene for _, scene in TwoRanks().recording if scene["flight"] == 1)
    page.evaluate(LIVE, [module_text("two_ranks"), [last | {"flight": 0}, last]])
    expect(page.locator(".chip")).to_have_count(2)
    expect(page.locator(".chip")).to_have_count(0)
    expect(page.locator(".two-ranks .held")).to_have_text(["3", "3"])
    assert errors == []

    # Killed while it starts again: the cross is no number of the process before.
    dead, other = (rank | {"had": None, "got": None, "last": 3.0} for rank in last["ranks"])
    ranks = [dead | {"state": "dead"}, other | {"state": "ended"}]
    page.evaluate("scene => show(scene)", last | {"busy": False, "ranks": ranks})
    expect(page.locator(".dead .held")).to_have_text("✕")
    expect(page.locator(".held.before")).to_have_count(0)


def test_a_frame_costs_little_and_less_motion_is_none(open_picture: Callable[[Picture], Page], browser: object) -> None:
    browser.add_init_script(TIMED)  # type: ignore[attr-defined]
    page = open_picture(TwoRanks())
    page.wait_for_function("frames.length > 60")
    costs = sorted(page.evaluate("frames"))
    assert costs[len(costs) // 2] < 4.0
    page.emulate_media(reduced_motion="reduce")
    page.reload()
    expect(page.get_by_role("button", name="Play")).to_be_visible()  # it does not begin by itself


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 16])
@pytest.mark.parametrize("width", [320, 1000])
def test_any_number_of_ranks_fits_any_width(open_picture: Callable[[Picture], Page], count: int, width: int) -> None:
    two = TwoRanks()
    box = two.scene["ranks"][0]
    two.scene = two.scene | {"ranks": [box | {"index": index, "pid": 4000000 + index} for index in range(count)]}
    two.live = True
    page = open_picture(two)
    page.set_viewport_size({"width": width, "height": 800})
    expect(page.locator(".two-ranks .box")).to_have_count(count)
    page.wait_for_function("w => document.querySelector('.two-ranks svg').viewBox.baseVal.width <= w", arg=width)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    boxes = [each.bounding_box() for each in page.locator(".two-ranks .box").all()]
    for text in page.locator(".two-ranks svg .name, .two-ranks svg .pill").all():
        inner = text.bounding_box()
        assert any(b["x"] <= inner["x"] and inner["x"] + inner["width"] <= b["x"] + b["width"] for b in boxes)
    for index, one in enumerate(boxes):
        for other in boxes[:index]:
            apart = abs(one["x"] - other["x"]) >= one["width"] - 1 or abs(one["y"] - other["y"]) >= one["height"] - 1
            assert apart, (index, one, other)


def focused(page: Page) -> str:
    """What has the focus, and whether it can be seen."""
    return page.evaluate(
        "() => { const e = document.activeElement; return `${e.textContent.trim() || e.type} ${getComputedStyle(e)"
        ".outlineStyle !== 'none' ? 'seen' : 'unseen'}`; }"
    )


def tab_to(page: Page, locator: Locator, presses: int = 60) -> None:
    """Press Tab until ``locator`` has the focus."""
    for _ in range(presses):
        page.keyboard.press("Tab")
        if locator.evaluate("element => element === document.activeElement"):
            return
    raise AssertionError(f"{presses} times Tab did not reach {locator}; focus is on {focused(page)}")


def test_notebook_00_by_keyboard_alone(open_notebook: Callable[[str], Page]) -> None:
    page = open_notebook("00-start-here.ipynb")
    page.keyboard.press("Control+Shift+C")  # the command palette
    palette = page.locator(".lm-CommandPalette-input")
    expect(palette).to_be_focused()
    page.keyboard.type("Run All Cells")
    expect(page.locator(".lm-CommandPalette-item.lm-mod-active")).to_contain_text("Run All Cells")
    page.keyboard.press("Enter")
    prompts = page.locator(".jp-CodeCell .jp-InputPrompt")
    expect(page.locator(".two-ranks .box")).to_have_count(2)
    expect(prompts.filter(has_text="*")).to_have_count(0, timeout=150_000)

    # Back to the top, by the link at the end; then Run, Stop, and a rank that is killed.
    top = page.locator(".jp-WindowedPanel-outer")
    below = top.evaluate("element => element.scrollTop")
    tab_to(page, page.get_by_role("link", name="back up to the two ranks"))
    page.keyboard.press("Enter")
    page.wait_for_function("y => document.querySelector('.jp-WindowedPanel-outer').scrollTop < y / 4", arg=below)
    picture = page.locator(".two-ranks")
    run, stop = picture.get_by_role("button", name="Run"), picture.get_by_role("button", name="Stop")
    tab_to(page, run)
    assert focused(page) == "▶ Run seen"
    page.keyboard.press("Enter")
    expect(stop).to_be_focused()  # Run cannot be pressed now: the next one that can has the focus
    expect(picture.locator(".held")).to_have_text(["3", "3"])
    expect(picture.locator(".pill.running")).to_have_count(2)
    page.keyboard.press("Enter")
    expect(picture.get_by_role("status")).to_contain_text("Done:")
    expect(run).to_be_focused()
    page.keyboard.press("Enter")
    expect(picture.locator(".pill.running")).to_have_count(2)
    processes = picture.locator(".small", has_text="process").all_text_contents()
    kill = picture.get_by_role("button", name="Kill rank 1")
    tab_to(page, kill, presses=4)
    assert focused(page) == "Kill rank 1 seen"
    page.keyboard.press("Enter")
    expect(picture.get_by_role("alert")).to_contain_text("Rank 1 was killed by SIGKILL. Noticed")
    expect(picture.locator(".dead .name")).to_have_text("rank 1")
    expect(run).to_be_focused()
    page.keyboard.press("Enter")
    expect(picture.locator(".held")).to_have_text(["3", "3"])
    expect(picture.get_by_role("alert")).to_have_count(0)
    assert not set(processes) & set(picture.locator(".small", has_text="process").all_text_contents())
    expect(stop).to_be_focused()
    page.keyboard.press("Enter")
    expect(picture.get_by_role("status")).to_contain_text("Done:")

    # A prediction: Tab from here on, type a number, Enter.
    field = page.locator(".tplab-predict input").first
    tab_to(page, field, presses=120)
    page.keyboard.type("9")
    page.keyboard.press("Enter")
    expect(page.locator(".tplab-comparison")).to_contain_text("You predicted 9 ms. Measured:")
