"""The page over an engine that does what it is told: streaming, stopping, leaving, and an engine that refuses."""

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest
from fastapi import FastAPI
from playwright.sync_api import expect

from llava_stf.inference import LlavaStf
from llava_stf.serving.errors import BusyError
from llava_stf.serving.memory import Memory
from llava_stf.serving.page import mount_page
from llava_stf.serving.rows import GenerationRequest, Piece

from .conftest import DEADLINE, OPTIONS, serving, wait_for


class ToldEngine:
    """Says what waits in `words`, one piece each, and ends at `None`; an error there is raised."""

    def __init__(self, llava: LlavaStf) -> None:
        self.llava = llava
        self.memory = Memory()
        self.words: list[str | Exception | None] = []
        self.closed = threading.Event()

    async def stream(self, request: GenerationRequest) -> AsyncIterator[Piece]:
        self.closed.clear()
        try:
            said = 0
            while True:
                while not self.words:
                    await asyncio.sleep(0.01)
                word = self.words.pop(0)
                if isinstance(word, Exception):
                    raise word
                if word is None:
                    yield Piece("", 20, 16, said, "stop")
                    return
                said += 1
                yield Piece(word, 20, 16, said)
        finally:
            self.closed.set()


@pytest.fixture(scope="module")
def engine(models):
    return ToldEngine(models[0])


@pytest.fixture(scope="module")
def address(engine):
    app = FastAPI()
    app.state.clean_ups = []
    with serving(mount_page(app, engine, OPTIONS)) as address:
        yield address


def test_words_appear_as_they_are_said_until_stopped_and_errors_are_sentences(engine, address, open_page):
    page = open_page(address)
    answer, stop = page.locator("#answers .answer"), page.get_by_role("button", name="Stop")
    ask = page.get_by_role("button", name="Ask", exact=True)
    expect(page.get_by_role("radio")).to_have_count(0)  # one model at one budget: nothing to choose
    page.locator(".example").first.click()
    page.locator("#image img").wait_for()

    engine.words += ["one ", "<b>two</b> "]
    ask.click()
    expect(answer).to_have_text("one <b>two</b>")
    engine.words += ["three"]
    expect(answer).to_have_text("one <b>two</b> three")
    assert answer.locator("b").count() == 0
    stop.click()
    assert engine.closed.wait(DEADLINE)
    expect(stop).to_have_count(0)
    expect(answer).to_have_text("one <b>two</b> three (stopped)")

    ask.click()
    expect(stop).to_have_count(1)
    wait_for(lambda: not engine.closed.is_set())  # it waits for words, and must not take those of the next answer
    stop.click()
    expect(answer).to_have_text("Stopped before the first word.")
    assert engine.closed.wait(DEADLINE)

    engine.words += [None]
    ask.click()
    expect(answer).to_have_text("The model gave an empty answer.")
    expect(stop).to_have_count(0)

    engine.words += [BusyError("64 requests wait, and no more are taken; try again in a moment.")]
    ask.click()
    expect(page.get_by_role("alert")).to_have_text("64 requests wait, and no more are taken; try again in a moment.")
    expect(stop).to_have_count(0)

    engine.words += ["after", None]
    ask.click()
    expect(answer).to_have_text("after")
    expect(stop).to_have_count(0)
    expect(page.locator("#answers .costs")).to_contain_text("1 token")

    engine.words += ["alone"]
    ask.click()
    expect(answer).to_have_text("alone")
    page.close()
    wait_for(lambda: engine.words.append("more ") or engine.closed.is_set())  # nothing is generated for nobody
