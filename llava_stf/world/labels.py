"""What a patch shows: dense targets for a tower, and for a projector that is aligned to words."""

import numpy as np

from llava_stf.world.scene import CHARACTERS, COLOURS, SHAPES, SIZES, Box, Scene


def patch_labels(scene: Scene, grid: int = 8) -> dict[str, np.ndarray]:
    """Dense targets per patch, each int64 [grid, grid]; "degraded" is a scalar 0 or 1.

    "shape" (0 none, 1..6), "colour" (0..8), "size" (0 none, 1 small, 2 large): of the object whose box covers most of
    the patch, if that is at least a fifth of it. "place" (0 none, 1..9): of that object, or else of the text that has
    the middle of a character there. "centre" (0 or 1): whether the middle of an object lies in the patch. "char_left",
    "char_right" (0 none, 1..36 as in CHARACTERS): the character whose middle lies in that half of the patch, so that
    each is said once. "order" (0 none, 1..5): which of its text's characters the first of them is. All maps are 0 where
    the image is degraded, since nothing can be read in it.
    """
    names = ("shape", "colour", "size", "place", "centre", "char_left", "char_right", "order")
    labels = {name: np.zeros((grid, grid), dtype=np.int64) for name in names}
    labels["degraded"] = np.array(int(scene.degraded), dtype=np.int64)
    if scene.degraded:
        return labels
    colours, sizes, side = tuple(COLOURS), tuple(SIZES), scene.side
    best = np.full((grid, grid), 0.2 * (side / grid) ** 2)
    for thing in scene.objects:
        area = _covered(thing.box, grid, grid, side)
        wins = area >= best
        best[wins] = area[wins]
        labels["shape"][wins] = SHAPES.index(thing.shape) + 1
        labels["colour"][wins] = colours.index(thing.colour) + 1
        labels["size"][wins] = sizes.index(thing.size) + 1
        labels["place"][wins] = thing.place + 1
        x0, y0, x1, y1 = thing.box
        labels["centre"][(y0 + y1) * grid // (2 * side), (x0 + x1) * grid // (2 * side)] = 1
    for text in scene.texts:
        boxes = zip(text.string.upper(), text.character_boxes, strict=True)
        for number, (character, (x0, y0, x1, y1)) in reversed(list(enumerate(boxes, 1))):
            row, half = (y0 + y1) * grid // (2 * side), (x0 + x1) * grid // side
            at = row, half // 2
            labels["char_right" if half % 2 else "char_left"][at] = CHARACTERS.index(character) + 1
            labels["order"][at] = number
            if not labels["shape"][at]:
                labels["place"][at] = text.place + 1
    return labels


def _covered(box: Box, rows: int, columns: int, side: int) -> np.ndarray:
    """Px of the box inside each cell of a raster over an image of `side` px: float64 [rows, columns]."""
    x, y = np.arange(columns) * (side / columns), np.arange(rows) * (side / rows)
    across = np.clip(np.minimum(box[2], x + side / columns) - np.maximum(box[0], x), 0, None)
    down = np.clip(np.minimum(box[3], y + side / rows) - np.maximum(box[1], y), 0, None)
    return np.outer(down, across)
