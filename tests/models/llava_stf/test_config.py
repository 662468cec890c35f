"""LlavaStfConfig: defaults by depth, derived numbers, and what it refuses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, CLIPVisionConfig, LlamaConfig

from llava_stf import LlavaStfConfig
from llava_stf.errors import FusionError
from llava_stf.models.vision.layers import default_fusion_layers, state_index


def config(grid=4, blocks=6, width=16, hidden=32, **fusion):
    vision = CLIPVisionConfig(
        hidden_size=width, num_hidden_layers=blocks, num_attention_heads=2, image_size=14 * grid, patch_size=14
    )
    text = LlamaConfig(hidden_size=hidden, num_attention_heads=2, num_hidden_layers=1, vocab_size=64)
    return LlavaStfConfig(vision_config=vision, text_config=text, **fusion)


@pytest.mark.parametrize(
    ("blocks", "layers"),
    [(24, [-2, 21, 18, 15, 12, 9, 6, 3]), (12, [-2, 9, 6, 3]), (6, [-2, 3]), (3, [-2]), (40, [-2, *range(36, 0, -3)])],
)
def test_default_layers_follow_the_depth(blocks, layers):
    assert default_fusion_layers(blocks) == layers
    assert config(blocks=blocks).fusion_layers == layers


def test_seven_billion_defaults():
    cfg = LlavaStfConfig(text_config=LlamaConfig())  # the vision config's default is CLIP ViT-L/14-336
    assert cfg.image_seq_length == 144
    assert cfg.vision_feature_layer == [-2, 21, 18, 15, 12, 9, 6, 3]
    assert (cfg.fusion_block_hidden_size, cfg.fusion_hidden_size) == (4096, 16384)


def test_thirteen_billion_hidden_width_is_twenty_c():
    assert LlavaStfConfig(text_config=LlamaConfig(hidden_size=5120)).fusion_hidden_size == 20 * 1024


@given(st.integers(1, 30), st.integers(1, 31))
def test_window_must_divide_the_grid(grid, window):
    if grid % window == 0:
        assert config(grid, fusion_window=window).image_seq_length == (grid // window) ** 2
    else:
        with pytest.raises(ValueError, match=f"fusion_window {window} .*{grid}x{grid}"):
            config(grid, fusion_window=window)


def test_odd_grid_is_refused_with_both_numbers():
    with pytest.raises(FusionError, match="fusion_window 2 does not divide the grid of 5x5"):
        config(grid=5)


@pytest.mark.parametrize("layer", [7, -8, 100])
def test_missing_state_is_refused(layer):
    with pytest.raises(FusionError, match="does not exist"):
        config(fusion_layers=[layer])


def test_class_token_cannot_be_kept():
    with pytest.raises(FusionError, match="class token"):
        config(vision_feature_select_strategy="full")


@given(st.integers(1, 40))
def test_state_index_agrees_with_python_indexing(blocks):
    states = list(range(blocks + 1))
    for layer in (*states, *(-1 - state for state in states)):
        assert state_index(layer, blocks) == states[layer]


def test_round_trip_through_json(tmp_path):
    cfg = config(fusion_layers=[5, 2, 1], fusion_window=4, fusion_hidden_size=48, fusion_block_hidden_size=80)
    cfg.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(again, LlavaStfConfig)
    assert again.to_diff_dict() | {"_name_or_path": ""} == cfg.to_diff_dict() | {"_name_or_path": ""}
    assert (again.fusion_layers, again.image_seq_length) == ([5, 2, 1], 1)
