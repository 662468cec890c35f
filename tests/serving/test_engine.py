"""Requests that wait are answered together, each as if it were alone; who leaves or fails takes nobody along."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from llava_stf import apply_stf
from llava_stf.errors import PromptError
from llava_stf.inference import LlavaStf, user_turn
from llava_stf.loading.testing import tiny_llava_next
from llava_stf.loading.testing_videos import tiny_llava_onevision, tiny_video_llava
from llava_stf.reduction import apply_reduction
from llava_stf.reduction.fastv import FastV
from llava_stf.serving.app import create_app
from llava_stf.serving.engine import Engine, GenerationRequest
from llava_stf.serving.errors import ModelFailureError
from llava_stf.serving.options import ServeOptions

from .conftest import GatedLlava, Server, serving, turn, wait_for

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module", params=["continuous", "static"])
def gated_llava(request: pytest.FixtureRequest, stf_folder: str, plain_folder: str) -> GatedLlava:
    if request.param == "continuous":
        return GatedLlava(stf_folder)
    llava = GatedLlava(plain_folder, vision_tokens="all")
    apply_reduction(llava.model, llava.processor, FastV(full_layers=1), vision_tokens=4)
    return llava


@pytest.fixture
def joins(gated_llava: GatedLlava) -> bool:
    """Whether rows join a running batch of the model."""
    return gated_llava.reuses()


@pytest.fixture
def gated(gated_llava: GatedLlava) -> Iterator[Server]:
    """A server of a model whose steps the test lets pass, with a batch of 4 and 3 places to wait."""
    gated_llava.fails, gated_llava.closes_at = False, None
    options = ServeOptions(max_batch=4, max_queue=3, max_new_tokens=400)
    with serving(create_app(gated_llava, options)) as server:
        gated_llava.steps.clear()  # those of the warm-up
        yield server
        gated_llava.gate.set()


def test_32_clients_at_once_get_the_answers_of_single_questions(
    server: Server, llava: LlavaStf, images: list[np.ndarray]
) -> None:
    questions = ["How many shapes are there?", "What shape is at the top?", "Is there a red circle?", "Describe it."]
    pairs = [(images[index % 4], questions[index // 4 % 4]) for index in range(32)]
    batches = server.metric("llava_stf_batch_size_count")

    def ask(index: int) -> str:
        image, question = pairs[index]
        client, messages = server.openai(), [turn(question, image)]
        if index % 2:
            stream = client.chat.completions.create(model="tiny", messages=messages, stream=True)
            return "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        return client.chat.completions.create(model="tiny", messages=messages).choices[0].message.content

    with ThreadPoolExecutor(32) as clients:
        answers = list(clients.map(ask, range(32)))
    expected = {pair: llava.ask(images[pair[0]], questions[pair[1]]) for pair in np.ndindex(4, 4)}
    assert answers == [expected[index % 4, index // 4 % 4] for index in range(32)]
    assert server.metric("llava_stf_batch_size_count") - batches < 32


def test_what_waits_is_answered_together_and_more_is_refused(gated: Server, gated_llava: GatedLlava) -> None:
    gated_llava.gate.clear()
    with ThreadPoolExecutor(4) as clients:
        running = clients.submit(gated.chat, messages=[turn("One?")], max_tokens=2)
        wait_for(lambda: gated_llava.steps == [1])
        waiting = [clients.submit(gated.chat, messages=[turn("x" * length)], max_tokens=3) for length in (1, 5, 9)]
        wait_for(lambda: gated.metric("llava_stf_queue_depth") == 3)
        refused = gated.chat(messages=[turn("Four?")])
        gated_llava.gate.set()
        replies = [each.result().json() for each in (running, *waiting)]
    assert refused.status_code == 503
    assert refused.headers["Retry-After"] == "1"
    assert "3 requests wait" in refused.json()["error"]["message"]
    assert [reply["usage"]["completion_tokens"] for reply in replies] == [2, 3, 3, 3]
    wait_for(lambda: gated_llava.steps == [1, 1, 3, 3, 3])
    assert gated.metric("llava_stf_batch_size_sum") == 4
    assert gated.metric("llava_stf_queue_depth") == 0


def test_rows_of_a_batch_have_their_own_ends(gated: Server, gated_llava: GatedLlava, joins: bool) -> None:
    gated_llava.gate.clear()
    with ThreadPoolExecutor(4) as clients:
        first = clients.submit(gated.chat, messages=[turn("One?")], max_tokens=1)
        wait_for(lambda: gated_llava.steps == [1])
        rows = [clients.submit(gated.chat, messages=[turn("Two?")], max_tokens=count) for count in (2, 5, 3)]
        wait_for(lambda: gated.metric("llava_stf_queue_depth") == 3)
        gated_llava.gate.set()
        first.result()
        replies = [row.result().json() for row in rows]
    assert [reply["usage"]["completion_tokens"] for reply in replies] == [2, 5, 3]
    assert all(reply["choices"][0]["finish_reason"] == "length" for reply in replies)
    texts = [reply["choices"][0]["message"]["content"] for reply in replies]
    assert texts[1].startswith(texts[2].strip())
    # A static batch ends with its longest row.
    wait_for(lambda: gated_llava.steps == ([1, 3, 3, 2, 1, 1] if joins else [1, 3, 3, 3, 3, 3]))


def test_different_sampling_is_mixed_where_each_row_draws_for_itself(
    gated: Server, gated_llava: GatedLlava, joins: bool
) -> None:
    gated_llava.gate.clear()
    with ThreadPoolExecutor(4) as clients:
        first = clients.submit(gated.chat, messages=[turn("One?")], max_tokens=1)
        wait_for(lambda: gated_llava.steps == [1])
        settings = [{"temperature": 0.5}, {"temperature": 1.5}, {"temperature": 0.5, "top_p": 0.5}]
        rows = [clients.submit(gated.chat, messages=[turn("Two?")], max_tokens=1, **each) for each in settings]
        wait_for(lambda: gated.metric("llava_stf_queue_depth") == 3)
        gated_llava.gate.set()
        assert all(each.result().status_code == 200 for each in (first, *rows))
    wait_for(lambda: gated_llava.steps == ([1, 3] if joins else [1, 1, 1, 1]))


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_the_engine(gated: Server, gated_llava: GatedLlava, stream: bool) -> None:
    gated_llava.gate.clear()
    body = {"messages": [turn("One?")], "max_tokens": 400, "stream": stream}
    with pytest.raises(httpx.ReadTimeout):
        gated.http.post(CHAT, json=body, timeout=1)
    # A stream that has begun counts as 200.
    wait_for(lambda: sum(gated.metric("llava_stf_requests_total", route=CHAT, status=s) for s in ("200", "499")) == 1)
    gated_llava.gate.set()
    assert gated.chat(messages=[turn("Two?")], max_tokens=2).status_code == 200
    assert len(gated_llava.steps) < 10  # of 400


def test_a_client_that_leaves_in_the_middle_of_a_stream_frees_the_engine(
    gated: Server, gated_llava: GatedLlava
) -> None:
    gated_llava.closes_at = 20
    body = {"messages": [turn("What is it?")], "max_tokens": 400, "stream": True}
    with gated.http.stream("POST", CHAT, json=body) as stream:
        assert next(stream.iter_lines()).startswith("data: ")
    wait_for(lambda: gated.metric("llava_stf_requests_total", route=CHAT, status="200") == 1)
    gated_llava.closes_at = None
    gated_llava.gate.set()
    assert gated.chat(messages=[turn("Two?")], max_tokens=2).status_code == 200
    assert len(gated_llava.steps) < 30  # of 400


def test_a_client_that_leaves_the_queue_frees_its_place(gated: Server, gated_llava: GatedLlava) -> None:
    gated_llava.gate.clear()
    with ThreadPoolExecutor(1) as clients:
        running = clients.submit(gated.chat, messages=[turn("One?")], max_tokens=2)
        wait_for(lambda: gated_llava.steps == [1])
        with pytest.raises(httpx.ReadTimeout):
            gated.http.post(CHAT, json={"messages": [turn("Two?")]}, timeout=1)
        wait_for(lambda: gated.metric("llava_stf_queue_depth") == 0)
        gated_llava.gate.set()
        assert running.result().status_code == 200
    wait_for(lambda: gated_llava.steps == [1, 1])


@pytest.mark.parametrize("stream", [False, True])
def test_a_failing_model_fails_this_batch_alone(
    gated: Server, gated_llava: GatedLlava, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    gated_llava.fails = True
    reply = gated.chat(messages=[turn("A secret?")], stream=stream)
    # A stream has begun with its first token, and its error is an event.
    assert reply.status_code == (200 if stream and "data:" in reply.text else 500)
    assert "The model failed at this request" in reply.text
    assert "out of everything" not in reply.text
    assert "out of everything" in caplog.text
    assert "secret" not in caplog.text
    gated_llava.fails = False
    assert gated.chat(messages=[turn("Two?")], max_tokens=2).status_code == 200


def test_closing_finishes_the_running_batch_and_fails_what_waits(gated_llava: GatedLlava) -> None:
    gated_llava.steps.clear()
    gated_llava.fails = False
    engine = Engine(gated_llava, ServeOptions(max_batch=1))
    engine.start()

    async def answer(question: str) -> str:
        request = GenerationRequest(question, max_new_tokens=3)
        return "".join([piece.text async for piece in engine.stream(request)])

    async def scene() -> list[object]:
        gated_llava.gate.clear()
        running = asyncio.create_task(answer("One?"))
        await asyncio.to_thread(wait_for, lambda: gated_llava.steps == [1])
        waiting = asyncio.create_task(answer("Two?"))
        await asyncio.to_thread(
            wait_for, lambda: engine.metrics.registry.get_sample_value("llava_stf_queue_depth") == 1
        )
        closing = asyncio.create_task(asyncio.to_thread(engine.close))
        await asyncio.to_thread(wait_for, lambda: not engine.is_alive)
        gated_llava.gate.set()
        await closing
        return await asyncio.gather(running, waiting, return_exceptions=True)

    finished, failed = asyncio.run(scene())
    assert isinstance(finished, str)
    assert isinstance(failed, ModelFailureError)
    assert gated_llava.steps == [1, 1, 1]


def test_images_are_given_as_files_or_images_and_errors_name_them(llava: LlavaStf, images: list[np.ndarray]) -> None:
    from llava_stf.images import load_image

    engine = Engine(llava, ServeOptions())
    engine.start()

    async def answer(request: GenerationRequest) -> str:
        return "".join([piece.text async for piece in engine.stream(request)])

    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Describe it."}]}
    request = GenerationRequest([message], [load_image(images[0])])
    try:
        assert asyncio.run(answer(request)) == llava.ask(images[0], "Describe it.")
        with pytest.raises(Exception, match="Image 0 of the request"):
            asyncio.run(answer(GenerationRequest([message], [b"no image"])))
        with pytest.raises(PromptError, match="markers"):
            asyncio.run(answer(GenerationRequest([message])))
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("made", "window"),
    [(tiny_llava_next, None), (tiny_llava_next, 2), (tiny_llava_onevision, 2), (tiny_video_llava, 2)],
)
def test_images_in_tiles_are_answered_in_one_batch_each_with_its_own_tokens(
    made: Callable[[], tuple[Any, Any]], window: int | None
) -> None:
    model, processor = made()
    if window is not None:
        apply_stf(model, processor, window=window)
    llava = LlavaStf(model, processor)
    engine = Engine(llava, ServeOptions(max_new_tokens=6))
    metric = engine.metrics.registry.get_sample_value
    rng = np.random.default_rng(0)
    shapes = [(60, 60), (50, 200), (300, 90)]
    images = [Image.fromarray(rng.integers(0, 255, (*shape, 3), dtype=np.uint8)) for shape in shapes]
    asked = [([image], "What?") for image in images] + [(images[1:], "Both?")]

    async def answer(images: list[Image.Image], question: str) -> str:
        request = GenerationRequest([user_turn(question, len(images))], images)
        return "".join([piece.text async for piece in engine.stream(request)])

    async def scene() -> list[str]:
        answers = [asyncio.create_task(answer(*each)) for each in asked]
        await asyncio.to_thread(
            wait_for, lambda: engine.metrics.registry.get_sample_value("llava_stf_queue_depth") == 4
        )
        engine.start()
        return await asyncio.gather(*answers)

    answers = asyncio.run(scene())
    engine.close()
    assert answers == [llava.ask(images, question, max_new_tokens=6) for images, question in asked]
    assert metric("llava_stf_batch_size_count") == 1
