"""Record two ranks talking, one of them killed: ``python tests/notebooks/record_two_ranks.py``.

Writes ``tplab/lab/pictures/two_ranks.json``, scenes of a real run on this machine, and from these, by the picture's own
module in a headless Chromium, ``notebooks/images/two-ranks.svg``: frames that CSS shows one after the other, because a
page like README's runs no script in a picture. With ``--picture`` the latter alone, from the recording that there is.
"""

import json
import re
import shutil
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

from tplab.lab import Pool, TwoRanks
from tplab.lab.pictures import two_ranks

ROOT = Path(__file__).parents[2]
RECORDING = ROOT / "tplab" / "lab" / "pictures" / "two_ranks.json"
SVG = ROOT / "notebooks" / "images" / "two-ranks.svg"
WIDTH, WORDS_HEIGHT = 720, 74
FLIGHT_S, FRAMES_PER_S = 0.9, 14
# What the picture takes from the page around it, in light and dark.
COLOURS = {
    "ink": ("#1F2430", "#E6E9EE"),
    "quiet": ("#5B6472", "#A3ACB9"),
    "paper": ("#FFFFFF", "#16191F"),
    "line": ("#CBD0D8", "#4A5262"),
    "soft": ("#F2F4F7", "#232832"),
    "good": ("#007E5D", "#4FD1A5"),
    "bad": ("#C22A1A", "#FF8A7D"),
}


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def record() -> list[tuple[float, dict[str, Any]]]:
    """Two ranks start, talk, lose rank 1, start anew and talk again."""
    pool = Pool(2, backend="gloo")
    picture = TwoRanks(pool)
    began, scenes = time.monotonic(), [(0.0, picture.scene)]
    picture.observe(lambda change: scenes.append((time.monotonic() - began, change["new"])), names="scene")

    def press(message: dict[str, Any]) -> None:
        picture._pressed(None, message, [])

    press({"press": "run"})
    wait_for(lambda: picture.scene["flight"] == 3)
    time.sleep(0.6)
    press({"press": "kill", "rank": 1})
    wait_for(lambda: not picture.scene["busy"])
    time.sleep(3.5)  # to be read
    press({"press": "run"})
    wait_for(lambda: picture.scene["flight"] == 6)
    press({"press": "stop"})
    wait_for(lambda: not picture.scene["busy"])
    time.sleep(1.5)
    picture.unobserve_all()
    scenes.append((time.monotonic() - began, picture.scene))
    pool.close()
    # What lasts for less than a frame, as the moment between two runs, is not seen.
    nexts = [at for at, _ in scenes[1:]] + [float("inf")]
    scenes = [scene for scene, until in zip(scenes, nexts, strict=True) if until - scene[0] > 0.01]
    badge = f"RECORDED {pool.choice.backend} · 2 ranks · {date.today().isoformat()}"
    return [(round(at, 3), scene | {"badge": badge * bool(scene["badge"])}) for at, scene in scenes]


def frame_times(scenes: list[tuple[float, dict[str, Any]]]) -> list[float]:
    """When the picture changes: with each scene, and many times in a flight."""
    flights: dict[int, float] = {}
    for at, scene in scenes:
        flights.setdefault(scene["flight"], at)
    times = {at for at, _ in scenes}
    for flight, at in flights.items():
        times |= {at + step / FRAMES_PER_S for step in range(int(FLIGHT_S * FRAMES_PER_S) + 2)} if flight else set()
    return sorted(at for at in times if at <= scenes[-1][0])


def frames(page: Page, times: list[float]) -> list[tuple[float, str]]:
    """Time and inner SVG of each moment at which it differs from the one before."""
    made: list[tuple[float, str]] = []
    for at in times:
        page.evaluate("at => tplab.set('at', at)", at)
        inner = page.evaluate("document.querySelector('.tplab-picture > svg').innerHTML")
        inner = re.sub(r"(\d+\.\d)\d{2,}", r"\1", inner)
        if not made or made[-1][1] != inner:
            made.append((at, inner))
    return made


def wrapped(text: str, width: int = 100) -> list[str]:
    lines = [""]
    for word in text.split():
        lines = [*lines, word] if len(lines[-1]) + len(word) > width else [*lines[:-1], f"{lines[-1]} {word}".strip()]
    return lines


def escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


