"""The shard painter: its plan is Python's, and it is painted by pointer and by keyboard."""

import base64
import itertools
import json
from collections.abc import Callable
from importlib.resources import files

import pytest
from playwright.sync_api import Page, expect

from tplab.lab.pictures import Picture
from tplab.lab.pictures.painter import ShardPainter
from tplab.layers.plan import CHOICES, plan_block

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]

SHAPES = [  # hidden, intermediate, query heads, key-value heads
    (4096, 14336, 32, 8),
    (768, 3072, 12, 4),
    (100, 60, 5, 5),
    (768, 1002, 12, 1),
]
PLAN = """async ([module, cases]) => {
  const { planBlock, timeUs } = await import("data:text/javascript;base64," + module);
  const told = (p) => [
    p.steps.map((s) => [s.name, s.conversion, s.input, s.output, s.payload, s.sent, s.weights, s.why]), p.summary,
    p.sent, p.weights, p.kvBytesPerToken, timeUs(p, 1.5, 367)];
  const one = ([choices, sizes]) => { try { return told(planBlock(choices, sizes)); } catch { return null; } };
  return JSON.stringify(JSON.parse(cases).map(one));
}"""

OUTSIDE = """() => {
  const all = document.querySelector(".painting svg").getBoundingClientRect();
  const cut = (box) => box.left < all.left - 1 || box.right > all.right + 1 || box.bottom > all.bottom + 1;
  const texts = [...document.querySelectorAll(".painting svg text")];
  return texts.filter((each) => cut(each.getBoundingClientRect())).map((each) => each.textContent);
}"""


def planned(choices: tuple[str, ...], sizes: dict[str, int]) -> list[object] | None:
    try:
        plan = plan_block(choices, **sizes)
    except ValueError:
        return None
    steps = [
        [
            *(step.name, step.conversion, step.input_layout, step.output_layout, step.payload_bytes),
            *(step.sent_bytes, step.weight_bytes, step.why),
        ]
        for step in plan.steps
    ]
    return [steps, plan.summary, plan.sent_bytes, plan.weight_bytes, plan.kv_bytes_per_token, plan.time_us(1.5, 367)]


def test_it_plans_as_python_does(open_picture: Callable[[Picture], Page]) -> None:
    names = ("hidden", "intermediate", "num_heads", "num_kv_heads")
    cases = [
        (choices, dict(zip(names, shape, strict=True)) | {"tokens": tokens, "itemsize": 2, "n": n})
        for shape, n, tokens in itertools.product(SHAPES, (1, 2, 3, 4, 6, 8), (1, 1024))
        for choices in itertools.product(CHOICES, repeat=4)
    ]
    module = files("tplab.lab.pictures").joinpath("modules", "plan.js").read_bytes()
    page = open_picture(ShardPainter())
    told = page.evaluate(PLAN, [base64.b64encode(module).decode(), json.dumps(cases)])
    wanted = [planned(choices, sizes) for choices, sizes in cases]
    assert sum(each is None for each in wanted) > 100
    for case, here, there in zip(cases, numbers(told), numbers(json.dumps(wanted)), strict=True):
        assert here == there, case


def numbers(text: str) -> list[object]:
    """1.0 is 1 in JavaScript, and sums may differ in the last bit."""
    found: list[object] = json.loads(text, parse_float=lambda digits: round(float(digits), 6))
    return found


def painted(page: Page) -> list[str]:
    return [
        page.locator(f"[data-matrix={name}]").get_attribute("data-choice") or ""
        for name in ("qkv", "out", "up", "down")
    ]


