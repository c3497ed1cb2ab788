"""The schedule editor on a page of its own: no kernel, no JupyterLab. And its model beside Python's, on many tables."""

import random
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tplab.lab.pictures import Picture, ScheduleEditor
from tplab.pipeline import Costs, Op, Schedule, build_schedule, simulate
from tplab.pipeline.validation import faults, peak_held

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]

Open = Callable[[Picture], Page]
SPLIT = "Split all backwards"
V_SHAPED = Schedule.from_text("0F0,3F0,0F1,3F1,3B0,0B0,3B1,0B1\n1F0,2F0,1F1,2F1,2B0,1B0,2B1,1B1\n", name="v")


def tile(page: Page, key: str) -> Any:
    return page.locator(f".tile[data-key='{key}']")


def result_of(page: Page) -> dict[str, Any]:
    return page.evaluate("tplab.get('result')")


def drag(page: Page, key: str, onto: str, *, before: bool, drop: bool = True) -> None:
    """Pull a tile to just before or behind another one, as a hand does, in steps."""
    page.wait_for_timeout(250)  # tiles glide
    a, b = tile(page, key).bounding_box(), tile(page, onto).bounding_box()
    grab = a["x"] + a["width"] / 2
    to = b["x"] + (2 if before else b["width"] - 2)
    page.mouse.move(grab, a["y"] + a["height"] / 2)
    page.mouse.down()
    for part in (0.3, 0.7, 1.0):
        page.mouse.move(grab + part * (to - grab), a["y"] + a["height"] / 2)
        page.wait_for_timeout(40)
    if drop:
        page.mouse.up()


def test_an_illegal_drag_shows_red_and_is_refused_with_its_reason(open_picture: Open) -> None:
    page = open_picture(ScheduleEditor())
    before = page.evaluate("tplab.get('text')")
    message = page.locator(".message")
    drag(page, "0B0", "0F0", before=True, drop=False)  # a backward before its own forward
    expect(page.locator(".lane.cannot")).to_have_count(1)
    expect(page.locator(".caret.cannot")).to_be_visible()
    expect(message).to_contain_text("Not here: B0 on rank 0 needs F0, its forward, which rank 0 would only do after it")
    page.mouse.up()
    expect(message).to_contain_text("Refused: B0 on rank 0 needs F0")
    assert page.evaluate("tplab.get('text')") == before
    expect(page.locator(".lane.cannot")).to_have_count(0)

    drag(page, "0F4", "0B0", before=True)  # a fifth micro-batch in memory
    expect(message).to_contain_text("Refused: F4 makes rank 0 hold 5 micro-batches; the memory cap is 4")
    drag(page, "3F1", "3B0", before=True)  # may be: rank 3 holds two then
    expect(message).to_contain_text("It ends at")
    changed = page.evaluate("tplab.get('text')")
    assert changed != before
    drag(page, "0B0", "0F1", before=True)  # rank 0 would wait for B0, which waits for F1 on rank 3
    expect(message).to_contain_text("Refused: nobody could go on: ")
    expect(message).to_contain_text("rank 0 stands at B0 and waits for B0 of rank 1")
    assert page.evaluate("tplab.get('text')") == changed

    page.wait_for_timeout(250)
    a, b = tile(page, "1F0").bounding_box(), tile(page, "2F0").bounding_box()
    page.mouse.move(a["x"] + 5, a["y"] + 10)
    page.mouse.down()
    page.mouse.move(b["x"] + 5, b["y"] + 5)
    page.mouse.move(b["x"] + 5, b["y"] + 10)
    expect(message).to_contain_text("F0 belongs on rank 1: its layers are there, not on rank 2")
    page.mouse.up()
    assert page.evaluate("tplab.get('text')") == changed


def test_a_legal_drag_says_what_it_waits_for(open_picture: Open) -> None:
    page = open_picture(ScheduleEditor())
    drag(page, "1B0", "1F2", before=True, drop=False)  # allowed, and rank 1 waits for it
    expect(page.locator(".lane.can")).to_have_count(1)
    message = page.locator(".message")
    expect(message).to_contain_text("B0 on rank 1 needs B0 of rank 2, which is only done at 8 F: rank 1 waits 5 F")
    page.keyboard.press("Escape")
    page.mouse.up()
    assert page.evaluate("tplab.get('text')") == build_schedule("1f1b", 4, 8).to_text()


