"""Waiting until what was written is on the disk, so that a rename never puts a name on half a file."""

from __future__ import annotations

import os
from pathlib import Path


def fsync_tree(folder: Path) -> None:
    """Wait for all files of `folder` and below, and their names."""
    for path in [*folder.rglob("*"), folder]:
        fsync_entry(path)


def fsync_entry(path: Path) -> None:
    """Wait for one file's content, or one folder's list of names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
