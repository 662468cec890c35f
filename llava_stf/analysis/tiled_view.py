"""An image in tiles as a model sees it: the base tile, the joined tiles, and which of their windows become tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llava_stf.errors import FusionError
from llava_stf.images import ImageSource, load_image
from llava_stf.inference import LlavaStf
from llava_stf.models.fusion.budget import CountsTokens, FusedConfig, num_image_tokens, patch_grid
from llava_stf.models.fusion.tiles import (
    cells_of,
    has_tiles,
    image_area,
    least_rows,
    most_tiles,
    shrunk_shape,
    tile_rows_and_columns,
)


@dataclass(frozen=True)
class TiledView:
    """One image in tiles.

    Attributes:
        base: float32 [side, side, 3], 0 to 1: the pixels of the base tile.
        joined: float32 [rows * side, columns * side, 3]: those of the tiles, as they lie side by side.
        tiles: rows and columns of tiles.
        grid: patches along the side of a tile.
        window: side of the windows that are fused, in patches; 1 where every patch is a token of its own.
        rows: of windows, over all tiles, whose tokens are kept; the others are padding.
        columns: as `rows`.
        shape: rows and columns of tokens that become of them: fewer where the model shrinks large images. A newline
            token follows each row.
        tokens: of the whole image, all newlines included.
    """

    base: np.ndarray
    joined: np.ndarray
    tiles: tuple[int, int]
    grid: int
    window: int
    rows: range
    columns: range
    shape: tuple[int, int]
    tokens: int

    @property
    def cells(self) -> int:
        """Windows along the side of a tile."""
        return cells_of(self.grid, self.window)


def view_tiles(llava: LlavaStf, image: ImageSource) -> TiledView:
    """The tiles of an image on a model, plain or fused, that stands alone in its prompt.

    Raises:
        ImageError: the image cannot be read.
        FusionError: the model does not cut images into tiles.
    """
    config, processor = llava.model.config, llava.require_processor()
    if not has_tiles(config):
        raise FusionError(f"A {config.model_type} shows an image as a whole, in no tiles.")
    if isinstance(config, CountsTokens) and not isinstance(config, FusedConfig):
        raise FusionError("Tiles of a reduced model keep tokens of no windows, so there is nothing to draw.")
    loaded = load_image(image)
    made = processor.process_images([loaded], [1], {"return_tensors": "pt"})["pixel_values"][0]
    size, side, grid = (loaded.height, loaded.width), config.vision_config.image_size, patch_grid(config)
    across = tile_rows_and_columns(size, config.image_grid_pinpoints, side)
    window = config.fusion_window if isinstance(config, FusedConfig) else 1
    cells = cells_of(grid, window)
    rows, columns = image_area(across[0] * cells, across[1] * cells, size, least=least_rows(window))
    height, width = rows.stop - rows.start, columns.stop - columns.start
    tiles = made[1 : 1 + across[0] * across[1]].unflatten(0, across)
    joined = tiles.permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)
    images = processor.image_processor
    return TiledView(
        base=_for_the_eye(made[0], images),
        joined=_for_the_eye(joined, images),
        tiles=across,
        grid=grid,
        window=window,
        rows=range(rows.start, rows.stop),
        columns=range(columns.start, columns.stop),
        shape=shrunk_shape(height, width, cells, most_tiles(getattr(config, "vision_aspect_ratio", None))),
        tokens=num_image_tokens(config, [size])[0],
    )


def _for_the_eye(pixels: Tensor, image_processor: object) -> np.ndarray:
    """[height, width, 3] of normalised pixels [3, height, width]."""
    mean, std = (
        torch.tensor(getattr(image_processor, name)).view(3, 1, 1) for name in ("image_mean", "image_std")
    )  # fmt: skip
    return (pixels * std + mean).clamp(0, 1).permute(1, 2, 0).numpy()
