"""Read one image from wherever the user has it: path, URL, bytes, PIL image or numpy array, always as 8-bit RGB.

Colours are those of the authors' `Image.open(path).convert("RGB")` (transparency is dropped, not composited), with two
repairs: a photograph is turned upright by its EXIF tag, and 16-bit greys are scaled to 8 bits where Pillow clips them.
"""

import asyncio
import io
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from PIL import IcoImagePlugin, Image

from llava_stf.errors import ImageError
from llava_stf.images.rgb import convert, reduce, to_8_bit, value_range

ImageSource = str | os.PathLike[str] | bytes | Image.Image | np.ndarray

# Raster formats only: Pillow would hand an EPS file to Ghostscript, that is, run it.
FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "QOI", "TGA", "TIFF", "WEBP")
MAX_DOWNLOAD_BYTES = 32 * 2**20
MAX_DOWNLOAD_SECONDS = 20
# "pad" mode draws an image on a square of its longer side, "square" mode enlarges it until its shorter side fits the
# vision tower: the one squares the memory of a long image, the other that of a thin one. Hence a bound for each.
MAX_SIDE = 4096
MAX_ASPECT_RATIO = 200
OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "LLAVA_STF_OFFLINE")
_ORIENTATION = 0x0112  # EXIF tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Bytes a pixel: of Pillow's storage where they are not 4, and of what decoders hold beside it (measured, rounded up).
_STORED = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}
_DECODER = {"AVIF": 10, "ICO": 12, "JPEG2000": 16, "QOI": 8, "TIFF": 4, "WEBP": 12}
_PROGRESSIVE = 6


