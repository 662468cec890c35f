"""Passes that generation makes in other ways than row by row from the whole prompt: moved rows, guesses, parts."""

import copy
import threading

import pytest
import torch
import transformers
from packaging.version import Version
from PIL import Image
from transformers import DynamicCache

from llava_stf import load_model
from llava_stf.errors import FusionError
from llava_stf.inference import user_turn
from llava_stf.models.fusion.modeling import CACHE
from llava_stf.reduction import apply_reduction
from llava_stf.reduction.dart import DART
from llava_stf.reduction.fastv import FastV
from llava_stf.reduction.pool import Pool
from llava_stf.reduction.pyramiddrop import PyramidDrop
from llava_stf.reduction.sparsevlm import SparseVLM
from llava_stf.reduction.tome import ToMe
from llava_stf.world import draw

DROPPING = [FastV(), PyramidDrop(), DART(), SparseVLM()]
BIASED = [Pool(attention_bias=True), ToMe(attention_bias=True)]
IMAGES = [Image.fromarray(draw(index, split="held_out")[1]) for index in range(2)]
# From 5.18 on transformers encodes images before it reads a prompt, from 5.23 on it reads them in its parts, too.
ENCODED_BEFORE, IN_PARTS = (Version(transformers.__version__) >= Version(first) for first in ("5.18.0", "5.23.0"))
PAIRS = [(IMAGES[0], "What colour is the square?"), (IMAGES[1], "How many shapes are there in the image?")]


def reduced(method):
    llava = load_model("tiny-full", dtype="float32")
    apply_reduction(llava.model, llava.processor, method, vision_tokens=16)
    return llava


@pytest.fixture(scope="module", params=DROPPING, ids=lambda method: method.name)
def dropping(request):
    return reduced(request.param)


@pytest.fixture(scope="module", params=BIASED, ids=lambda method: method.name)
def biased(request):
    return reduced(request.param)


@pytest.fixture(scope="module", params=[*DROPPING, *BIASED], ids=lambda method: method.name)
def llava(request):
    return reduced(request.param)


def encoded(llava, *pairs):
    return llava.encode([[user_turn(question, 1)] for _, question in pairs], [[image] for image, _ in pairs])


@torch.no_grad()
def read(llava, *pairs):
    """The cache behind a batch of prompts, its mask, and the logits of each row's last token."""
    inputs, cache = encoded(llava, *pairs), DynamicCache()
    logits = llava.model(**inputs, **{CACHE: cache}).logits[:, -1]
    return cache, inputs["attention_mask"], logits


@torch.no_grad()
def go_on(llava, cache, mask, ids):
    """Logits behind one more token of each row."""
    mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
    positions = mask.cumsum(-1)[:, -1:] - 1
    return llava.model(input_ids=ids[:, None], attention_mask=mask, position_ids=positions, **{CACHE: cache}).logits[
        :, -1
    ]


MOVES = {
    "batch_repeat_interleave": (2, [0, 0, 1, 1]),
    "batch_select_indices": (torch.tensor([1]), [1]),
    "reorder_cache": (torch.tensor([1, 0]), [1, 0]),
}


@pytest.mark.parametrize("move", MOVES)
def test_rows_of_a_cache_move_with_what_is_kept_beside_them(llava, move):
    argument, rows = MOVES[move]
    cache, mask, logits = read(llava, *PAIRS)
    wanted = go_on(llava, copy.deepcopy(cache), mask, logits.argmax(-1))[rows]
    branch = copy.deepcopy(cache)
    getattr(branch, move)(argument)
    torch.testing.assert_close(go_on(llava, branch, mask[rows], logits.argmax(-1)[rows]), wanted, atol=1e-4, rtol=1e-4)
    # A copy has moved its own rows alone.
    torch.testing.assert_close(go_on(llava, cache, mask, logits.argmax(-1))[rows], wanted, atol=1e-4, rtol=1e-4)


def test_guesses_at_the_answer_are_no_part_of_the_prompt(dropping):
    question = "How many shapes are there? How many shapes are there?"
    plain = dropping.ask(IMAGES[0], question)
    assert dropping.ask(IMAGES[0], question, prompt_lookup_num_tokens=4) == plain
    with pytest.raises(FusionError, match="guesses at its answer: leave prompt_lookup_num_tokens"):
        dropping.model.generate(
            **encoded(dropping, (IMAGES[0], question)), prompt_lookup_num_tokens=4, do_sample=False, max_new_tokens=8
        )


def test_a_prompt_is_read_whole(dropping):
    assert dropping.ask(*PAIRS[1], prefill_chunk_size=8) == dropping.ask(*PAIRS[1])
    if not IN_PARTS:
        return
    inputs = encoded(dropping, PAIRS[0])
    with pytest.raises(FusionError, match="ends within an image"):
        dropping.model.generate(**inputs, prefill_chunk_size=45, do_sample=False, max_new_tokens=2)


def test_a_pruned_prompt_has_no_labels(dropping):
    inputs = encoded(dropping, PAIRS[0])
    with pytest.raises(FusionError, match="fewer logits than labels"):
        dropping.model(**inputs, labels=inputs["input_ids"])


def test_sparsevlm_needs_words_behind_the_image():
    llava = reduced(SparseVLM())
    inputs = encoded(llava, PAIRS[0])
    last = int((inputs["input_ids"][0] == llava.model.config.image_token_id).nonzero()[-1]) + 1
    with pytest.raises(FusionError, match="the words behind it, and found none"):
        llava.model(input_ids=inputs["input_ids"][:, :last], pixel_values=inputs["pixel_values"])


@torch.no_grad()
def test_sizes_are_those_of_the_images_in_the_pass(biased):
    inner = biased.model.model
    first, other = (encoded(biased, pair) for pair in PAIRS)
    features = biased.model.get_image_features(first["pixel_values"])
    sizes = inner.reduction.encoded.sizes
    thread = threading.Thread(target=lambda: biased.model.get_image_features(other["pixel_values"]))
    thread.start()
    thread.join()
    assert inner.reduction.encoded.sizes is sizes
    if not ENCODED_BEFORE:
        return
    biased.model.get_image_features(other["pixel_values"])
    inputs = {name: first[name] for name in ("input_ids", "attention_mask")}
    with pytest.raises(FusionError, match="encoded for the pass that reads"):
        biased.model(**inputs, mm_encoder_outputs={"image": features})


@torch.no_grad()
def test_a_copy_of_the_model_weighs_tokens_as_well(biased):
    inputs = encoded(biased, PAIRS[0])
    assert torch.equal(copy.deepcopy(biased.model)(**inputs).logits, biased.model(**inputs).logits)
