"""The topology drawn: a GPU dragged, or sent by a key, into another group, and the prediction that follows."""

import random
from collections.abc import Callable

import pytest
from playwright.sync_api import Locator, Page, expect

from tplab.lab.pictures import Picture, Topology
from tplab.lab.pictures.topology import _key, _links
from tplab.topology import Machine, placement_of, predict
from tplab.topology.advisor.group_links import links_of

pytestmark = [pytest.mark.browser, pytest.mark.timeout(90)]
Open = Callable[[Picture], Page]
PASTED = """\
\tGPU0\tGPU1\tGPU2\tGPU3\tGPU4\tGPU5
GPU0\t X \tNV4\tPIX\tNODE\tSYS\tSYS
GPU1\tNV4\t X \tPXB\tNODE\tSYS\tSYS
GPU2\tPIX\tPXB\t X \tNODE\tSYS\tSYS
GPU3\tNODE\tNODE\tNODE\t X \tSYS\tSYS
GPU4\tSYS\tSYS\tSYS\tSYS\t X \tNV2
GPU5\tSYS\tSYS\tSYS\tSYS\tNV2\t X
"""
SLOW_BRIDGES = """\
\tGPU0\tGPU1\tGPU2\tGPU3
GPU0\t X \tNV1\tPHB\tPHB
GPU1\tNV1\t X \tNV1\tPHB
GPU2\tPHB\tNV1\t X \tNV1
GPU3\tPHB\tPHB\tNV1\t X
"""
MACHINES = {
    "dgx-1": lambda: Topology(),
    "a ring of eight": lambda: Topology(tp=8, pp=1),
    "bridges": lambda: Topology(Machine.preset("a100-pairs", gpus=8), tp=4, pp=2),
    "two nodes": lambda: Topology(Machine.preset("dgx-1", nodes=2), tp=4, pp=2),
    "one network": lambda: Topology(Machine.preset("h100", nodes=2), tp=8, pp=2),
    "pasted": lambda: Topology(Machine.from_topo(PASTED, gpu="rtx-3090"), tp=3, pp=2),
    "NVLink slower than PCIe": lambda: Topology(Machine.from_topo(SLOW_BRIDGES, gpu="h100"), tp=4, pp=1),
    "stages only": lambda: Topology(Machine.preset("a100-pcie"), tp=1, pp=4),
}


def chip(page: Page, gpu: int) -> Locator:
    return page.locator(f".chip[data-gpu='{gpu}']")


def drag(page: Page, gpu: int, target: Locator) -> None:
    source, at = chip(page, gpu).locator(".body").bounding_box(), target.bounding_box()
    assert source is not None
    assert at is not None
    page.mouse.move(source["x"] + source["width"] / 2, source["y"] + source["height"] / 2)
    page.mouse.down()
    page.mouse.move(at["x"] + at["width"] / 2, at["y"] + at["height"] / 2, steps=12)
    page.mouse.up()


def result(page: Page) -> dict:
    return page.evaluate("tplab.get('result')")


@pytest.mark.parametrize("name", MACHINES)
def test_the_browser_finds_the_links_that_python_finds(name: str, open_picture: Open) -> None:
    """Sixty arrangements of each machine: the key of the links that hold them up, and so the advisor's numbers."""
    picture = MACHINES[name]()
    page, draw = open_picture(picture), random.Random(7)
    index = {link: at for at, link in enumerate(_links(picture._machine))}
    for _ in range(60):
        groups = draw.sample(picture.groups, len(picture.groups))
        found = page.evaluate("groups => { tplab.set('groups', groups); return tplab.get('result'); }", groups)
        members = [
            [gpu for gpu, group in enumerate(groups) if group == k] for k in range(picture.pp * picture.replicas)
        ]
        chains = [members[c * picture.pp : (c + 1) * picture.pp] for c in range(picture.replicas)]
        placed = placement_of(picture._machine, chains)
        assert found["key"] == _key(index, links_of(picture._machine, placed)), groups
    if picture.prices.get("rows"):
        layout = picture.tp, picture.pp
        made = predict(
            picture._spec, picture._machine, picture._workload, *layout, replicas=picture.replicas, placement=placed
        )
        assert found["tpot_ms"] == pytest.approx(made.tpot_ms, rel=1e-4)
        assert found["tokens_per_s"] == pytest.approx(made.output_tokens_per_s, rel=1e-4)


def test_a_gpu_dragged_onto_another_swaps_them_and_the_prediction_follows(open_picture: Open) -> None:
    page = open_picture(Topology(Machine.preset("a100-pcie"), "llama-3.1-70b", tp=4, pp=2))
    before = result(page)
    expect(page.locator(".binding polyline")).to_have_count(0)  # all groups have the fastest link of this machine
    drag(page, 0, chip(page, 4))
    assert page.evaluate("tplab.get('groups')") == [1, 0, 0, 0, 0, 1, 1, 1]
    after = result(page)
    assert after["tpot_ms"] > before["tpot_ms"]
    assert after["tokens_per_s"] < before["tokens_per_s"]
    expect(page.locator(".binding polyline").first).to_be_attached()
    expect(page.get_by_role("status")).to_contain_text(
        "now crosses from socket to socket (SYS, 23.6 GB/s): its all-reduce"
    )
    expect(page.get_by_role("status")).to_contain_text("→")
    page.get_by_role("button", name="Best placement").click()
    assert result(page) == before
    expect(page.locator(".binding polyline")).to_have_count(0)


