"""What every model that cuts images into tiles does alike: each tile is fused on its own, then tiles are joined."""

from __future__ import annotations

from math import isqrt
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.modeling_outputs import BaseModelOutputWithPooling

from llava_stf.errors import PromptError
from llava_stf.models.fusion.budget import ImageSizes, VisionTokens, patch_grid, resolve_window
from llava_stf.models.fusion.modeling import FusedImages
from llava_stf.models.fusion.tiles import (
    cells_of,
    image_area,
    least_rows,
    most_tiles,
    number_of_tiles,
    shrunk_shape,
    tile_rows_and_columns,
)
from llava_stf.models.vision.states import select_patch_states


class TilePacking:
    """Of a model in tiles, of transformers or of a server: what the projector gives of all tiles becomes images."""

    if TYPE_CHECKING:
        config: Any
        image_newline: Tensor

    def images_of(self, features: Tensor, sizes: ImageSizes) -> list[Tensor]:
        """As `FusedImages.images_of`: tiles joined, with their newlines."""
        tiles = features.split(self.tiles_of(sizes))
        return self.pack_image_features(tiles, sizes, image_newline=self.image_newline)[0]

    def tiles_of(self, sizes: ImageSizes) -> list[int]:
        """How many tiles each image has, the base tile included."""
        config = self.config
        side, pinpoints = config.vision_config.image_size, config.image_grid_pinpoints
        return [number_of_tiles(size, pinpoints, side) for size in sizes]

    def pack_image_features(
        self,
        image_features: Any,
        image_sizes: Any,
        vision_feature_select_strategy: str | None = None,
        image_newline: Tensor | None = None,
        vision_aspect_ratio: str | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """The tokens of each image in the order of the prompt: the base tile, then rows of the joined tiles.

        Args:
            image_features: for each image [tiles, M, H], M the tokens of a tile, the base tile first.
            image_sizes: height and width of each image in pixels.
            vision_feature_select_strategy: has no effect; tokens are of patches alone.
            image_newline: [H], follows every row, or an image of its base tile alone.
            vision_aspect_ratio: says how many tiles' tokens an image has at most; default the config's, if it has one.

        Returns:
            For each image [tokens, H], and int64 [images] of how many these are.
        """
        config, packed = self.config, []
        side, grid, pinpoints = config.vision_config.image_size, patch_grid(config), config.image_grid_pinpoints
        most = most_tiles(vision_aspect_ratio or getattr(config, "vision_aspect_ratio", None))
        for tiles, size in zip(image_features, _as_sizes(image_sizes), strict=True):
            pieces = [tiles[0]]
            newline = tiles.new_empty(0) if image_newline is None else image_newline.to(tiles)[None]
            if len(tiles) > 1:
                cells = isqrt(tiles.shape[1])
                shape = tile_rows_and_columns(size, pinpoints, side)
                joined = tiles[1:].unflatten(1, (cells, cells)).unflatten(0, shape)
                joined = joined.transpose(1, 2).flatten(0, 1).flatten(1, 2)
                least = least_rows(-(-grid // cells))
                image = joined[image_area(joined.shape[0], joined.shape[1], size, least=least)]
                image = _resized(image, shrunk_shape(image.shape[0], image.shape[1], cells, most))
                if image_newline is not None:
                    image = torch.cat([image, newline.expand(len(image), 1, -1)], dim=1)
                pieces.append(image.flatten(0, 1))
            elif image_newline is not None:
                pieces.append(newline)
            packed.append(torch.cat(pieces))
        return packed, torch.tensor([len(tokens) for tokens in packed], device=packed[0].device)


class TiledImages(TilePacking, FusedImages):
    """Of the inner model, in place of `FusedImages`."""

    vision_tower: Any

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
            **kwargs: what else `sizes_of_images` takes, and keywords of the vision tower.

        Raises:
            PromptError: `image_sizes` does not fit the tiles.
            FusionError: the model was not made for that number of tokens or those hidden states.
        """
        config = self.config
        self.check_choices(vision_feature_layer, vision_feature_select_strategy)
        window = resolve_window(config, vision_tokens)
        further = {name: kwargs.get(name) for name in self.image_choices if name != "image_sizes"}
        sizes = self.sizes_of_images(pixel_values, image_sizes, **further)
        tiles = _real_tiles(pixel_values, self.tiles_of(sizes))
        states = select_patch_states(self.vision_tower, tiles, config.fusion_states)
        features = self.multi_modal_projector(whole_windows(states, window), window)
        return BaseModelOutputWithPooling(last_hidden_state=states[0], pooler_output=self.images_of(features, sizes))

    def sizes_of_images(self, pixel_values: Tensor, image_sizes: Any = None, **further: Any) -> ImageSizes:
        """As `FusedImages.sizes_of_images`: the sizes that the processor gave, once they are known to fit."""
        if image_sizes is None:
            raise PromptError(
                f"A {self.config.model_type} takes image_sizes, height and width of each image, beside pixel_values."
            )
        sizes = self.shown_sizes(_as_sizes(image_sizes), **further)
        tiles = self.tiles_of(sizes)
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

    def shown_sizes(self, sizes: ImageSizes) -> ImageSizes:
        """The sizes by which images are cut into tiles, from their own."""
        return sizes


def whole_windows(states: list[Tensor], window: int) -> list[Tensor]:
    """States of square grids, each [B, N, C], whose windows are whole.

    Where the side is one patch more than a multiple of the window, the last row and column are repeated. The mean over
    a window at the edge is then that of the patches that are there, each counted as often as the others.
    """
    side = isqrt(states[0].shape[1])
    cells = cells_of(side, window)
    if cells * window == side:
        return states
    rows = torch.arange(cells * window, device=states[0].device).clamp(max=side - 1)
    return [state.unflatten(1, (side, side))[:, rows][:, :, rows].flatten(1, 2) for state in states]


def _resized(image: Tensor, shape: tuple[int, int]) -> Tensor:
    """Tokens [rows, columns, H] in another number of rows and columns, bilinear, as transformers does."""
    if image.shape[:2] == shape:
        return image
    return functional.interpolate(image.movedim(-1, 0)[None], shape, mode="bilinear")[0].movedim(0, -1)


def _as_sizes(image_sizes: Any) -> ImageSizes:
    rows = image_sizes.tolist() if isinstance(image_sizes, Tensor) else image_sizes
    return [(int(height), int(width)) for height, width in rows]


def _real_tiles(pixel_values: Tensor, counts: list[int]) -> Tensor:
    """Without the padding behind images of fewer tiles: [all tiles, 3, height, width]."""
    if pixel_values.dim() == 4:
        return pixel_values
    return torch.cat([tiles[:count] for tiles, count in zip(pixel_values, counts, strict=True)])
