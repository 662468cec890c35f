"""Images in tiles, as LLaVA-NeXT takes them: where the tiles lie, what of their rows is image, how many tokens that is.

An image stands before the tower once as a whole, the base tile, and once cut into tiles of the tower's size that cover
it at the resolution that fits it best. Windows of patches are fused in every tile on its own. The tiles' tokens are
then laid side by side, what only pads the image is cropped away, and a newline token follows every row that is left.
The model's features and the processor's placeholders both come from the functions here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers.image_processing_utils import select_best_resolution

from llava_stf.errors import FusionError

Pinpoints = Sequence[Sequence[int]]


def tile_rows_and_columns(image_size: tuple[int, int], pinpoints: Pinpoints, tile_side: int) -> tuple[int, int]:
    """Tiles of an image of so many pixels, height and width, without the base tile."""
    height, width = select_best_resolution(image_size, list(pinpoints))
    return height // tile_side, width // tile_side


def number_of_tiles(image_size: tuple[int, int], pinpoints: Pinpoints, tile_side: int) -> int:
    """Tiles of an image, the base tile included."""
    rows, columns = tile_rows_and_columns(image_size, pinpoints, tile_side)
    return 1 + rows * columns


def image_area(rows: int, columns: int, image_size: tuple[int, int], *, least: int) -> tuple[slice, slice]:
    """Rows and columns of the tiles' tokens that are image and no padding, as in transformers.

    Args:
        rows: of tokens of all tiles together.
        columns: as `rows`.
        image_size: height and width of the image in pixels, before it was resized.
        least: rows, or columns, that an image with one very long side keeps where rounding leaves none and its tiles
            would count for nothing: 1 of fused windows; 0 of single patches, which is what transformers does.
    """
    height, width = image_size
    if width / height > columns / rows:
        return _middle(rows, int(round(height * (columns / width), 7)), least), slice(0, columns)
    return slice(0, rows), _middle(columns, int(round(width * (rows / height), 7)), least)


def _middle(length: int, used: int, least: int) -> slice:
    padding = (length - used) // 2
    if length > 2 * padding:
        return slice(padding, length - padding)
    return slice(padding, padding + least)


def tile_tokens(image_size: tuple[int, int], pinpoints: Pinpoints, tile_side: int, grid: int, window: int) -> int:
    """LLM tokens of an image in tiles.

    Args:
        image_size: height and width in pixels, as the image processor is given them.
        pinpoints: the resolutions, height and width, that images are brought to.
        tile_side: of a tile, in pixels.
        grid: of a tile, in patches.
        window: side of the windows that are fused, in patches.
    """
    cells = grid // window
    tile_rows, tile_columns = tile_rows_and_columns(image_size, pinpoints, tile_side)
    rows, columns = image_area(tile_rows * cells, tile_columns * cells, image_size, least=least_rows(window))
    height, width = rows.stop - rows.start, columns.stop - columns.start
    return cells**2 + height * (width + 1)


def least_rows(window: int) -> int:
    """The `least` of `image_area` in windows of that side."""
    return 1 if window > 1 else 0


def has_tiles(config: object) -> bool:
    """Whether the images of a model with this config, or image processor, are cut into tiles."""
    return hasattr(config, "image_grid_pinpoints")


def refuse_tiles(config: Any, what: str) -> None:
    """Check that images of a model with this config are not cut into tiles, where `what` is asked for.

    Raises:
        FusionError: they are.
    """
    if has_tiles(config):
        name = getattr(config, "model_type", type(config).__name__)
        raise FusionError(
            f"{what} is for models that take one square image, as LLaVA-1.5 does, and a {name} cuts images into tiles."
        )
