"""What is decoded at a time is bounded: the rest waits, and what never fits or waits too long is refused."""

import threading

import numpy as np
import pytest
from PIL import Image

from llava_stf.errors import ImageError
from llava_stf.serving import memory
from llava_stf.serving.errors import BusyError
from llava_stf.serving.memory import Memory

from .conftest import Server, turn, wait_for


def test_what_does_not_fit_waits_for_room(monkeypatch: pytest.MonkeyPatch) -> None:
    room, order = Memory(100), []

    def second() -> None:
        with room.hold(60):
            order.append("second")

    with room.hold(60):
        waiting = threading.Thread(target=second)
        waiting.start()
        with room.hold(40):
            order.append("small")
        monkeypatch.setattr(memory, "WAIT_SECONDS", 0.05)
        with pytest.raises(BusyError, match="Too many large images"), room.hold(60):
            pass
        order.append("first")
    waiting.join()
    assert order == ["small", "first", "second"]
    with pytest.raises(ImageError, match="takes 0 MB to decode"), room.hold(101):
        pass


def test_an_image_that_needs_more_than_there_is_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.app.state.engine.memory, "_room", 10 * 2**20)
    reply = server.chat(messages=[turn("What?", Image.new("L", (2000, 2000)))])
    assert reply.status_code == 400
    assert (
        "Image 0 of the request: it takes 80 MB to decode, and this server has 10 MB"
        in reply.json()["error"]["message"]
    )
    assert server.chat(messages=[turn("What?", Image.new("L", (200, 200)))], max_tokens=1).status_code == 200
    wait_for(lambda: server.app.state.engine.memory._held == 0)


def test_a_prompt_that_does_not_fit_is_refused_before_its_images_are_decoded(
    server: Server, images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llava_stf.serving.encoder.load_image", lambda *_, **__: pytest.fail("an image is decoded"))
    reply = server.chat(messages=[turn("long " * 1100, *images[:2])])
    assert reply.status_code == 400
    assert "tokens" in reply.json()["error"]["message"]
