"""Images in place of those of a data file, to compare what a LLaVA can be distilled on: crops of others, or noise.

    python -m llava_stf_eval.measurement.image_sources data/instruct.json runs/photos --crops photos/
    python -m llava_stf_eval.measurement.image_sources data/instruct.json runs/noise --noise

Each record's image has the path that the record gives, below the new folder, so that `llava-stf data label` asks the
same questions about it (`--images`). All images are squares of 112 px, what the bundled tower sees.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from llava_stf.data.sources import JsonRecords
from llava_stf.encoders.pretrain.data import Images, open_images
from llava_stf.errors import DataError
from llava_stf.io.arguments import seed
from llava_stf.io.command import run
from llava_stf.io.publish import publish
from llava_stf.world import SIDE

SMALLEST = 0.5  # side of a crop of an image that is shown again, as a share of the image's shorter side


def crops(images: Images, rng: np.random.Generator) -> Iterator[Image.Image]:
    """Squares of images, without an end: all images in a random order, then all again in another.

    The first time an image gives a square of its shorter side, later random ones, of `SMALLEST` of that side or more;
    always at a random place. So a few images are repeated without one square standing there twice.

    Yields:
        RGB images of `SIDE` x `SIDE`.

    Raises:
        ImageError: an image cannot be read.
    """
    smallest = 1.0
    while True:
        for number in rng.permutation(len(images)).tolist():
            image = images[number]
            side = round(min(image.size) * rng.uniform(smallest, 1)) or 1
            left, top = (int(rng.integers(length - side + 1)) for length in image.size)
            yield image.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
        smallest = SMALLEST


def noise(rng: np.random.Generator) -> Iterator[Image.Image]:
    """Images without an end whose every value is drawn for itself: RGB, `SIDE` x `SIDE`."""
    while True:
        yield Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))


def write_images(data: Path, output: Path, images: Iterator[Image.Image]) -> int:
    """Write an image for every record of a data file into a new folder, at the path that the record gives.

    Returns:
        How many.

    Raises:
        DataError: the file cannot be read, or a record has not one relative path of an image.
        LlavaStfError: `output` exists or cannot be written.
    """
    records = JsonRecords(data)
    with publish(output) as folder:
        for number in range(len(records)):
            path = records[number].get("image")
            if not isinstance(path, str) or not (folder / path).resolve().is_relative_to(folder.resolve()):
                raise DataError(f"record {number} of {data} needs the relative path of one image, found {path!r:.80}")
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            next(images).save(folder / path)
    return len(records)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="records whose images are replaced, JSON")
    parser.add_argument("output", type=Path, help="folder to write; it is created")
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--crops", metavar="IMAGES", help="of the images of a folder or of an npz file")
    kind.add_argument("--noise", action="store_true")
    parser.add_argument("--seed", type=seed, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    images = noise(rng) if options.noise else crops(open_images(options.crops), rng)
    print(f"{options.output}: {write_images(options.data, options.output, images)} images")


if __name__ == "__main__":
    run(main)
