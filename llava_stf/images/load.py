"""Read one image from wherever the user has it: path, URL, bytes, PIL image or numpy array, always as 8-bit RGB.

Colours are those of the authors' `Image.open(path).convert("RGB")` (transparency is dropped, not composited), with two
repairs: a photograph is turned upright by its EXIF tag, and 16-bit greys are scaled to 8 bits where Pillow clips them.
"""

import asyncio
import io
import os
import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps

from llava_stf.errors import ImageError

ImageSource = str | os.PathLike[str] | bytes | Image.Image | np.ndarray

# Raster formats only: Pillow would hand an EPS file to Ghostscript, that is, run it.
FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "QOI", "TGA", "TIFF", "WEBP")
MAX_DOWNLOAD_BYTES = 32 * 2**20
MAX_DOWNLOAD_SECONDS = 20
# "pad" mode draws an image on a square of its longer side, "square" mode enlarges it until its shorter side fits the
# vision tower: the one squares the memory of a long image, the other that of a thin one. Hence a bound for each.
MAX_SIDE = 8192
MAX_ASPECT_RATIO = 200
OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "LLAVA_STF_OFFLINE")


def load_image(source: ImageSource, *, max_pixels: int | None = None) -> Image.Image:
    """Reads an image and returns it upright, 8 bits a channel, in mode "RGB".

    Args:
        source: a path; an http or https URL; the bytes of an image file; a PIL image; or a numpy array [H, W],
            [H, W, 1], [H, W, 3] or [H, W, 4] of bool, uint8 0..255, 16-bit 0..65535 or float 0..1.
        max_pixels: largest image that is decoded from a file, an URL or bytes, below `PIL.Image.MAX_IMAGE_PIXELS`.

    Animations give their first frame. An image whose longer side exceeds `MAX_SIDE` pixels is first reduced by a
    whole factor.

    Raises:
        ImageError: the image cannot be read, has more pixels than allowed, is thinner than 1 to `MAX_ASPECT_RATIO`,
            or is an URL that may not or cannot be fetched. The message names the source.
    """
    if isinstance(source, np.ndarray):
        image = _from_array(source)
        name = f"array of shape {list(source.shape)}"
    elif isinstance(source, Image.Image):
        name = f"PIL image {source.width}x{source.height} of mode {source.mode}"
        image = _to_rgb(source, name)
    elif isinstance(source, bytes):
        name = f"image of {len(source)} bytes"
        image = _from_file(io.BytesIO(source), name, max_pixels)
    elif isinstance(source, str) and (scheme := re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", source)):
        name = source
        image = _from_file(io.BytesIO(_download(source, scheme[1].lower())), name, max_pixels)
    elif isinstance(source, (str, os.PathLike)):
        name = str(source) if len(str(source)) <= 200 else f"{str(source)[:200]}..."
        image = _from_path(Path(source), name, max_pixels)
    else:
        raise ImageError(
            f"An image is a path, an http(s) URL, bytes, a PIL image or a numpy array; found {type(source).__name__}."
        )
    return _bounded(image, name)


def _from_path(path: Path, name: str, max_pixels: int | None) -> Image.Image:
    try:
        with path.open("rb") as file:
            return _from_file(file, name, max_pixels)
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"No image file at {name}; check the path.") from error
    except IsADirectoryError as error:
        raise ImageError(f"{name} is a folder; give the path of one image file.") from error
    except (OSError, ValueError) as error:
        raise ImageError(f"Cannot open {name}: {error}.") from error


def _from_file(file: IO[bytes], name: str, max_pixels: int | None) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            Image.init()
            with Image.open(file, formats=[kind for kind in FORMATS if kind in Image.OPEN]) as image:
                if max_pixels is not None and image.width * image.height > max_pixels:
                    raise ImageError(
                        f"{name} is {image.width}x{image.height}, more than {max_pixels:,} pixels; make it smaller."
                    )
                return _to_rgb(image, name)
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise ImageError(
                f"{name} has more than {Image.MAX_IMAGE_PIXELS:,} pixels; make it smaller, or raise "
                "PIL.Image.MAX_IMAGE_PIXELS if you trust it."
            ) from error
        except Image.UnidentifiedImageError as error:
            raise ImageError(f"{name} is empty or not an image of a known format ({', '.join(FORMATS)}).") from error
        except ImageError:
            raise
        except Exception as error:  # Pillow's parsers let any kind of exception out on a hostile header
            raise ImageError(f"Cannot read the header of {name}, the file is damaged: {error}.") from error


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    try:
        image.load()
        upright = ImageOps.exif_transpose(image)
        if upright.mode in ("I", "F") or upright.mode.startswith("I;16"):
            return Image.fromarray(_to_8_bit(np.asarray(upright), name)).convert("RGB")
        if upright.mode == "P":  # through RGBA: the same colours, without Pillow's warning about transparency
            upright = upright.convert("RGBA")
        return upright.convert("RGB")
    except ImageError:
        raise
    except Exception as error:  # as above: decoders raise OSError, SyntaxError, struct.error, IndexError, ...
        raise ImageError(f"Cannot read {name}, the file is truncated or damaged: {error}.") from error


def _from_array(array: np.ndarray) -> Image.Image:
    name = f"array of shape {list(array.shape)}"
    channels = array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array
    if 0 in array.shape or not (channels.ndim == 2 or (channels.ndim == 3 and channels.shape[-1] in (3, 4))):
        raise ImageError(f"An image array has shape [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]; found {name}.")
    return Image.fromarray(np.ascontiguousarray(_to_8_bit(channels, name))).convert("RGB")


def _to_8_bit(array: np.ndarray, name: str) -> np.ndarray:
    """Maps the full range of the array's type to 0..255; integers wider than 16 bits take the range they fit in."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255
    if array.dtype.kind not in "iuf":
        raise ImageError(f"An image array holds bool, uint8, 16-bit or float values; {name} holds {array.dtype}.")
    low, high = array.min(), array.max()
    limit = 1 if array.dtype.kind == "f" else 255 if array.dtype.itemsize != 2 and high <= 255 else 65535
    if not (low >= 0 and high <= limit):  # also refuses NaN
        raise ImageError(f"{array.dtype} pixels must lie in 0..{limit}; {name} has {low} to {high}.")
    return np.rint(array * (255 / limit)).astype(np.uint8)


def _bounded(image: Image.Image, name: str) -> Image.Image:
    short, long = sorted(image.size)
    if long > MAX_ASPECT_RATIO * short:
        raise ImageError(
            f"{name} is {image.width}x{image.height} pixels; the longer side may be at most {MAX_ASPECT_RATIO} times "
            "the shorter one, crop it."
        )
    return image.reduce(-(-long // MAX_SIDE)) if long > MAX_SIDE else image


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
