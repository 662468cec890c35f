"""Budgets in words: `low`, `high` and `auto` are of the model's own, and a bound holds for all images of a prompt."""

import numpy as np
import pytest
from PIL import Image

from llava_stf import load_model
from llava_stf.errors import FusionError, PromptError
from llava_stf.inference import LlavaStf, user_turn
from llava_stf.models.fusion.detail import choose_budgets

# A grid of 4x4 patches of 14 px, windows of 1, 2 and 4 patches.
SMALL, MIDDLE, LARGE = (10, 14), (28, 9), (300, 40)


@pytest.fixture(scope="module")
def llava(plain_folder: str) -> LlavaStf:
    return load_model(plain_folder, vision_tokens=[4, 16, 1], device="cpu")


def shown(*sizes: tuple[int, int]) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)) for size in sizes]


@pytest.mark.parametrize(
    ("asked", "room", "expected"),
    [
        (["low", "high", None], 500, [1, 16, 4]),
        (["auto"] * 3, 500, [1, 4, 16]),
        (["auto"] * 3, 20, [1, 4, 4]),
        (["auto"] * 3, 8, [1, 4, 1]),
        (["auto"] * 3, 0, [1, 1, 1]),
        (["high", "auto", 16], 0, [16, 1, 16]),
        (["auto", 4, "auto"], 17, [1, 4, 4]),
        (["all", 1, "high"], 3, [16, 1, 16]),
    ],
)
def test_words_choose_among_the_models_budgets(llava: LlavaStf, asked: list, room: int, expected: list[int]) -> None:
    assert choose_budgets(llava.model.config, asked, [SMALL, MIDDLE, LARGE], room=room) == expected


def test_a_number_that_the_model_does_not_have_is_refused(llava: LlavaStf) -> None:
    with pytest.raises(FusionError, match="9"):
        choose_budgets(llava.model.config, [9], [SMALL], room=100)


def test_a_model_of_one_budget_has_it_for_all_words(stf_folder: str) -> None:
    llava = load_model(stf_folder, device="cpu")
    asked = ["low", "high", "auto", None]
    assert choose_budgets(llava.model.config, asked, [SMALL] * 4, room=0) == [4] * 4
    image = shown(LARGE)[0]
    assert len({llava.ask(image, "What?", vision_tokens=word, max_new_tokens=4) for word in asked}) == 1


def test_every_way_to_ask_takes_words(llava: LlavaStf) -> None:
    small, large = shown(SMALL, LARGE)
    for image, word, count in ((small, "auto", 1), (large, "auto", 16), (large, "low", 1), (small, "high", 16)):
        expected = llava.ask(image, "What?", vision_tokens=count, max_new_tokens=4)
        assert llava.ask(image, "What?", vision_tokens=word, max_new_tokens=4) == expected
        pieces = llava.stream(image, "What?", vision_tokens=word, max_new_tokens=4)
        assert "".join(pieces).strip() == expected
        assert llava.chat(image, vision_tokens=word).ask("What?", max_new_tokens=4) == expected
        # Beams are not of one row, so that images go in by their pixels.
        beams = {"num_beams": 2, "max_new_tokens": 4}
        assert llava.ask(image, "What?", vision_tokens=word, **beams) == llava.ask(
            image, "What?", vision_tokens=count, **beams
        )
    pairs = [(small, "What?"), (large, "What?"), ([large, small], "Both?")]
    single = [llava.ask(*pair, vision_tokens="auto", max_new_tokens=4) for pair in pairs]
    assert llava.ask_batch(pairs, vision_tokens="auto", max_new_tokens=4) == single


def test_a_bound_holds_for_all_images_of_a_prompt(llava: LlavaStf) -> None:
    images = shown(LARGE, LARGE)
    bounded = {"max_vision_tokens": 5, "max_new_tokens": 4}
    prompt = llava.compose([user_turn("Both?", 2)], images, "auto", 5)
    assert [image.count for image in prompt.images] == [4, 1]
    assert llava.ask(images, "Both?", vision_tokens="auto", **bounded)
    for word in ("high", 4, None):
        with pytest.raises(PromptError, match=r"vision tokens for 2 image.*may have 5"):
            llava.ask(images, "Both?", vision_tokens=word, **bounded)
        with pytest.raises(PromptError, match="may have 5"):
            llava.chat(images, vision_tokens=word, max_vision_tokens=5).ask("Both?")
