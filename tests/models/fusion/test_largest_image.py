"""The image with most tokens, by which a server reserves memory: none has more, and it is one that exists."""

import random

import pytest
from transformers import LlavaConfig, LlavaNextConfig, LlavaOnevisionConfig

from llava_stf import LlavaNextStfConfig, LlavaOnevisionStfConfig
from llava_stf.models.fusion.budget import largest_image, num_image_tokens
from llava_stf.models.fusion.tiles import WHOLE, sizes_in_prompt

CONFIGS = [
    LlavaConfig(),
    LlavaNextConfig(),
    LlavaNextStfConfig(),
    LlavaNextStfConfig(fusion_window=4, image_grid_pinpoints=[[336, 1008], [1008, 1008], [336, 336]]),
    LlavaOnevisionStfConfig(),
    LlavaOnevisionStfConfig(fusion_window=3),
    LlavaOnevisionStfConfig(vision_aspect_ratio="anyres_max_2"),
    LlavaOnevisionConfig(),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_no_image_has_more_tokens(config):
    rng = random.Random(0)
    sizes = [(rng.randint(1, 4500), rng.randint(1, 4500)) for _ in range(1500)]
    sizes += [(round(10 ** rng.uniform(0, 3.7)), round(10 ** rng.uniform(0, 3.7))) for _ in range(1500)]
    most = num_image_tokens(config, [largest_image(config)])[0]
    found = max(num_image_tokens(config, sizes))
    assert 0.99 * most <= found <= most


def test_known_numbers():
    """Of a LLaVA-OneVision not the image that fills all tiles, whose tokens are shrunk to those of nine tiles."""
    config = LlavaOnevisionStfConfig()
    assert num_image_tokens(config, [largest_image(config), (2304, 2304), (944, 1153)]) == [2400, 2002, 1935]


def test_several_images_of_a_prompt():
    sizes = [(600, 800), (30, 40)]
    assert sizes_in_prompt(LlavaNextStfConfig(), sizes) == sizes
    assert sizes_in_prompt(LlavaOnevisionStfConfig(), sizes) == [WHOLE, WHOLE]
    assert sizes_in_prompt(LlavaOnevisionStfConfig(), sizes[:1]) == sizes[:1]
