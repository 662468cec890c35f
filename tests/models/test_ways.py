"""The ways to run a model, on every class of the family: attention, a static cache, batches, 8 and 16 bits."""

import numpy as np
import pytest
import torch
from PIL import Image

from llava_stf import Video, load_model
from llava_stf.loading.testing import tiny_llava_next, tiny_vipllava
from llava_stf.loading.testing_videos import tiny_llava_next_video, tiny_llava_onevision, tiny_video_llava

MAKE = {
    "next": tiny_llava_next,
    "onevision": tiny_llava_onevision,
    "next-video": tiny_llava_next_video,
    "video-llava": tiny_video_llava,
    "vip": tiny_vipllava,
}
RNG = np.random.default_rng(0)
WIDE, HIGH = (Image.fromarray(RNG.integers(0, 256, size, dtype=np.uint8)) for size in ((60, 150, 3), (190, 30, 3)))
ROWS = [(WIDE, "What?"), (HIGH, "Is it a longer question?")]
CLIP = Video(RNG.integers(0, 256, (6, 40, 60, 3), dtype=np.uint8), frames=3)


@pytest.fixture(scope="module", params=MAKE)
def folder(request, tmp_path_factory):
    model, processor = MAKE[request.param]()
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def answers(folder):
    return answers_of(load_model(folder, dtype="float32"))


def answers_of(llava, **options):
    rows = [*ROWS, *[(CLIP, "What?")] * hasattr(llava.model.config, "video_token_index")]
    return [llava.ask(*row, max_new_tokens=4, **options) for row in rows]


def test_eager_attention_and_a_static_cache_give_the_same_answers(folder, answers):
    assert answers_of(load_model(folder, dtype="float32", attn_implementation="eager")) == answers
    assert answers_of(load_model(folder, dtype="float32"), cache_implementation="static") == answers


def test_a_batch_of_sizes_gives_the_answers_of_its_rows(folder, answers):
    assert load_model(folder, dtype="float32").ask_batch(ROWS, max_new_tokens=4) == answers[:2]


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"quantization": "8bit"}], ids=["16", "8"])
def test_logits_of_fewer_bits_are_near(folder, options):
    near, exact = load_model(folder, **options), load_model(folder, dtype="float32")
    inputs = exact.processor(images=WIDE, text="<image>What is it?", return_tensors="pt")
    with torch.inference_mode():
        expected = exact.model(**inputs).logits.float()
        found = near.model(**inputs).logits.float()
    # Random weights of a few layers: what rounding does to them is far below what another image does.
    assert (found - expected).norm() < 0.2 * expected.norm()
    assert len(near.ask(WIDE, "What?", max_new_tokens=3)) > 0
