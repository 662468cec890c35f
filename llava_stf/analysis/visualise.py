"""What a model does with the patches of an image: which of them reach the LLM and how, and what MBTF reads of each."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llava_stf.errors import FusionError
from llava_stf.images import ImageSource, load_image
from llava_stf.inference import LlavaStf
from llava_stf.models.fusion.budget import patch_grid
from llava_stf.models.fusion.projector import LlavaStfProjector, MultiBlockTokenFusion
from llava_stf.models.fusion.tiles import refuse_tiles
from llava_stf.models.fusion.weights import plain_weight
from llava_stf.models.llava_stf.modeling_llava_stf import LlavaStfForConditionalGeneration
from llava_stf.models.vision.layers import state_index
from llava_stf.models.vision.states import select_patch_states
from llava_stf.reduction import Method, apply_reduction, find_method, remove_reduction


@dataclass(frozen=True)
class Visualisation:
    """One image as a model sees it.

    Attributes:
        image: float32 [side, side, 3], 0 to 1: the pixels that enter the tower, after padding, resizing and cropping.
        grid: patches per side.
        window: side of the windows that are fused, in patches; 1 where every patch is a token of its own.
        kept: raster indices of the patches that a selecting method keeps; `None` where windows say it all.
        contributions: float32 [K, grid, grid], see `block_contributions`; `None` if it was not asked for.
        states: the K hidden states of `contributions`: i is the output of block i, 0 the embedding.
    """

    image: np.ndarray
    grid: int
    window: int = 1
    kept: list[int] | None = None
    contributions: np.ndarray | None = None
    states: tuple[int, ...] = ()


def visualise(llava: LlavaStf, image: ImageSource, *, contributions: bool = False) -> Visualisation:
    """The windows of a model, and with `contributions` what MBTF reads of each hidden state.

    Raises:
        ImageError: the image cannot be read.
        FusionError: contributions of a model without MBTF or a model that takes images in tiles.
    """
    refuse_tiles(llava.model.config, "What MBTF reads" if contributions else "One square of windows")
    preview, pixels = _preprocess(llava, image)
    grid = patch_grid(llava.model.config)
    window = grid // math.isqrt(llava.vision_tokens)
    if not contributions:
        return Visualisation(preview, grid, window)
    shares = block_contributions(llava.model, pixels)[0].unflatten(-1, (grid, grid)).cpu().numpy()
    config = llava.model.config
    states = tuple(state_index(layer, config.vision_config.num_hidden_layers) for layer in config.fusion_states)
    return Visualisation(preview, grid, window, contributions=shares, states=states)


def visualise_selection(
    llava: LlavaStf, image: ImageSource, method: str | Method, *, vision_tokens: int | None, seed: int = 0
) -> Visualisation:
    """The patches that a method of `llava_stf.reduction` keeps of an image; the model is afterwards as it was.

    Args:
        llava: a plain LLaVA.
        image: what is shown to it.
        method: one that keeps patches as they are and chooses them by the image, by name or with its options.
        vision_tokens: its budget; `None` is a quarter of the patches.
        seed: of a method that draws at random.

    Raises:
        ImageError: the image cannot be read.
        FusionError: as `apply_reduction`, or nothing can be drawn.
    """
    refuse_tiles(llava.model.config, "Showing what a method keeps")
    preview, pixels = _preprocess(llava, image)
    grid = patch_grid(llava.model.config)
    budget = grid**2 // 4 if vision_tokens is None else vision_tokens
    chosen = find_method(method) if isinstance(method, str) else method
    model = apply_reduction(llava.model, None, chosen, vision_tokens=budget, seed=seed)
    try:
        with torch.no_grad():
            kept = chosen.kept(model, pixels)
    finally:
        remove_reduction(model)
    if kept is None:
        raise FusionError(
            f"'{chosen.name}' keeps no patch as it is, or chooses by the prompt, so there is nothing to draw; take a "
            "method that selects patches, such as divprune, visionzip or random."
        )
    return Visualisation(preview, grid, kept=kept[0].tolist())


@torch.no_grad()
def block_contributions(model: LlavaStfForConditionalGeneration, pixel_values: Tensor) -> Tensor:
    """Share of each fused hidden state in MBTF's first layer, per patch.

    MBTF's first layer multiplies the K states x_1 .. x_K of a patch, joined, by one weight W = [W_1 .. W_K]. What state
    i brings is W_i x_i, and its share is the norm of that over the sum of all K norms:

        share_i = |W_i x_i| / (|W_1 x_1| + .. + |W_K x_K|)

    Hidden units whose output weights are all zero are left out, since nothing that enters them comes out again: half of
    the units right after a warm start by pooling. The bias belongs to no state and is left out too. What the second
    layer makes of it is not looked at, so this says what MBTF reads and not what an answer depends on.

    Args:
        model: a LLaVA-STF.
        pixel_values: [B, 3, height, width], as its processor gives them.

    Returns:
        [B, K, N], float32, states in the order of `config.fusion_states` and patches in raster order; the K shares of a
        patch sum to 1.

    Raises:
        FusionError: the model has no MBTF.
    """
    projector = model.model.multi_modal_projector
    block = projector.block_fusion if isinstance(projector, LlavaStfProjector) else None
    if not isinstance(block, MultiBlockTokenFusion):
        raise FusionError("Expected a model with MBTF: only its projector joins several blocks of the vision tower.")
    first, second = block.linear_1, block.linear_2
    states = select_patch_states(
        model.model.vision_tower, pixel_values.to(model.device, model.dtype), model.config.fusion_states
    )
    weight = plain_weight(first, "block_fusion.linear_1")
    weight = weight[plain_weight(second, "block_fusion.linear_2").ne(0).any(0)].float()
    norms = [
        (state.float() @ columns.T).norm(dim=-1)
        for state, columns in zip(states, weight.chunk(len(states), dim=1), strict=True)
    ]
    stacked = torch.stack(norms, dim=1)
    return stacked / stacked.sum(1, keepdim=True)


def _preprocess(llava: LlavaStf, image: ImageSource) -> tuple[np.ndarray, Tensor]:
    """The image that the tower gets, for the eye [side, side, 3] and for the tower [1, 3, side, side]."""
    processor = llava.require_processor().image_processor
    pixels = processor(load_image(image), return_tensors="pt")["pixel_values"]
    scale, shift = (torch.tensor(values).view(3, 1, 1) for values in (processor.image_std, processor.image_mean))
    preview = (pixels[0] * scale + shift).clamp(0, 1).permute(1, 2, 0)
    return preview.numpy(), pixels.to(llava.model.device, llava.model.dtype)
