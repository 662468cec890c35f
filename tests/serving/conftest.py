"""A server on a free port with the bundled model, shared by the tests, and what they send to it."""

import base64
import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import numpy as np
import openai
import pytest
import torch
import uvicorn
from fastapi import FastAPI
from PIL import Image

from llava_stf.inference import LlavaStf
from llava_stf.loading import load_model
from llava_stf.serving.app import create_app
from llava_stf.serving.options import ServeOptions
from llava_stf.world import draw

DEADLINE = 120  # seconds; a shared machine may be slow
QUESTION = "How many shapes are there?"


class Server:
    """Where an application is served, and clients of it."""

    def __init__(self, app: FastAPI, port: int) -> None:
        self.app = app
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx.Client(base_url=self.url, timeout=DEADLINE)

    def openai(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=DEADLINE)

    def chat(self, **fields: object) -> httpx.Response:
        return self.http.post("/v1/chat/completions", json=fields)

    def metric(self, name: str, **labels: str) -> float:
        """A counter's value, 0 if it has not been counted yet."""
        return self.app.state.engine.metrics.registry.get_sample_value(name, labels) or 0.0


@contextmanager
def serving(app: FastAPI) -> Iterator[Server]:
    """The application on a free port, in a thread."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_for(lambda: server.started)
    running = Server(app, server.servers[0].sockets[0].getsockname()[1])
    try:
        yield running
    finally:
        running.http.close()
        server.should_exit = True
        thread.join()


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "it did not come to that in time"
        time.sleep(0.01)


class GatedLlava(LlavaStf):
    """A model whose every step waits for a gate, and which never ends an answer on its own."""

    def __init__(self, folder: str, **options: object) -> None:
        super().__init__(*load_model(folder, dtype="float32", **options))
        self.gate = threading.Event()
        self.gate.set()
        self.fails = False
        self.closes_at: int | None = None  # step at which it closes the gate itself
        self.steps: list[int] = []  # rows at each step, the one that reads prompts included
        self.model.lm_head.register_forward_hook(self._step)

    def _step(self, module: torch.nn.Module, inputs: tuple[torch.Tensor], logits: torch.Tensor) -> None:
        self.steps.append(len(logits))
        if len(self.steps) == self.closes_at:
            self.gate.clear()
        self.gate.wait(DEADLINE)
        if self.fails:
            raise RuntimeError("out of everything")

    def generate(self, inputs, *, max_new_tokens=128, **options):
        options |= {"min_new_tokens": max_new_tokens}
        return super().generate(inputs, max_new_tokens=max_new_tokens, **options)


@pytest.fixture(scope="session")
def llava() -> LlavaStf:
    return load_model("tiny", dtype="float32")


@pytest.fixture(scope="session")
def server(llava: LlavaStf) -> Iterator[Server]:
    with serving(
        create_app(llava, ServeOptions(served_name="tiny", max_image_bytes=2**20, max_body_bytes=3 * 2**20))
    ) as it:
        yield it


@pytest.fixture(scope="session")
def images() -> list[np.ndarray]:
    return [draw(index, split="held_out")[1] for index in range(4)]


def data_url(image: np.ndarray | Image.Image | bytes) -> str:
    if not isinstance(image, bytes):
        opened = image if isinstance(image, Image.Image) else Image.fromarray(image)
        buffer = io.BytesIO()
        opened.save(buffer, "PNG")
        image = buffer.getvalue()
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"


def turn(question: str, *images: np.ndarray | Image.Image | bytes | str) -> dict[str, object]:
    """A message of the user in OpenAI's form; a string is an URL."""
    urls = [image if isinstance(image, str) else data_url(image) for image in images]
    parts: list[dict[str, object]] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"role": "user", "content": [*parts, {"type": "text", "text": question}]}
