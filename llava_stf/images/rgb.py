"""Pixels of every mode as 8-bit RGB: transparency is dropped, greys of more than 8 bits are scaled."""

from collections.abc import Iterator

import numpy as np
from PIL import Image

from llava_stf.errors import ImageError

_STRIP = 2**20  # pixels that are converted at a time where an image is reduced


def to_rgb(image: Image.Image) -> Image.Image:
    """The image in mode "RGB": transparency is dropped, greys of more than 8 bits are scaled, nothing is turned.

    Raises:
        ImageError: The image cannot be decoded, or its values are in no known range.
    """
    name = f"PIL image {image.width}x{image.height} of mode {image.mode}"
    return convert(image, name, value_range(image, name))


def reduce(image: Image.Image, factor: int, name: str, values: tuple[float, float] | None) -> Image.Image:
    """The image in RGB, reduced strip by strip, so that no second one of its size is held."""
    reduced = Image.new("RGB", (-(-image.width // factor), -(-image.height // factor)))
    for top, strip in _strips(image, factor):
        reduced.paste(convert(strip, name, values).reduce(factor), (0, top // factor))
    return reduced


def convert(image: Image.Image, name: str, values: tuple[float, float] | None) -> Image.Image:
    """The image in mode "RGB".

    Args:
        image: of any mode.
        name: for errors.
        values: its `value_range`.

    Raises:
        ImageError: it cannot be decoded.
    """
    try:
        if values is not None:
            return Image.fromarray(to_8_bit(np.asarray(image), name, values)).convert("RGB")
        if image.mode == "P":  # through RGBA: the same colours, without Pillow's warning about transparency
            image = image.convert("RGBA")
        return image.convert("RGB")
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(f"Cannot read {name}, the file is truncated or damaged: {error}.") from error


def value_range(image: Image.Image, name: str) -> tuple[float, float] | None:
    """Least and greatest value of a grey image with more than 8 bits, `None` for every other one."""
    if not (image.mode in ("I", "F") or image.mode.startswith("I;16")):
        return None
    try:
        ranges = [(values.min(), values.max()) for _, strip in _strips(image, 1) for values in [np.asarray(strip)]]
    except Exception as error:
        raise ImageError(f"Cannot read {name}, the file is truncated or damaged: {error}.") from error
    return np.min(ranges), np.max(ranges)


def _strips(image: Image.Image, factor: int) -> Iterator[tuple[int, Image.Image]]:
    """The image in strips, each with its first row, a multiple of the factor."""
    rows = factor * max(1, _STRIP // (factor * image.width))
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(image.height, top + rows)))


def to_8_bit(array: np.ndarray, name: str, values: tuple[float, float]) -> np.ndarray:
    """Maps the full range of the array's type to 0..255; integers wider than 16 bits take the range they fit in."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255
    low, high = values
    limit = 1 if array.dtype.kind == "f" else 255 if array.dtype.itemsize != 2 and high <= 255 else 65535
    if not (low >= 0 and high <= limit):  # also refuses NaN
        raise ImageError(f"{array.dtype} pixels must lie in 0..{limit}; {name} has {low} to {high}.")
    return np.rint(array * (255 / limit)).astype(np.uint8)
