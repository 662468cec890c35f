"""Rows join a running batch between tokens: nobody waits for a long answer, each is answered as if alone."""

import asyncio
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import GenerationConfig

from llava_stf import apply_stf
from llava_stf.inference import LlavaStf, user_turn
from llava_stf.loading import load_model
from llava_stf.loading.testing import tiny_llava_next, write_tiny_llava
from llava_stf.serving.app import create_app
from llava_stf.serving.engine import Engine, GenerationRequest
from llava_stf.serving.errors import ModelFailureError
from llava_stf.serving.options import ServeOptions

from .conftest import GatedLlava, Server, serving, turn, wait_for

SIZES = [(60, 60), (50, 200), (300, 90), (110, 115)]
QUESTIONS = ("What?", "Is it red,\nor blue, or is it green?", "And this one here: what may it be?")
STEPS = 4  # of a scene's clients between two requests, at most


@pytest.fixture(scope="module")
def gated_llava(stf_folder: str) -> GatedLlava:
    return GatedLlava(stf_folder)


@pytest.fixture
def gated(gated_llava: GatedLlava) -> Iterator[Server]:
    with serving(create_app(gated_llava, ServeOptions(max_batch=2, max_new_tokens=400))) as server:
        gated_llava.steps.clear()
        yield server
        gated_llava.gate.set()


def test_a_short_answer_comes_while_a_long_one_runs(gated: Server, gated_llava: GatedLlava) -> None:
    gated_llava.closes_at = 3
    with ThreadPoolExecutor(3) as clients:
        long = clients.submit(gated.chat, messages=[turn("One?")], max_tokens=60)
        wait_for(lambda: gated_llava.steps == [1, 1, 1])
        short = [clients.submit(gated.chat, messages=[turn("One?")], max_tokens=2) for _ in range(2)]
        wait_for(lambda: gated.metric("llava_stf_queue_depth") == 2)
        gated_llava.closes_at = 8
        gated_llava.gate.set()
        replies = [each.result().json() for each in short]
        wait_for(lambda: len(gated_llava.steps) == gated_llava.closes_at)
        # One after the other, as two rows are the most, each beside the long answer; a prompt is read for itself.
        assert gated_llava.steps == [1, 1, 1, 1, 2, 1, 2, 1]
        gated_llava.closes_at = None
        gated_llava.gate.set()
        replies.append(long.result().json())
    assert [reply["usage"]["completion_tokens"] for reply in replies] == [2, 2, 60]
    # What was read of the prompt serves others before its own answer is whole.
    cached = [reply["usage"]["prompt_tokens_details"]["cached_tokens"] for reply in replies]
    assert cached == [replies[0]["usage"]["prompt_tokens"] - 1] * 2 + [0]


