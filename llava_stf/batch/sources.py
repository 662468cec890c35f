"""Where the rows of a batch stand: a folder of images, JSON lines, or parquet, each a list of records by number.

Nothing is kept but the places of the records, so that their number and the size of their images do not matter.
"""

from __future__ import annotations

import codecs
import hashlib
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol

from llava_stf.batch.places import Place, S3Path
from llava_stf.data.label_questions import ImageQuestions, image_endings
from llava_stf.errors import DataError, LlavaStfError, MissingDependencyError, one_line
from llava_stf.images import FORMATS
from llava_stf.io.json import parse_json, wide_encoding

if TYPE_CHECKING:
    import pyarrow

COLUMNS = ("id", "image", "images", "question")
JSON_LINES = (".jsonl", ".ndjson", ".json")
_READ_ROWS = 32  # of a parquet file at a time: images are large, and its row groups can hold any number of them


class Source(Protocol):
    """Records by number; `[number]` raises `DataError` for what is no record.

    `fingerprint` tells one content from another, wherever it lies.
    """

    fingerprint: str

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Mapping[str, Any]: ...


class JsonLines:
    """The records of a JSON lines file; empty lines are none.

    Raises:
        DataError: the file cannot be read.
    """

    def __init__(self, path: Place) -> None:
        self._path = path
        self._starts = array("q")
        digest = hashlib.sha256()
        place = 0
        try:
            self._file = path.open("rb")  # for good: to open an object anew for each row is a request more
            if wide := wide_encoding(self._file.read(4)):
                raise DataError(f"{path} is in {wide}; save it as UTF-8.")
            self._file.seek(0)
            for line in self._file:
                if line.strip():
                    self._starts.append(place)
                digest.update(line)
                place += len(line)
        except OSError as error:
            raise DataError(f"Cannot read {path}: {error.strerror}.") from error
        if self._starts and self._line(0).removeprefix(codecs.BOM_UTF8).startswith(b"["):
            raise DataError(f"{path} is one JSON list; expected JSON lines, an object on every line.")
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, number: int) -> Mapping[str, Any]:
        try:
            record = parse_json(self._line(number))
        except ValueError as error:
            raise DataError(f"The line is no JSON: {error}.") from error
        if not isinstance(record, dict):
            raise DataError(f"The line must be a JSON object, found {type(record).__name__}.")
        return record

    def _line(self, number: int) -> bytes:
        try:
            self._file.seek(self._starts[number])
            return self._file.readline().strip()
        except OSError as error:
            raise LlavaStfError(f"Cannot read {self._path} any more: {error.strerror}.") from error


