"""The file of a measurement in its folder: never written over unasked, never half written."""

from __future__ import annotations

from pathlib import Path

from llava_stf.errors import LlavaStfError


def open_folder(result: Path, *, overwrite: bool) -> None:
    """Makes the folder of a result file. Raises `LlavaStfError` if that is there already, or it cannot be made."""
    folder = result.parent
    if result.exists() and not overwrite:
        raise LlavaStfError(f"{folder} holds an earlier measurement; take another folder or --overwrite.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LlavaStfError(f"Cannot make the folder {folder}: {error}.") from error
