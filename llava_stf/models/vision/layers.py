"""Which hidden states of a vision tower there are, and which of them are fused by default."""

from __future__ import annotations

from typing import Any

from llava_stf.errors import FusionError


def state_index(layer: int, num_blocks: int) -> int:
    """Index of a hidden state counted from the front: 0 is the embedding, i the output of block i, -1 the last one.

    Raises:
        FusionError: a tower of that many blocks has no such state.
    """
    index = layer + num_blocks + 1 if layer < 0 else layer
    if not 0 <= index <= num_blocks:
        raise FusionError(
            f"Fusion layer {layer} does not exist: a vision tower of {num_blocks} blocks has states 0 to {num_blocks} "
            f"(or -{num_blocks + 1} to -1)."
        )
    return index


def default_fusion_layers(num_blocks: int, select_layer: int = -2) -> list[int]:
    """Hidden states that MBTF joins by default: the select layer, then every third block downwards, deepest first.

    24 blocks give [-2, 21, 18, 15, 12, 9, 6, 3], the list of the paper (arXiv 2506.07138, section on Multi-Block Token
    Fusion).

    Args:
        num_blocks: depth of the vision tower.
        select_layer: the one that a plain LLaVA takes.

    Raises:
        FusionError: the tower has no such layer.
    """
    selected = state_index(select_layer, num_blocks)
    return [select_layer, *range((selected - 1) // 3 * 3, 0, -3)]


def selected_layers(config: Any) -> int | list[int]:
    """The tower's states that a LLaVA of this config takes.

    A ViP-LLaVA's field has another name in transformers 5.17.
    """
    name = "vision_feature_layer" if hasattr(config, "vision_feature_layer") else "vision_feature_layers"
    return getattr(config, name)


def select_strategy(config: Any) -> str:
    """What of the tower's states a LLaVA of this config takes: `"default"` leaves out the class token.

    A ViP-LLaVA leaves it out and has no such field.
    """
    return getattr(config, "vision_feature_select_strategy", "default")


def tokenpacker_layers(num_blocks: int, select_layer: int = -2) -> list[int]:
    """Hidden states that TokenPacker joins by default: the selected one and three levels below it, deepest first.

    24 blocks give [-2, 22, 16, 12], those of its paper (arXiv 2407.02392); other towers have these at the same share of
    their depth, which is this package's choice.

    Args:
        num_blocks: depth of the vision tower.
        select_layer: the one that a plain LLaVA takes.

    Raises:
        FusionError: the tower has no such layer.
    """
    selected = state_index(select_layer, num_blocks)
    levels = {selected - 1, selected * 16 // 23, selected * 12 // 23}
    return [select_layer, *sorted((level for level in levels if 0 < level < selected), reverse=True)]
