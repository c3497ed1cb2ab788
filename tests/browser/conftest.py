"""JupyterLab with a copy of the notebooks, and a headless Chromium in front of it."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Page, expect, sync_playwright

from tplab.lab.pictures import Picture

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SETTINGS = {
    "apputils-extension/themes": {"theme": "JupyterLab Light"},
    "apputils-extension/notification": {"fetchNews": "false"},
    # All cells are in the page at all times, so that a test can find them.
    "notebook-extension/tracker": {"windowingMode": "none"},
}
TOKEN = "test"

# Playwright's own five seconds are short for a page whose kernel and ranks share two cores with it.
expect.set_options(timeout=30_000)


@pytest.fixture(scope="session")
def lab_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that JupyterLab shows, with a copy of ``notebooks/``."""
    root = tmp_path_factory.mktemp("lab")
    shutil.copytree(NOTEBOOKS, root / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    return root


@pytest.fixture(scope="session")
def lab(lab_root: Path) -> Iterator[str]:
    """Base URL of a running JupyterLab."""
    root = lab_root
    settings = root / "settings"
    for name, values in SETTINGS.items():
        file = settings / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    # As an installed tplab enables it; from a checkout it would not be. (JUPYTER_PATH below is the other half.)
    shutil.copytree(NOTEBOOKS.parent / "etc" / "jupyter", root / "config")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    log = (root / "lab.log").open("wb")
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1"),
            *(f"--port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={TOKEN}"),
            f"--ServerApp.root_dir={root}",
        ],
        stdout=log,
        stderr=subprocess.STDOUT,
        env=os.environ
        | {"JUPYTERLAB_SETTINGS_DIR": str(settings), "JUPYTER_CONFIG_DIR": str(root / "config")}
        | {"JUPYTER_PATH": str(NOTEBOOKS.parent / "share" / "jupyter")}
        | {"TPLAB_PROGRESS": ""},  # kept here, as a learner's is
        start_new_session=True,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_for(f"{url}/api?token={TOKEN}", server, root / "lab.log")
        yield url
    finally:
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(timeout=20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        log.close()


def _wait_for(url: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.2)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()[-3000:]}")


@pytest.fixture(scope="module")  # Playwright keeps an event loop running while it lives: tests elsewhere want none
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrowserContext]:
    """A headless Chromium with a profile of its own."""
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if executable is None:
        message = "no Chromium on the PATH (Debian: apt-get install chromium)"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(tmp_path_factory.mktemp("profile")),
            executable_path=executable,
            headless=True,
            args=CHROMIUM_FLAGS,
            viewport={"width": 1400, "height": 1000},
        )
        yield context
        context.close()


@pytest.fixture
def open_notebook(
    lab: str, browser: BrowserContext, request: pytest.FixtureRequest, shut_down_kernels: Callable[[], None]
) -> Iterator[Callable[[str], Page]]:
    """Open a notebook in a workspace of its own; its kernel is shut down afterwards."""
    pages: list[Page] = []

    def open_(name: str) -> Page:
        page = browser.new_page()
        pages.append(page)
        # Without a fresh workspace the tabs of an earlier test come back.
        page.goto(f"{lab}/lab/workspaces/{request.node.name}/tree/notebooks/{name}?token={TOKEN}&reset")
        page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
        # The status bar says Idle (or Connected at first) once the kernel answers.
        page.wait_for_selector("text=/Python 3 .ipykernel. \\| Idle/", timeout=60_000)
        return page

    yield open_
    for page in pages:
        page.close()
    shut_down_kernels()


@pytest.fixture
def shut_down_kernels(lab: str) -> Callable[[], None]:
    """End the kernels of all notebooks that are open."""

    def shut_down() -> None:
        for session in _api(lab, "GET", "sessions"):
            _api(lab, "DELETE", f"sessions/{session['id']}")

    return shut_down


def _api(lab: str, method: str, path: str) -> list[dict[str, str]]:
    request = urllib.request.Request(f"{lab}/api/{path}?token={TOKEN}", method=method)
    with urllib.request.urlopen(request, timeout=20) as response:
        return json.loads(response.read() or b"[]")


@pytest.fixture
def run_notebook(open_notebook: Callable[[str], Page]) -> Callable[[str], Page]:
    """Open a notebook, clear what is stored, so that nothing seen afterwards can be that, and run all cells."""

    def run(name: str) -> Page:
        page = open_notebook(name)
        _menu(page, "Edit", "Clear Outputs of All Cells")
        expect(page.locator(".jp-OutputArea-output")).to_have_count(0)
        _menu(page, "Run", "Run All Cells")
        prompts = page.locator(".jp-CodeCell .jp-InputPrompt")
        expect(prompts.last).to_have_text(re.compile(r"\[\d+\]"), timeout=150_000)
        assert page.locator("[data-mime-type='application/vnd.jupyter.stderr']").all_text_contents() == []
        return page

    return run


@pytest.fixture
def open_picture(browser: BrowserContext, tmp_path: Path) -> Iterator[Callable[[Picture], Page]]:
    """Open a moving picture as the page of its own that it is, from a file: no JupyterLab, no kernel."""
    pages: list[Page] = []

    def open_(picture: Picture) -> Page:
        page = browser.new_page()
        pages.append(page)
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        file = tmp_path / f"{picture.module}-{len(pages)}.html"
        file.write_text(picture.page(), encoding="utf-8")
        page.goto(file.as_uri())
        page.wait_for_selector(".tplab-picture")
        assert errors == []
        return page

    yield open_
    for page in pages:
        page.close()


@pytest.fixture
def time_frames() -> Callable[[Page], None]:
    """From now on the page notes the milliseconds of script of every frame in its global ``spent``."""

    def begin(page: Page) -> None:
        page.evaluate(
            """() => {
                const ask = requestAnimationFrame;
                globalThis.spent = [];
                globalThis.requestAnimationFrame = (draw) => ask((stamp) => {
                    const before = performance.now();
                    draw(stamp);
                    spent.push(performance.now() - before);
                });
            }"""
        )

    return begin


def _menu(page: Page, menu: str, item: str) -> None:
    page.click(f".lm-MenuBar-itemLabel:text-is('{menu}')")
    page.click(f".lm-Menu-itemLabel:text-is('{item}')")