def test_a_schedule_that_beats_1f1b_is_scored(open_picture: Open) -> None:
    page = open_picture(ScheduleEditor())
    verdict = page.locator(".verdict")
    expect(verdict).to_contain_text("As fast as 1F1B, 33 F")
    page.locator("button", has_text="Hint").click()
    expect(page.locator(".message")).to_contain_text(SPLIT)
    page.locator("button", has_text=SPLIT).click()
    expect(verdict).to_contain_text("1F1B is beaten: 30 F instead of 33 F, bubble 20 % instead of 27.3 %")
    drag(page, "3W0", "3I7", before=False)
    expect(verdict).to_contain_text("29 F instead of 33 F")
    expect(page.locator("tr.mine")).to_contain_text("29 F")
    expect(page.locator("tr.over")).to_contain_text("8, over the cap")  # GPipe
    assert result_of(page)["beats_1f1b"]
    text = page.evaluate("tplab.get('text')")
    made = Schedule.from_text(text)
    assert simulate(made).makespan_s == result_of(page)["makespan"] == 29
    assert faults(made, max_activations=4) == []
    page.locator("button", has_text="Undo").click()
    expect(verdict).to_contain_text("30 F")
    page.locator("button", has_text="Redo").click()
    assert page.evaluate("tplab.get('text')") == text
    page.locator("button", has_text="Reset").click()
    expect(verdict).to_contain_text("As fast as 1F1B")
    page.locator("select").select_option(label="ZB-H1")
    expect(verdict).to_contain_text("That is as fast as ZB-H1")


def test_no_hint_is_left_at_the_zero_bubble_schedule(open_picture: Open) -> None:
    page = open_picture(ScheduleEditor("zb-h1", 2, 3))
    page.locator("button", has_text="Hint").click()
    expect(page.locator(".message")).to_contain_text("No move was found")


def test_a_table_over_the_cap_can_be_mended_step_by_step(open_picture: Open) -> None:
    page = open_picture(ScheduleEditor("gpipe", 2, 3, cap=2))
    expect(page.locator(".verdict")).to_contain_text("Over the memory cap: a rank holds 3 micro-batches")
    for _ in range(2):  # each B0 goes to the front of the backwards, before the last forward
        for rank in (1, 0):
            tile(page, f"{rank}B0").focus()
            page.keyboard.press("Alt+ArrowLeft")
            expect(page.locator(".message")).not_to_contain_text("Refused")
    for rank in (1, 0):
        tile(page, f"{rank}B0").focus()
        page.keyboard.press("Alt+ArrowLeft")
    expect(page.locator(".verdict")).not_to_contain_text("Over the memory cap")
    page.keyboard.press("Alt+ArrowRight")  # and no further
    expect(page.locator(".message")).to_contain_text(
        "Refused: F2 makes rank 0 hold 3 micro-batches; the memory cap is 2"
    )


