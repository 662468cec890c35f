"""Which parameters are trained, and at which learning rate."""

import pytest
import torch
from torch import nn

from llava_stf.errors import LlavaStfError
from llava_stf.training.optim import parameter_groups, part_of, train_only


@pytest.fixture
def model(llava_base):
    from transformers import AutoModelForImageTextToText

    from llava_stf.reduction.apply import apply_stf

    return apply_stf(AutoModelForImageTextToText.from_pretrained(llava_base))


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model.vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight", "vision_tower"),
        ("model.multi_modal_projector.spatial_fusion.linear_1.bias", "projector"),
        ("module.model.multi_modal_projector.linear_1.weight", "projector"),
        ("model.language_model.embed_tokens.weight", "language_model"),
        ("lm_head.weight", "language_model"),
    ],
)
def test_parts_are_told_by_name(name, part):
    assert part_of(name) == part


def test_every_part_gets_its_own_learning_rate_and_every_parameter_is_in_one_group(model):
    rates = {"projector": 1.0, "language_model": 2.0, "vision_tower": 3.0}
    train_only(model, rates)
    groups = parameter_groups(model, rates, weight_decay=0.1)
    grouped = {id(parameter): group for group in groups for parameter in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(grouped) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        group = grouped[id(parameter)]
        assert group["lr"] == rates[part_of(name)], name
        assert group["weight_decay"] == (0.1 if parameter.ndim >= 2 else 0.0), name
    torch.optim.AdamW(groups)


def test_frozen_parts_are_in_no_group(model):
    train_only(model, {"projector"})
    groups = parameter_groups(model, {"projector": 1e-3})
    assert {group["part"] for group in groups} == {"projector"}
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert names == {name for name, _ in model.named_parameters() if "multi_modal_projector" in name}


def test_a_model_without_the_part_is_refused():
    with pytest.raises(LlavaStfError, match="projector"):
        train_only(nn.Linear(2, 2), {"projector"})
