"""The classes that a LLaVA-NeXT and its processor have while a method without weights is applied to each of its tiles.

The tokens that are left of a tile lie on no grid any more: padding cannot be cropped from their rows, and no newline
follows one. An image takes M tokens for each of its tiles, the base tile first. Published tables count so: their 2,880
are five tiles of 576, and 640, 320 or 160 are 128, 64 or 32 of each.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration, LlavaNextModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from llava_stf.errors import FusionError, PromptError
from llava_stf.models.fusion.budget import ImageSizes, VisionTokens
from llava_stf.models.fusion.tiles import number_of_tiles
from llava_stf.models.llava_next.processing_llava_next_stf import LlavaNextStfProcessor
from llava_stf.models.vision.states import select_patch_states
from llava_stf.reduction.method import Reduction, refuse_to_save


class ReducedLlavaNextConfig(LlavaNextConfig):
    """A plain LLaVA-NeXT's config that knows how many tokens a tile takes in the prompt."""

    prompt_tokens: int = 0

    def num_image_tokens(self, image_sizes: ImageSizes, vision_tokens: VisionTokens = None) -> list[int]:
        """LLM tokens of each image, see `llava_stf.models.fusion.budget`."""
        if vision_tokens not in (None, self.prompt_tokens):
            raise FusionError(
                f"A tile takes {self.prompt_tokens} tokens of this reduced model's prompt, and it cannot give "
                f"{vision_tokens}; call remove_reduction and apply it at another budget."
            )
        side = self.vision_config.image_size
        return [self.prompt_tokens * number_of_tiles(size, self.image_grid_pinpoints, side) for size in image_sizes]


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
        """Image tokens for the LLM, in `pooler_output`: one tensor [tiles * prompt tokens, H] per image.

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
        tokens = self.reduction.method.image_tokens(self, tiles)  # type: ignore[attr-defined]  # of a TrainingFreeMethod
        images = [each.flatten(0, 1) for each in tokens.split(counts)]
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
    """Counts `image_tokens` placeholders for every tile."""

    image_tokens: int

    def num_image_tokens(self, image_sizes: ImageSizes, vision_tokens: int | None = None) -> list[int]:
        """LLM tokens of each image, by its size in pixels before it is resized."""
        each = self.image_tokens if vision_tokens is None else vision_tokens
        side, pinpoints = self._tile_side(), self.image_processor.image_grid_pinpoints
        return [each * number_of_tiles((int(height), int(width)), pinpoints, side) for height, width in image_sizes]

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Refuse, as the model does.

        Raises:
            FusionError: always.
        """
        raise FusionError("This processor counts for a reduced model; call remove_reduction before saving it.")
