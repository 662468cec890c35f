"""What the class token of a CLIP tower attends to: VisionZip, HoloV, VisPruner and PruMerge+ choose patches by it."""

from __future__ import annotations

from torch import Tensor
from transformers import LlavaConfig
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from llava_stf.errors import FusionError
from llava_stf.models.vision.layers import state_index
from llava_stf.models.vision.states import select_hidden_states, tower_blocks
from llava_stf.reduction.model import ReducedLlavaModel, TrainingFreeMethod


def class_attention(block: CLIPEncoderLayer, state: Tensor) -> tuple[Tensor, Tensor]:
    """What the class token attends to in one block of the tower, and the keys it is found by.

    One query against all keys, in place of attention maps from the whole tower: attention itself stays fused.

    Args:
        block: a CLIP block.
        state: [B, 1 + N, C], what goes into it, the class token first.

    Returns:
        Attention to the patches, mean over the heads, float32 [B, N]; keys of the patches, mean over the heads,
        [B, N, head_dim].
    """
    attention = block.self_attn
    normed = block.layer_norm1(state)
    heads = (attention.num_heads, attention.head_dim)
    query = attention.q_proj(normed[:, :1]).unflatten(-1, heads).transpose(1, 2)  # [B, heads, 1, head_dim]
    keys = attention.k_proj(normed).unflatten(-1, heads).transpose(1, 2)
    scores = (query @ keys.transpose(2, 3)) * attention.scale
    return scores.float().softmax(-1).mean(1)[:, 0, 1:], keys.mean(1)[:, 1:]


class ClassTokenMethod(TrainingFreeMethod):
    """A method that ranks patches by the attention of the class token."""

    def check(self, config: LlavaConfig, patches: int, vision_tokens: int) -> None:
        """Also refuse a tower that is no CLIP with a class token."""
        super().check(config, patches, vision_tokens)
        if config.vision_feature_select_strategy != "default" or config.vision_config.model_type != "clip_vision_model":
            raise FusionError(
                f"{self.title} ranks patches by the attention of the class token; expected a CLIP tower with one, "
                f"found '{config.vision_config.model_type}' with select strategy "
                f"'{config.vision_feature_select_strategy}'."
            )
        if state_index(config.vision_feature_layer, config.vision_config.num_hidden_layers) < 1:
            raise FusionError(
                f"{self.title} reads the attention in the block below the selected hidden state; found "
                f"vision_feature_layer {config.vision_feature_layer}, which no block has made."
            )

    def measure(self, model: ReducedLlavaModel, pixel_values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Selected state [B, 1 + N, C], and what `class_attention` finds in the block that made it."""
        tower = model.vision_tower
        selected = state_index(model.config.vision_feature_layer, tower.config.num_hidden_layers)
        below, state = select_hidden_states(tower, pixel_values, [selected - 1, selected])
        return state, *class_attention(tower_blocks(tower)[selected - 1], below)
