"""Where the records of a LLaVA data file stand, and how long they are, without keeping them."""

from __future__ import annotations

import json
import mmap
import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from llava_stf.data.records import CONVERSATION_FIELDS, signed_length
from llava_stf.errors import DataError
from llava_stf.io.json import wide_encoding

_BOM = b"\xef\xbb\xbf"
# What decides where a value ends: brackets, and texts, in which brackets mean nothing.
_STRUCTURE = re.compile(r'[\[\]{}]|"(?:[^"\\]|\\.)*"', re.DOTALL)


def index_json(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Where the records of a JSON list or a JSON lines file stand; what is no record is found when it is read.

    Args:
        path: the file, in UTF-8, with a byte-order mark or without.

    Returns:
        First and last-but-one byte of each value, int64 [n, 2], and its `signed_length`, int32 [n].

    Raises:
        DataError: the file cannot be read, is a damaged list, has something behind its list, or holds no record.
    """
    try:
        with path.open("rb") as file:
            head = file.read(4096)
            if wide := wide_encoding(head):
                raise DataError(f"the data file {path} is in {wide}: save it as UTF-8")
            is_list = _starts_a_list(head)
            file.seek(0)
            if is_list:
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                    # One character per byte: places in the text are places in the file.
                    return _index(_list_values(str(content, "latin-1"), path), path)
            return _index(_lines(file), path)
    except OSError as error:
        raise DataError(f"cannot read the data file {path}: {error.strerror}") from error


_Value = tuple[int, int, Any]  # its first and last-but-one byte, and what it is; None for what Python cannot read


def _index(values: Iterator[_Value], path: Path) -> tuple[np.ndarray, np.ndarray]:
    spans, lengths = array("q"), array("i")
    first, records = None, 0
    for start, end, value in values:
        spans.extend((start, end))
        lengths.append(signed_length(value))
        first = first or value
        records += isinstance(value, dict) and not value.keys().isdisjoint(CONVERSATION_FIELDS)
    if not spans:
        raise DataError(f"the data file {path} holds no samples")
    if not records:
        found = f"; the first has {', '.join(map(repr, first)):.200}" if isinstance(first, dict) else ""
        raise DataError(
            f"the data file {path} is neither a JSON list nor JSON lines of objects with "
            f"{' or '.join(map(repr, CONVERSATION_FIELDS))}{found}"
        )
    return np.array(spans, np.int64).reshape(-1, 2), np.array(lengths, np.int32)


def _starts_a_list(head: bytes) -> bool:
    return head.removeprefix(_BOM).lstrip()[:1] == b"["


def _list_values(text: str, path: Path) -> Iterator[_Value]:
    """The values of a JSON list; the text has one character for each byte of the file."""
    decoder = json.JSONDecoder(strict=False)

    def skip_space(start: int) -> int:
        while text[start].isspace():
            start += 1
        return start

    position, expects_value = text.index("[") + 1, False
    try:
        position = skip_space(position)
        while expects_value or text[position] != "]":
            try:
                value, end = decoder.raw_decode(text, position)
            except json.JSONDecodeError:
                raise
            except (ValueError, RecursionError):  # a number or a depth that Python refuses: a bad record, no bad file
                value, end = None, _end_of_value(text, position)
            yield position, end, value
            position = skip_space(end)
            expects_value = text[position] == ","
            if expects_value:
                position = skip_space(position + 1)
            elif text[position] != "]":
                raise DataError(f"the data file {path} is no JSON list: expected ',' or ']' at byte {position}")
    except (IndexError, json.JSONDecodeError) as error:
        raise DataError(
            f"the data file {path} is no JSON list: it breaks off or is damaged at byte {position}"
        ) from error
    behind = re.compile(r"\S").search(text, position + 1)
    if behind is not None:
        raise DataError(
            f"the data file {path} goes on behind the end of its JSON list, at byte {behind.start()}: it must hold one "
            "list, or JSON lines"
        )


def _end_of_value(text: str, start: int) -> int:
    """The first place behind an object, a list or a number. Raises `IndexError` if it has no end."""
    if text[start] not in "[{":
        match = re.compile(r"[^\s,\]]+").match(text, start)
        return start if match is None else match.end()
    depth = 0
    for token in _STRUCTURE.finditer(text, start):
        depth += (token[0] in "[{") - (token[0] in "]}")
        if not depth:
            return token.end()
    raise IndexError


def _lines(file: Any) -> Iterator[_Value]:
    """The lines that are not empty. Ends of lines are bytes, so one in a text does not matter."""
    end = 0
    for line in file:
        content = line if end else line.removeprefix(_BOM)
        end += len(line)
        start = end - len(content)
        if not content.strip():
            continue
        try:
            value = json.loads(content, strict=False)
        except (ValueError, RecursionError):
            value = None
        yield start, start + len(content.rstrip()), value