def test_a_drag_takes_little_of_a_frame(open_picture: Open, time_frames: Callable[[Page], None]) -> None:
    page = open_picture(ScheduleEditor("zb-h1", 8, 16))  # 384 tiles
    time_frames(page)
    box = tile(page, "0W0").bounding_box()
    page.mouse.move(box["x"] + 4, box["y"] + 10)
    page.mouse.down()
    for step in range(40):
        page.mouse.move(box["x"] + 4 + 12 * step, box["y"] + 10)
        page.wait_for_timeout(20)
    page.mouse.up()
    spent: list[float] = page.evaluate("spent")
    median = sorted(spent)[len(spent) // 2]
    print(f"{median:.2f} ms a frame, {max(spent):.2f} ms at most")
    assert len(spent) > 10
    assert median < 4


@pytest.mark.parametrize(
    "schedule",
    [build_schedule("decode-ring", 3, 9), build_schedule("interleaved", 2, 4, 3), V_SHAPED],
    ids=["ring", "chunks", "v"],
)
def test_any_table_is_drawn_and_given_back(open_picture: Open, schedule: Schedule) -> None:
    editor = ScheduleEditor(schedule)
    assert editor.schedule.ranks == schedule.ranks
    page = open_picture(editor)
    expect(page.locator(".tile")).to_have_count(schedule.num_actions)
    trace = simulate(schedule)
    assert result_of(page)["makespan"] == pytest.approx(trace.makespan_s)
    page.locator("button", has_text="Reset").click()
    assert page.evaluate("tplab.get('text')") == schedule.to_text()


def test_undo_and_start_from_bring_the_cap_and_the_needs_of_their_table(open_picture: Open) -> None:
    page = open_picture(ScheduleEditor())
    for _ in range(2):
        page.get_by_label("ranks").press("ArrowLeft")
    assert page.evaluate("tplab.get('cap')") == 2
    page.get_by_role("button", name="Undo").click()
    page.get_by_role("button", name="Undo").click()
    assert page.evaluate("tplab.get('cap')") == 4
    expect(page.locator(".verdict")).to_contain_text("As fast as 1F1B, 33 F")

    ring = build_schedule("decode-ring", 3, 9)
    editor = ScheduleEditor(ring)
    page, start = open_picture(editor), "select"
    page.locator(start).select_option(label="1F1B")
    assert page.evaluate("tplab.get('cap')") == 3
    editor.text, editor.cap = page.evaluate("[tplab.get('text'), tplab.get('cap')]")
    assert editor.schedule.micro_batches == ()
    page.get_by_label("ranks").press("ArrowRight")
    page.locator(start).select_option(label="decode-ring")
    expect(page.locator(".tile")).to_have_count(27)
    assert result_of(page)["makespan"] == simulate(ring).makespan_s  # with the wait of each for the token before
    editor.text, editor.cap = page.evaluate("[tplab.get('text'), tplab.get('cap')]")
    assert editor.schedule.micro_batches == ring.micro_batches


def test_another_table_from_a_cell_is_what_it_starts_from(open_picture: Open) -> None:
    page = open_picture(ScheduleEditor())
    other = ScheduleEditor("zb-h1", 3, 5).state()
    for name in ("name", "needs", "cap", "text", "original"):
        page.evaluate("([name, value]) => tplab.set(name, value)", [name, other[name]])
    expect(page.locator("select option:checked")).to_have_text("ZB-H1")
    page.get_by_role("button", name="Reset").click()
    assert page.evaluate("tplab.get('text')") == other["original"]
    for text, says in (("junk", "a rank has no action"), ("0B0,0F0", "B0 on rank 0 needs F0")):
        page.evaluate("(text) => tplab.set('text', text)", text)
        expect(page.locator(".message")).to_contain_text(f"The table that was sent cannot run: {says}")
        expect(page.locator(".tile")).to_have_count(other["original"].count(",") + 3)


def test_no_key_changes_the_table_under_a_tile_that_is_held(open_picture: Open) -> None:
    page = open_picture(ScheduleEditor())
    page.get_by_role("button", name=SPLIT).click()
    drag(page, "3W0", "3I1", before=False, drop=False)
    page.keyboard.press("Control+z")
    page.mouse.up()
    expect(page.locator(".message")).to_contain_text("W0 of rank 3 later")
    page.get_by_role("button", name="Undo").click()
    page.get_by_role("button", name="Undo").click()
    assert page.evaluate("tplab.get('text')") == build_schedule("1f1b", 4, 8).to_text()


def test_what_the_editor_does_not_take_is_named() -> None:
    with pytest.raises(ValueError, match="schedule must have at most 2,048 actions"):
        ScheduleEditor("zb-h1", 16, 64)
    with pytest.raises(ValueError, match="1B0 comes before its forward"):
        ScheduleEditor(Schedule.from_text("0F0,0B0\n1B0,1F0\n"))
    with pytest.raises(ValueError, match="input_grad must be"):
        ScheduleEditor(input_grad=-1)
    with pytest.raises(ValueError, match="cap must be"):
        ScheduleEditor(cap=0)


def test_everything_by_keyboard(open_picture: Open) -> None:
    page = open_picture(ScheduleEditor())
    message, focused = page.locator(".message"), page.locator(".tile:focus")
    for _ in range(40):
        page.keyboard.press("Tab")
        if focused.count():
            break
    expect(focused).to_have_attribute("data-key", "0F0")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    expect(focused).to_have_attribute("data-key", "3F0")
    page.keyboard.press("Alt+ArrowRight")
    expect(message).to_contain_text("Refused: B0 on rank 3 needs F0")
    page.keyboard.press("ArrowRight")
    expect(focused).to_have_attribute("data-key", "3B0")
    page.keyboard.press("s")
    expect(message).to_contain_text("B0 of rank 3 is cut in two")
    expect(focused).to_have_attribute("data-key", "3I0")
    page.keyboard.press("ArrowRight")
    expect(focused).to_have_attribute("aria-label", "W0, backward (weights), rank 3, place 3 of 17, 5 to 6 F")
    page.keyboard.press("Alt+ArrowRight")
    expect(message).to_contain_text("W0 of rank 3 later, to place 4")
    page.keyboard.press("Alt+Shift+ArrowRight")
    expect(focused).to_have_attribute("data-key", "3W0")
    page.keyboard.press("Control+z")
    page.keyboard.press("Control+z")
    page.keyboard.press("Control+z")
    expect(focused).to_have_count(1)
    assert page.evaluate("tplab.get('text')") == build_schedule("1f1b", 4, 8).to_text()
    page.keyboard.press("Control+y")
    assert "3I0,3W0" in page.evaluate("tplab.get('text')")
    page.keyboard.press("h")
    expect(message).to_contain_text("Split all backwards")


def test_narrow_wide_and_without_motion(open_picture: Open) -> None:
    page = open_picture(ScheduleEditor("interleaved", 8, 16))
    page.emulate_media(reduced_motion="reduce")
    for width in (400, 900, 1600):
        page.set_viewport_size({"width": width, "height": 800})
        page.wait_for_timeout(100)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        drawn = page.locator(".scene svg").bounding_box()
        right = page.evaluate(
            "Math.max(...[...document.querySelectorAll('.tile')].map(t => t.getBoundingClientRect().right))"
        )
        assert right <= drawn["x"] + drawn["width"] + 1
    assert page.evaluate("getComputedStyle(document.querySelector('.tile')).transitionDuration") == "0s"
    page.get_by_label("micro-batches").press("ArrowLeft")  # interleaved goes in rounds of as many as there are ranks
    expect(page.locator(".message")).to_contain_text("interleaved, 2 chunks, 8 ranks, 8 micro-batches.")
    page.get_by_label("ranks").press("ArrowLeft")
    expect(page.locator(".message")).to_contain_text("7 ranks, 14 micro-batches.")


@pytest.fixture
def model(open_picture: Open) -> Page:
    """The page's model of schedules as `S`, from the file itself."""
    page = open_picture(ScheduleEditor())
    source = files("tplab.lab.pictures").joinpath("modules", "schedule.js").read_text("utf-8")
    page.evaluate(
        """async (text) => {
            globalThis.S = await import(URL.createObjectURL(new Blob([text], { type: "text/javascript" })));
        }""",
        source,
    )
    return page


COMPARE = """(cases) => cases.map(({ table, cap, costs }) => {
    const rows = table.rows.map((row) => row.map(([stage, op, micro]) => S.makeAction(stage, op, micro)));
    const whole = { ...table, rows };
    const found = S.faultsOf(whole, cap).map(({ kind, rank, step, key }) => [kind, rank, step, key]);
    if (found.length) return { found };
    const { start, end, makespan, idleOverTotal, peaks, list } = S.simulateTable(whole, costs);
    return { found, makespan, idleOverTotal, peaks, times: list.map(({ key }, at) => [key, start[at], end[at]]) };
})"""


def test_the_page_judges_and_simulates_as_python_does(model: Page) -> None:
    """Random tables, right and wrong: the same faults in kind, place and action; the same times to the last bit."""
    draw = random.Random(19)
    cases = [_case(draw) for _ in range(300)]
    answers = model.evaluate(COMPARE, [case["page"] for case in cases])
    kinds: dict[str, int] = {}
    for case, answer in zip(cases, answers, strict=True):
        schedule = case["schedule"]
        found = [[f.kind, f.rank, f.step, str(f.action)] for f in faults(schedule, max_activations=case["cap"])]
        if {kind for kind, *_ in found} & {"mistyped", "counted from 1", "transposed", "placement"}:
            continue  # what a reader may have meant is Python's alone to say
        assert sorted(map(str, answer["found"])) == sorted(map(str, found)), schedule.to_text()
        for kind, *_ in found or [["none"]]:
            kinds[kind] = kinds.get(kind, 0) + 1
        if found:
            continue
        trace = simulate(schedule, case["costs"])
        assert answer["makespan"] == pytest.approx(trace.makespan_s, rel=1e-12)
        assert answer["idleOverTotal"] == pytest.approx(trace.idle_over_total, abs=1e-12)
        assert answer["peaks"] == pytest.approx(list(peak_held(schedule)), abs=1e-12)
        spans = {f"{s.stage}{s.op.value}{s.micro_batch}": (s.start_s, s.end_s) for s in trace.spans if s.op.is_compute}
        assert {key: (start, end) for key, start, end in answer["times"]} == spans
    assert {
        "none",
        "order",
        "circular wait",
        "memory",
        "missing",
        "duplicate",
        "wrong rank",
        "two backwards",
    } <= kinds.keys()
    assert min(kinds["none"], kinds["circular wait"]) > 15, kinds


def test_the_page_builds_and_writes_the_tables_that_python_does(model: Page) -> None:
    for name, p, m, v in (
        ("gpipe", 3, 5, 1),
        ("1f1b", 4, 8, 1),
        ("1f1b", 8, 3, 1),
        ("zb-h1", 4, 9, 1),
        ("zb-h1", 5, 2, 1),
        ("interleaved", 4, 8, 3),
    ):
        text = model.evaluate("([name, p, m, v]) => S.writeTable(S.buildTable(name, p, m, v))", [name, p, m, v])
        assert text == build_schedule(name, p, m, v).to_text()
        assert model.evaluate("(text) => S.writeTable(S.readTable(text))", text) == text


def _case(draw: random.Random) -> dict[str, Any]:
    """A built schedule, its backwards partly split, then changed a little, or a lot."""
    p, m = draw.randint(1, 5), draw.randint(1, 7)
    name = draw.choice(["gpipe", "1f1b", "zb-h1", "interleaved", "chunked-prefill", "decode-ring"])
    v = draw.randint(1, 3) if name == "interleaved" else 1
    m = m * p if name == "interleaved" else m
    schedule = build_schedule(name, p, m, v)
    rows = [[action for action in row if action] for row in schedule.ranks]
    if draw.random() < 0.5:
        rows = [[half for action in row for half in _halves(action, draw)] for row in rows]
    for _ in range(draw.choice([0, 1, 1, 2, 5, 12])):
        row = draw.choice(rows)
        row.insert(draw.randrange(len(row)), row.pop(draw.randrange(len(row))))
    if draw.random() < 0.25:
        row = draw.choice(rows)
        at, kind = draw.randrange(len(row)), draw.choice(["drop", "again", "move", "op"])
        if kind == "drop" and len(row) > 1:
            row.pop(at)
        elif kind == "again":
            row.insert(draw.randrange(len(row)), row[at])
        elif kind == "move" and len(row) > 1:
            draw.choice(rows).append(row.pop(at))
        elif not schedule.is_inference:
            row[at] = row[at]._replace(op=draw.choice([Op.F, Op.B, Op.I, Op.W]))
    schedule = replace(schedule, ranks=tuple(map(tuple, rows)))
    times = {key: draw.choice([0.0, 0.3, 1.0, 2.5]) for key in ("forward", "input", "weight", "hop")}
    cap = None if schedule.is_inference else draw.choice([None, 1.0, float(min(p, m)), m + 1.0])
    page = {
        "table": {
            **{"p": p, "v": v, "m": m, "placement": schedule.placement},
            "needs": [list(each) for each in schedule.micro_batches],
            "rows": [[[a.stage, a.op.value, a.micro_batch] for a in row] for row in rows],
        },
        "cap": cap,
        "costs": times,
    }
    costs = Costs(
        forward_s=times["forward"], input_grad_s=times["input"], weight_grad_s=times["weight"], hop_s=times["hop"]
    )
    return {"schedule": schedule, "costs": costs, "cap": cap, "page": page}


def _halves(action: Any, draw: random.Random) -> list[Any]:
    if action.op is not Op.B or draw.random() < 0.5:
        return [action]
    return [action._replace(op=Op.I), action._replace(op=Op.W)]
