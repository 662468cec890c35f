"""Images inverted from a model."""

import pytest
import torch

from llava_stf import load_model
from llava_stf_eval.measurement.inversion import Inversion

TURNS = [{"from": "human", "value": "<image>\nIs there a circle?"}, {"from": "gpt", "value": "yes"}]


@pytest.fixture(scope="module")
def llava():
    return load_model("tiny-full", vision_tokens="all", device="cpu", dtype="float32")


def test_descent_makes_the_answers_likelier_and_the_images_more_unlike(llava):
    answers = ["yes", "no", "yes"]
    records = [{"conversations": [TURNS[0], {"from": "gpt", "value": answer}]} for answer in answers]
    first, last = Inversion(llava, steps=1, seed=0), Inversion(llava, steps=12, seed=0)
    noise, images = first(records), last(records)
    assert (images.shape, images.dtype) == ((3, 112, 112, 3), torch.uint8)
    assert not torch.equal(noise, images)
    (misfit, likeness), (misfit_before, likeness_before) = last.losses[-1], first.losses[-1]
    assert misfit + 0.5 * likeness < misfit_before + 0.5 * likeness_before
    assert all(parameter.grad is None for parameter in llava.model.parameters())


def test_images_made_before_are_what_the_next_are_told_from(llava):
    records = [{"conversations": TURNS}]
    inversion = Inversion(llava, steps=1, seed=0)
    one, two = inversion(records), inversion(records)
    assert not torch.equal(one, two)
    assert torch.equal(one, Inversion(llava, steps=1, seed=0)(records))
    (_, alone), (_, beside) = inversion.losses
    assert alone == 0 < beside  # of one image there is nothing to tell
