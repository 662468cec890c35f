"""Bilinear resizing of the token grid, as images are resized."""

from __future__ import annotations

from math import isqrt

from torch import Tensor
from torch.nn import functional
from transformers import LlavaConfig

from llava_stf.errors import FusionError
from llava_stf.reduction.model import ReducedLlavaModel, TrainingFreeMethod


def resize_grid(x: Tensor, side: int) -> Tensor:
    """Tokens of a square grid, x [B, g*g, C] in raster order, interpolated to [B, side*side, C]; without antialiasing.

    At half the grid each token is the mean of a 2x2 window, which is pooling.
    """
    grid = isqrt(x.shape[1])
    image = x.transpose(1, 2).unflatten(2, (grid, grid))
    resized = functional.interpolate(image, size=(side, side), mode="bilinear", align_corners=False)
    return resized.flatten(2).transpose(1, 2)


class Resize(TrainingFreeMethod):
    """Interpolates the projected tokens, as LLaVA-OneVision does where there are too many. Budgets are squares."""

    name = "resize"
    title = "bilinear resize"
    reference = "Li et al., LLaVA-OneVision, arXiv 2408.03326"
    needs = "Nothing: the projector runs on all patches. At half the grid it equals 2x2 pooling."

    def check(self, config: LlavaConfig, patches: int, vision_tokens: int) -> None:
        """Also refuse a budget that is no square."""
        super().check(config, patches, vision_tokens)
        side = isqrt(vision_tokens)
        if side * side != vision_tokens:
            raise FusionError(
                f"Resizing leaves a square grid, so vision_tokens must be the square of an integer, found "
                f"{vision_tokens}; nearest are {side * side} and {(side + 1) ** 2}."
            )

    def image_tokens(self, model: ReducedLlavaModel, pixel_values: Tensor) -> Tensor:
        """The grid of projected tokens, resized to M: [B, M, H]."""
        tokens = model.multi_modal_projector(model.patch_states(pixel_values))
        return resize_grid(tokens, isqrt(model.reduction.vision_tokens))