def test_a_group_of_the_wrong_size_is_unfinished_and_a_way_out_is_offered(open_picture: Open) -> None:
    page = open_picture(Topology(Machine.preset("a100-pcie"), tp=4, pp=2))
    before = result(page)
    drag(page, 0, page.locator(".groups .group[data-group='1']"))
    assert result(page)["faults"] == ["group 0 needs one GPU more", "group 1 has one GPU too many"]
    assert "tpot_ms" not in result(page)
    expect(page.locator(".numbers")).to_contain_text("Unfinished: group 0 needs one GPU more")
    page.get_by_role("button", name="Move GPU 0 to group 0").click()  # the cheapest way out
    assert result(page) == before


def test_a_gpu_too_many_where_no_group_lacks_one_can_be_left_idle(open_picture: Open) -> None:
    page = open_picture(Topology(Machine.preset("a100-pcie", gpus=5), tp=2, pp=1))
    for way_out in (lambda: page.get_by_role("button", name="idle").click(), lambda: page.keyboard.press("-")):
        chip(page, page.evaluate("tplab.get('groups').indexOf(-1)")).press("0")
        assert result(page)["faults"] == ["group 0 has one GPU too many"]
        way_out()
        assert result(page)["finished"]
    assert page.evaluate("tplab.get('groups').filter(group => group < 0).length") == 1


def test_the_same_by_keyboard_alone(open_picture: Open) -> None:
    page = open_picture(Topology())
    start = page.evaluate("tplab.get('groups')")
    chip(page, 0).focus()
    page.keyboard.press("End")
    expect(chip(page, 7)).to_be_focused()
    expect(page.get_by_role("status")).to_contain_text("GPU 7. NV1, 25 GB/s to 3, 5; NV2, 50 GB/s to 4, 6; SYS")
    page.keyboard.press("Enter")
    expect(chip(page, 7)).to_have_accessible_name("GPU 7, group 2 (copy 1, stage 0), picked up")
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    assert page.evaluate("tplab.get('groups')") == [start[7], *start[1:7], start[0]]
    expect(page.get_by_role("status")).to_contain_text("Swapped.")
    page.keyboard.press("1")
    assert result(page)["finished"] is False
    page.keyboard.press(str(start[7]))
    assert result(page)["finished"] is True
    page.set_viewport_size({"width": 700, "height": 500})
    page.wait_for_timeout(120)
    expect(chip(page, 0)).to_be_focused()  # drawn anew for the new width
    page.keyboard.press("9")
    expect(page.get_by_role("status")).to_have_text("There is no group 9: groups are 0 to 3.")
    page.get_by_role("button", name="Reset").press("Enter")
    assert page.evaluate("tplab.get('groups')") == start


@pytest.mark.parametrize("name", [*MACHINES, "nvl72"])
def test_nothing_is_cut_or_drawn_over_from_320_to_1600_pixels(name: str, open_picture: Open) -> None:
    picture = Topology(Machine.preset("gb200-nvl72"), tp=8, pp=1) if name == "nvl72" else MACHINES[name]()
    page = open_picture(picture)
    for width in (320, 400, 1000, 1600):
        page.set_viewport_size({"width": width, "height": 700})
        page.wait_for_timeout(120)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), width
        assert page.evaluate(
            """() => {
              const view = document.querySelector("svg.machine").getBoundingClientRect();
              const chips = [...document.querySelectorAll(".chip .body")].map((each) => each.getBoundingClientRect());
              const inside = chips.every((c) =>
                c.left >= view.left - 1 && c.right <= view.right + 1 && c.bottom <= view.bottom + 1);
              const apart = chips.every((a, i) => chips.slice(i + 1).every((b) =>
                a.right <= b.left || b.right <= a.left || a.bottom <= b.top || b.bottom <= a.top));
              const words = [...document.querySelectorAll(".chip")].every((chip) => {
                const body = chip.querySelector(".body").getBoundingClientRect();
                return [...chip.querySelectorAll("text")].every((t) => t.getBoundingClientRect().width <= body.width);
              });
              return inside && apart && words;
            }"""
        ), width


def test_less_motion_and_little_script(open_picture: Open, time_frames: Callable[[Page], None]) -> None:
    page = open_picture(Topology(Machine.preset("a100-pcie"), tp=4, pp=2))
    drag(page, 0, chip(page, 4))
    pulse = "getComputedStyle(document.querySelector('.binding polyline')).animationName"
    assert page.evaluate(pulse) == "tplab-slow"
    page.emulate_media(reduced_motion="reduce")
    assert page.evaluate(pulse) == "none"
    time_frames(page)
    for gpu, other in ((1, 5), (2, 6), (3, 7), (5, 1)):
        drag(page, gpu, chip(page, other))
    took = sorted(page.evaluate("spent"))
    median = took[len(took) // 2]
    print(f"{len(took)} frames of a drag: script of the median {median:.2f} ms, of the longest {took[-1]:.2f} ms")
    assert len(took) > 8
    assert median < 4


def test_another_machine_whatever_part_of_it_comes_first(open_picture: Open) -> None:
    """A kernel sends what changed in any order, and the page hears of one after the other."""
    page, small, large = open_picture(Topology()), Topology(Machine.preset("a100-pcie", gpus=1), tp=1, pp=1), Topology()
    for state in (small.state(), large.state()):
        for first in ("groups", "machine", "prices", "tp"):
            page.evaluate(
                "([state, names]) => { for (const name of names) tplab.set(name, state[name]); }",
                [state, [first, *(name for name in state if name not in (first, "result"))]],
            )
            expect(page.locator(".chip")).to_have_count(len(state["groups"]))
            assert result(page)["finished"]
        page.evaluate("groups => tplab.set('groups', groups)", small.state()["groups"])
