"""The doors that the ``tplab`` command opens: JupyterLab on the first notebook, and the demo."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, expect

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Start a ``tplab`` command that serves pages; gives the address that it prints. Ctrl-C must end it, and well."""
    started: list[subprocess.Popen[bytes]] = []
    log = tmp_path / "server.log"

    def start(*words: str) -> str:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        options = ["--no-browser", "--port", str(port)]
        beyond = ["--", "--allow-root", "--ServerApp.port_retries=0"] if words[0] == "lab" else []
        server = subprocess.Popen(
            [sys.executable, "-m", "tplab.cli", *words, *options, *beyond],
            cwd=tmp_path,
            stdout=log.open("wb"),
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,  # on a terminal, JupyterLab asks whether Ctrl-C was meant
            env=os.environ
            | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
            | {"JUPYTER_DATA_DIR": str(tmp_path / "jupyter")},
            start_new_session=True,
        )
        started.append(server)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and server.poll() is None:
            for url in re.findall(rf"http://\S+:{port}/\S*", log.read_text("utf-8", "replace")):
                with contextlib.suppress(OSError), socket.create_connection(("localhost", port), timeout=5):
                    return url
            time.sleep(0.1)
        pytest.fail(f"no server:\n{log.read_text()[-3000:]}")

    yield start
    for server in started:
        server.send_signal(signal.SIGINT)
        try:
            assert server.wait(timeout=20) == 0, log.read_text()[-3000:]
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)


def test_tplab_lab_opens_the_first_notebook_trusted_and_with_a_kernel(
    opened: Callable[..., str], browser: BrowserContext, tmp_path: Path
) -> None:
    url = opened("lab", "my lab ü")
    assert (tmp_path / "my lab ü" / "docs" / "article.md").is_file()
    page = browser.new_page()
    page.goto(url)
    expect(page.locator(".lm-TabBar-tab.jp-mod-current")).to_contain_text("00-start-here.ipynb", timeout=60_000)
    page.wait_for_selector("text=/Python 3 .ipykernel. \\| Idle/", timeout=60_000)
    expect(page.locator(".jp-StatusBar-TrustedItem, [title*='rusted']").first).to_be_visible()
    assert "Notebook trusted" in page.content()
    link = page.locator(".jp-Notebook a[href*='docs/recordings.md']").first
    expect(link).to_have_attribute("href", re.compile("docs/recordings.md"))
    page.close()


def test_the_demo_shows_panels_that_move_and_ends_with_its_page(
    opened: Callable[..., str], browser: BrowserContext, tmp_path: Path
) -> None:
    from tplab.lab.demo import SECTIONS

    page = browser.new_page()
    asked: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(opened("demo"))
    expect(page.locator(".tplab-ranks-on-request button")).to_be_visible(timeout=90_000)
    expect(page.locator("#rendered_cells h2")).to_have_count(len(SECTIONS))
    expect(page.locator(".tplab-figure [data-drawn]")).to_have_count(5)
    # A slider moves a figure, and the kernel answers.
    chunks = page.locator(".jp-Cell-outputWrapper", has=page.get_by_role("slider", name="per matmul"))
    chunks.get_by_role("slider", name="chunks").focus()
    page.keyboard.press("ArrowRight")
    expect(chunks.locator(".tplab-figure")).to_contain_text("2 chunks")
    # No part of the page is wider than a phone, nothing was asked of the network, nothing failed.
    assert page.evaluate("document.querySelector('#rendered_cells').scrollWidth") <= 390
    assert [url for url in asked if "//localhost" not in url and not url.startswith(("data:", "blob:"))] == []
    assert errors == []
    # The kernel ends with the page.
    page.goto("about:blank")
    deadline = time.monotonic() + 20
    while "Kernel shutdown" not in (tmp_path / "server.log").read_text() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert "Kernel shutdown" in (tmp_path / "server.log").read_text()
    page.close()
