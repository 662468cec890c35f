"""Several questions about one image: from the cache, and read again."""

import pytest
import torch

from llava_stf import load_model
from llava_stf.errors import LlavaStfError
from llava_stf.reduction import apply_reduction, remove_reduction
from llava_stf_eval.turns import chats, go_on, measure_turns, read_again


@pytest.fixture(scope="module")
def llava():
    return load_model("tiny-full", dtype="float32")


def test_from_image_to_image_another_question_comes_first():
    found, again = chats(4, 3), chats(4, 2)
    assert all(len(questions) == 3 for _, questions in found)
    # The first image's questions stand as drawn; those of the second begin with its second question.
    assert found[0][1][:2] == again[0][1]
    assert found[1][1][-1:] + found[1][1][:1] == again[1][1][::-1]
    with pytest.raises(LlavaStfError, match=r"1 to 8.*found 9"):
        chats(1, 9)
    with pytest.raises(LlavaStfError, match="1 image or more, found 0"):
        chats(0, 2)


@pytest.mark.parametrize("method", [None, "divprune"])
def test_where_the_question_has_no_part_both_ways_answer_alike(llava, method):
    ((image, questions),) = chats(1, 3)
    texts = [question.text for question in questions]
    if method:
        apply_reduction(*llava, method, vision_tokens=16)
    try:
        again, cached = read_again(llava, image, texts), go_on(llava, image, texts)
    finally:
        if method:
            remove_reduction(*llava)
    assert cached == again
    assert any(cached)


@pytest.mark.parametrize("method", ["fastv", "pyramiddrop", "sparsevlm", "dart"])
def test_the_first_answer_of_what_knows_the_question_is_the_same_in_both_ways(llava, method):
    ((image, questions),) = chats(1, 2)
    texts = [question.text for question in questions]
    apply_reduction(*llava, method, vision_tokens=4)
    try:
        first, second = read_again(llava, image, texts), go_on(llava, image, texts)
        shares = measure_turns(method, llava, 4, images=1, turns=2)
    finally:
        remove_reduction(*llava)
    assert first[0] == second[0]
    assert len(shares.again) == len(shares.cached) == 2
    assert torch.is_grad_enabled()
