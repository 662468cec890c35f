"""PruMerge+: patches that the class token attends to, patches from all over the image, and in each what is like it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlavaConfig
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from llava_stf.errors import FusionError
from llava_stf.models.vision.layers import state_index
from llava_stf.models.vision.states import select_hidden_states, tower_blocks
from llava_stf.reduction.class_token import ClassTokenMethod
from llava_stf.reduction.model import ReducedLlavaModel
from llava_stf.reduction.tensors import gather_tokens

# Tokens that each kept one takes up, as in the authors' release of PruMerge+.
NEIGHBOURS = 32


def joint_attention(block: CLIPEncoderLayer, state: Tensor) -> tuple[Tensor, Tensor]:
    """What the class token attends to if the heads of a CLIP block are taken as one.

    Args:
        block: the block.
        state: [B, 1 + N, C], what goes into it, the class token first.

    Returns:
        Attention to the patches, float32 [B, N]; keys of the patches, [B, N, C].
    """
    normed = block.layer_norm1(state)
    query, keys = block.self_attn.q_proj(normed[:, :1]), block.self_attn.k_proj(normed)
    scores = (query @ keys.transpose(1, 2)) * state.shape[-1] ** -0.5
    return scores.float().softmax(-1)[:, 0, 1:], keys[:, 1:]


def kept_patches(attention: Tensor, count: int) -> Tensor:
    """The `count` patches that are kept, int64 [B, count]: by attention, then from all over the image.

    Half, rounded down, lie evenly over the raster, in the middle of equal parts; those of them that attention has
    chosen already make room for what comes next in its order.
    """
    patches, spread = attention.shape[1], count // 2
    places = torch.arange(patches, device=attention.device)
    spots = (2 * places[:spread] + 1) * patches // (2 * spread or 1)
    order = attention.argsort(dim=-1, descending=True, stable=True)
    # From here on in the order of attention.
    spot = torch.isin(order, spots)
    heeded = (places < count - spread).expand_as(order)
    free = ~(heeded | spot)
    heeded = heeded | (free & (free.cumsum(-1) <= (heeded & spot).sum(-1, keepdim=True)))
    turn = torch.where(heeded, places, torch.where(spot, patches + order, 2 * patches))
    return order.gather(1, turn.argsort(dim=-1, stable=True)[:, :count])


@dataclass(frozen=True)
class PruMergePlus(ClassTokenMethod):
    """Keeps M - 1 patches, each with what is like it added, and one token for all others, in that order.

    As in its authors' release: attention and keys are those of the block above the selected state, heads taken as one;
    a kept token is its patch plus the 32 patches with the most similar keys, each times its attention (not divided by
    its sum); the last token is the sum of the patches that are not kept, each times its attention. It works on the
    tower's state, so that the projector runs on what is left.

    The paper draws the number of tokens from the outliers of attention, another for every image, and adds patches "in
    space"; its release has a fixed number, too, for training: N / 8 by attention and N / 8 every eighth, from the
    fourth on, 145 tokens in all, some patches twice. Ours: at any budget half by attention and half evenly spread as
    there, no patch twice, and in place of one that both choose the next by attention. Attention, cosines and sums are
    float32.
    """

    name = "prumerge+"
    title = "PruMerge+"
    reference = "Shang et al., arXiv 2403.15388"
    needs = "The attention of the class token in one tower block, the likeness of keys, and one token for all the rest."

    def check(self, config: LlavaConfig, patches: int, vision_tokens: int) -> None:
        """Also refuse a state with no block above it."""
        super().check(config, patches, vision_tokens)
        depth = config.vision_config.num_hidden_layers
        if state_index(config.vision_feature_layer, depth) == depth:
            raise FusionError(
                "PruMerge+ reads the attention of the tower's block above the selected state; found the last state "
                f"selected, vision_feature_layer {config.vision_feature_layer}."
            )

    def merge(self, x: Tensor, attention: Tensor, keys: Tensor, count: int) -> Tensor:
        """`count` tokens of an image: [B, count, C].

        Args:
            x: the selected state of the patches, [B, N, C].
            attention: float32 [B, N].
            keys: [B, N, C].
            count: M.
        """
        patches = x.shape[1]
        kept = kept_patches(attention, count - 1)
        unit = functional.normalize(keys.float(), dim=-1)
        likeness = gather_tokens(unit, kept) @ unit.transpose(1, 2)  # [B, M - 1, N]
        likeness = likeness.scatter(2, kept[..., None], -torch.inf)
        near = likeness.topk(min(NEIGHBOURS, patches - 1), dim=-1).indices
        added = torch.zeros_like(likeness).scatter(2, near, 1.0) * attention[:, None]
        others = attention.scatter(1, kept, 0.0)[:, None]
        sums = torch.cat([added, others], dim=1) @ x.float()
        sums[:, :-1] += gather_tokens(x, kept).float()
        return sums.to(x.dtype)

    def image_tokens(self, model: ReducedLlavaModel, pixel_values: Tensor) -> Tensor:
        """Merged tokens, projected: [B, M, H]."""
        tower = model.vision_tower
        selected = state_index(model.config.vision_feature_layer, tower.config.num_hidden_layers)
        (state,) = select_hidden_states(tower, pixel_values, [selected])
        attention, keys = joint_attention(tower_blocks(tower)[selected], state)
        return model.multi_modal_projector(self.merge(state[:, 1:], attention, keys, model.reduction.vision_tokens))
