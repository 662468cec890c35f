"""VisionZip: keep the patches that the class token attends to, and merge the rest by likeness."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlavaConfig, LlavaForConditionalGeneration
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from llava_stf.errors import FusionError
from llava_stf.models.vision.layers import state_index
from llava_stf.models.vision.states import select_hidden_states, tower_blocks
from llava_stf.reduction.model import ReducedLlavaModel, TrainingFreeMethod
from llava_stf.reduction.tensors import gather_tokens, marked, merge_tokens

# The paper's splits for LLaVA-1.5 are 162 + 30, 108 + 20 and 54 + 10.
CONTEXTUAL_SHARE = 10 / 64


def contextual_count(count: int) -> int:
    """How many of `count` tokens are merged ones; the others are dominant."""
    return round(count * CONTEXTUAL_SHARE)


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


def dominant_tokens(attention: Tensor, count: int) -> Tensor:
    """Raster indices of the patches most attended to; attention [B, N] -> ascending int64 [B, count]."""
    return attention.topk(count, dim=-1).indices.sort(-1).values


def zip_tokens(x: Tensor, attention: Tensor, keys: Tensor, count: int) -> Tensor:
    """`count` tokens in raster order: dominant ones as they are, the others merged into contextual ones.

    The paper's "contextual tokens merging": of the tokens that are not dominant, evenly spaced ones are targets, and
    each other one goes to the target with the most similar key (cosine). A contextual token is the mean of a target and
    what went to it.

    Args:
        x: [B, N, C].
        attention: float32 [B, N].
        keys: [B, N, D].

    Returns:
        [B, count, C].
    """
    rows, patches = attention.shape
    contextual = contextual_count(count)
    dominant = dominant_tokens(attention, count - contextual)
    stays = torch.zeros_like(attention, dtype=torch.bool).scatter(1, dominant, True)
    home = torch.arange(patches, device=x.device).repeat(rows, 1)
    if contextual:
        rest = marked(~stays, patches - dominant.shape[1])
        places = torch.arange(contextual, device=x.device) * rest.shape[1] // contextual
        targets = rest[:, places]
        unit = functional.normalize(keys.float(), dim=-1)
        likeness = gather_tokens(unit, rest) @ gather_tokens(unit, targets).transpose(1, 2)
        home = home.scatter(1, rest, targets.gather(1, likeness.argmax(-1))).scatter(1, targets, targets)
        stays = stays.scatter(1, targets, True)
    merged, _ = merge_tokens(x, torch.ones_like(attention), home, marked(stays, count))
    return merged


class VisionZip(TrainingFreeMethod):
    """Works on the tower's state, so that the projector runs on what is left. The class token itself is not kept."""

    name = "visionzip"
    title = "VisionZip"
    reference = "Yang et al., arXiv 2412.04467"
    needs = "The attention of the class token in one tower block: its keys are computed twice, attention stays fused."

    def check(self, config: LlavaConfig, patches: int, vision_tokens: int) -> None:
        super().check(config, patches, vision_tokens)
        if config.vision_feature_select_strategy != "default" or config.vision_config.model_type != "clip_vision_model":
            raise FusionError(
                "VisionZip ranks patches by the attention of the class token; expected a CLIP tower with one, found "
                f"'{config.vision_config.model_type}' with select strategy '{config.vision_feature_select_strategy}'."
            )

    def image_tokens(self, model: ReducedLlavaModel, pixel_values: Tensor) -> Tensor:
        state, attention, keys = self._measure(model, pixel_values)
        return model.multi_modal_projector(zip_tokens(state, attention, keys, model.reduction.vision_tokens))

    @torch.no_grad()
    def kept(self, model: LlavaForConditionalGeneration, pixel_values: Tensor) -> Tensor:
        """The dominant patches alone: `vision_tokens` less `contextual_count`."""
        _, attention, _ = self._measure(model.model, pixel_values)
        count = model.model.reduction.vision_tokens
        return dominant_tokens(attention, count - contextual_count(count))

    def _measure(self, model: ReducedLlavaModel, pixel_values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Selected state of the patches [B, N, C], and what `class_attention` finds in the block that made it."""
        tower = model.vision_tower
        selected = state_index(model.config.vision_feature_layer, tower.config.num_hidden_layers)
        below, state = select_hidden_states(tower, pixel_values, [selected - 1, selected])
        return state[:, 1:], *class_attention(tower_blocks(tower)[selected - 1], below)
