"""Hidden states of a vision tower: by index, of the patches alone, and no block run that none of them needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import output_capturing

from llava_stf.errors import FusionError
from llava_stf.models.vision.layers import state_index

# Since 5.21 or so a caller may ask a model for some hidden states by index, and the others are not kept.
SELECTIVE_CAPTURE = "select_hidden_states" in vars(output_capturing)


def towers_of(model: nn.Module) -> list[PreTrainedModel]:
    """The vision towers of a LLaVA without head: one, or Video-LLaVA's for images and for frames."""
    names = ("vision_tower", "image_tower", "video_tower")
    return [getattr(model, name) for name in names if hasattr(model, name)]


def tower_blocks(tower: PreTrainedModel) -> nn.ModuleList:
    """The transformer blocks of a vision tower, in order: its one `ModuleList` as long as the config says.

    Raises:
        FusionError: the tower is not built that way.
    """
    depth = tower.config.num_hidden_layers
    for module in tower.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    raise FusionError(f"Expected a vision tower with a list of {depth} blocks, found {type(tower).__name__}.")


def select_hidden_states(tower: PreTrainedModel, pixel_values: Tensor, layers: Sequence[int]) -> list[Tensor]:
    """Hidden states of the tower at some layers; nothing is left behind on the tower, so threads may share it.

    Args:
        tower: a Vision Transformer of transformers.
        pixel_values: [B, 3, height, width].
        layers: indices as in `state_index`.

    Returns:
        For each layer [B, S + N, C], S special tokens before the N patches: 1 for a tower with a class token, more with
        register tokens, 0 without either. Where transformers captures by index, no other state is kept.

    Raises:
        FusionError: the tower has no such state.
    """
    wanted = [state_index(layer, tower.config.num_hidden_layers) for layer in layers]
    capture = wanted if SELECTIVE_CAPTURE else True
    states = tower(pixel_values, output_hidden_states=capture, return_dict=True).hidden_states
    return [states[index] for index in wanted]


def select_patch_states(tower: PreTrainedModel, pixel_values: Tensor, layers: Sequence[int]) -> list[Tensor]:
    """As `select_hidden_states`, of the patches alone: each a view [B, N, C] of what the tower gave."""
    patch = tower.config.patch_size
    patches = (pixel_values.shape[-2] // patch) * (pixel_values.shape[-1] // patch)
    states = select_hidden_states(tower, pixel_values, layers)
    special = states[0].shape[1] - patches
    return [state[:, special:] for state in states]


def _pass_through(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return hidden_states


def skip_unused_blocks(tower: PreTrainedModel, layers: Sequence[int]) -> None:
    """Do not run the blocks above the deepest state in `layers`; with select layer -2 that is the last one.

    Weights and state dict stay as they are. From then on the tower's own last state is the deepest selected one.
    """
    depth = tower.config.num_hidden_layers
    deepest = max(state_index(layer, depth) for layer in layers)
    for block in tower_blocks(tower)[deepest:]:
        block.forward = _pass_through


def run_all_blocks(tower: PreTrainedModel) -> None:
    """Undo `skip_unused_blocks`."""
    for block in tower_blocks(tower):
        if vars(block).get("forward") is _pass_through:
            del block.forward
