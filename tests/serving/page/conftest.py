"""A server with the page over the bundled models, a real browser, and where the screenshots go."""

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from playwright.sync_api import Browser, Error, Page, Request, expect, sync_playwright

from llava_stf.loading import load_model
from llava_stf.serving.app import create_app
from llava_stf.serving.options import ServeOptions
from llava_stf.serving.page import mount_page

DEADLINE = 60  # seconds; a shared machine may be slow
OPTIONS = ServeOptions(served_name="tiny", max_image_bytes=200_000, max_image_pixels=1_000_000)
expect.set_options(timeout=1000 * DEADLINE)
OWN_ADDRESSES = ("data:", "blob:", "about:")


def wait_for(condition: Callable[[], object]) -> None:
    """Returns when the condition holds, fails when it has not by the deadline."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "the deadline has passed"
        time.sleep(0.02)


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """The application's address, as long as it is served in a thread."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: server.started)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(DEADLINE)
    assert not thread.is_alive()


@pytest.fixture(scope="session")
def models():
    """The bundled model and its 100 % twin."""
    return load_model("tiny"), load_model("tiny-full")


@pytest.fixture(scope="session")
def server(models):
    """Address of a server with the page, for answers side by side."""
    app = create_app(models[0], OPTIONS, compare=models[1])
    with serving(mount_page(app, app.state.engine, OPTIONS, compare=app.state.compare)) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium of the machine, or the one that Playwright has downloaded.

    Not for longer than a module: as long as it lives no other test of the process can run an event loop.
    """
    path = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        try:
            started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except Error as error:
            if path is not None:
                raise
            pytest.skip(f"needs a Chromium, and there is none: {error.message.splitlines()[0]}")
        yield started
        started.close()


class Watched:
    """A window with the page, and what it should not have done: requests to other hosts, scripts that failed."""

    def __init__(self, browser: Browser, address: str, **options: Any) -> None:
        self.address = address
        self.errors: list[str] = []
        self.context = browser.new_context(**{"viewport": {"width": 1180, "height": 900}, **options})
        self.context.set_default_timeout(1000 * DEADLINE)
        self.page = self.context.new_page()
        self.page.on("request", self._check)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(f"{address}/")
        self.page.locator("#examples img").last.wait_for()

    def _check(self, request: Request) -> None:
        if not request.url.startswith((f"{self.address}/", *OWN_ADDRESSES)):
            self.errors.append(request.url)


@pytest.fixture(scope="module")
def window(server, browser):
    """One window for most tests: on a busy core it takes seconds to open."""
    watched = Watched(browser, server)
    yield watched
    watched.context.close()


@pytest.fixture
def page(window) -> Iterator[Page]:
    """The page, no image asked about yet in this test, focus at its top."""
    window.page.locator("#head h1").click()
    yield window.page
    assert window.errors == []


@pytest.fixture
def open_page(browser):
    """Opens the page in a window of its own, with options of `Browser.new_context`."""
    opened: list[Watched] = []

    def open_(address: str, **options: Any) -> Page:
        opened.append(Watched(browser, address, **options))
        return opened[-1].page

    yield open_
    for watched in opened:
        watched.context.close()
    assert [watched.errors for watched in opened] == [[] for _ in opened]


@pytest.fixture
def screenshots(tmp_path) -> Path:
    """Folder that screenshots are kept in: `LLAVA_STF_SCREENSHOTS`, or one of this test."""
    folder = Path(os.environ.get("LLAVA_STF_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder
