"""The play head over a Gantt chart, on a page of its own: tokens, memory and messages of any trace, at any time."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tplab.lab.pictures import Picture, PlayHead
from tplab.lab.recorded import recorded_trace
from tplab.pipeline import Costs, Trace, build_schedule, simulate

pytestmark = [pytest.mark.browser, pytest.mark.timeout(90)]

Open = Callable[[Picture], Page]
EVEN = {"forward_s": 0.01, "input_grad_s": 0.01, "weight_grad_s": 0.01}


def seek(page: Page, part: float) -> None:
    """Put the scrub bar at a part of the whole, as a hand does."""
    bar = page.get_by_label("time", exact=True)
    box = bar.bounding_box()
    bar.click(position={"x": 8 + part * (box["width"] - 16), "y": box["height"] / 2})


def tokens(page: Page) -> dict[str, float]:
    """Where each token is, as a share of the width."""
    return page.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll(".token[visibility=visible]")].map((token) => {
            const [x] = token.getAttribute("transform").match(/[\\d.]+/);
            return [token.textContent, token.getBoundingClientRect().x / innerWidth];
        }))"""
    )


def held(page: Page) -> int:
    return page.locator(".cell[opacity='1']").count()


def test_tokens_move_on_and_memory_fills_and_empties(open_picture: Open) -> None:
    page = open_picture(PlayHead())
    status = page.locator(".status")
    expect(status).to_contain_text("At 0 units of F: rank 0 forward of micro-batch 0, holds 1; rank 1 idle, holds 0")
    assert held(page) == 1
    bar = page.get_by_label("time", exact=True)
    seen = []
    for _ in range(3):
        bar.press("ArrowRight")  # from event to event
        seen.append(tokens(page)["0"])
    assert seen == sorted(set(seen))  # on to the next rank each time
    expect(status).to_contain_text("At 3 units of F: rank 0 forward of micro-batch 3, holds 4;")
    seek(page, 0.5)
    middle = held(page)
    bar.press("End")
    expect(status).to_contain_text("At 33 units of F: rank 0 idle, holds 0;")
    assert held(page) == 0 < middle
    assert tokens(page) == {}
    expect(page.locator("text=done 8")).to_be_visible()
    bar.press("ArrowLeft")
    expect(status).to_contain_text("rank 0 backward of micro-batch 7, holds 1")


def test_the_head_is_dragged_over_the_chart(open_picture: Open) -> None:
    page = open_picture(PlayHead())
    chart = page.locator(".chart").bounding_box()
    page.mouse.move(chart["x"] + 0.25 * chart["width"], chart["y"] + 30)
    page.mouse.down()
    page.mouse.move(chart["x"] + 0.5 * chart["width"], chart["y"] + 30)
    page.mouse.up()
    expect(page.locator(".status")).to_contain_text("At 16.")
    head = page.locator(".head").bounding_box()
    assert head["x"] == pytest.approx(chart["x"] + 0.5 * chart["width"], abs=3)


def test_a_message_flies_between_the_ranks(open_picture: Open) -> None:
    """Half-way through the first hop of 10 ms the token is half-way between the boxes of rank 0 and 1."""
    page = open_picture(PlayHead(simulate(build_schedule("forward-only", 2, 1), Costs(forward_s=0.01, hop_s=0.01))))
    spots = []
    for part in (0.1, 0.5, 0.9):  # at work, on its way, at work
        seek(page, part)
        spots.append(tokens(page)["0"])
    assert spots[0] < spots[1] < spots[2]
    assert spots[1] == pytest.approx((spots[0] + spots[2]) / 2, abs=0.02)


def measured() -> Trace:
    return recorded_trace("4xH200-2026-11-26", build_schedule("1f1b", 4, 8))


@pytest.mark.parametrize(
    "trace",
    [
        simulate(build_schedule("interleaved", 4, 8, 3), Costs(**EVEN, hop_s=0.002)),
        simulate(build_schedule("zb-h1", 16, 64), Costs(**EVEN)),
        simulate(build_schedule("decode-ring", 4, 24, num_in_flight=3), Costs(forward_s=0.02, hop_s=0.01)),
        simulate(build_schedule("gpipe", 2, 40), Costs(**EVEN)),
        measured(),
    ],
    ids=lambda trace: f"{trace.schedule.name}-{trace.num_ranks}x{trace.schedule.num_micro_batches}",
)
def test_any_trace_plays_through_in_short_frames(
    open_picture: Open, trace: Trace, time_frames: Callable[[Page], None]
) -> None:
    page = open_picture(PlayHead(trace))
    for width in (320, 1600):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(80)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.get_by_label("time", exact=True).press("ArrowRight")
    assert not re.search(r"\d\.\d{4}", page.locator(".status").inner_text())  # thirds of a micro-batch are rounded
    time_frames(page)
    page.get_by_label("speed").select_option(label="4 ×")
    page.locator("button", has_text="Play").click()
    page.wait_for_timeout(1500)
    spent: list[float] = page.evaluate("spent")
    assert len(spent) > 10
    median = sorted(spent)[len(spent) // 2]
    print(f"{trace.schedule.name}: {median:.2f} ms a frame, {max(spent):.2f} ms at most")
    assert median < 4
    page.get_by_label("time", exact=True).press("End")
    assert tokens(page) == {}
    expect(page.locator("button", has_text="Play")).to_be_visible()


def test_less_motion_goes_from_event_to_event(open_picture: Open) -> None:
    page = open_picture(PlayHead())
    page.emulate_media(reduced_motion="reduce")
    page.locator("button", has_text="Play").click()
    times = set()
    for _ in range(12):
        page.wait_for_timeout(200)
        times.add(page.get_by_label("time", exact=True).get_attribute("aria-valuetext"))
    assert times <= {f"{number} units of F" for number in range(34)}
    assert len(times) > 1


def test_forwards_are_seen_on_a_dark_page(open_picture: Open) -> None:
    page = open_picture(PlayHead())
    blue = "() => getComputedStyle(document.querySelector('path[fill=\"#0B3D84\"]')).fill"
    light = page.evaluate(blue)
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(blue) != light


def test_what_cannot_be_played_is_named() -> None:
    head = PlayHead()
    with pytest.raises(ValueError, match="trace must hold 1 to 16,384 computations"):
        head.show(simulate(build_schedule("gpipe", 8, 2048)))
    with pytest.raises(ValueError, match="max_activations must be"):
        PlayHead(max_activations=-1)
    before: dict[str, Any] = head.trace
    assert before["title"] == "1F1B: 4 ranks, 8 micro-batches"
