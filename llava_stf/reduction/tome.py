"""ToMe: merge the most similar tokens inside every block of the vision tower."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.hooks import RemovableHandle
from transformers import LlavaConfig, LlavaForConditionalGeneration
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from llava_stf.errors import FusionError
from llava_stf.models.vision.layers import state_index
from llava_stf.models.vision.states import tower_blocks
from llava_stf.reduction.model import ReducedLlavaModel, TrainingFreeMethod
from llava_stf.reduction.size_bias import SizeBias, check_size_bias
from llava_stf.reduction.tensors import marked, merge_tokens


def patches_after(blocks: int, patches: int, vision_tokens: int) -> list[int]:
    """Patches left after each block.

    As many are merged in each (section 3, "Strategy"), or more of them early where a later block would have to merge
    over half of its patches.
    """
    merged = patches - vision_tokens
    even = (patches - merged * (block + 1) // blocks for block in range(blocks))
    return [min(left, vision_tokens << (blocks - 1 - block)) for block, left in enumerate(even)]


Order = Literal["authors", "raster"]


def bipartite_matching(keys: Tensor, merges: int, order: Order = "authors") -> tuple[Tensor, Tensor]:
    """Which tokens go into which, at most half of them (section 3, "Bipartite Soft Matching").

    Every second token, from the first, is in set A, the others in set B. Each of A is tied to its most similar one of
    B (cosine, float32), and the `merges` strongest ties are merged. The first token, the class token, stays out.

    Args:
        keys: [B, 1 + N, D].
        merges: how many tokens of A go.
        order: of those that are left: `"authors"`, what is left of A and then B, or `"raster"`, as they stood.

    Returns:
        The token that each goes into, int64 [B, 1 + N], and those that are left, int64 [B, 1 + N - merges]: the pair
        that `merge_tokens` takes.
    """
    rows, tokens, _ = keys.shape
    home = torch.arange(tokens, device=keys.device).repeat(rows, 1)
    unit = functional.normalize(keys.float(), dim=-1)
    likeness = unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)
    likeness[:, 0] = -torch.inf
    strength, partner = likeness.max(-1)
    source = strength.argsort(dim=-1, descending=True, stable=True)[:, :merges]
    stays = torch.ones_like(home, dtype=torch.bool).scatter(1, 2 * source, False)
    home = home.scatter(1, 2 * source, 2 * partner.gather(1, source) + 1)
    left = marked(stays, tokens - merges)
    if order == "authors":
        left = left.gather(1, (left % 2).argsort(dim=-1, stable=True))
    return home, left


def merging_block(
    block: CLIPEncoderLayer, x: Tensor, size: Tensor | None, left: int, order: Order = "authors"
) -> tuple[Tensor, Tensor | None]:
    """One CLIP block that merges between attention and MLP, by the keys of this attention (section 3).

    Args:
        block: of a CLIP tower.
        x: [B, 1 + N, C], the class token first.
        size: float32 [B, 1 + N], patches in each token, whose logarithm is added to the attention (equation 1);
            `None` is one each.
        left: patches after the block.
        order: see `bipartite_matching`; the next block's two sets are every second token of it.

    Returns:
        The block's output [B, 1 + left, C], and the sizes [B, 1 + left].
    """
    attention = block.self_attn
    normed = block.layer_norm1(x)
    query, keys, values = (
        layer(normed).unflatten(-1, (attention.num_heads, attention.head_dim)).transpose(1, 2)
        for layer in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    bias = None if size is None else size.log().to(query.dtype)[:, None, None]
    mixed = functional.scaled_dot_product_attention(query, keys, values, attn_mask=bias, scale=attention.scale)
    x = x + attention.out_proj(mixed.transpose(1, 2).flatten(2))
    merges = x.shape[1] - 1 - left
    if merges:
        size = x.new_ones(x.shape[:2], dtype=torch.float32) if size is None else size
        x, size = merge_tokens(x, size, *bipartite_matching(keys.mean(1), merges, order))
    return x + block.mlp(block.layer_norm2(x)), size


@dataclass(frozen=True)
class ToMe(TrainingFreeMethod):
    """The authors' ToMe: merges inside the tower, so that the tower gets cheaper too.

    Groups and states equal those of the authors' code in float32. A merged token takes the place of the one that the
    others went into.

    Attributes:
        order: `"authors"`: after each merge what is left of set A stands before set B; so the next block pairs the
            tokens and the LLM reads them. `"raster"` goes back to raster order after each merge, which pairs
            neighbours again and keeps the image's layout for the LLM: another method from the second block on.
        attention_bias: whether the LLM, too, attends to a token by the number of patches in it.
    """

    order: Order = "authors"
    attention_bias: bool = False

    name = "tome"
    title = "ToMe"
    reference = "Bolya et al., arXiv 2210.09461"
    needs = (
        "A bias on the tower's attention, which rules out FlashAttention there; the tower works on fewer and fewer "
        "patches."
    )

    def check(self, config: LlavaConfig, patches: int, vision_tokens: int) -> None:
        """Also refuse a tower that is no CLIP, or a budget that its blocks cannot merge down to."""
        super().check(config, patches, vision_tokens)
        vision = config.vision_config
        if config.vision_feature_select_strategy != "default" or vision.model_type != "clip_vision_model":
            raise FusionError(
                "ToMe merges in the blocks of a CLIP tower whose class token is dropped; found "
                f"'{vision.model_type}' with select strategy '{config.vision_feature_select_strategy}'."
            )
        if self.attention_bias:
            check_size_bias(config, self.name)
        blocks = state_index(config.vision_feature_layer, vision.num_hidden_layers)
        if vision_tokens << blocks < patches:
            raise FusionError(
                f"A block can at most halve its patches, so {blocks} blocks leave at least {-(-patches >> blocks)} of "
                f"{patches}; found vision_tokens {vision_tokens}."
            )

    def hooks(self, model: LlavaForConditionalGeneration) -> list[RemovableHandle]:
        """As `TrainingFreeMethod.hooks`."""
        return SizeBias(model).hooks() if self.attention_bias else []

    def image_tokens(self, model: ReducedLlavaModel, pixel_values: Tensor) -> Tensor:
        """The tower's patches, merged block by block, and projected: [B, M, H]."""
        tower, reduction = model.vision_tower, model.reduction
        blocks = tower_blocks(tower)[: state_index(model.config.vision_feature_layer, len(tower_blocks(tower)))]
        x, size = tower.pre_layrnorm(tower.embeddings(pixel_values)), None
        schedule = patches_after(len(blocks), reduction.patches, reduction.vision_tokens)
        for block, left in zip(blocks, schedule, strict=True):
            x, size = merging_block(block, x, size, left, self.order)
        size = x.new_ones(x.shape[:2], dtype=torch.float32) if size is None else size
        reduction.encoded.sizes = size[:, 1:]
        return model.multi_modal_projector(x[:, 1:])
