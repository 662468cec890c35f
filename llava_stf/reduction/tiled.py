"""The classes that a LLaVA-NeXT and its processor have while a method without weights is applied to it.

A method for each of the tiles leaves tokens that lie on no grid any more: padding cannot be cropped from their rows,
and no newline follows one. An image takes M tokens for each of its tiles, the base tile first. Published tables count
so: their 2,880 are five tiles of 576, and 640, 320 or 160 are 128, 64 or 32 of each.

A method for the joined tiles chooses among all tokens that the plain model has of an image, newlines among them, and
leaves the share M / N of these.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration, LlavaNextModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from llava_stf.errors import FusionError, PromptError
from llava_stf.models.fusion.budget import ImageSizes, VisionTokens, patch_grid
from llava_stf.models.fusion.tiles import Pinpoints, number_of_tiles, tile_tokens
from llava_stf.models.llava_next.processing_llava_next_stf import LlavaNextStfProcessor
from llava_stf.models.vision.states import select_patch_states
from llava_stf.reduction.method import Reduction, refuse_to_save


def reduced_tokens(
    image_size: tuple[int, int], pinpoints: Pinpoints, side: int, grid: int, each: int, joined: bool
) -> int:
    """LLM tokens of an image of which a method leaves `each` of a tile's, or as large a share of all, at least one.

    Args:
        image_size: height and width in pixels.
        pinpoints: as `tile_tokens`.
        side: of a tile, in pixels.
        grid: of a tile, in patches.
        each: M.
        joined: whether the method is one for joined tiles.
    """
    if joined:
        return max(1, round(each * tile_tokens(image_size, pinpoints, side, grid, window=1) / grid**2))
    return each * number_of_tiles(image_size, pinpoints, side)


class ReducedLlavaNextConfig(LlavaNextConfig):
    """A plain LLaVA-NeXT's config that knows how many tokens a tile takes in the prompt."""

    prompt_tokens: int = 0
    joined: bool = False

    def num_image_tokens(self, image_sizes: ImageSizes, vision_tokens: VisionTokens = None) -> list[int]:
        """LLM tokens of each image, see `llava_stf.models.fusion.budget`."""
        if vision_tokens not in (None, self.prompt_tokens):
            raise FusionError(
                f"A tile takes {self.prompt_tokens} tokens of this reduced model's prompt, and it cannot give "
                f"{vision_tokens}; call remove_reduction and apply it at another budget."
            )
        shape = (self.image_grid_pinpoints, self.vision_config.image_size, patch_grid(self))
        return [reduced_tokens(size, *shape, self.prompt_tokens, self.joined) for size in image_sizes]


class ReducedLlavaNextModel(LlavaNextModel):
    """`LlavaNextModel` whose tiles give the tokens that `reduction.method` leaves."""

    reduction: Reduction

    def get_image_features(
        self,
        pixel_values: Tensor,
        image_sizes: Any = None,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Image tokens for the LLM, in `pooler_output`: one tensor [tokens, H] per image.

        Args:
            pixel_values: [images, tiles, 3, height, width], those of an image with fewer tiles padded behind them.
            image_sizes: height and width of each image in pixels.
            vision_feature_layer: the config's.
            vision_feature_select_strategy: the config's.
            **kwargs: have no effect.

        Raises:
            FusionError: another layer or select strategy than the config's is asked for.
            PromptError: `image_sizes` is missing or of another number of images.
        """
        config = self.config
        asked = (vision_feature_layer, vision_feature_select_strategy)
        own = (config.vision_feature_layer, config.vision_feature_select_strategy)
        if any(value not in (None, known) for value, known in zip(asked, own, strict=True)):
            raise FusionError("A reduced LLaVA-NeXT takes the hidden state of its config.")
        if image_sizes is None or len(image_sizes) != len(pixel_values):
            raise PromptError("A llava_next takes image_sizes, height and width of each image, beside pixel_values.")
        side, pinpoints = config.vision_config.image_size, config.image_grid_pinpoints
        sizes = [(int(height), int(width)) for height, width in image_sizes]
        counts = [number_of_tiles(size, pinpoints, side) for size in sizes]
        tiles = torch.cat([shown[:count] for shown, count in zip(pixel_values, counts, strict=True)])
        method: Any = self.reduction.method  # a TrainingFreeMethod
        if not config.joined:
            tokens = method.image_tokens(self, tiles)
            images = [each.flatten(0, 1) for each in tokens.split(counts)]
            return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=images)
        tokens = self.multi_modal_projector(self.patch_states(tiles))
        whole, _ = self.pack_image_features(
            tokens.split(counts),
            image_sizes,
            vision_feature_select_strategy=config.vision_feature_select_strategy,
            image_newline=self.image_newline,
        )
        left = config.num_image_tokens(sizes)
        images = [method.choose_joined(image[None], count)[0] for image, count in zip(whole, left, strict=True)]
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=images)

    def patch_states(self, pixel_values: Tensor) -> Tensor:
        """The selected hidden state of the tower, of the patches alone: [B, N, C]."""
        return select_patch_states(self.vision_tower, pixel_values, [self.config.vision_feature_layer])[0]


class ReducedLlavaNextForConditionalGeneration(LlavaNextForConditionalGeneration):
    """A plain LLaVA-NeXT that a method without weights has been applied to. It generates as any other."""

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Refuse, see `refuse_to_save`."""
        refuse_to_save(self.model.reduction.method)


class ReducedLlavaNextProcessor(LlavaNextStfProcessor):
    """Counts `image_tokens` placeholders for every tile, or as large a share of the plain model's if `joined`."""

    image_tokens: int
    joined: bool

    def num_image_tokens(self, image_sizes: ImageSizes, vision_tokens: int | None = None) -> list[int]:
        """LLM tokens of each image, by its size in pixels before it is resized."""
        each = self.image_tokens if vision_tokens is None else vision_tokens
        side, pinpoints = self._tile_side(), self.image_processor.image_grid_pinpoints
        shape = (pinpoints, side, side // self.patch_size, each, self.joined)
        return [reduced_tokens((int(height), int(width)), *shape) for height, width in image_sizes]

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Refuse, as the model does.

        Raises:
            FusionError: always.
        """
        raise FusionError("This processor counts for a reduced model; call remove_reduction before saving it.")