def words(scene: dict[str, Any], top: float) -> str:
    """What stands below the drawing on the page: the card, or the sentence."""
    card = scene["card"]
    if card is None:
        return f'<text x="2" y="{top + 24}" class="small">{escaped(scene["status"])}</text>'
    noticed = "" if card["noticed_ms"] is None else f" Noticed {card['noticed_ms']:.2g} ms after the kill."
    lines = "".join(
        f'<text x="18" y="{top + 46 + 18 * index}">{escaped(line)}</text>'
        for index, line in enumerate(wrapped(card["text"]))
    )
    return (
        f'<rect x="1" y="{top + 8}" width="{WIDTH - 2}" height="64" fill="var(--soft)"/>'
        f'<rect x="1" y="{top + 8}" width="4" height="64" fill="#B21405"/>'
        f'<text x="18" y="{top + 27}" class="name">{escaped(card["title"] + noticed)}</text>{lines}'
    )


def animated(page: Page, scenes: list[tuple[float, dict[str, Any]]]) -> str:
    """The recording as one SVG without script."""
    height = float(page.evaluate("document.querySelector('.tplab-picture > svg').viewBox.baseVal.height"))
    module = (ROOT / "tplab/lab/pictures/modules/two_ranks.js").read_text()
    style = re.search(r"const STYLE = `(.*?)`;", module, re.S)
    assert style is not None
    lines = style[1].replace(".two-ranks svg ", ".two-ranks ").splitlines()  # here the picture is the root itself
    rules = [rule for rule in lines if re.match(r"\.two-ranks (?!button|{)", rule)]
    light, dark = ("".join(f"--{name}:{pair[index]};" for name, pair in COLOURS.items()) for index in (0, 1))
    end = scenes[-1][0]
    parts = frames(page, frame_times(scenes))
    begins = [at for at, _ in parts] + [end]
    shows, bodies = [], []
    for index, (at, inner) in enumerate(parts):
        scene = next(scene for when, scene in reversed(scenes) if when <= at)
        first, last = 100 * begins[index] / end, 100 * begins[index + 1] / end
        hidden = f"0%{{opacity:0}}{first:.3f}%{{opacity:1}}" if index else "0%{opacity:1}"
        shows.append(
            f"@keyframes f{index}{{{hidden}{last:.3f}%,100%{{opacity:0}}}}#f{index}{{animation-name:f{index}}}"
        )
        bodies.append(f'<g id="f{index}" class="f">{inner}{words(scene, height)}</g>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height + WORDS_HEIGHT:g}" width="{WIDTH}" '
        'class="two-ranks" role="img" font-family="system-ui,-apple-system,Segoe UI,Roboto,Helvetica,Arial,sans-serif" '
        'font-size="13">\n<title>Two ranks of a laptop add their numbers, 1 and 2: both hold 3. Rank 1 is killed, '
        "rank 0 is ended with it, and the next run starts fresh ranks.</title>\n<style>\n"
        f".two-ranks{{{light}}}@media (prefers-color-scheme:dark){{.two-ranks{{{dark}}}}}\ntext{{fill:var(--ink)}}\n"
        + "\n".join(rules)
        + f"\n.f{{opacity:0;animation:{end:.3f}s step-end infinite}}\n"
        + "\n".join(shows)
        # Where less motion is wished for, the last frame stands still.
        + f"\n@media (prefers-reduced-motion:reduce){{.f{{animation:none}}#f{len(parts) - 1}{{opacity:1}}}}\n</style>\n"
        + f'<rect width="{WIDTH}" height="{height + WORDS_HEIGHT:g}" rx="6" fill="var(--paper)"/>\n'
        + "\n".join(bodies)
        + "\n</svg>\n"
    )


def main() -> None:
    if "--picture" not in sys.argv:
        RECORDING.write_text(json.dumps(record(), ensure_ascii=False, separators=(",", ":")) + "\n", "utf-8")
    scenes = json.loads(RECORDING.read_text("utf-8"))
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH + 32, "height": 600})
        file = Path(folder, "page.html")
        file.write_text(two_ranks.TwoRanks().page(), "utf-8")
        page.goto(file.as_uri())
        page.wait_for_selector(".tplab-picture > svg")
        page.wait_for_timeout(500)
        page.get_by_role("button", name="Pause").click()
        SVG.write_text(animated(page, scenes), "utf-8")
        browser.close()
    print(f"{len(scenes)} scenes, {RECORDING.stat().st_size:,} and {SVG.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
