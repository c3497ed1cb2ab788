"""The all-reduce race: its times and messages are those of tplab.collectives, and its page shows them without a cut."""

import queue
import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any

import pytest
import torch
from playwright.sync_api import Page, expect

from tplab.collectives import AlphaBeta, time_us
from tplab.collectives.one_shot import one_shot_all_reduce
from tplab.collectives.recursive_doubling import recursive_doubling_all_reduce
from tplab.collectives.ring import ring_all_reduce
from tplab.collectives.two_shot import two_shot_all_reduce
from tplab.collectives.volumes import sent_bytes
from tplab.lab.known_links import LINKS
from tplab.lab.pictures import Picture, Race
from tplab.lab.pictures.race import RACERS
from tplab.lab.predict import Predict

pytestmark = [pytest.mark.browser, pytest.mark.timeout(60)]

OpenPicture = Callable[[Picture], Page]
SUMS = {
    "ring": lambda x, transport: ring_all_reduce(x, transport, segment_bytes=None),
    "two-shot": two_shot_all_reduce,
    "one-shot": one_shot_all_reduce,
    "recursive-doubling": recursive_doubling_all_reduce,
}


class Wire:
    """A transport between threads that notes what each rank sends: (to, first element, elements)."""

    device_types = frozenset({"cpu"})

    def __init__(self, index: int, size: int, queues: dict[tuple[int, int], "queue.Queue[torch.Tensor]"]) -> None:
        self.index, self.size, self._queues = index, size, queues
        self.sent: list[tuple[int, int, int]] = []

    def exchange(self, sends: Sequence[Any], recvs: Sequence[Any]) -> "Wire":
        for tensor, peer in sends:
            self.sent.append((peer, tensor.storage_offset(), tensor.numel()))
            self._queues[self.index, peer].put(tensor.clone())
        for tensor, peer in recvs:
            tensor.copy_(self._queues[peer, self.index].get(timeout=20))
        return self

    def wait(self) -> None:
        pass


