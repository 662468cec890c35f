"""Where a batch reads and writes: a path, or `s3://bucket/key` of an object store that speaks S3.

Credentials and addresses are those that other programs take: the variables AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
AWS_PROFILE and AWS_REGION, and AWS_ENDPOINT_URL for a store that is not Amazon's.
"""

from __future__ import annotations

import errno
import io
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO

from llava_stf.errors import DataError, MissingDependencyError, one_line
from llava_stf.io.publish import reserve

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_BUFFER_BYTES = 2**20  # of what is read on, as lines and pages are
HINT = (
    "AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY say where and by whom objects are read and written"
)


class S3Path:
    """A file or folder of an object store, with those methods of `Path` that a batch needs.

    Args:
        key: bucket and key, with slashes between.
        store: what reads and writes.
    """

    def __init__(self, key: str, store: FileSystem) -> None:
        self._key = PurePosixPath(key)
        self._store = store

    def __str__(self) -> str:
        return f"s3://{self._key}"

    def __truediv__(self, name: str | Path) -> S3Path:
        return S3Path(str(self._key / name), self._store)

    @property
    def name(self) -> str:
        """As of `Path`."""
        return self._key.name

    @property
    def suffix(self) -> str:
        """As of `Path`."""
        return self._key.suffix

    @property
    def parent(self) -> S3Path:
        """As of `Path`."""
        return S3Path(str(self._key.parent), self._store)

    def absolute(self) -> S3Path:
        """As of `Path`."""
        return self

    def exists(self) -> bool:
        """As of `Path`."""
        return bool(self._info().type)

    def is_dir(self) -> bool:
        """As of `Path`; a folder is there if it holds something, or is a bucket."""
        from pyarrow.fs import FileType

        return self._info().type == FileType.Directory

    def files(self, *, recursive: bool = False) -> dict[str, int]:
        """Sizes in bytes of the files here and, with `recursive`, below, by their path from here; none if it is not."""
        from pyarrow.fs import FileSelector, FileType

        with _reasons():
            found = self._store.get_file_info(FileSelector(str(self._key), allow_not_found=True, recursive=recursive))
        files = (info for info in found if info.type == FileType.File)
        return {str(PurePosixPath(info.path).relative_to(self._key)): info.size for info in files}

    def open(self, mode: str = "rb") -> BinaryIO:
        """As of `Path`, to read bytes."""
        assert mode == "rb"
        with _reasons():
            return io.BufferedReader(self._store.open_input_file(str(self._key)), _BUFFER_BYTES)

    def read_bytes(self) -> bytes:
        """As of `Path`."""
        with _reasons(), self._store.open_input_stream(str(self._key)) as stream:
            return stream.read()

    def write_bytes(self, content: bytes) -> None:
        """As of `Path`, but the object is there as a whole or not at all, if this process is killed, too."""
        # Closing a stream publishes what it has, and every way out of it closes it, so no signal may come in between:
        # Python raises them in the main thread alone.
        with _reasons(), ThreadPoolExecutor(1) as thread:
            thread.submit(self._write, content).result()

    def _write(self, content: bytes) -> None:
        try:
            with self._store.open_output_stream(str(self._key)) as stream:
                stream.write(content)
        except OSError:
            with suppress(OSError):
                self._store.delete_file(str(self._key))
            raise

    def _info(self) -> FileInfo:
        with _reasons():
            return self._store.get_file_info(str(self._key))


Place = Path | S3Path


def is_uri(place: str | Place) -> bool:
    """Whether this is `scheme://...` and not a path."""
    return isinstance(place, str) and _SCHEME.match(place) is not None


def open_place(place: str | Place) -> Place:
    """The path, or the object or folder of objects; whether it exists is not looked at, but its bucket must.

    Args:
        place: a path, `s3://bucket/key`, or what is open already, as with a store of one's own.

    Raises:
        DataError: a scheme other than s3, or a bucket that is not there or not for this user.
        MissingDependencyError: pyarrow is not installed.
    """
    if isinstance(place, S3Path):
        return place
    if not is_uri(place):
        return Path(place)
    scheme, _, key = str(place).partition("://")
    bucket = key.partition("/")[0]
    if scheme.lower() != "s3" or not bucket:
        raise DataError(f"{place} cannot be read or written: expected a path or s3://bucket/key.")
    try:
        store = _store(os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"))
        is_there = S3Path(bucket, store).exists()
    except ImportError as error:
        raise MissingDependencyError(f"{place} needs pyarrow: pip install 'llava-stf[batch]'") from error
    except OSError as error:
        raise DataError(f"No access to the bucket of {place} ({error.strerror}): {HINT}.") from error
    if not is_there:
        raise DataError(f"There is no bucket {bucket} for {place}: make it first, or name another; {HINT}.")
    return S3Path(key.strip("/"), store)


def list_names(folder: Place) -> list[str]:
    """Names of the files in a folder, sorted, without hidden ones.

    Raises:
        OSError: it cannot be read.
    """
    names = folder.files() if isinstance(folder, S3Path) else os.listdir(folder)
    return sorted(name for name in names if not name.startswith("."))


@contextmanager
def claim_file(path: Place, *, wait: bool = False) -> Iterator[Callable[[bytes], None] | None]:
    """What writes a file as a whole; of a path this process alone until the block ends, as by `reserve`.

    Objects have no locks: of two that write one, the later stands.

    Raises:
        OSError: as `reserve`.
    """
    if isinstance(path, S3Path):
        yield path.write_bytes
        return
    with reserve(path, wait=wait) as reserved:
        yield None if reserved is None else reserved.write


@cache
def _store(endpoint: str | None) -> FileSystem:
    from pyarrow.fs import S3FileSystem

    return S3FileSystem(endpoint_override=endpoint)


@contextmanager
def _reasons() -> Iterator[None]:
    """Gives pyarrow's errors a number and a text, as those of files have."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise OSError(errno.EREMOTEIO, one_line(error).rstrip(".")) from error
        raise OSError(error.errno, os.strerror(error.errno)) from error
