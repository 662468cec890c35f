"""Turns a scene into pixels: background with shading and clutter, shapes, text, sensor noise, degradation."""

import numpy as np
from PIL import Image, ImageDraw

from llava_stf.world.glyphs import glyph, shape_mask
from llava_stf.world.scene import Box, Colour, Label, Scene


def render(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Draw the scene: uint8 RGB [side, side, 3]; `rng` only draws what is never asked about (clutter, noise)."""
    pixels = _background(scene.background, scene.side, rng)
    for thing in scene.objects:
        _paste(pixels, thing.box, shape_mask(thing.shape, thing.box[2] - thing.box[0]), thing.rgb)
    for text in scene.texts:
        _write(pixels, text, scene.background)
    noise = rng.standard_normal(pixels.shape, dtype=np.float32)
    if scene.degradation == "blur":
        pixels = _blur(pixels, int(rng.integers(4, 7)))
    elif scene.degradation == "dark":
        pixels *= 0.01
    elif scene.degradation == "noise":
        pixels += (110 - pixels) * 0.9
        noise *= 20
    pixels += noise * rng.uniform(1.5, 5.0)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _background(colour: Colour, side: int, rng: np.random.Generator) -> np.ndarray:
    """Shaded plane with a few thin lines and dots, never as strong as a shape: float32 [side, side, 3]."""
    image = Image.new("RGB", (side, side), colour)
    draw = ImageDraw.Draw(image)
    marks = rng.integers(0, side, size=(int(rng.integers(0, 9)), 4)).tolist()
    for index, (x0, y0, x1, y1) in enumerate(marks):
        red, green, blue = (
            channel + int(shift) for channel, shift in zip(colour, rng.integers(-40, 41, 3), strict=True)
        )
        if index % 2:
            draw.line((x0, y0, x1, y1), fill=(red, green, blue))
        else:
            draw.ellipse((x0, y0, x0 + x1 % 3 + 1, y0 + x1 % 3 + 1), fill=(red, green, blue))
    pixels = np.array(image, dtype=np.float32)
    slope = np.linspace(-1, 1, side, dtype=np.float32)
    across, down = rng.uniform(-12, 12, size=2).astype(np.float32)
    pixels += (slope * across + slope[:, None] * down)[:, :, None]
    return pixels


def _paste(pixels: np.ndarray, box: Box, alpha: np.ndarray, colour: Colour) -> None:
    x0, y0, x1, y1 = box
    region = pixels[y0:y1, x0:x1]
    region += alpha[:, :, None] * (np.array(colour, dtype=np.float32) - region)


def _write(pixels: np.ndarray, text: Label, background: Colour) -> None:
    ink = (12, 12, 12) if sum(background) > 3 * 128 else (244, 244, 244)
    for character, box in zip(text.string.upper(), text.character_boxes, strict=True):
        _paste(pixels, box, glyph(character, text.font_size).alpha, ink)


def _blur(pixels: np.ndarray, cells: int) -> np.ndarray:
    """Average to cells x cells and blow up again: what is left is colour fog."""
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    small = image.resize((cells, cells), Image.Resampling.BOX)
    return np.array(small.resize(image.size, Image.Resampling.BICUBIC), dtype=np.float32)
