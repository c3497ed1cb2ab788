"""The picture of layouts that write: equal tokens lit, the first difference marked, played on one clock."""

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tplab.lab.pictures import Picture, Writing

pytestmark = [pytest.mark.browser, pytest.mark.timeout(60)]

SPANS = {"compute": [[0, 40]], "collective": [[5, 9], [15, 19]], "wait": [[20, 30]]}


def column(name: str, tokens: list[str], each_ms: float, ranks: int) -> dict[str, Any]:
    at = [each_ms * (place + 1) for place in range(len(tokens))]
    lanes = [{"name": f"rank {rank}", "spans": SPANS} for rank in range(ranks)]
    how = {"how": "in words", "note": "as measured"}
    return how | {"name": name, "tokens": tokens, "at": at, "total": at[-1], "lanes": lanes}


@pytest.fixture
def writing() -> Writing:
    picture = Writing()
    picture.prompt = "She was <b>very"
    picture.columns = [
        column("TP 1 × PP 1", [" much", " pleased", ".", "\n"], 20, 1),
        column("TP 2 × PP 1", [" much", " pleased", ".", "\n"], 40, 2),
        column("TP 1 × PP 2", [" much", " surprised", "!", "\n"], 10, 2),
    ]
    picture.verdict = "TP 1 × PP 2 parts from TP 1 × PP 1 at token 2."
    return picture


def test_equal_tokens_are_lit_and_the_first_other_one_is_marked(
    writing: Writing, open_picture: Callable[[Picture], Page]
) -> None:
    page = open_picture(writing)
    expect(page.get_by_role("status")).to_have_text(writing.verdict)
    one, two, three = (page.get_by_role("region", name=each["name"]) for each in writing.columns)
    expect(one.locator("p")).to_have_text("She was <b>very much pleased.¶")  # all of it, at first; and text stays text
    for whole in (one, two):
        assert whole.locator("p .same").all_inner_texts() == [" much", " pleased", ".", "¶"]
        expect(whole.locator(".first")).to_have_count(0)
    assert three.locator("p .same").all_inner_texts() == [" much"]
    expect(three.locator(".first")).to_contain_text("surprised")
    expect(three.locator(".first")).to_contain_text("first difference")  # not by colour alone
    assert [each.locator(".lane").count() for each in (one, two, three)] == [1, 2, 2]
    page.set_viewport_size({"width": 320, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 320


def test_tokens_come_on_one_clock(writing: Writing, open_picture: Callable[[Picture], Page]) -> None:
    page = open_picture(writing)
    one, two, three = (page.get_by_role("region", name=each["name"]).locator("p .shown") for each in writing.columns)
    bar = page.get_by_role("slider", name="time")
    bar.press("Home")
    for tokens in (one, two, three):
        expect(tokens).to_have_count(0)
    bar.press("ArrowRight")  # to the next token of the slowest
    for tokens, count in ((one, 2), (two, 1), (three, 4)):
        expect(tokens).to_have_count(count)
    page.get_by_label("speed").select_option(label="4 ×")
    page.get_by_role("button", name="Play").click()
    expect(two).to_have_count(4)
    expect(page.get_by_role("button", name="Play")).to_be_visible()


def test_columns_fill_while_ranks_write_and_then_play(
    writing: Writing, open_picture: Callable[[Picture], Page]
) -> None:
    done = writing.columns
    writing.columns = [{**each, "at": None, "lanes": None, "note": "writing"} for each in done[:1]]
    page = open_picture(writing)
    expect(page.get_by_role("button", name="Play")).to_be_hidden()  # nothing is known of when they came
    expect(page.get_by_role("region").locator("p .shown")).to_have_count(4)
    page.evaluate("columns => tplab.set('columns', columns)", done)
    expect(page.get_by_role("button", name="Pause")).to_be_visible()
    expect(page.get_by_role("region")).to_have_count(3)


def test_a_frame_takes_less_than_four_milliseconds(writing: Writing, open_picture: Callable[[Picture], Page]) -> None:
    spans = {"compute": [[t, t + 1] for t in range(600)], "collective": [[t / 3, t / 3 + 0.1] for t in range(1800)]}
    wide = column("TP 1 × PP 1", [f" word{number}" for number in range(128)], 5, 4)
    for lane in wide["lanes"]:
        lane["spans"] = spans
    writing.columns = [{**wide, "name": f"layout {number}"} for number in range(4)]
    page = open_picture(writing)
    page.evaluate(
        "globalThis.took = []; const raf = requestAnimationFrame.bind(window);"
        "window.requestAnimationFrame = (f) => raf((t) => { const start = performance.now(); f(t);"
        " took.push(performance.now() - start); })"
    )
    page.get_by_role("button", name="Play").click()
    page.wait_for_function("took.length > 12")
    assert page.evaluate("took.sort((a, b) => a - b)[took.length >> 1]") < 4