def load_image(source: ImageSource, *, max_pixels: int | None = None) -> Image.Image:
    """Reads an image and returns it upright, 8 bits a channel, in mode "RGB".

    Animations give their first frame. An image whose longer side exceeds `MAX_SIDE` pixels is reduced by a whole factor
    while it is decoded; others keep every pixel.

    Args:
        source: A path; an http or https URL; the bytes of an image file; a PIL image; or a numpy array [H, W],
            [H, W, 1], [H, W, 3] or [H, W, 4] of bool, uint8 0..255, 16-bit 0..65535 or float 0..1.
        max_pixels: Largest image that is decoded from a file, an URL or bytes, below `PIL.Image.MAX_IMAGE_PIXELS`.

    Raises:
        ImageError: The image cannot be read, has more pixels than allowed, is thinner than 1 to `MAX_ASPECT_RATIO`,
            or is an URL that may not or cannot be fetched. The message names the source.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        return _read(source, f"PIL image {source.width}x{source.height} of mode {source.mode}")
    if isinstance(source, bytes):
        return _from_file(io.BytesIO(source), f"image of {len(source)} bytes", max_pixels)
    if isinstance(source, str) and (scheme := re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", source)):
        return _from_file(io.BytesIO(_download(source, scheme[1].lower())), source, max_pixels)
    if isinstance(source, (str, os.PathLike)):
        return _from_path(os.fsdecode(source), max_pixels)
    raise ImageError(
        f"An image is a path, an http(s) URL, bytes, a PIL image or a numpy array; found {type(source).__name__}."
    )


@dataclass(frozen=True)
class ImageHeader:
    """What an image will cost, told before it is decoded.

    Attributes:
        size: Width and height of what `load_image` returns, before it is turned upright.
        decoding_bytes: Memory that `load_image` takes at most.
    """

    size: tuple[int, int]
    decoding_bytes: int


def read_header(source: bytes | Image.Image, *, max_pixels: int | None = None) -> ImageHeader:
    """Looks at an image, a file's bytes or one of PIL, without decoding it.

    Raises:
        ImageError: As `load_image`, as far as the header tells.
    """
    if isinstance(source, Image.Image):
        return _header(source)
    with _opened(io.BytesIO(source), f"image of {len(source)} bytes", max_pixels) as image:
        return _header(image)


def _from_path(path: str, max_pixels: int | None) -> Image.Image:
    shown = path if len(path) <= 200 else f"{path[:200]}..."
    name = shown.encode(errors="backslashreplace").decode()
    if not path.strip():
        raise ImageError("The path of an image is empty; give that of one image file.")
    try:
        with Path(path).open("rb") as file:
            return _from_file(file, name, max_pixels)
    except ImageError:
        raise
    except FileNotFoundError as error:
        of_windows = "\\" in path and Path(path.replace("\\", "/")).is_file()
        hint = "write / where the path has a backslash" if of_windows else "check the path"
        raise ImageError(f"No image file at {name}; {hint}.") from error
    except IsADirectoryError as error:
        raise ImageError(f"{name} is a folder; give the path of one image file.") from error
    except (OSError, ValueError) as error:
        if len(path) > 1000:
            raise ImageError(
                f"Cannot open {name}: {len(path):,} characters are no path; decode base64 and give its bytes."
            ) from error
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ImageError(f"Cannot open {name}: {reason}.") from error


def _from_file(file: IO[bytes], name: str, max_pixels: int | None) -> Image.Image:
    with _opened(file, name, max_pixels) as image:
        return _read(image, name, may_draft=True)


@contextmanager
def _opened(file: IO[bytes], name: str, max_pixels: int | None) -> Iterator[Image.Image]:
    """The file with its header read and its size checked."""
    limit = Image.MAX_IMAGE_PIXELS
    bomb = f"{name} has more than {limit or 0:,} pixels; make it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS if you "
    bomb += "trust it."
    try:
        Image.init()
        _check_icon(file, max_pixels)
        image = Image.open(file, formats=[kind for kind in FORMATS if kind in Image.OPEN])
        pixels = image.width * image.height
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ImageError(bomb) from error
    except Image.UnidentifiedImageError as error:
        raise ImageError(f"{name} is empty or not an image of a known format ({', '.join(FORMATS)}).") from error
    except Exception as error:  # Pillow's parsers let any kind of exception out on a hostile header
        raise ImageError(f"Cannot read the header of {name}, the file is damaged: {error}.") from error
    with image:
        if max_pixels is not None and pixels > max_pixels:
            raise ImageError(
                f"{name} is {image.width}x{image.height}, more than {max_pixels:,} pixels; make it smaller."
            )
        if limit is not None and pixels > limit:
            raise ImageError(bomb)
        yield image


def _check_icon(file: IO[bytes], max_pixels: int | None) -> None:
    """Looks into an icon, which Pillow decodes where it opens it, and whose own header says nothing of its size.

    Raises `Image.DecompressionBombError` for one of too many pixels.
    """
    begin = file.tell()
    if file.read(4) == b"\0\0\1\0":
        file.seek(begin)
        file.seek(IcoImagePlugin.IcoFile(file).entry[0].offset)
        with Image.open(io.BytesIO(file.read()), formats=["PNG", "DIB"]) as frame:
            limits = [limit for limit in (max_pixels, Image.MAX_IMAGE_PIXELS) if limit is not None]
            if any(frame.width * frame.height > 2 * limit for limit in limits):  # twice: a bitmap has its mask below it
                raise Image.DecompressionBombError("an icon")
    file.seek(begin)


def _read(image: Image.Image, name: str, *, may_draft: bool = False) -> Image.Image:
    """The image as `load_image` returns it; `may_draft` lets a JPEG be decoded at a fraction of its size."""
    short, long = sorted(image.size)
    if long > MAX_ASPECT_RATIO * short:
        raise ImageError(
            f"{name} is {image.width}x{image.height} pixels; the longer side may be at most {MAX_ASPECT_RATIO} times "
            "the shorter one, crop it."
        )
    try:
        if may_draft and (factor := _factor(image)) > 1:
            image.draft(None, (max(1, image.width // factor), max(1, image.height // factor)))
        image.load()
        orientation = image.getexif().get(_ORIENTATION)
    except Exception as error:  # as above: decoders raise OSError, SyntaxError, struct.error, IndexError, ...
        raise ImageError(f"Cannot read {name}, the file is truncated or damaged: {error}.") from error
    values = value_range(image, name)
    factor = _factor(image)
    rgb = convert(image, name, values) if factor == 1 else reduce(image, factor, name, values)
    return rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb


def _factor(image: Image.Image) -> int:
    """By what an image is reduced."""
    return -(-max(image.size) // MAX_SIDE)


def _header(image: Image.Image) -> ImageHeader:
    pixels, factor = image.width * image.height, _factor(image)
    size = -(-image.width // factor), -(-image.height // factor)
    kept = 4 * size[0] * size[1]
    stored = _STORED.get(image.mode, 4) * pixels
    if image.format in ("JPEG", "MPO"):
        drafted = next(scale for scale in (8, 4, 2, 1) if factor >= scale)
        progressive = _PROGRESSIVE * pixels if "progressive" in image.info else 0
        return ImageHeader(size, stored // drafted**2 + kept + progressive)
    return ImageHeader(size, stored + max(kept, _DECODER.get(image.format or "", 0) * pixels))


def _from_array(array: np.ndarray) -> Image.Image:
    name = f"array of shape {list(array.shape)}"
    channels = array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array
    if 0 in array.shape or not (channels.ndim == 2 or (channels.ndim == 3 and channels.shape[-1] in (3, 4))):
        raise ImageError(f"An image array has shape [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]; found {name}.")
    if array.dtype.kind not in "biuf":
        raise ImageError(f"An image array holds bool, uint8, 16-bit or float values; {name} holds {array.dtype}.")
    values = (channels.min(), channels.max())
    return _read(Image.fromarray(np.ascontiguousarray(to_8_bit(channels, name, values))), name)


def _download(url: str, scheme: str) -> bytes:
    if scheme not in ("http", "https"):
        raise ImageError(f"{url} is not fetched: only http and https URLs are; for a local file give its path.")
    for variable in OFFLINE_VARIABLES:
        if os.environ.get(variable, "").upper() in ("1", "ON", "YES", "TRUE"):
            raise ImageError(f"{url} is not fetched: {variable} is set; unset it or give a local file.")
    from llava_stf.images.fetch import fetch

    arriving = fetch(url, max_bytes=MAX_DOWNLOAD_BYTES, max_seconds=MAX_DOWNLOAD_SECONDS)
    with ThreadPoolExecutor(1) as worker:  # its own thread, so that it also works inside a running event loop
        return worker.submit(asyncio.run, arriving).result()
