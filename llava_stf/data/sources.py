"""Where training records come from: a LLaVA data file, or a Hugging Face data set, indexed or streamed.

A data file is a JSON list, or JSON lines. Only the place and the length of each record are kept, and the record is read
when it is asked for: 665,000 records take 16 MB of memory, in data loading processes, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from llava_stf.data.json_index import index_json
from llava_stf.data.records import CONVERSATION_FIELDS, signed_length
from llava_stf.errors import DataError, MissingDependencyError, one_line
from llava_stf.io.json import parse_json

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

_COLUMNAR = {".parquet": "parquet", ".arrow": "arrow"}


class Records(Protocol):
    """Records by number; `[number]` raises `DataError` for what is no record."""

    name: str

    @property
    def lengths(self) -> np.ndarray:
        """Lengths of all records, int32 [n], see `signed_length`."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Mapping[str, Any]: ...


class JsonRecords:
    """The records of a JSON list or a JSON lines file.

    Raises:
        DataError: the file cannot be read, is neither, or is empty.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.name
        self.spans, self.lengths = index_json(path)

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, number: int) -> Mapping[str, Any]:
        start, end = self.spans[number]
        with self.path.open("rb") as file:
            file.seek(start)
            line = file.read(end - start)
        try:
            record = parse_json(line)
        except ValueError as error:
            raise DataError(f"it is no JSON object: {error}") from error
        if not isinstance(record, dict):
            raise DataError(f"it must be a JSON object, found {type(record).__name__}")
        return record


class DatasetRecords:
    """The rows of a `datasets.Dataset`, images undecoded."""

    def __init__(self, dataset: Dataset, name: str) -> None:
        if not len(dataset):
            raise DataError(f"the data set {name} holds no samples")
        _check_columns(dataset.column_names, name)
        self.dataset, self.name = undecoded(dataset), name

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, number: int) -> Mapping[str, Any]:
        return self.dataset[int(number)]

    @cached_property
    def lengths(self) -> np.ndarray:
        """Lengths of all records, int32 [n], see `signed_length`."""
        texts = [column for column in CONVERSATION_FIELDS if column in self.dataset.column_names]
        return np.fromiter(map(signed_length, self.dataset.select_columns(texts)), np.int32, len(self))


def open_records(data: str) -> Records:
    """The records of `data`: a JSON or JSON lines file, a parquet or arrow file, a `save_to_disk` folder, or a hub id.

    Raises:
        DataError: there is nothing to read or no column of conversations.
        MissingDependencyError: `datasets` is needed and not installed.
    """
    path = Path(data)
    if not _needs_datasets(data):
        return JsonRecords(path)
    return DatasetRecords(load_rows(data, streaming=False), path.name)


def open_stream(data: str, *, seed: int) -> IterableDataset:
    """The rows of `data` in the order of a shuffle buffer of 1,000 rows, images undecoded.

    Raises:
        DataError: as `open_records`, or a JSON file, which needs no streaming.
        MissingDependencyError: as `open_records`.
    """
    if not _needs_datasets(data):
        raise DataError(f"streaming is for Hugging Face data sets, and {data} is a JSON file: leave out streaming")
    rows = load_rows(data, streaming=True)
    _check_columns(rows.column_names or next(iter(rows), {}), Path(data).name)
    return undecoded(rows).shuffle(seed=seed, buffer_size=1000)


def _check_columns(columns: Iterable[str], name: str) -> None:
    if set(columns).isdisjoint(CONVERSATION_FIELDS):
        raise DataError(
            f"the data set {name} has the columns {', '.join(columns) or '(none)':.200}; expected "
            f"{' or '.join(CONVERSATION_FIELDS)}, and image or images for what they show"
        )


def image_folder(data: str, images: str | None) -> Path:
    """The folder that image paths start from: `images`, or the one `data` lies in.

    Raises:
        DataError: it is none.
    """
    folder = Path(data).parent if images is None else Path(images)
    if images is None and not folder.is_dir():
        return Path()  # data from the hub
    if not folder.is_dir():
        raise DataError(f"the image folder {folder} {'is no folder' if folder.exists() else 'does not exist'}")
    return folder


def visible_files(folder: Path) -> Iterator[Path]:
    """The files of a folder and below, in no order, without those that an editor or a system hides (`.name`)."""
    for path in folder.rglob("*"):
        if not any(part.startswith(".") for part in path.relative_to(folder).parts) and path.is_file():
            yield path


def undecoded(dataset: Any) -> Any:
    """The data set with its image cells as `{"bytes", "path"}`, to be decoded (or refused) one by one later."""
    from datasets import Image, List

    for column, feature in (dataset.features or {}).items():
        if isinstance(feature, Image):
            dataset = dataset.cast_column(column, Image(decode=False))
        elif isinstance(feature, List) and isinstance(feature.feature, Image):
            dataset = dataset.cast_column(column, List(Image(decode=False)))
    return dataset


def _needs_datasets(data: str) -> bool:
    """A folder, a columnar file, or what is no file here but has the form of a hub id."""
    path = Path(data)
    if path.is_dir() or path.suffix in _COLUMNAR:
        return True
    hub_id = re.fullmatch(r"[\w.-]+/[\w.-]+", data) is not None
    return hub_id and not path.exists() and path.suffix not in (".json", ".jsonl")


def is_saved_dataset(folder: Path) -> bool:
    """Whether save_to_disk of datasets has written a folder."""
    return any((folder / name).exists() for name in ("state.json", "dataset_dict.json"))


def _check_saved(folder: Path) -> None:
    """Raise `DataError` for a folder that save_to_disk has not written."""
    if not is_saved_dataset(folder):
        inside = sorted(path.name for path in folder.iterdir() if path.suffix in (".json", ".jsonl", *_COLUMNAR))
        meant = f"; is {folder / inside[0]} meant?" if inside else ""
        raise DataError(f"{folder} is no data set that save_to_disk of datasets has written{meant}")


def load_rows(data: str, *, streaming: bool) -> Any:
    """The `Dataset` or `IterableDataset` that `data` names; of several splits, "train"."""
    try:
        import datasets
    except ImportError as error:
        raise MissingDependencyError(
            f"the data set {data} needs the package datasets: pip install 'llava-stf[train]'"
        ) from error
    path = Path(data)
    try:
        if path.is_dir():
            _check_saved(path)
            dataset = datasets.load_from_disk(data)
        elif path.suffix in _COLUMNAR:
            dataset = datasets.load_dataset(_COLUMNAR[path.suffix], data_files=data, streaming=streaming)
        else:
            dataset = datasets.load_dataset(data, streaming=streaming)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"cannot read the data set {data}: {one_line(error)}") from error
    if isinstance(dataset, dict):
        if "train" not in dataset:
            raise DataError(f"the data set {data} has no split train, but {', '.join(dataset)}")
        dataset = dataset["train"]
    return dataset.to_iterable_dataset() if streaming and path.is_dir() else dataset
