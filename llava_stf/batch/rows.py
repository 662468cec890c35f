"""The rows of a batch: what each asks about which images.

What is wrong with a row is said when it is read and becomes its result, so that a million rows do not fail over one.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_stf.batch.places import Place, S3Path, open_place
from llava_stf.batch.sources import Source, open_source
from llava_stf.data.records import check_media, record_images
from llava_stf.errors import DataError, LlavaStfError
from llava_stf.images import ImageSource


@dataclass(frozen=True)
class Row:
    """One input row: what to ask about which images, or in `reason` the sentence why it cannot be asked."""

    index: int
    id: str | int
    question: str = ""
    images: tuple[ImageSource, ...] = ()
    reason: str | None = None


class Rows:
    """The rows of `source`.

    Args:
        source: records with `question`, `image` or `images`, and perhaps `id` (else the row's number).
        question: asked where a record has none of its own.
        images: the folder that image paths start from.
        allow_urls: whether images may be fetched from http(s) URLs.
    """

    def __init__(self, source: Source, question: str | None, images: Place, allow_urls: bool) -> None:
        self.fingerprint = source.fingerprint
        self._source = source
        self._question = question
        self._folder = images.absolute()  # results are the same from wherever the command is given
        self._allow_urls = allow_urls

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Row:
        name: str | int = str(index)
        try:
            record = self._source[index]
            found = record.get("id")
            if found is not None:
                name = found if type(found) is int else str(found)
            return Row(index, name, self._asked(record), tuple(self._images(record)))
        except DataError as error:
            return Row(index, name, reason=str(error))

    def _asked(self, record: Mapping[str, Any]) -> str:
        question = self._question if record.get("question") is None else record["question"]
        if question is None:
            raise DataError("The row has no 'question', and none is given for rows without one (--question).")
        if not isinstance(question, str):
            raise DataError(f"'question' must be a text, found {question!r:.80}.")
        try:
            question.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"'question' is no valid Unicode: {error.reason} at character {error.start}.") from error
        return question

    def _images(self, record: Mapping[str, Any]) -> Iterator[ImageSource]:
        check_media(record)
        if record.get("images") and record.get("image"):
            raise DataError("The row has both 'image' and 'images': leave out one of them.")
        found = record.get("images") or record.get("image") or []
        items = found if isinstance(found, list) else [found]
        if not items:
            raise DataError("The row has no image: expected 'image' or 'images', a path, bytes, or a list of them.")
        for item in items:
            if isinstance(item, str) and item.startswith("data:"):
                yield _decoded(item)
            elif isinstance(item, str) and re.match(r"https?://", item, re.IGNORECASE):
                if not self._allow_urls:
                    raise DataError(f"{item:.200} is not fetched: URLs need to be allowed (--allow-urls).")
                yield item
            else:
                yield from map(self._placed, record_images({"image": [item]}, Path()))

    def _placed(self, image: Path | ImageSource) -> ImageSource:
        """A path from the folder of images on; of objects, what they hold."""
        if not isinstance(image, Path):
            return image
        if not isinstance(self._folder, S3Path):
            return self._folder / image
        if image.is_absolute():
            raise DataError(f"No image file at {image}; expected a path from {self._folder} on.")
        return _fetched(self._folder / image)


def open_rows(place: str | Place, *, question: str | None, images: str | Place | None, allow_urls: bool) -> Rows:
    """The rows of `place`, see `open_source` and `Rows`; by default image paths start from what it is or lies in.

    Raises:
        DataError: as `open_place` and `open_source`, or nobody says what to ask about a folder, or `images` is none.
        MissingDependencyError: as `open_place` and `open_source`.
    """
    path = open_place(place)
    try:
        is_folder = path.is_dir()
        if is_folder and question is None:
            raise DataError(f"{path} is a folder of images; say what to ask about each of them (--question).")
        if is_folder and images is not None:
            raise DataError(f"{path} holds the images itself; a folder for their paths (--images) is for a file.")
        source = open_source(path)
        folder = (path if is_folder else path.parent) if images is None else open_place(images)
        if not folder.is_dir():
            raise DataError(f"The image folder {folder} does not exist.")
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}.") from error
    return Rows(source, question, folder, allow_urls)


def _fetched(image: S3Path) -> bytes:
    try:
        return image.read_bytes()
    except (FileNotFoundError, UnicodeError) as error:
        raise DataError(f"No image file at {str(image)!r:.200}; check the path.") from error
    except OSError as error:
        raise LlavaStfError(f"Cannot read {image}: {error.strerror}.") from error


def _decoded(url: str) -> bytes:
    """The bytes of a `data:` URL. Raises `DataError` if they are not in base64."""
    head, _, body = url.partition(",")
    try:
        if not head.endswith(";base64"):
            raise ValueError("expected data:image/...;base64,...")
        return base64.b64decode(body, validate=True)
    except ValueError as error:
        raise DataError(f"{head:.80} cannot be read: {error}.") from error
