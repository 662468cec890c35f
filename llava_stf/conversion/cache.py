"""Converted copies of checkpoints that `load_model` cannot load as they are, kept from one call to the next."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from filelock import FileLock

from llava_stf.conversion.convert import convert_checkpoint
from llava_stf.errors import LlavaStfError

_FORMAT = 2  # raise it when a conversion's result changes, so that older copies are made anew


def cache_folder() -> Path:
    """`$LLAVA_STF_CACHE`, else `llava_stf` in `$HF_HOME`, `$XDG_CACHE_HOME` or `~/.cache`."""
    if own := os.environ.get("LLAVA_STF_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("HF_HOME") or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(shared).expanduser() / "llava_stf"


def converted(path: Path, vision_tower: str | Path | None) -> Path:
    """The checkpoint at `path` in Hugging Face's layout, converted now unless a copy of these very files is there.

    A copy is told by the path, sizes and times of the files; that of an earlier state of them is removed.

    Raises:
        LlavaStfError: as `convert_checkpoint`.
    """
    path = path.resolve()
    copies = cache_folder() / f"{path.name}-{_digest(str(path), str(vision_tower))}"
    copy = copies / _digest(str(_FORMAT), *_state(path))
    try:
        copies.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LlavaStfError(
            f"Cannot create the cache folder {copies}: {error.strerror}; set LLAVA_STF_CACHE to a folder you may write."
        ) from error
    with FileLock(copies / ".lock"):
        if not copy.exists():
            convert_checkpoint(path, copy, vision_tower=vision_tower)
            for former in copies.iterdir():
                if former != copy and former.is_dir():
                    shutil.rmtree(former, ignore_errors=True)
    return copy


def _state(path: Path) -> list[str]:
    files = [path, *path.parent.glob("*.json")] if path.is_file() else path.rglob("*")
    stats = ((file, file.stat()) for file in sorted(files) if file.is_file())
    return [f"{file} {stat.st_size} {stat.st_mtime_ns}" for file, stat in stats]


def _digest(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
