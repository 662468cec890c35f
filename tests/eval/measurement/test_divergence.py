"""How far a model is from its teacher."""

import pytest
import torch

from llava_stf import load_model
from llava_stf_eval.measurement.divergence import divergence, held_out_records, log_probabilities


def test_none_from_itself_and_some_on_fewer_tokens():
    records = held_out_records(3)
    teacher, pooled = (load_model("tiny-full", vision_tokens=count, dtype="float32") for count in ("all", 16))
    assert divergence(teacher, teacher, records) == pytest.approx(0, abs=1e-6)
    (target,), (found,) = (list(log_probabilities(llava, records)) for llava in (teacher, pooled))
    expected = (target.exp() * (target - found)).sum(dim=1).mean()
    assert divergence(pooled, teacher, records) == pytest.approx(expected.item(), rel=1e-4)
    assert expected > 1e-4
    torch.testing.assert_close(target.exp().sum(dim=1), torch.ones(len(target)))


def test_all_questions_about_an_image_are_one_conversation_about_it():
    (record,) = held_out_records(1)
    texts = [turn["value"] for turn in record["conversations"]]
    assert [turn["from"] for turn in record["conversations"]] == ["human", "gpt"] * (len(texts) // 2)
    assert ["<image>" in text for text in texts] == [True, *[False] * (len(texts) - 1)]