def really_sent(algorithm: str, n: int) -> list[list[tuple[int, int, int]]]:
    """What each rank sends, by the algorithm of the package; two elements are a chunk."""
    queues: dict[tuple[int, int], queue.Queue[torch.Tensor]] = {
        (i, j): queue.Queue() for i in range(n) for j in range(n)
    }
    wires = [Wire(rank, n, queues) for rank in range(n)]
    tensors = [torch.full((2 * n,), float(1 << rank)) for rank in range(n)]
    threads = [
        threading.Thread(target=SUMS[algorithm], args=(tensor, wire), daemon=True)
        for tensor, wire in zip(tensors, wires, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert all((tensor == 2**n - 1).all() for tensor in tensors)
    return [wire.sent for wire in wires]


@pytest.fixture
def plans(open_picture: OpenPicture) -> Page:
    """A page in which ``plan`` is the module that plans the race."""
    page = open_picture(Race())
    text = files("tplab.lab.pictures").joinpath("modules", "race_plan.js").read_text("utf-8")
    page.add_script_tag(type="module", content=f"{text}\nglobalThis.plan = {{ planOf, timeUs, bandsOf, ranking }};")
    page.wait_for_function("globalThis.plan !== undefined")
    return page


def test_times_are_those_of_the_cost_model(plans: Page) -> None:
    draw = random.Random(7)
    cases = [
        {
            "algorithm": algorithm,
            "n": n,
            "nbytes": round(2 ** draw.uniform(0, 34)),
            "alpha": 10 ** draw.uniform(-2, 4),
            "beta": 10 ** draw.uniform(-3, 3),
            "ownLinks": draw.random() < 0.5,
        }
        for algorithm in RACERS
        for n in range(2, 9)
        for _ in range(20)
    ]
    found = plans.evaluate(
        "(cases) => cases.map((c) => [plan.timeUs(c.algorithm, c), plan.planOf(c.algorithm, c).end])", cases
    )
    for case, (by_formula, by_messages) in zip(cases, found, strict=True):
        ports = case["n"] - 1 if case["ownLinks"] else 1
        want = time_us(case["algorithm"], case["nbytes"], case["n"], case["alpha"], case["beta"], ports=ports)
        assert by_formula == pytest.approx(want, rel=1e-12), case
        assert by_messages == pytest.approx(want, rel=1e-9), case


@pytest.mark.parametrize("algorithm", RACERS)
def test_messages_are_those_of_the_algorithm(algorithm: str, plans: Page) -> None:
    for n in range(2, 9):
        settings = {"n": n, "nbytes": n << 10, "alpha": 3, "beta": 1}
        plan = plans.evaluate("([a, s]) => plan.planOf(a, s)", [algorithm, settings])
        messages = sorted(plan["messages"], key=lambda message: (message["step"], message["place"]))
        drawn = [
            [(m["to"], 2 * m["chunks"][0], 2 * len(m["chunks"])) for m in messages if m["from"] == rank]
            for rank in range(n)
        ]
        assert drawn == really_sent(algorithm, n), n
        # The bytes on the wire, and after the last message every rank has every summand once.
        sent = [sum(length for _, _, length in each) / (2 * n) for each in drawn]
        assert sum(sent) / n == pytest.approx(sent_bytes("all-reduce", algorithm, 1, n).sent_mean)
        held = [[Counter({rank: 1}) for _ in range(n)] for rank in range(n)]
        for step in range(len(plan["steps"])):
            now = [m for m in messages if m["step"] == step]
            loads = [[Counter(held[m["from"]][chunk]) for chunk in m["chunks"]] for m in now]
            for message, load in zip(now, loads, strict=True):
                assert message["load"] == [sum(1 << summand for summand in part) for part in load]
                for chunk, part in zip(message["chunks"], load, strict=True):
                    cell = held[message["to"]][chunk]
                    held[message["to"]][chunk] = cell + part if message["adds"] else part
        assert held == [[Counter(range(n))] * n] * n


def test_the_fastest_by_size_is_that_of_the_cost_model(plans: Page) -> None:
    draw = random.Random(11)
    for _ in range(60):
        n, alpha, beta = draw.randint(2, 8), 10 ** draw.uniform(-1, 3), 10 ** draw.uniform(-2, 3)
        racers, own_links = draw.sample(RACERS, draw.randint(1, len(RACERS))), draw.random() < 0.5
        settings = {"n": n, "alpha": alpha, "beta": beta, "ownLinks": own_links}
        bands = plans.evaluate("([a, s]) => plan.bandsOf(a, s)", [racers, settings])
        assert bands[0]["from"] == 0
        for band in bands:
            end = band["to"] if band["to"] not in (None, float("inf")) else 4 * band["from"] + 1e9
            size = (band["from"] + end) / 2
            times = {name: time_us(name, size, n, alpha, beta, ports=n - 1 if own_links else 1) for name in racers}
            best = min(times.values())
            tied = {name for name, us in times.items() if us <= best * (1 + 1e-9)}
            assert set(band["algorithms"]) == tied, (n, alpha, beta, band)


def state(page: Page, name: str) -> Any:
    return page.evaluate(f"tplab.get('{name}')")


def test_small_messages_one_shot_wins_large_ones_the_ring(open_picture: OpenPicture) -> None:
    page = open_picture(Race(4))
    said, size = page.locator(".race-verdict"), page.get_by_label("size S")
    size.press("Home")
    expect(said).to_contain_text("1 KiB on 4 GPUs: one-shot wins; recursive doubling takes 2 times as long")
    size.press("End")
    expect(said).to_contain_text("1 GiB on 4 GPUs: ring wins")
    expect(said).to_contain_text("one-shot up to 538 KiB, then recursive doubling up to 4.2 MiB, then ring above")
    page.get_by_label("race clock", exact=True).press("End")
    places = page.locator(".race-place")
    expect(places).to_have_text(["3rd", "2nd", "1st"])
    expect(page.locator(".race-lane.first strong")).to_have_text("Ring")
    page.get_by_label("GPUs", exact=True).press("Home")  # on two, both are one exchange
    expect(said).to_contain_text("on 2 GPUs: one-shot and recursive doubling arrive together")
    expect(places).to_have_text(["1st", "1st", "3rd"])


def test_a_latency_of_nothing_is_at_the_slider_s_end(open_picture: OpenPicture) -> None:
    page = open_picture(Race(link=AlphaBeta(alpha_us=0, beta_GBps=100)))
    alpha = page.get_by_label("α, a message")
    assert (alpha.input_value(), alpha.get_attribute("aria-valuetext")) == ("0", "0 µs")


def test_every_control_takes_the_keyboard(open_picture: OpenPicture) -> None:
    page = open_picture(Race())
    for label, name in (
        ("GPUs", "num_ranks"),
        ("size S", "nbytes"),
        ("α, a message", "alpha_us"),
        ("β, bandwidth", "beta_GBps"),
    ):
        before = state(page, name)
        page.get_by_label(label, exact=True).press("ArrowRight")
        assert state(page, name) > before, name
        page.get_by_label(label, exact=True).press("ArrowLeft")
    page.get_by_label("link", exact=True).press("Home")
    page.get_by_label("link", exact=True).press("ArrowDown")
    expect(page.get_by_label("α, a message")).to_have_attribute("aria-valuetext", "2 µs")
    assert AlphaBeta(alpha_us=state(page, "alpha_us"), beta_GBps=state(page, "beta_GBps")) == list(LINKS.values())[1]
    page.get_by_role("checkbox", name="a link of its own").press("Space")
    expect(page.locator(".race-foot").first).to_have_text("1 step, 1 S = 256 KiB one after the other")
    page.get_by_role("checkbox", name="Two-shot").press("Space")
    expect(page.locator(".race-lane strong")).to_have_text(["One-shot", "Recursive doubling", "Two-shot", "Ring"])
    for name in ("One-shot", "Recursive doubling", "Two-shot"):
        page.get_by_role("checkbox", name=name).press("Space")
    expect(page.locator(".race-lane strong")).to_have_text(["Ring"])
    expect(page.get_by_role("checkbox", name="Ring")).to_be_disabled()  # somebody must run
    clock, words = page.get_by_label("race clock", exact=True), page.locator(".race-step")
    clock.press("ArrowRight")
    expect(words).to_have_text("step 2 of 6: reduce-scatter")
    expect(page.locator(".unseen[role=status]")).to_have_text("Ring: step 2 of 6: reduce-scatter")
    clock.press("End")
    expect(words).to_have_text("every GPU has the sum")
    expect(page.locator(".race-tile.done")).to_have_count(4)
    clock.press("ArrowLeft")
    expect(words).to_have_text("step 6 of 6: all-gather")
    expect(page.locator(".race-tile.done")).to_have_count(0)
    page.get_by_role("button", name="Play").press("Enter")
    expect(words).to_have_text("every GPU has the sum")


CROSSED = """() => {
  const inside = (box, x, y) => x > box.left - 1 && x < box.right + 1 && y > box.top && y < box.bottom;
  const faults = [];
  for (const lane of document.querySelectorAll(".race-lane svg")) {
    const room = lane.closest(".race-lane").getBoundingClientRect();
    const toPage = lane.getScreenCTM();
    const texts = [...lane.querySelectorAll("text")].map((text) => text.getBoundingClientRect());
    const tiles = [...lane.querySelectorAll(".race-tile")].map((tile) => tile.getBoundingClientRect());
    for (const box of [...texts, ...tiles])
      if (box.left < room.left || box.right > room.right || box.top < room.top || box.bottom > room.bottom)
        faults.push("cut");
    for (const line of lane.querySelectorAll(".race-link"))
      for (let part = 0; part <= 1; part += 0.02) {
        const [x, y] = ["x", "y"].map((each) => {
          const [from, to] = [1, 2].map((end) => line[each + end].baseVal.value);
          return from + part * (to - from);
        });
        const at = new DOMPoint(x, y).matrixTransform(toPage);
        if ([...texts, ...tiles].some((box) => inside(box, at.x, at.y))) faults.push("crossed");
      }
    texts.forEach((one, i) => texts.slice(i + 1).forEach((other) => {
      const beside = one.right <= other.left || other.right <= one.left;
      if (!beside && one.bottom > other.top + 3 && other.bottom > one.top + 3) faults.push("overlap");
    }));
  }
  for (const text of document.querySelectorAll(".race-charts svg text")) {
    const [box, room] = [text, text.ownerSVGElement].map((each) => each.getBoundingClientRect());
    if (box.left < room.left - 1 || box.right > room.right + 1) faults.push(`chart: ${text.textContent}`);
  }
  if (document.documentElement.scrollWidth > innerWidth) faults.push("scrolls");
  return faults;
}"""


@pytest.mark.parametrize("width", [320, 400, 1000, 1600])
def test_nothing_is_cut_and_no_link_runs_through_numbers(width: int, open_picture: OpenPicture) -> None:
    page = open_picture(Race(algorithms=RACERS, nbytes=1 << 20))
    page.set_viewport_size({"width": width, "height": 900})
    for n in range(2, 9):
        page.evaluate(f"tplab.set('num_ranks', {n})")
        expect(page.locator(".race-verdict")).to_contain_text(f"on {n} GPUs")
        page.get_by_label("race clock", exact=True).press("End")
        assert page.evaluate(CROSSED) == [], n
    page.set_viewport_size({"width": 1400, "height": 1000})


def test_a_frame_takes_little_script(open_picture: OpenPicture, time_frames: Callable[[Page], None]) -> None:
    page = open_picture(Race(8, algorithms=RACERS))
    time_frames(page)
    page.get_by_label("speed").select_option("4 ×")
    page.get_by_role("button", name="Play").click()
    expect(page.locator(".race-place")).to_have_text(["2nd", "3rd", "1st", "4th"])
    expect(page.get_by_role("button", name="Play")).to_be_visible()  # to the end
    took = sorted(page.evaluate("spent"))
    print(f"{len(took)} frames: median {took[len(took) // 2]:.2f} ms of script, longest {took[-1]:.2f} ms")
    assert len(took) > 20
    assert took[len(took) // 2] < 4


def test_with_less_motion_the_race_goes_from_step_to_step(open_picture: OpenPicture) -> None:
    page = open_picture(Race(algorithms=["ring"]))
    page.emulate_media(reduced_motion="reduce")
    page.evaluate(
        "globalThis.loads = 0; new MutationObserver((all) => loads += all.length).observe("
        "document.querySelector('.race-loads'), { subtree: true, attributeFilter: ['transform'] })"
    )
    page.get_by_role("button", name="Play").click()
    expect(page.locator(".race-step")).to_have_text("step 3 of 6: reduce-scatter")
    page.get_by_role("button", name="Pause").click()
    assert page.evaluate("loads") == 8  # four parts per step, each drawn once: none glides
    page.emulate_media(reduced_motion="no-preference")


def test_bytes_are_covered_until_somebody_has_predicted_them(open_picture: OpenPicture) -> None:
    guess = Predict("bytes sent", unit="S")
    race = Race(after=guess)
    page = open_picture(race)
    page.get_by_label("race clock", exact=True).press("End")
    lanes = page.locator(".race-lanes")
    expect(lanes).to_contain_text("Bytes are counted here once you have predicted them")
    told = lanes.inner_text()
    assert "KiB" not in told
    assert "1.5" not in told
    without = page.get_by_role("button", name="Count bytes without predicting")
    without.click()  # on a page without a kernel nobody can predict
    expect(lanes).to_contain_text("6 steps, 1.5 S = 384 KiB")
    expect(without).to_be_hidden()
    guess.commit(3)
    page = open_picture(race)
    page.get_by_label("race clock", exact=True).press("End")
    lanes = page.locator(".race-lanes")
    expect(lanes).to_contain_text("6 steps, 1.5 S = 384 KiB")
    expect(lanes.locator("text.sent").last).to_have_text("384 KiB")


def test_what_was_measured_stands_beside_the_race_it_belongs_to(open_picture: OpenPicture) -> None:
    page = open_picture(Race())
    rows = [{"algorithm": "ring", "num_ranks": 4, "nbytes": 1 << 18, "us": 1260.0, "badge": "LIVE gloo · 4 ranks"}]
    page.evaluate("(rows) => tplab.set('measured', rows.map((row) => ({ ...row, at: '12:34:56' })))", rows)
    beside = page.locator(".race-measured-time")
    expect(beside).to_have_text(["", "", "measured at 12:34:56: 1.26 ms LIVE gloo · 4 ranks"])
    expect(page.locator(".race-measured")).to_have_count(1)
    page.get_by_label("GPUs", exact=True).press("ArrowRight")  # another race
    expect(beside).to_have_text(["", "", ""])
    expect(page.locator(".race-measured")).to_have_count(0)
    page.get_by_label("GPUs", exact=True).press("ArrowLeft")
    expect(beside.last).to_contain_text("1.26 ms")