class ParquetRows:
    """The rows of a parquet file, read on from the one that was read last.

    Raises:
        DataError: the file cannot be read or has no images.
        MissingDependencyError: pyarrow is not installed.
    """

    def __init__(self, path: Place) -> None:
        try:
            import pyarrow
            from pyarrow.parquet import ParquetFile
        except ImportError as error:
            raise MissingDependencyError(f"{path} needs pyarrow: pip install 'llava-stf[batch]'") from error
        try:
            # Page by page, so that a row group of many images is never in memory as a whole.
            self._file = ParquetFile(path.open("rb"), pre_buffer=False, buffer_size=2**20)
            self.fingerprint = _footer_digest(path)
        except (OSError, pyarrow.ArrowException) as error:
            raise DataError(f"Cannot read {path}: {one_line(error)}.") from error
        self._columns = [name for name in COLUMNS if name in self._file.schema_arrow.names]
        if {"image", "images"}.isdisjoint(self._columns):
            raise DataError(
                f"{path} has no column 'image' or 'images', but {', '.join(self._file.schema_arrow.names):.200}."
            )
        sizes = (self._file.metadata.row_group(group).num_rows for group in range(self._file.num_row_groups))
        self._firsts = list(accumulate(sizes, initial=0))  # number of the first row of each row group
        self._damaged: dict[int, tuple[int, str]] = {}  # by row group: the row from which on, and why
        self._group: int | None = None
        self._batches: Iterator[pyarrow.RecordBatch] = iter(())
        self._batch: list[Mapping[str, Any]] = []
        self._start = 0  # number of the first row of `_batch`

    def __len__(self) -> int:
        return self._firsts[-1]

    def __getitem__(self, number: int) -> Mapping[str, Any]:
        import pyarrow

        group = bisect_right(self._firsts, number) - 1
        damaged, why = self._damaged.get(group, (len(self), ""))
        if number >= damaged:
            raise DataError(why)
        try:
            return self._read(group, number)
        except (OSError, UnicodeDecodeError, pyarrow.ArrowException) as error:
            why = f"The row cannot be read: {one_line(error)}."
            if isinstance(error, OSError) and error.errno is not None:  # the file is out of reach, not damaged
                raise LlavaStfError(why) from error
            self._damaged[group] = self._start, why
            raise DataError(why) from error

    def _read(self, group: int, number: int) -> Mapping[str, Any]:
        if group != self._group or number < self._start:
            self._batches = self._file.iter_batches(_READ_ROWS, row_groups=[group], columns=self._columns)
            self._batch, self._start, self._group = [], self._firsts[group], group
        while number >= self._start + len(self._batch):
            self._start += len(self._batch)
            self._batch = []
            batch = next(self._batches, None)
            if batch is None:
                raise OSError("the row group ends before the row")
            self._batch = batch.to_pylist()
        return self._batch[number - self._start]


class FolderImages:
    """Every image of a folder and below, by path; what is hidden is none.

    Raises:
        DataError: there is none.
    """

    def __init__(self, folder: Place) -> None:
        sizes = _object_images(folder) if isinstance(folder, S3Path) else _file_images(folder)
        self._paths = sorted(sizes)
        digest = hashlib.sha256()
        for path in self._paths:
            digest.update(f"{path}\0{sizes[path]}\n".encode("utf-8", "surrogateescape"))
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, number: int) -> Mapping[str, Any]:
        return {"id": self._paths[number], "image": self._paths[number]}


def _file_images(folder: Path) -> dict[str, int]:
    return {path: (folder / path).lstat().st_size for path in ImageQuestions(folder, (), folder).paths}


def _object_images(folder: S3Path) -> dict[str, int]:
    endings = image_endings()
    found = {PurePosixPath(name): size for name, size in folder.files(recursive=True).items()}
    images = {
        str(path): size
        for path, size in found.items()
        if path.suffix.lower() in endings and not any(part.startswith(".") for part in path.parts)
    }
    if not images:
        raise DataError(f"the folder {folder} holds no image ({', '.join(FORMATS)})")
    return images


def open_source(path: Place) -> Source:
    """The records of a folder of images, a JSON lines file or a parquet file.

    Raises:
        DataError: it is none of them, cannot be read or is empty.
        MissingDependencyError: parquet without pyarrow.
    """
    source: Source
    if path.is_dir():
        source = FolderImages(path)
    elif path.suffix.lower() == ".parquet":
        source = ParquetRows(path)
    elif path.suffix.lower() in JSON_LINES or not path.exists():
        source = JsonLines(path)
    else:
        raise DataError(f"{path} is none of these: a folder, JSON lines ({', '.join(JSON_LINES)}), .parquet.")
    if not len(source):
        raise DataError(f"{path} holds no rows.")
    return source


def _footer_digest(path: Place) -> str:
    """Digest of a parquet file's footer, which knows places, sizes and statistics of everything in the file."""
    with path.open("rb") as file:
        size = file.seek(-8, 2) + 8
        footer = int.from_bytes(file.read(4), "little")
        file.seek(-8 - footer, 2)
        return hashlib.sha256(size.to_bytes(8, "little") + file.read(footer)).hexdigest()
