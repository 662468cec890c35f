"""Files and folders that appear whole or not at all: written beside their place, brought to the disk, then renamed.

A name that a reader finds has all of its content, whatever stops the writer. What a writer that was killed left beside
it is hidden, and goes with the next one.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO, FileIO
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from llava_stf.errors import LlavaStfError
from llava_stf.io.fsync import fsync_entry, fsync_tree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOFTWARE = "llava-stf"
_TAKEN = (errno.EWOULDBLOCK, errno.EACCES)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


@contextmanager
def publish(dst: Path) -> Iterator[Path]:
    """Yield a fresh folder; when the block ends well, everything in it is synced to disk and it becomes `dst`.

    If the block raises, or the process is killed at any moment, `dst` stays absent. What a killed run left behind is
    removed by the next run into the same `dst`.

    Raises:
        LlavaStfError: `dst` exists, another process is writing it, or the disk refuses (full, read-only).
    """
    dst = Path(os.path.abspath(dst))
    refuse_existing(dst)
    try:
        dst.parent.mkdir(parents=True, exist_ok=True)
        lock = dst.parent / f".{dst.name}.lock"
        lock.touch()  # whose error says what is wrong, where a lock that cannot be made looks as if it were taken
        with FileLock(lock, timeout=0):
            try:
                yield from _write_folder(dst)
            finally:
                lock.unlink(missing_ok=True)
    except Timeout as error:
        raise LlavaStfError(f"Another process is writing {dst} right now; wait for it or take another name.") from error
    except OSError as error:
        if isinstance(error, LlavaStfError):
            raise
        raise LlavaStfError(f"Could not write {dst}: {error.strerror or error}.") from error


def refuse_existing(dst: Path) -> None:
    """Check that nothing stands at `dst`: a conversion never overwrites.

    Raises:
        LlavaStfError: something does.
    """
    if os.path.lexists(dst):
        raise LlavaStfError(f"{dst} exists already and is not overwritten; remove it or take another name.")


def refuse_unwritable(folder: Path) -> None:
    """Check that a folder, or what it would be made in, takes files: before the work whose result is to go there.

    Raises:
        LlavaStfError: it does not.
    """
    whole = folder.absolute()
    there = next(place for place in (whole, *whole.parents) if os.path.exists(place))
    try:
        with TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise LlavaStfError(f"{folder} cannot be written to: {error.strerror or error}; name another place.") from error


def write_file(path: Path, content: bytes | str) -> Path:
    """Write a file, or replace it: whoever looks finds the old one or the new one, and never half of either.

    Args:
        path: where; its folder is made if it is not there.
        content: all of it; text becomes UTF-8.

    Returns:
        `path`.

    Raises:
        LlavaStfError: it cannot be written; what was there stays.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with reserve(path, wait=True) as reserved:
            assert reserved is not None  # it was waited for
            reserved.write(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise LlavaStfError(f"{path} cannot be written: {error.strerror or error}; name another place.") from error
    return path


def write_json(path: Path, content: Any) -> Path:
    """`write_file` of a value as JSON; what JSON has no form for, a path say, is written as its text."""
    return write_file(path, json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n")


def write_figure(path: Path, figure: Figure) -> Path:
    """`write_file` of a figure as PNG, which says in its metadata that it is this package's."""
    content = BytesIO()
    figure.savefig(content, dpi=110, format="png", metadata={"Software": SOFTWARE})
    return write_file(path, content.getvalue())


def commit(written: Path, path: Path) -> None:
    """Give a file or folder that is written completely its name, in place of a file that has it; it is on the disk."""
    fsync_tree(written)
    written.replace(path)
    fsync_entry(path.parent)


@dataclass(frozen=True)
class Reserved:
    """A file that this process alone writes, until `reserve` ends."""

    path: Path
    _beside: Path
    _file: FileIO

    def write(self, content: bytes) -> None:
        """Make this the file's content; it is there and on the disk when this returns."""
        rest = memoryview(content)
        self._file.truncate(0)  # what a run that was killed left
        while rest:
            rest = rest[self._file.write(rest) :]
        commit(self._beside, self.path)


@contextmanager
def reserve(path: Path, *, wait: bool = False) -> Iterator[Reserved | None]:
    """Keep other processes from writing a file; the lock goes with the process, however that ends.

    Yields `None` if another process has it, which `wait` waits for. A file that is reserved and not written stays as it
    was.

    Raises:
        OSError: the folder cannot be written to or, unless waiting, its file system has no locks.
    """
    beside = path.with_name(f".{path.name}.partial")
    try:
        yield from _reserve(path, beside, wait)
    except BaseException:  # a signal may have come between the making of the file and the code that takes it away
        _discard(beside)
        raise


def _reserve(path: Path, beside: Path, wait: bool) -> Iterator[Reserved | None]:
    while True:
        with open(os.open(beside, os.O_RDWR | os.O_CREAT, 0o666), "wb", buffering=0) as file:
            if not _lock(file.fileno(), wait):
                yield None
                return
            if not _is_at(beside, file.fileno()):  # who had the lock before has renamed or removed it
                continue
            try:
                yield Reserved(path, beside, file)
            finally:
                if _is_at(beside, file.fileno()):
                    beside.unlink()
            return


def _discard(beside: Path) -> None:
    """Removes a file that is written beside its place, unless another process is at it."""
    with suppress(OSError), beside.open("rb+") as file:
        if _lock(file.fileno(), wait=False) and _is_at(beside, file.fileno()):
            beside.unlink()


def _lock(descriptor: int, wait: bool) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if not wait and error.errno in _TAKEN:
            return False
        if not (wait and error.errno in _NO_LOCKS):  # without locks, two writers at a time are the user's to avoid
            raise
    return True


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _write_folder(dst: Path) -> Iterator[Path]:
    prefix = f".{dst.name}.partial-"
    for leftover in dst.parent.iterdir():  # we hold the lock, so whoever wrote these is dead
        if leftover.name.startswith(prefix):
            shutil.rmtree(leftover, ignore_errors=True)
    folder = dst.parent / f"{prefix}{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir()
        yield folder
        fsync_tree(folder)
        refuse_existing(dst)
        folder.rename(dst)
        fsync_entry(dst.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
