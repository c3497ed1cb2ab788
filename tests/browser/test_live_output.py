"""Bars of ranks on the page of a notebook: they move while the cell runs, and their last state stays."""

import json
import re
import time
import urllib.request
from collections.abc import Callable

import pytest
from playwright.sync_api import Locator, Page, expect

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

CELLS = (
    "from tplab import Cluster\nimport time\nfrom tqdm.auto import tqdm\ncluster = Cluster(2, 'gloo').start()",
    "def one(rank):\n    for i in tqdm(range(20), disable=rank.index): time.sleep(0.1)\ncluster.run(one);",
    "def both(rank):\n    for i in tqdm(range(20)): time.sleep(0.1)\n    print('after', rank)\ncluster.run(both);",
    "cluster.close()",
)


@pytest.fixture
def page(lab: str, open_notebook: Callable[[str], Page]) -> Page:
    """A notebook of these cells, run from the first to the last."""
    cells = [
        {"cell_type": "code", "id": f"c{i}", "source": text, "metadata": {}, "outputs": [], "execution_count": None}
        for i, text in enumerate(CELLS)
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}}
    notebook = {"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    body = json.dumps({"type": "notebook", "format": "json", "content": notebook}).encode()
    address = f"{lab}/api/contents/notebooks/live-output.ipynb?token=test"
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"}, method="PUT")
    with urllib.request.urlopen(request, timeout=20):
        pass
    page = open_notebook("live-output.ipynb")
    page.click(".lm-MenuBar-itemLabel:text-is('Run')")
    page.click(".lm-Menu-itemLabel:text-is('Run All Cells')")
    return page


def states(outputs: Locator, pattern: str, cell: Locator) -> list[tuple[str, ...]]:
    """Different texts of a cell's output while it runs, as far as they match."""
    seen: list[tuple[str, ...]] = []
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and "*" in (cell.locator(".jp-InputPrompt").text_content() or "*"):
        found = tuple(re.findall(pattern, "\n".join(outputs.all_text_contents())))
        if found and found not in seen:
            seen.append(found)
        time.sleep(0.05)
    return seen


def test_bars_move_while_the_cell_runs(page: Page) -> None:
    cells = page.locator(".jp-CodeCell")
    first, second = cells.nth(1), cells.nth(2)
    outputs = first.locator(".jp-OutputArea-output")

    # One bar: one line, redrawn in its place.
    seen = states(outputs, r"\[rank 0\] +(\d+)%", first)
    assert len(seen) >= 5
    assert all(len(found) == 1 for found in seen), "one line at any time"
    expect(outputs).to_have_count(1)
    assert [line.split("|")[0] for line in outputs.inner_text().splitlines()] == ["[rank 0] 100%"]

    # Two at once: two lines in rank order; at the end both stay, above what came after them, and nothing else.
    outputs = second.locator(".jp-OutputArea-output")
    seen = states(outputs, r"\[rank (\d)\] +(\d+)%", second)
    together = [[rank for rank, _ in found] for found in seen if len(found) == 2]
    assert len(together) >= 5
    assert together[0] == ["0", "1"]
    expect(cells.nth(3).locator(".jp-InputPrompt")).to_have_text(re.compile(r"\[\d+\]"))
    lines = sorted(line.split("|")[0] for text in outputs.all_inner_texts() for line in text.splitlines() if line)
    assert lines == [
        "[rank 0] 100%",
        "[rank 0] after 0",
        "[rank 1] 100%",
        "[rank 1] after 1",
    ]
    empty = [box for box in outputs.all() if not box.inner_text().strip()]
    assert all((box.bounding_box() or {"height": 0})["height"] < 8 for box in empty), "no gap where the bars were"