def test_prompts_that_fail_fail_alone(gated: Server, gated_llava: GatedLlava) -> None:
    gated_llava.closes_at = 3

    def fail(module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        raise RuntimeError("out of everything")

    with ThreadPoolExecutor(2) as clients:
        running = clients.submit(gated.chat, messages=[turn("What is it?")], max_tokens=30)
        wait_for(lambda: gated_llava.steps == [1, 1, 1])
        hook = gated_llava.model.model.vision_tower.register_forward_pre_hook(fail)
        image = np.zeros((20, 20, 3), np.uint8)
        failing = clients.submit(gated.chat, messages=[turn("And this?", image)], max_tokens=30)
        wait_for(lambda: gated.metric("llava_stf_queue_depth") == 1)
        gated_llava.closes_at = None
        gated_llava.gate.set()
        assert failing.result().status_code == 500
        hook.remove()
        after = gated.chat(messages=[turn("What is it?")], max_tokens=30)
    assert running.result().json()["choices"] == after.json()["choices"]


def test_a_step_that_fails_tells_every_row_and_the_next_ones_do_well(gated: Server, gated_llava: GatedLlava) -> None:
    gated_llava.closes_at = 3
    with ThreadPoolExecutor(3) as clients:
        running = clients.submit(gated.chat, messages=[turn("One?")], max_tokens=30)
        wait_for(lambda: gated_llava.steps == [1, 1, 1])
        others = [clients.submit(gated.chat, messages=[turn("Two?")], max_tokens=30) for _ in range(2)]
        wait_for(lambda: gated.metric("llava_stf_queue_depth") == 2)
        gated_llava.closes_at = 5
        gated_llava.gate.set()
        wait_for(lambda: gated_llava.steps == [1, 1, 1, 1, 2])  # one of them has joined, the other waits
        gated_llava.fails, gated_llava.closes_at = True, None
        gated_llava.gate.set()
        assert running.result().status_code == 500
        assert [each.result().status_code for each in others] == [500, 500]
        gated_llava.fails = False
        assert gated.chat(messages=[turn("Two?")], max_tokens=2).status_code == 200


def next_model() -> LlavaStf:
    model, processor = tiny_llava_next()
    apply_stf(model, processor, window=[2, 4])
    return LlavaStf(model, processor)


@pytest.fixture(scope="module", params=["bundled", "budgets", "next", "settings"])
def llava(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LlavaStf:
    if request.param == "bundled":
        return load_model("tiny", device="cpu", dtype="float32")
    if request.param == "next":
        return next_model()
    folder = write_tiny_llava(tmp_path_factory.mktemp("plain"), stf=False)
    llava = load_model(folder, vision_tokens=[4, 1], device="cpu", dtype="float32")
    if request.param == "settings":
        settings = {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "begin_suppress_tokens": [5, 40]}
        llava.model.generation_config = GenerationConfig(**llava.model.generation_config.to_dict() | settings)
    return llava


def requests_of(llava: LlavaStf, rng: random.Random, count: int) -> list[GenerationRequest]:
    """Of all kinds: about no, one, and two images, greedy and drawn, short and long."""
    drawn = np.random.default_rng(0)
    images = [Image.fromarray(drawn.integers(0, 255, (*size, 3), dtype=np.uint8)) for size in SIZES]
    made = []
    for number in range(count):
        shown = rng.sample(images, rng.choice((0, 1, 1, 2)))
        asked = {"vision_tokens": rng.choice(("low", "high", None))} if shown else {}
        sampled = {"temperature": rng.choice((0.7, 2.0)), "top_p": 0.9, "seed": number} if rng.random() < 0.3 else {}
        question = user_turn(rng.choice(QUESTIONS), len(shown))
        made.append(GenerationRequest([question], shown, max_new_tokens=rng.choice((1, 3, 20, 70)), **asked, **sampled))
    return made


def alone(llava: LlavaStf, request: GenerationRequest) -> str:
    """What `generate` answers to a request, by its pixels."""
    inputs = llava.encode([request.conversation], [list(request.images)], request.vision_tokens)
    options = {"do_sample": False}
    if request.samples:
        options = {"do_sample": True, "temperature": request.temperature, "top_p": request.top_p, "top_k": 0}
        torch.manual_seed(request.seed)
    return llava._answers(inputs, request.max_new_tokens, options)[0]


@pytest.mark.parametrize("cache", [0, 2**20])
def test_each_is_answered_as_if_it_were_alone(llava: LlavaStf, cache: int) -> None:
    rng = random.Random(cache)
    asked = requests_of(llava, rng, 24)
    left = {3, 8, 15}  # their clients leave after a piece or two
    engine = Engine(llava, ServeOptions(max_batch=5, max_cache_bytes=cache))
    engine.start()
    places = asyncio.Semaphore(9)

    async def answer(number: int, pause: int) -> str:
        async with places:
            for _ in range(pause):
                await asyncio.sleep(0.002)
            said = []
            async for piece in engine.stream(asked[number]):
                said.append(piece.text)
                if number in left and len(said) == pause:
                    break
            return "".join(said)

    async def scene() -> list[str]:
        return await asyncio.gather(*(answer(number, rng.randint(1, STEPS)) for number in range(len(asked))))

    answers = asyncio.run(scene())
    engine.close()
    for number, request in enumerate(asked):
        whole = alone(llava, request)
        assert whole.startswith(answers[number].strip()) if number in left else answers[number] == whole


def test_a_failing_model_leaves_no_reader_waiting(stf_folder: str) -> None:
    llava = load_model(stf_folder, device="cpu")
    engine = Engine(llava, ServeOptions())
    engine.start()

    async def ask() -> None:
        async for _ in engine.stream(GenerationRequest("What?", max_new_tokens=5)):
            pass

    bias = llava.model.model.language_model.norm.weight
    with torch.no_grad():
        kept = bias.clone()
        bias.fill_(torch.nan)
    with pytest.raises(ModelFailureError):
        asyncio.run(ask())
    with torch.no_grad():
        bias.copy_(kept)
    asyncio.run(ask())
    engine.close()
