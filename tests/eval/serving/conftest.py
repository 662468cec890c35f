"""A server of the bundled model on a free port, as `llava-stf bench serve` prepares it: answers never end early."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import uvicorn
from fastapi import FastAPI

from llava_stf.loading import load_model
from llava_stf.serving.app import create_app
from llava_stf.serving.options import ServeOptions
from llava_stf_eval.serving.client import Target
from llava_stf_eval.serving.models import prepare

DEADLINE = 120  # seconds; a shared machine may be slow


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "it did not come to that in time"
        time.sleep(0.01)


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """The address of an application that a thread serves."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_for(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def serve():
    """What serves an application of a test's own."""
    return served


@pytest.fixture(scope="session")
def llava(tmp_path_factory):
    model = prepare("tiny", tmp_path_factory.mktemp("served") / "tiny")
    return load_model(model.folder, dtype="float32")


@pytest.fixture(scope="session")
def app(llava) -> FastAPI:
    return create_app(llava, ServeOptions(served_name="tiny"))


@pytest.fixture(scope="session")
def target(app) -> Iterator[Target]:
    with served(app) as url:
        yield Target(url, "tiny")
