"""The file of a measurement in its folder: never written over unasked, never half written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llava_stf.errors import LlavaStfError
from llava_stf.io.fsync import fsync_entry


def open_folder(result: Path, *, overwrite: bool) -> None:
    """Makes the folder of a result file. Raises `LlavaStfError` if that is there already, or it cannot be made."""
    folder = result.parent
    if result.exists() and not overwrite:
        raise LlavaStfError(f"{folder} holds an earlier measurement; take another folder or --overwrite.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LlavaStfError(f"Cannot make the folder {folder}: {error}.") from error


def write_result(path: Path, result: dict[str, Any]) -> Path:
    """Writes the result as JSON: the old file or the new one, never half of it. Returns the path."""
    beside = path.with_suffix(".tmp")
    beside.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    fsync_entry(beside)
    beside.replace(path)
    return path
