"""Which window, how many tokens: plain, fused and reduced models answer alike."""

import pytest
import torch
from transformers import LlavaConfig

from llava_stf.errors import FusionError
from llava_stf.models.fusion.budget import (
    budget_of_prompt,
    num_image_tokens,
    resolve_window,
    resolve_windows,
    token_budgets,
    tokens_per_image,
)

from ..llava_stf.test_config import config

SIZES = [(336, 336), (20, 2000)]


def plain(grid=24):
    fused = config(grid)
    return LlavaConfig(vision_config=fused.vision_config, text_config=fused.text_config)


def test_a_plain_model_is_brought_to_any_window_of_its_grid():
    cfg = plain()
    assert [resolve_window(cfg, tokens) for tokens in (None, "all", 576, 144, 64, 1)] == [2, 1, 1, 2, 3, 24]
    assert resolve_windows(cfg, 64) == 3
    assert resolve_windows(cfg, [64]) == [3]
    assert resolve_windows(cfg, (144, 576, 36)) == [2, 1, 4]
    with pytest.raises(FusionError, match="gives 100 vision tokens; possible are 576, 144, 64"):
        resolve_window(cfg, 100)
    with pytest.raises(FusionError, match="empty list"):
        resolve_windows(cfg, [])


def test_a_plain_model_gives_every_patch():
    cfg = plain()
    assert num_image_tokens(cfg, SIZES) == num_image_tokens(cfg, SIZES, "all") == [576, 576]
    assert token_budgets(cfg) == [576]
    with pytest.raises(FusionError, match="load it with vision_tokens=144"):
        num_image_tokens(cfg, SIZES, 144)


def test_a_fused_model_gives_what_it_was_made_for():
    cfg = config(12, fusion_window=3, fusion_windows=[2, 3, 4], fusion_weight_window=2)
    assert resolve_windows(cfg) == 3
    assert token_budgets(cfg) == [36, 16, 9]
    assert tokens_per_image(cfg) == 16
    assert num_image_tokens(cfg, SIZES, 9) == [9, 9]
    assert num_image_tokens(cfg, []) == []
    with pytest.raises(FusionError, match="trained for 36 or 16 or 9 vision tokens and cannot give 144"):
        num_image_tokens(cfg, SIZES, 144)
    with pytest.raises(FusionError, match="list of vision_tokens is for a plain LLaVA"):
        resolve_windows(cfg, [36])


@pytest.mark.parametrize(("places", "expected"), [(18, 9), (32, 16), (72, 36), (10, 16)])
def test_a_prompt_tells_its_budget(places, expected):
    cfg = config(12, fusion_window=3, fusion_windows=[2, 3, 4], fusion_weight_window=2)
    mask = torch.arange(100)[None] < places
    assert budget_of_prompt(cfg, mask, SIZES) == expected
