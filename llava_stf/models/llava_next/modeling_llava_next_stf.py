"""LLaVA-NeXT on fused tokens: every tile is fused on its own, then tiles are joined as LLaVA-NeXT joins them."""

from __future__ import annotations

from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlavaNextForConditionalGeneration, LlavaNextModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from llava_stf.errors import PromptError
from llava_stf.models.fusion.budget import ImageSizes, VisionTokens, patch_grid, resolve_window
from llava_stf.models.fusion.build import build_projector
from llava_stf.models.fusion.modeling import FusedGeneration, FusedImages, register_key_names
from llava_stf.models.fusion.tiles import image_area, least_rows, number_of_tiles, tile_rows_and_columns
from llava_stf.models.llava_next.configuration_llava_next_stf import LlavaNextStfConfig
from llava_stf.models.vision.states import select_patch_states, skip_unused_blocks


class LlavaNextStfModel(FusedImages, LlavaNextModel):
    """`LlavaNextModel` whose projector fuses tokens and whose tower runs only as deep as the fusion layers reach."""

    config_class = LlavaNextStfConfig
    config: LlavaNextStfConfig

    def __init__(self, config: LlavaNextStfConfig) -> None:
        super().__init__(config)
        self.multi_modal_projector = build_projector(config)
        skip_unused_blocks(self.vision_tower, config.fusion_states)
        self.post_init()

    def get_image_features(
        self,
        pixel_values: Tensor,
        image_sizes: Tensor | ImageSizes | None = None,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        return_dict: bool | None = None,
        vision_tokens: VisionTokens = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Fused image tokens for the LLM, in `pooler_output`: one tensor [tokens, H] per image.

        Args:
            pixel_values: [images, tiles, 3, height, width], those of an image with fewer tiles padded behind them; or
                [all tiles, 3, height, width] without padding.
            image_sizes: height and width of each image in pixels.
            vision_feature_layer: the config's, see `check_choices`.
            vision_feature_select_strategy: as `vision_feature_layer`.
            return_dict: for callers of transformers; the result is one in any case.
            vision_tokens: tokens of a tile, by default the config's `image_seq_length`.
            **kwargs: of the vision tower.

        Raises:
            PromptError: `image_sizes` does not fit the tiles.
            FusionError: the model was not made for that number of tokens or those hidden states.
        """
        config = self.config
        self.check_choices(vision_feature_layer, vision_feature_select_strategy)
        window = resolve_window(config, vision_tokens)
        sizes = self.sizes_of_images(pixel_values, image_sizes)
        side = config.vision_config.image_size
        counts = [number_of_tiles(size, config.image_grid_pinpoints, side) for size in sizes]
        states = select_patch_states(self.vision_tower, _real_tiles(pixel_values, counts), config.fusion_states)
        features = self.multi_modal_projector(states, window).split(counts)
        packed, _ = self.pack_image_features(features, sizes, "default", self.image_newline)
        return BaseModelOutputWithPooling(last_hidden_state=states[0], pooler_output=packed)

    def pack_image_features(
        self,
        image_features: Any,
        image_sizes: Any,
        vision_feature_select_strategy: str | None = None,
        image_newline: Tensor | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """The tokens of each image in the order of the prompt: the base tile, then rows of the joined tiles.

        Args:
            image_features: for each image [tiles, M, H], M the tokens of a tile, the base tile first.
            image_sizes: height and width of each image in pixels.
            vision_feature_select_strategy: has no effect; tokens are of patches alone.
            image_newline: [H], follows every row.

        Returns:
            For each image [tokens, H], and int64 [images] of how many these are.
        """
        config, packed = self.config, []
        for tiles, size in zip(image_features, _as_sizes(image_sizes), strict=True):
            cells = isqrt(tiles.shape[1])
            least = least_rows(patch_grid(config) // cells)
            shape = tile_rows_and_columns(size, config.image_grid_pinpoints, config.vision_config.image_size)
            joined = (
                tiles[1:].unflatten(1, (cells, cells)).unflatten(0, shape).transpose(1, 2).flatten(0, 1).flatten(1, 2)
            )
            image = joined[image_area(joined.shape[0], joined.shape[1], size, least=least)]
            if image_newline is not None:
                newlines = image_newline.to(image).expand(image.shape[0], 1, -1)
                image = torch.cat([image, newlines], dim=1)
            packed.append(torch.cat([tiles[0], image.flatten(0, 1)]))
        return packed, torch.tensor([len(tokens) for tokens in packed], device=packed[0].device)

    def sizes_of_images(self, pixel_values: Tensor, image_sizes: Any = None) -> ImageSizes:
        """As `FusedImages.sizes_of_images`: the sizes that the processor gave, once they are known to fit."""
        if image_sizes is None:
            raise PromptError("LLaVA-NeXT takes image_sizes, height and width of each image, beside pixel_values.")
        sizes, config = _as_sizes(image_sizes), self.config
        side = config.vision_config.image_size
        tiles = [number_of_tiles(size, config.image_grid_pinpoints, side) for size in sizes]
        if pixel_values.dim() == 4:
            if sum(tiles) != len(pixel_values):
                raise PromptError(
                    f"The sizes of {len(sizes)} images need {sum(tiles)} tiles, found {len(pixel_values)} in "
                    "pixel_values."
                )
        elif pixel_values.dim() != 5 or len(sizes) != len(pixel_values):
            raise PromptError(
                f"Expected pixel_values [images, tiles, 3, height, width] and a size for each image, found shape "
                f"{list(pixel_values.shape)} and {len(sizes)} sizes."
            )
        elif max(tiles) > pixel_values.shape[1]:
            raise PromptError(
                f"An image of {sizes[tiles.index(max(tiles))]} pixels has {max(tiles)} tiles, found "
                f"{pixel_values.shape[1]} in pixel_values."
            )
        return sizes


class LlavaNextStfForConditionalGeneration(FusedGeneration, LlavaNextForConditionalGeneration):
    """LLaVA-NeXT that sees a quarter of its tokens: 744 of a 672x672 image, where it has 2,928 by itself."""

    config_class = LlavaNextStfConfig
    config: LlavaNextStfConfig

    def __init__(self, config: LlavaNextStfConfig) -> None:
        super(LlavaNextForConditionalGeneration, self).__init__(config)
        self.model = LlavaNextStfModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()


def _as_sizes(image_sizes: Any) -> ImageSizes:
    rows = image_sizes.tolist() if isinstance(image_sizes, Tensor) else image_sizes
    return [(int(height), int(width)) for height, width in rows]


def _real_tiles(pixel_values: Tensor, counts: list[int]) -> Tensor:
    """Without the padding behind images of fewer tiles: [all tiles, 3, height, width]."""
    if pixel_values.dim() == 4:
        return pixel_values
    return torch.cat([tiles[:count] for tiles, count in zip(pixel_values, counts, strict=True)])


register_key_names("llava_next_stf", "llava_next")
register_key_names("LlavaNextStfModel", "LlavaNextModel")
