"""Mosaics: local pieces of images put together anew, as images to distil on where there are none of the domain.

What images of another domain share with it are local patterns, edges and textures, and less what they show: MosaicKD
(arXiv 2110.15094) trains a generator to rearrange these. Here they are cut out and laid side by side, and nothing is
trained.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from llava_stf.data.bad_samples import BadSamples
from llava_stf.data.records import SampleError
from llava_stf.errors import DataError, ImageError
from llava_stf.images import load_image
from llava_stf.io.publish import publish

SQUARES = 64  # that pieces are cut from at a time: each image is read once a pass, whatever the number of pieces
QUALITY = 95  # of JPEG


class Squares:
    """Random squares of images, without an end: each image once, in a new order, then each once again.

    An image is cut to a square of its shorter side at a random place, which is resized.

    Args:
        files: the images.
        side: of the squares, in pixels.
        rng: draws order and places.
        max_bad_samples: largest share of images that cannot be read, see `BadSamples`. They are passed over.

    Attributes:
        bad_samples: the verdicts on the images.
    """

    def __init__(self, files: Sequence[Path], side: int, rng: np.random.Generator, *, max_bad_samples: float) -> None:
        self.files, self.side = files, side
        self.bad_samples = BadSamples(len(files), max_bad_samples)
        self._rng = rng

    def __iter__(self) -> Iterator[Image.Image]:
        """Yields RGB images of `side` x `side`.

        Raises:
            DataError: too many images cannot be read, or all of them.
        """
        numbers = list(range(len(self.files)))
        while numbers:
            good = []
            for number in self._rng.permutation(numbers).tolist():
                try:
                    image = load_image(self.files[number])
                except ImageError as error:
                    self.bad_samples.add_bad(number, _broken(self.files[number], error))
                    continue
                self.bad_samples.add_good(number)
                good.append(number)
                yield self._cut(image)
            numbers = sorted(good)
        raise DataError(f"none of the {len(self.files)} images can be read")

    def _cut(self, image: Image.Image) -> Image.Image:
        short = min(image.size)
        left, top = (int(self._rng.integers(length - short + 1)) for length in image.size)
        box = (left, top, left + short, top + short)
        return image.resize((self.side, self.side), Image.Resampling.BICUBIC, box=box)


def mosaics(squares: Squares, *, pieces: int, rng: np.random.Generator) -> Iterator[Image.Image]:
    """Images without an end, each of `pieces` x `pieces` pieces, each piece of one of the last `SQUARES` squares.

    A piece shows a random place of its square, at the size that it has there.

    Args:
        squares: what the pieces are cut from; the mosaics are as large.
        pieces: in a row, and rows.
        rng: draws the pieces.

    Yields:
        RGB images of `squares.side` x `squares.side`.

    Raises:
        DataError: as iterating over `squares`.
    """
    side, source = squares.side, iter(squares)
    edges = [side * number // pieces for number in range(pieces + 1)]
    spans = [(start, end - start) for start, end in pairwise(edges)]
    recent = deque((next(source) for _ in range(min(SQUARES, len(squares.files)))), maxlen=SQUARES)
    while True:
        mosaic = Image.new("RGB", (side, side))
        for top, height in spans:
            for left, width in spans:
                square = recent[rng.integers(len(recent))]
                x, y = int(rng.integers(side - width + 1)), int(rng.integers(side - height + 1))
                mosaic.paste(square.crop((x, y, x + width, y + height)), (left, top))
        yield mosaic
        recent.append(next(source))


def write_mosaics(
    files: Sequence[Path],
    output: Path,
    *,
    count: int,
    side: int,
    pieces: int,
    seed: int = 0,
    max_bad_samples: float = 0.01,
    progress: Callable[[int], None] = lambda done: None,
) -> str:
    """Write mosaics as JPEG files into a new folder, which appears when the last one is written.

    The same files, options and seed give the same mosaics; the first ones are the same for every `count`.

    Args:
        files: the images.
        output: the folder.
        count: how many mosaics.
        side: of a mosaic, in pixels.
        pieces: in a row of a mosaic, and rows.
        seed: draws images and pieces.
        max_bad_samples: largest share of images that cannot be read.
        progress: told how many mosaics are written, after each.

    Returns:
        Which images cannot be read, as `BadSamples.summary` says it.

    Raises:
        DataError: a mosaic has more pieces in a row than pixels, or too many images cannot be read.
        LlavaStfError: `output` exists or cannot be written.
    """
    if pieces > side:
        raise DataError(f"{pieces} pieces in a row need as many pixels, and side is {side}")
    rng = np.random.default_rng(seed)
    squares = Squares(files, side, rng, max_bad_samples=max_bad_samples)
    with publish(output) as folder:
        for number, mosaic in zip(range(count), mosaics(squares, pieces=pieces, rng=rng), strict=False):
            mosaic.save(folder / f"{number:06d}.jpg", quality=QUALITY)
            progress(number + 1)
    return squares.bad_samples.summary()


def _broken(file: Path, error: ImageError) -> SampleError:
    reason = str(error) if str(file) in str(error) else f"{file}: {error}"
    return SampleError("broken image", str(file), reason.rstrip("."))