def test_a_click_and_keys_paint(open_picture: Callable[[Picture], Page]) -> None:
    page = open_picture(ShardPainter())
    status = page.get_by_role("status").first
    assert painted(page) == ["column", "column", "row", "row"]
    expect(page.locator(".conversion")).to_have_count(5)
    page.locator("[data-matrix=out]").click()
    expect(page.locator("[data-matrix=out]")).to_have_attribute("data-choice", "row")
    # By keyboard alone: Tab to the matrix, arrows in both directions; the focus stays.
    page.locator("[data-matrix=out]").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert painted(page) == ["column", "row", "column", "row"]
    expect(page.locator("[data-matrix=up]")).to_be_focused()
    expect(page.locator("[data-matrix=up]")).to_have_attribute(
        "aria-label", "up, with gate: by column, 56 MiB per rank"
    )
    expect(status).to_have_text("2 all-reduces: each rank sends 24 MiB per block, 86.6 µs on the link.")
    expect(page.get_by_text("Found, after 4 of 81 paintings")).to_be_visible()
    marks = page.locator(".conversion")
    expect(marks.locator("text")).to_have_text(["all-reduce 8 MiB", "all-reduce 8 MiB"])
    assert [mark.get_attribute("data-before") for mark in marks.all()] == ["add + norm", "add"]
    assert page.evaluate("tplab.get('tried').length") == 4
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    expect(page.get_by_role("columnheader", name="the cheapest")).to_be_visible()


def test_activations_are_split_and_added(open_picture: Callable[[Picture], Page]) -> None:
    page = open_picture(ShardPainter().paint(out="row"))

    def rows(name: str) -> list[tuple[float, float]]:
        page.wait_for_timeout(500)
        found = page.locator(f".activation[data-at='{name}'] rect[fill*=color-mix]").all()
        boxes = [rect.bounding_box() for rect in found]
        return [(round(box["x"]), round(box["width"])) for box in boxes if box is not None]

    whole, split, partial = rows("qkv:in"), rows("attention:in"), rows("add + norm:before")
    assert len({x for x, _ in whole}) == 1
    assert len({x for x, _ in split}) == len(split) == 4
    assert sum(width for _, width in split) == pytest.approx(whole[0][1], abs=4)
    assert partial == [(whole[0][0], whole[0][1])] * 4  # each rank has a term of every sum
    assert page.locator("[data-at='add + norm:before']").get_attribute("data-layout") == "partial"


def test_what_cannot_work_is_said_and_the_drawing_kept(open_picture: Callable[[Picture], Page]) -> None:
    page = open_picture(ShardPainter())
    page.get_by_label("ranks").press("ArrowLeft")
    expect(page.get_by_text("32 query heads do not divide by 3 ranks, and qkv by column needs it")).to_be_visible()
    expect(page.locator(".painting.pale [data-matrix=qkv]")).to_have_attribute("data-choice", "column")
    page.get_by_label("ranks").press("ArrowLeft")
    expect(page.locator(".painting.pale")).to_have_count(0)


def test_a_prediction_comes_first(open_picture: Callable[[Picture], Page]) -> None:
    from tplab.lab import Predict

    page = open_picture(ShardPainter(after=Predict("the fewest collectives")))
    page.locator("[data-matrix=out]").click()
    expect(page.get_by_role("status").first).to_have_text("Predict first: then the matrices can be painted.")
    assert painted(page) == ["column", "column", "row", "row"]
    page.get_by_role("button", name="Paint without predicting").click()
    page.locator("[data-matrix=out]").press("Enter")
    assert painted(page) == ["column", "row", "row", "row"]


def test_frames_are_short_and_less_motion_is_respected(
    open_picture: Callable[[Picture], Page], time_frames: Callable[[Page], None]
) -> None:
    page = open_picture(ShardPainter().paint(ranks=8))
    time_frames(page)
    page.locator("[data-matrix=out]").press("Enter")
    expect(page.get_by_text("whole pass")).to_be_visible()
    spent = sorted(page.evaluate("spent"))
    assert len(spent) > 10
    assert spent[len(spent) // 2] < 4  # ms
    page.emulate_media(reduced_motion="reduce")
    page.evaluate("spent.length = 0")
    page.locator("[data-matrix=out]").press("Enter")
    expect(page.locator("[data-matrix=out]")).to_have_attribute("data-choice", "replicated")
    assert page.evaluate("spent") == []
    expect(page.get_by_text("whole pass")).to_be_visible()


@pytest.mark.parametrize("width", [320, 600, 1600])
def test_nothing_is_cut(open_picture: Callable[[Picture], Page], width: int) -> None:
    page = open_picture(ShardPainter().paint(qkv="row", out="column", up="row", down="column", model="Llama-3.1 70B"))
    page.set_viewport_size({"width": width, "height": 900})
    page.wait_for_timeout(200)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate(OUTSIDE) == []
    expect(page.get_by_text("whole pass")).to_be_visible()  # a page that becomes wider plays nothing
