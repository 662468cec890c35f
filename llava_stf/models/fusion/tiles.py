"""Images in tiles, as LLaVA-NeXT takes them: where the tiles lie, what of their rows is image, how many tokens that is.

An image stands before the tower once as a whole, the base tile, and once cut into tiles of the tower's size that cover
it at the resolution that fits it best. Windows of patches are fused in every tile on its own. The tiles' tokens are
then laid side by side, what only pads the image is cropped away, and a newline token follows every row that is left.
The model's features and the processor's placeholders both come from the functions here.

LLaVA-OneVision differs in two things: tiles whose tokens are more than those of nine tiles, say, are shrunk to as many,
and an image that stands in its prompt with others is not cut into tiles; its size is then `WHOLE`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from transformers.image_processing_utils import select_best_resolution

from llava_stf.errors import FusionError

Pinpoints = Sequence[Sequence[int]]

# In place of the size of an image that is shown as a whole alone, whatever its size.
WHOLE = (0, 0)
_SHRUNK_FROM = 1.1  # tokens along a side, in units of what may be there


def tile_rows_and_columns(image_size: tuple[int, int], pinpoints: Pinpoints, tile_side: int) -> tuple[int, int]:
    """Tiles of an image of so many pixels, height and width, without the base tile."""
    height, width = select_best_resolution(image_size, list(pinpoints))
    return height // tile_side, width // tile_side


def number_of_tiles(image_size: tuple[int, int], pinpoints: Pinpoints, tile_side: int) -> int:
    """Tiles of an image, the base tile included."""
    if image_size == WHOLE:
        return 1
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


def shrunk_shape(rows: int, columns: int, cells: int, most_tiles: int | None) -> tuple[int, int]:
    """Rows and columns of tokens that joined tiles are brought to, as in transformers but that one is always left.

    Args:
        rows: of the image's part of the joined tiles.
        columns: as `rows`.
        cells: tokens along the side of a tile.
        most_tiles: as many tiles' tokens are left of an image that has more; `None` leaves all.
    """
    ratio = 0.0 if most_tiles is None else math.sqrt(rows * columns / (most_tiles * cells**2))
    if ratio <= _SHRUNK_FROM:
        return rows, columns
    return max(1, int(rows // ratio)), max(1, int(columns // ratio))


def cells_of(grid: int, window: int) -> int:
    """Windows along a side of `grid` patches; the last is one of fewer patches where the side is no multiple."""
    return -(-grid // window)


def tile_tokens(
    image_size: tuple[int, int],
    pinpoints: Pinpoints,
    tile_side: int,
    grid: int,
    window: int,
    most_tiles: int | None = None,
) -> int:
    """LLM tokens of an image in tiles.

    Args:
        image_size: height and width in pixels, as the image processor is given them, or `WHOLE`.
        pinpoints: the resolutions, height and width, that images are brought to.
        tile_side: of a tile, in pixels.
        grid: of a tile, in patches.
        window: side of the windows that are fused, in patches.
        most_tiles: see `shrunk_shape`.
    """
    cells = cells_of(grid, window)
    if image_size == WHOLE:
        return cells**2 + 1
    tile_rows, tile_columns = tile_rows_and_columns(image_size, pinpoints, tile_side)
    rows, columns = image_area(tile_rows * cells, tile_columns * cells, image_size, least=least_rows(window))
    height, width = shrunk_shape(rows.stop - rows.start, columns.stop - columns.start, cells, most_tiles)
    return cells**2 + height * (width + 1)


def largest_size(
    pinpoints: Pinpoints, tile_side: int, grid: int, window: int, most_tiles: int | None = None
) -> tuple[int, int]:
    """Height and width of an image that has as many tokens as any; arguments as in `tile_tokens`.

    Which tiles an image has follows from its size, and how many rows, or columns, are left of them from its aspect: it
    is one that fills its tiles but for less than a tile's rows, or columns. Where tiles are shrunk that is not always
    the one that fills them all.
    """
    cells = cells_of(grid, window)
    sizes = []
    for height, width in pinpoints:
        for cropped in range(cells):
            sizes.append((math.ceil(height - cropped * tile_side / cells), width))
            sizes.append((height, math.ceil(width - cropped * tile_side / cells)))
    return max(sizes, key=lambda size: tile_tokens(size, pinpoints, tile_side, grid, window, most_tiles))


def least_rows(window: int) -> int:
    """The `least` of `image_area` in windows of that side."""
    return 1 if window > 1 else 0


def has_tiles(config: object) -> bool:
    """Whether the images of a model with this config, or image processor, are cut into tiles."""
    return hasattr(config, "image_grid_pinpoints")


def most_tiles(vision_aspect_ratio: str | None) -> int | None:
    """The `most_tiles` of `shrunk_shape` by the field of a config or processor that says it, `None` without the field.

    Raises:
        FusionError: it is another value than `anyres_max_N`.
    """
    if vision_aspect_ratio is None:
        return None
    number = vision_aspect_ratio.removeprefix("anyres_max_")
    if number == vision_aspect_ratio or not number.isdecimal() or int(number) < 1:
        raise FusionError(f"vision_aspect_ratio must be anyres_max_N, anyres_max_9 say, found '{vision_aspect_ratio}'.")
    return int(number)


def refuse_tiles(config: Any, what: str) -> None:
    """Check that a model with this config takes one square image, where `what` is asked for.

    Raises:
        FusionError: its images are cut into tiles, or it takes videos.
    """
    takes = "cuts images into tiles" if has_tiles(config) else "takes videos" if takes_videos(config) else None
    if takes is not None:
        name = getattr(config, "model_type", type(config).__name__)
        raise FusionError(f"{what} is for models that take one square image, as LLaVA-1.5 does, and a {name} {takes}.")


def shows_several_whole(config: object) -> bool:
    """Whether images that stand in one prompt with others are not cut into tiles."""
    return hasattr(config, "vision_aspect_ratio")


def sizes_in_prompt(config: object, image_sizes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sizes by which the images of one prompt are counted: their own, or `WHOLE` where several are shown so.

    Args:
        config: of the model, or a processor of this package.
        image_sizes: height and width of each in pixels.
    """
    return [WHOLE] * len(image_sizes) if len(image_sizes) > 1 and shows_several_whole(config) else list(image_sizes)


def takes_videos(config: object) -> bool:
    """Whether models with this config take videos."""
    return hasattr(config, "video_token_index")
