"""Where images come from, an npz file, a folder or a Hugging Face data set; unreadable ones are passed over."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from llava_stf.data.bad_samples import BadSamples
from llava_stf.data.records import SampleError
from llava_stf.data.sources import visible_files
from llava_stf.errors import DataError, ImageError
from llava_stf.images import load_image

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"))


class Images(Protocol):
    """Images by number; `[number]` raises `ImageError` for one that cannot be read."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Image.Image: ...

    def name(self, number: int) -> str:
        """What messages call the image."""


class ArrayImages:
    """Images of an array, uint8 [n, H, W, 3]."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, number: int) -> Image.Image:
        return Image.fromarray(self.array[number])

    def name(self, number: int) -> str:
        """What messages call the image."""
        return f"image {number}"


class FileImages:
    """Images of files."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> Image.Image:
        return load_image(self.paths[number])

    def name(self, number: int) -> str:
        """What messages call the image."""
        return str(self.paths[number])


class RowImages:
    """Images of a column of a Hugging Face data set, read undecoded.

    Raises:
        DataError: it has no such column.
    """

    def __init__(self, rows: Any, column: str, name: str) -> None:
        from llava_stf.data.sources import undecoded

        if column not in rows.column_names:
            raise DataError(f"the data set {name} has no column {column}, but {', '.join(rows.column_names)}")
        self.rows, self.column = undecoded(rows).select_columns([column]), column

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Image.Image:
        cell = self.rows[number][self.column]
        if isinstance(cell, dict):
            cell = cell["bytes"] or cell["path"]
        return load_image(cell)

    def name(self, number: int) -> str:
        """What messages call the image."""
        return f"row {number}"


def open_images(data: str, column: str = "image") -> Images:
    """The images of `data`.

    `data` is an npz file with `train_images` or `images`, uint8 [n, H, W, 3]; a folder of image files, subfolders
    included; or a Hugging Face data set: parquet or arrow file, `save_to_disk` folder, hub id.

    Raises:
        DataError: there is nothing to read.
    """
    path = Path(data)
    if path.suffix == ".npz":
        return ArrayImages(read_arrays(path, "images", ("train_images", "images")))
    if path.is_dir() and not (path / "dataset_info.json").exists() and not (path / "dataset_dict.json").exists():
        files = image_files(path)
        if not files:
            raise DataError(f"the folder {data} holds no images ({', '.join(sorted(SUFFIXES))})")
        return FileImages(files)
    if path.suffix in (".parquet", ".arrow") or path.is_dir() or not path.exists():
        from llava_stf.data.sources import load_rows

        return RowImages(load_rows(data, streaming=False), column, path.name)
    raise DataError(f"{data} is no npz file, folder of images or Hugging Face data set")


def image_files(folder: Path) -> list[Path]:
    """The image files of `folder` and below, by name; hidden files and folders are none."""
    return sorted(path for path in visible_files(folder) if path.suffix.lower() in SUFFIXES)


def read_arrays(path: Path, kind: str, names: Sequence[str]) -> np.ndarray:
    """The first array of `names` in an npz file; `kind` "images": uint8 [n, H, W, 3].

    Raises:
        DataError: the file cannot be read, or has no such array.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            known = file.files
            name = next((name for name in names if name in known), None)
            array = None if name is None else file[name]
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    if array is None:
        raise DataError(f"{path} holds no array {' or '.join(names)}, but {', '.join(known) or 'nothing'}")
    if kind == "images" and (array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3 or not len(array)):
        raise DataError(f"{name} of {path} must be uint8 [n, H, W, 3], found {array.dtype} {list(array.shape)}")
    return array


class ImageDataset(Dataset[Tensor]):
    """`images` as uint8 [3, side, side]: the short side resized to `side`, the middle cut out.

    One that cannot be read is counted, named in the log, and its place taken by the next one that can. Raises
    `DataError` when more than the share `max_bad` are bad.
    """

    def __init__(self, images: Images, side: int, *, max_bad: float = 0.01) -> None:
        self.images, self.side = images, side
        self.bad = BadSamples(len(images), max_bad, option="max_bad_images")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> Tensor:
        for candidate in range(number, number + len(self)):
            candidate %= len(self)
            try:
                image = self.images[candidate]
            except ImageError as error:
                name = self.images.name(candidate)
                reason = str(error) if name in str(error) else f"{name}: {error}"
                self.bad.add_bad(candidate, SampleError("broken image", name, reason.rstrip(".")))
                continue
            self.bad.add_good(candidate)
            return square(image, self.side)
        raise DataError(f"none of the {len(self)} images can be read")


def square(image: Image.Image, side: int) -> Tensor:
    """uint8 [3, side, side]: the short side resized (bicubic) to `side`, the middle cut out."""
    if image.size != (side, side):
        image = ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def default_side(images: Images, image_size: int) -> int:
    """The side of square arrays as they are; else 8/7 of `image_size`, 256 for 224."""
    if isinstance(images, ArrayImages) and images.array.shape[1] == images.array.shape[2]:
        return images.array.shape[1]
    return image_size * 8 // 7
