"""Write a folder beside its destination and rename it there when it is complete: never half a checkpoint."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from llava_stf.errors import LlavaStfError
from llava_stf.io.fsync import fsync_entry, fsync_tree


@contextmanager
def publish(dst: Path) -> Iterator[Path]:
    """Yield a fresh folder; when the block ends well, everything in it is synced to disk and it becomes `dst`.

    If the block raises, or the process is killed at any moment, `dst` stays absent. What a killed run left behind is
    removed by the next run into the same `dst`.

    Raises `LlavaStfError` if `dst` exists, if another process is writing it, or if the disk refuses (full, read-only).
    """
    dst = Path(os.path.abspath(dst))
    refuse_existing(dst)
    try:
        dst.parent.mkdir(parents=True, exist_ok=True)
        lock = dst.parent / f".{dst.name}.lock"
        with FileLock(lock, timeout=0):
            try:
                yield from _write_beside(dst)
            finally:
                lock.unlink(missing_ok=True)
    except Timeout as error:
        raise LlavaStfError(f"Another process is writing {dst} right now; wait for it or take another name.") from error
    except OSError as error:
        if isinstance(error, LlavaStfError):
            raise
        raise LlavaStfError(f"Could not write {dst}: {error.strerror or error}.") from error


def refuse_existing(dst: Path) -> None:
    """Raise `LlavaStfError` if something stands at `dst`; a conversion never overwrites."""
    if os.path.lexists(dst):
        raise LlavaStfError(f"{dst} exists already and is not overwritten; remove it or take another name.")


def _write_beside(dst: Path) -> Iterator[Path]:
    prefix = f".{dst.name}.partial-"
    for leftover in dst.parent.iterdir():  # we hold the lock, so whoever wrote these is dead
        if leftover.name.startswith(prefix):
            shutil.rmtree(leftover, ignore_errors=True)
    folder = dst.parent / f"{prefix}{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    try:
        yield folder
        fsync_tree(folder)
        refuse_existing(dst)
        folder.rename(dst)
        fsync_entry(dst.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
