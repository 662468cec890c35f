"""JSON as people and programs write it: with a byte-order mark or in UTF-16, and one value, nothing behind it."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from llava_stf.errors import CheckpointError


def parse_json(content: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is none, or nested deeper than Python goes.
    """
    try:
        return json.loads(decode_text(content))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def decode_text(content: str | bytes) -> str:
    """Text without its byte-order mark, which also tells UTF-16 and UTF-32 from UTF-8.

    Raises:
        UnicodeDecodeError: it is no text in that encoding.
    """
    if isinstance(content, bytes):
        content = content.decode(json.detect_encoding(content))
    return content.removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}")


def wide_encoding(head: bytes) -> str | None:
    """The encoding of a text that begins as UTF-16 or UTF-32, in which no single byte ends a line; else `None`."""
    found = json.detect_encoding(head[:4]) if head else "utf-8"
    return None if found.startswith("utf-8") else found.upper()[:6]


def read_text(file: Path) -> str:
    """The text of a file, see `decode_text`.

    Raises:
        OSError: the file cannot be read.
        UnicodeDecodeError: it is no text.
    """
    return decode_text(file.read_bytes())


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: the file is absent, broken or holds no object; it names the file.
    """
    try:
        value = parse_json(file.read_bytes())
    except OSError as error:
        raise CheckpointError(f"Cannot read {file}: {error.strerror}.") from error
    except ValueError as error:
        raise CheckpointError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file}: expected a JSON object, found {type(value).__name__}.")
    return value


@contextmanager
def without_byte_order_marks(folder: Path) -> Iterator[Path]:
    """The folder for libraries that read no byte-order marks: itself, or while in use a copy without any.

    The copy has the JSON files that begin with one; everything else in it is a link.
    """
    marked = [file for file in folder.glob("*.json") if _is_marked(file)]
    if not marked:
        yield folder
        return
    with TemporaryDirectory(prefix="llava_stf_") as name:
        copy = Path(name)
        for file in folder.iterdir():
            if file in marked:
                (copy / file.name).write_text(read_text(file), encoding="utf-8")
            else:
                (copy / file.name).symlink_to(file.resolve())
        yield copy


def _is_marked(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(2) in (codecs.BOM_UTF8[:2], codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def write_json(file: Path, value: dict[str, Any]) -> None:
    """Write an object with two spaces a level and its keys in order."""
    file.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
