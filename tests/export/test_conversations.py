"""A conversation with an export goes on where it was, and answers as the model in PyTorch that reads all anew."""

import asyncio
import copy

import pytest
from PIL import Image

from llava_stf import load_model
from llava_stf.export.model import EngineCache
from llava_stf.inference import user_turn
from llava_stf.inference.prefix import PrefixCache
from llava_stf.inference.reading import Heard, Reading
from llava_stf.serving.engine import Engine, GenerationRequest
from llava_stf.serving.options import ServeOptions

IMAGES = [Image.radial_gradient("L").convert("RGB"), Image.linear_gradient("L").convert("RGB").resize((80, 50))]


@pytest.fixture(scope="module", params=["openvino", "onnx"])
def exported(request):
    return load_model(request.getfixturevalue(f"{request.param}_folder"))


@pytest.fixture
def steps(monkeypatch):
    """Tokens of each step of an engine."""
    seen, step = [], EngineCache.step

    def watched(cache, embeddings, *rest, **options):
        seen.append(embeddings.shape[1])
        return step(cache, embeddings, *rest, **options)

    monkeypatch.setattr(EngineCache, "step", watched)
    return seen


def anew(llava, chat):
    """The last answer of a chat, its history read as a whole by another model."""
    return llava._answers(llava.encode([chat.messages[:-1]], [chat.images]), 5, {})[0]


def test_a_turn_reads_only_what_is_new(llava, exported, steps):
    chat = exported.chat(IMAGES[0])
    for number, question in enumerate(("What is it?", "Why?", "And that?", "Red, or blue?")):
        if number == 2:
            chat.add_image(IMAGES[1])
        steps.clear()
        answer = (
            chat.ask(question, max_new_tokens=5) if number % 2 else "".join(chat.stream(question, max_new_tokens=5))
        )
        assert answer == chat.messages[-1]["content"][0]["text"] == anew(llava, chat)
        prompt = exported.compose(chat.messages[:-1], chat.images)
        read = sum(length for length in steps if length > 1)
        assert read < len(prompt.ids) // 2 if number in (1, 3) else read <= len(prompt.ids)
    chat.messages[1] = {"role": "assistant", "content": [{"type": "text", "text": "A square."}]}  # edited by hand
    assert chat.ask("Sure?", max_new_tokens=5) == anew(llava, chat)


def test_rows_of_a_batch_that_know_differently_much(llava, exported, steps):
    turns = [[user_turn(question, 1)] for question in ("What?", "And what is this one here?", "Why?")]
    images = [[IMAGES[0]], [IMAGES[1]], [IMAGES[0]]]
    known = PrefixCache(2**20)
    for _ in range(2):
        steps.clear()
        reading, heard = (
            Reading(exported, [exported.compose(*each) for each in zip(turns, images, strict=True)], known),
            Heard(),
        )
        wanted = llava.reply_batch(turns, images, max_new_tokens=5)
        answers = exported._answers(reading.inputs, 5, {"stopping_criteria": [heard]})
        assert answers == wanted
        width = reading.inputs["input_ids"].shape[1]
        for prefix in reading.prefixes(heard.ids, [heard.ids.shape[1] - width] * 3):
            known.put(prefix)
        turns = copy.deepcopy(turns[:2])
        images = images[:2]
        turns[0] += [{"role": "assistant", "content": [{"type": "text", "text": answers[0]}]}, user_turn("Then?", 0)]
    assert all(reading.cached)
    assert max(steps) < max(len(exported.compose(*each).ids) for each in zip(turns, images, strict=True))


def test_requests_of_a_server_are_answered_in_batches_that_begin_together(llava, exported):
    engine = Engine(exported, ServeOptions(max_new_tokens=5))
    questions = ("What is it?", "Why?", "And that, what is it now?")

    async def answer(question):
        request = GenerationRequest([user_turn(question, 1)], [IMAGES[0]])
        return "".join([piece.text async for piece in engine.stream(request)])

    async def scene():
        waiting = [asyncio.create_task(answer(question)) for question in questions]
        while engine.metrics.registry.get_sample_value("llava_stf_queue_depth") < len(questions):
            await asyncio.sleep(0.01)
        engine.start()
        return await asyncio.gather(*waiting)

    assert asyncio.run(scene()) == [llava.ask(IMAGES[0], question, max_new_tokens=5) for question in questions]
    engine.close()
    assert engine.metrics.registry.get_sample_value("llava_stf_batch_size_count") == 1


def test_a_cache_in_eight_bits_is_read_anew(llava, tmp_path, steps):
    from llava_stf.export.write import export_model

    small = load_model(export_model(llava, tmp_path / "u8", kv_cache="u8"))
    assert not small.reuses()
    chat = small.chat(IMAGES[0])
    for question in ("What is it?", "Why?"):
        steps.clear()
        chat.ask(question, max_new_tokens=3)
        assert steps[0] == len(small.encode([chat.messages[:-1]], [chat.images])["input_ids"][0])
