"""What a prompt costs, counted and not timed: tokens in every LLM layer, FLOPs, and bytes of the KV cache.

One function for every way to shorten the sequence: a method is known here by the vision tokens that each LLM layer
holds, one number where it shortens before the LLM, a list where it drops tokens inside.

FLOPs are two per multiply-add of the matrix products and of attention, which is counted in full and not by its causal
mask. Norms, activations, embeddings and the arithmetic of selecting tokens are left out. Worked example, LLaVA-1.5-7B
with one image and 64 text tokens: 8.50 TFLOP of prefill and 320 MiB of KV cache at 576 vision tokens, 2.72 TFLOP and
104 MiB at 144.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import LlavaConfig

from llava_stf.errors import FusionError
from llava_stf.models.fusion.budget import (
    ImageSizes,
    VisionTokens,
    patch_grid,
    resolve_window,
    tokens_of_prompt,
    tokens_per_image,
)
from llava_stf.models.fusion.config import FusionConfig
from llava_stf.models.fusion.tiles import cells_of, has_tiles, number_of_tiles, sizes_in_prompt, takes_videos
from llava_stf.models.vision.layers import selected_layers, state_index
from llava_stf.models.vision.states import tower_blocks
from llava_stf.models.vision.towers import one_block, special_tokens_of


@dataclass(frozen=True)
class Count:
    """The cost of one prompt.

    `vision_tokens` and `llm_tokens` (text included) are positions in each LLM layer, of all images of the prompt.
    `decode_flops` is one new token right behind the prompt, the head included; `prefill_flops` is the decoder layers
    alone. `kv_bytes` is the cache of the prompt.
    """

    vision_tokens: tuple[int, ...]
    llm_tokens: tuple[int, ...]
    tower_flops: int
    projector_flops: int
    prefill_flops: int
    decode_flops: int
    kv_bytes: int

    @property
    def mean_vision_tokens(self) -> float:
        """The mean over the layers, which is what papers on dropping tokens inside the LLM call their budget."""
        return sum(self.vision_tokens) / len(self.vision_tokens)


def count(
    config: LlavaConfig,
    vision_tokens: int | Sequence[int] | None = None,
    *,
    text_tokens: int = 64,
    images: int = 1,
    image_sizes: ImageSizes | None = None,
    frames: Sequence[int] = (),
    itemsize: int = 2,
    skip_unused_blocks: bool | None = None,
) -> Count:
    """The cost of one prompt on a model of this config.

    Args:
        config: of a plain or fused model of any class of the family, with a ViT and an LLM of LLaMA's build (gated
            MLP).
        vision_tokens: of one image: in all layers, or one number for each LLM layer. `None`: the config's own. Where
            images are cut into tiles, and with videos, one of the model's budgets, which is of a tile.
        text_tokens: everything in the prompt that is no vision token.
        images: in the prompt, of the tower's own size, if `image_sizes` and `frames` are not given.
        image_sizes: height and width of each image in the prompt, in pixels.
        frames: of each video in the prompt.
        itemsize: bytes of an element of the KV cache.
        skip_unused_blocks: whether the tower's blocks above the deepest selected state are left out, as in a LLaVA-STF
            (the default there) and in a plain LLaVA that a method of `llava_stf.reduction` was applied to.

    A plain LLaVA's projector is counted on every patch, also for a method that drops some before it, which at 144 of
    576 tokens is 1 % of the whole.

    Raises:
        FusionError: the list of vision tokens is not as long as the LLM is deep, a number is negative, the model takes
            images in tiles or videos and has no such budget, or it takes no videos.
    """
    layers, side = config.text_config.num_hidden_layers, config.vision_config.image_size
    if image_sizes is None:
        image_sizes = [] if frames else [(side, side)] * images
    image_sizes = sizes_in_prompt(config, image_sizes)
    budget: Any = vision_tokens
    if has_tiles(config) or takes_videos(config) or frames:
        if not isinstance(budget, int | None):
            raise FusionError(f"A {config.model_type} is counted at one of its budgets, found {budget!r}.")
        per_layer = [tokens_of_prompt(config, image_sizes, frames, budget)] * layers
    else:
        if budget is None:
            budget = tokens_per_image(config)
        one = [budget] * layers if isinstance(budget, int) else list(budget)
        if len(one) != layers or min(one) < 0:
            raise FusionError(
                f"Expected the vision tokens of each of the LLM's {layers} layers, none negative, found {one}."
            )
        budget, per_layer = one[0], [len(image_sizes) * tokens for tokens in one]
    squares = len(image_sizes)
    if has_tiles(config):
        squares = sum(number_of_tiles(size, config.image_grid_pinpoints, side) for size in image_sizes)
    lengths = [tokens + text_tokens for tokens in per_layer]
    text = config.text_config
    parameters, attended = _layer_parameters(text), text.num_attention_heads * _head_dim(text)
    return Count(
        vision_tokens=tuple(per_layer),
        llm_tokens=tuple(lengths),
        tower_flops=(squares + sum(frames)) * tower_flops(config, skip_unused_blocks=skip_unused_blocks),
        projector_flops=squares * projector_flops(config, budget) + sum(frames) * frame_projector_flops(config, budget),
        prefill_flops=sum(2 * length * parameters + 4 * length**2 * attended for length in lengths),
        decode_flops=sum(2 * parameters + 4 * (length + 1) * attended for length in lengths)
        + 2 * text.hidden_size * text.vocab_size,
        kv_bytes=sum(2 * length * text.num_key_value_heads * _head_dim(text) * itemsize for length in lengths),
    )


def tower_flops(config: LlavaConfig, *, skip_unused_blocks: bool | None = None) -> int:
    """One image, tile or frame through the vision tower: the patch embedding and the blocks that are run.

    The class token and other special tokens that the tower has count, too. `skip_unused_blocks` as in `count`: a
    LLaVA-STF skips them by default, a plain LLaVA runs all.
    """
    vision = config.vision_config
    blocks, width, patches = vision.num_hidden_layers, vision.hidden_size, patch_grid(config) ** 2
    fused = isinstance(config, FusionConfig)
    if fused if skip_unused_blocks is None else skip_unused_blocks:
        layers = config.vision_feature_layer
        selected = [layers] if isinstance(layers, int) else layers
        blocks = max(state_index(layer, blocks) for layer in selected)
    positions = patches + special_tokens_of(vision)
    (block,) = tower_blocks(one_block(vision))
    products = 2 * positions * sum(part.weight.numel() for part in block.modules() if isinstance(part, nn.Linear))
    attention = 4 * positions**2 * width
    return blocks * (products + attention) + 2 * patches * 3 * vision.patch_size**2 * width


def projector_flops(config: LlavaConfig, vision_tokens: VisionTokens = None) -> int:
    """One image, or tile, through the projector: MBTF and STF, TokenPacker's, MQT's, or a plain LLaVA's.

    `vision_tokens` are what a fused model leaves of it, by default the config's own. In windows of another side than
    its weights' it also runs each hidden unit on every patch of the unit's own part of the window.
    """
    window = resolve_window(config, vision_tokens) if isinstance(config, FusionConfig) else 1
    return _projected(config, cells_of(patch_grid(config), window) ** 2, window)


def frame_projector_flops(config: LlavaConfig, vision_tokens: VisionTokens = None) -> int:
    """One frame of a video through the projector, see `projector_flops`.

    LLaVA-NeXT-Video pools frames before it, and in Video-LLaVA the class token passes it as a window of its own.
    """
    window = resolve_window(config, vision_tokens) if isinstance(config, FusionConfig) else 1
    grid, windows_more = patch_grid(config), int(not has_tiles(config))
    if hasattr(config, "spatial_pool_stride") and getattr(config, "fusion_pool_frames", True):
        grid //= config.spatial_pool_stride
    return _projected(config, cells_of(grid, window) ** 2 + windows_more, window)


def _projected(config: LlavaConfig, windows: int, window: int) -> int:
    """So many windows of that side through the projector."""
    width, llm, patches = config.vision_config.hidden_size, config.text_config.hidden_size, windows * window**2
    layers = config.fusion_states if isinstance(config, FusionConfig) else selected_layers(config)
    joined = width * (1 if isinstance(layers, int) else len(layers))
    if not isinstance(config, FusionConfig) or config.fusion == "pool":
        return 2 * patches * (joined * llm + llm**2)
    if config.fusion == "tokenpacker":
        return _tokenpacker_flops(config, patches, windows)
    if config.fusion == "mqt":
        return _mqt_flops(config, patches, windows)
    block, spatial = config.fusion_block_hidden_size, config.fusion_hidden_size
    assert block is not None  # a config fills in its widths
    assert spatial is not None
    fuse_blocks = 2 * patches * block * (joined + width)
    if hasattr(config, "projector_layernorm_eps"):  # a ViP-LLaVA, which has a norm in MBTF's place
        fuse_blocks, width = 0, joined
    own = config.fusion_weight_window
    assert own is not None
    inputs = own**2 * width
    if window != own:
        touched = sum(-(-(place + 1) * window // own) - place * window // own for place in range(own))
        inputs += touched**2 * width // own**2
    return fuse_blocks + 2 * windows * spatial * (inputs + llm)


def _tokenpacker_flops(config: FusionConfig, patches: int, tokens: int) -> int:
    """Keys and values of every patch through two layers and the attention's own, queries and outputs of the tokens."""
    width, llm = config.vision_config.hidden_size, config.text_config.hidden_size
    of_patches = 2 * (len(config.fusion_states) + 2) * width**2 + 2 * width  # each is attended to by one query
    of_tokens = 3 * width**2 + width * llm + llm**2
    return 2 * (patches * of_patches + tokens * of_tokens)


def _mqt_flops(config: FusionConfig, patches: int, tokens: int) -> int:
    """Keys and values of every patch, queries, attention, outputs and the map to the LLM of the tokens."""
    width, llm = config.vision_config.hidden_size, config.text_config.hidden_size
    return 2 * (2 * patches * width**2 + tokens * (2 * patches * width + 2 * width**2 + width * llm))


def llm_parameters(config: LlavaConfig) -> int:
    """Weights of the matrix products that every new token reads: the decoder layers and the head."""
    text = config.text_config
    return text.num_hidden_layers * _layer_parameters(text) + text.hidden_size * text.vocab_size


def _layer_parameters(text: Any) -> int:
    """Weights of one decoder layer's matrix products."""
    queries, keys = text.num_attention_heads * _head_dim(text), text.num_key_value_heads * _head_dim(text)
    return text.hidden_size * (2 * queries + 2 * keys + 3 * text.intermediate_size)


def _head_dim(text: Any) -> int:
    """Width of an attention head; not every config says it."""
    return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
