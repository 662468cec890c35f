"""A model's generation settings hold in every way of asking it: whole, streamed, in a chat, in a batch, of a server."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image
from transformers import GenerationConfig

from llava_stf.errors import MissingDependencyError, PromptError
from llava_stf.inference import LlavaStf, user_turn
from llava_stf.loading import load_model
from llava_stf.serving.engine import Engine, GenerationRequest
from llava_stf.serving.options import ServeOptions

IMAGE = Image.new("RGB", (60, 80), (200, 40, 90))
TURN = user_turn("What?", 1)
TOKENS = 12


@pytest.fixture(scope="module")
def model(stf_folder: str) -> LlavaStf:
    return load_model(stf_folder)


@pytest.fixture(scope="module")
def ids(model: LlavaStf) -> list[int]:
    """What the model says by its own settings."""
    return model.generate(model.encode([[TURN]], [[IMAGE]]), max_new_tokens=TOKENS)[0, -TOKENS:].tolist()


@pytest.fixture
def settings(model: LlavaStf) -> Iterator[GenerationConfig]:
    before = model.model.generation_config
    model.model.generation_config = GenerationConfig(**before.to_dict())
    yield model.model.generation_config
    model.model.generation_config = before
    vars(model).pop("decoder", None)


def served(model: LlavaStf) -> tuple[str, str | None]:
    """What a server answers, and why it ended."""

    async def ask() -> tuple[str, str | None]:
        engine = Engine(model, ServeOptions())
        engine.start()
        try:
            pieces = [piece async for piece in engine.stream(GenerationRequest([TURN], [IMAGE], max_new_tokens=TOKENS))]
        finally:
            engine.close()
        return "".join(piece.text for piece in pieces), pieces[-1].finish_reason

    return asyncio.run(ask())


# By name, from the ids that are said without them.
CASES: dict[str, Any] = {
    "end": lambda ids: {"eos_token_id": [2, ids[2]]},
    "stop": lambda ids: {"stop_strings": ["Q"]},
    "time": lambda ids: {"max_time": 1e-6},
    "beams": lambda ids: {"num_beams": 3},
    "lookup": lambda ids: {"prompt_lookup_num_tokens": 3},
    "suppress": lambda ids: {"suppress_tokens": ids[:1], "begin_suppress_tokens": ids[1:2]},
    "penalty": lambda ids: {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1},
    "bad words": lambda ids: {"bad_words_ids": [ids[1:2]], "return_dict_in_generate": True},
    "none": lambda ids: {"eos_token_id": None, "pad_token_id": None, "use_cache": False, "max_length": 20},
}


@pytest.mark.parametrize("name", CASES)
def test_every_way_obeys(name: str, model: LlavaStf, ids: list[int], settings: GenerationConfig) -> None:
    settings.update(**CASES[name](ids))
    vars(model).pop("decoder", None)
    answer = model.ask(IMAGE, "What?", max_new_tokens=TOKENS)
    plain = model.decoder(ids).strip()
    assert answer == plain if name in ("lookup", "none") else answer != plain
    assert "".join(model.stream(IMAGE, "What?", max_new_tokens=TOKENS)) == answer
    assert "".join(model.chat(IMAGE).stream("What?", max_new_tokens=TOKENS)) == answer
    assert model.reply_batch([[TURN]], [[IMAGE]], max_new_tokens=TOKENS) == [answer]
    assert served(model) == (answer, "stop" if name in ("end", "stop", "time") else "length")


def test_several_answers_are_refused_before_a_server_starts(model: LlavaStf, settings: GenerationConfig) -> None:
    settings.num_return_sequences = 2
    with pytest.raises(PromptError, match="num_return_sequences is 2"):
        Engine(model, ServeOptions())
    with pytest.raises(PromptError, match="num_return_sequences is 2"):
        model.stream(IMAGE, "What?")


def test_a_package_that_a_setting_needs_is_named(model: LlavaStf, settings: GenerationConfig) -> None:
    settings.cache_implementation = "quantized"
    with pytest.raises(MissingDependencyError, match="pip install optimum-quanto"):
        model.ask(IMAGE, "What?")
