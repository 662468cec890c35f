"""Cached alpha masks: shapes (supersampled) and characters (Pillow's built-in Aileron), both drawn once and reused."""

from dataclasses import dataclass
from functools import cache
from math import cos, pi, sin

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SUPERSAMPLING = 8
LETTER_GAP = 1  # px between two characters, so that neighbours never touch


@dataclass(frozen=True)
class Glyph:
    """One character: `alpha` is float32 [height, width] in 0..1, `drop` the px from the line's top to its first row."""

    alpha: np.ndarray
    drop: int


@cache
def shape_mask(shape: str, size: int) -> np.ndarray:
    """Alpha mask of a shape that fills a square of `size` px: float32 [size, size] in 0..1."""
    side = size * SUPERSAMPLING
    image = Image.new("L", (side, side))
    draw = ImageDraw.Draw(image)
    if shape == "circle":
        draw.ellipse((0, 0, side - 1, side - 1), fill=255)
    elif shape == "ring":
        hole = round(0.23 * side)
        draw.ellipse((0, 0, side - 1, side - 1), fill=255)
        draw.ellipse((hole, hole, side - 1 - hole, side - 1 - hole), fill=0)
    else:
        draw.polygon([(x * (side - 1), y * (side - 1)) for x, y in _outline(shape)], fill=255)
    return np.asarray(image.resize((size, size), Image.Resampling.BOX), dtype=np.float32) / 255


def _outline(shape: str) -> list[tuple[float, float]]:
    """Corners in the unit square, y downwards."""
    if shape == "square":
        return [(0.04, 0.04), (0.96, 0.04), (0.96, 0.96), (0.04, 0.96)]
    if shape == "triangle":
        return [(0.5, 0.02), (1.0, 0.96), (0.0, 0.96)]
    if shape == "cross":
        low, high = 0.33, 0.67
        return [
            (low, 0), (high, 0), (high, low), (1, low), (1, high), (high, high),
            (high, 1), (low, 1), (low, high), (0, high), (0, low), (low, low),
        ]  # fmt: skip
    if shape == "star":
        radii = [0.53 if corner % 2 == 0 else 0.22 for corner in range(10)]
        angles = [-pi / 2 + corner * pi / 5 for corner in range(10)]
        return [(0.5 + r * cos(a), 0.54 + r * sin(a)) for r, a in zip(radii, angles, strict=True)]
    raise ValueError(f"no outline is known for the shape {shape!r}")


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size=size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("synthetic data needs a Pillow built with FreeType")
    return font


@cache
def glyph(character: str, size: int) -> Glyph:
    """The character in the font of `size` px, cut to its ink."""
    font = _font(size)
    left, top, right, bottom = (int(edge) for edge in font.getbbox(character, stroke_width=0.3))
    image = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(image).text((-left, -top), character, fill=255, font=font, stroke_width=0.3)
    alpha = np.asarray(image, dtype=np.float32) / 255
    return Glyph(alpha, drop=top - _cap_top(size))


@cache
def _cap_top(size: int) -> int:
    """Row of the font's line at which capitals and digits begin."""
    return min(int(_font(size).getbbox(c, stroke_width=0.3)[1]) for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")


@cache
def layout(text: str, size: int) -> tuple[tuple[int, int, int, int], ...]:
    """Boxes (x0, y0, x1, y1) of the characters in px, exclusive at the right and below, the text's corner at (0, 0)."""
    boxes, x = [], 0
    for character in text:
        shape = glyph(character, size)
        height, width = shape.alpha.shape
        boxes.append((x, shape.drop, x + width, shape.drop + height))
        x += width + LETTER_GAP
    return tuple(boxes)
