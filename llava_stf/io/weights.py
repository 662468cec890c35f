"""Tensors on disk: what a folder or file holds, one tensor at a time, and safetensors shards written back.

Nothing is read before it is needed: an index holds names, shapes and dtypes from the headers, files are memory-mapped,
and one tensor at a time is copied.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from llava_stf.errors import CheckpointError
from llava_stf.io.json import read_json, write_json

MAX_SHARD_BYTES = 5 * 10**9
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file. `rows` asks for another number of rows than the file holds, see `Reader.read`."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    rows: int | None = None

    @property
    def final_shape(self) -> tuple[int, ...]:
        """Shape of the tensor as `Reader.read` gives it."""
        return self.shape if self.rows is None else (self.rows, *self.shape[1:])

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor as `Reader.read` gives it."""
        return torch.Size(self.final_shape).numel() * self.dtype.itemsize

    def with_rows(self, rows: int) -> StoredTensor:
        """The same tensor with another number of rows asked for."""
        return replace(self, rows=rows)

    def require_float(self) -> StoredTensor:
        """Itself.

        Raises:
            CheckpointError: it does not hold floating-point numbers of at least 16 bits.
        """
        if self.dtype.is_floating_point and self.dtype.itemsize >= 2:
            return self
        raise CheckpointError(
            f"{self.file}: {self.name} is {str(self.dtype).removeprefix('torch.')}; expected floating point of 16, 32 "
            "or 64 bits (a quantized checkpoint cannot be converted, take the unquantized one)."
        )


class Reader:
    """Reads stored tensors; keeps the last pickle mapped, because opening one costs more than a header."""

    def __init__(self) -> None:
        self._pickle: tuple[Path, dict[str, Tensor]] | None = None

    def read(self, stored: StoredTensor) -> Tensor:
        """The tensor, contiguous, memory-mapped where possible.

        Where `stored.rows` asks for fewer rows the last are cut; for more, the mean of all rows is appended.
        """
        if stored.file.suffix == ".safetensors":
            with _open_safetensors(stored.file) as file:
                tensor = file.get_tensor(stored.name)
        else:
            if self._pickle is None or self._pickle[0] != stored.file:
                self._pickle = (stored.file, _open_pickle(stored.file))
            tensor = self._pickle[1][stored.name]
        return _with_rows(tensor, stored.rows).contiguous()


def _with_rows(tensor: Tensor, rows: int | None) -> Tensor:
    if rows is None:
        return tensor
    if rows <= len(tensor):
        return tensor[:rows]
    mean = tensor.mean(0, keepdim=True, dtype=torch.float32).to(tensor.dtype)
    return torch.cat([tensor, mean.expand(rows - len(tensor), -1)])


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a folder's weights, safetensors before pickles, one file before shards; may be empty.

    Raises:
        CheckpointError: an index is no index or names a file that is absent.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _indexed_files(index)
    return []


def _indexed_files(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: expected an object 'weight_map' from tensor names to files, found none.")
    files = []
    for name in sorted({str(name) for name in weight_map.values()}):
        file = index.parent / name
        if Path(name).name != name or not file.is_file():
            raise CheckpointError(f"{index} names the shard '{name}', which is not in the folder; fetch it again.")
        files.append(file)
    return files


def read_index(files: list[Path]) -> dict[str, StoredTensor]:
    """Every tensor of the files by name, in file order; only headers are read.

    Raises:
        CheckpointError: a file is damaged or repeats a name; it names the file.
    """
    index: dict[str, StoredTensor] = {}
    for file in files:
        for stored in _file_index(file):
            if stored.name in index:
                raise CheckpointError(f"{stored.name} stands in both {index[stored.name].file} and {file}.")
            index[stored.name] = stored
    return index


def _file_index(file: Path) -> Iterator[StoredTensor]:
    if file.suffix == ".safetensors":
        with _open_safetensors(file) as opened:
            for name in opened.keys():  # noqa: SIM118, the handle is no mapping
                part = opened.get_slice(name)
                dtype = _DTYPES.get(part.get_dtype())
                if dtype is None:
                    raise CheckpointError(f"{file}: {name} is {part.get_dtype()}, a type of numbers that is not known.")
                yield StoredTensor(file, name, tuple(part.get_shape()), dtype)
    else:
        for name, tensor in _open_pickle(file).items():
            yield StoredTensor(file, name, tuple(tensor.shape), tensor.dtype)


def _open_safetensors(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{file} is no complete safetensors file ({error}); fetch it again.") from error


def read_pickle(file: Path, *, known: Sequence[type] = ()) -> Any:
    """What a file of `torch.save` holds, its tensors mapped where they can be. No code of a pickle is run.

    Args:
        file: to read.
        known: classes, harmless ones, whose objects may stand in it beside tensors and Python's own.

    Raises:
        CheckpointError: it is damaged, or holds objects of other classes.
    """
    try:
        with torch.serialization.safe_globals(list(known)):
            # Files of torch before 1.6 are no zip archives and cannot be mapped.
            return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # the unpickler lets any kind of exception out on a damaged file
        found = re.search(r"GLOBAL (\S+)", str(error))
        reason = f" (it asks for {found[1]})" if found else ""
        raise CheckpointError(
            f"{file} is damaged, or a pickle of more than plain tensors{reason}, which could run code and is refused; "
            "fetch it again, or take a file of weights alone."
        ) from error


def _open_pickle(file: Path) -> dict[str, Tensor]:
    if file.suffix not in _SUFFIXES:
        raise CheckpointError(f"{file}: expected weights in one of {', '.join(_SUFFIXES)}.")
    state = read_pickle(file)
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()
    ):
        raise CheckpointError(f"{file}: expected a dict from names to tensors, found something else in the pickle.")
    return state


def save_shards(
    folder: Path,
    tensors: dict[str, StoredTensor],
    *,
    max_bytes: int = MAX_SHARD_BYTES,
    on_written: Callable[[int], None] = lambda nbytes: None,
) -> None:
    """Write `tensors` under their keys as `model.safetensors`, or as shards of at most `max_bytes` and an index.

    One shard is in memory at a time, mapped where its files are. `on_written` is called with the bytes of each tensor
    as it is read for its shard.

    Raises:
        OSError: the disk refuses.
    """
    shapes = {
        key: torch.empty(stored.final_shape, dtype=stored.dtype, device="meta") for key, stored in tensors.items()
    }
    split = split_torch_state_dict_into_shards(shapes, max_shard_size=max_bytes)
    reader = Reader()
    for name, keys in split.filename_to_tensors.items():
        shard: dict[str, Tensor] = {}
        places: set[int] = set()
        for key in keys:
            tensor = reader.read(tensors[key])
            # Weights that are tied in a pickle are written twice, as they are named.
            place = tensor.untyped_storage().data_ptr()
            shard[key] = tensor.clone() if place in places else tensor
            places.add(place)
            on_written(tensors[key].nbytes)
        try:
            save_file(shard, folder / name, metadata={"format": "pt"})
        except SafetensorError as error:  # a full disk for instance
            raise OSError(f"{name}: {error}") from error
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(folder / "model.safetensors.index.json", index)
