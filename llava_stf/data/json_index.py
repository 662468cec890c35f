"""Where the records of a LLaVA data file stand, and how long they are, without keeping them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from llava_stf.data.records import signed_length
from llava_stf.errors import DataError


def index_json(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """First and last-but-one byte of each record, int64 [n, 2], and its `signed_length`, int32 [n].

    Lines that are no JSON are found when they are read; a list that is damaged has no records behind the damage.
    """
    try:
        # One character per byte: places in the text are places in the file, and UTF-8 inside strings does not matter.
        text = path.read_bytes().decode("latin-1")
    except OSError as error:
        raise DataError(f"cannot read the data file {path}: {error.strerror}") from error
    first = re.search(r"\S", text)
    if first is not None and first[0] == "[":
        spans, lengths = _index_list(text, first.end(), path)
    else:
        spans, lengths = _index_lines(text, path)
    if not spans:
        raise DataError(f"the data file {path} holds no samples")
    return np.array(spans, dtype=np.int64), np.array(lengths, dtype=np.int32)


def _index_list(text: str, position: int, path: Path) -> tuple[list[tuple[int, int]], list[int]]:
    """Places and lengths of the objects in a JSON list, whose first value or bracket stands at or behind `position`."""
    decoder = json.JSONDecoder(strict=False)
    spans: list[tuple[int, int]] = []
    lengths: list[int] = []

    def skip_space(start: int) -> int:
        while text[start].isspace():
            start += 1
        return start

    try:
        position = skip_space(position)
        while text[position] != "]":
            value, end = decoder.raw_decode(text, position)
            if not isinstance(value, dict):
                raise DataError(f"sample number {len(spans)} of {path} must be a JSON object, found {value!r:.80}")
            spans.append((position, end))
            lengths.append(signed_length(value))
            position = skip_space(end)
            if text[position] == ",":
                position = skip_space(position + 1)
            elif text[position] != "]":
                raise DataError(f"the data file {path} is no JSON list: expected ',' or ']' at byte {position}")
    except (IndexError, json.JSONDecodeError) as error:
        raise DataError(
            f"the data file {path} is no JSON list: it breaks off or is damaged at byte {position}"
        ) from error
    return spans, lengths


def _index_lines(text: str, path: Path) -> tuple[list[tuple[int, int]], list[int]]:
    """Places and lengths of the lines that are not empty. A file of which no line is a sample is of another kind."""
    spans = [match.span() for match in re.finditer(r"[^\r\n]*\S[^\r\n]*", text)]
    lengths: list[int] = []
    samples = 0
    for start, end in spans:
        try:
            value = json.loads(text[start:end], strict=False)
        except json.JSONDecodeError:
            value = None
        samples += isinstance(value, dict) and not {"conversations", "messages"}.isdisjoint(value)
        lengths.append(signed_length(value))
    if spans and not samples:
        raise DataError(
            f"the data file {path} is neither a JSON list nor JSON lines of objects with 'conversations' or 'messages'"
        )
    return spans, lengths
