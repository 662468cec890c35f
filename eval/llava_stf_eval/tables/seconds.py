"""CPU seconds of a training, which bash's `time` appends to a file for every part of a run that was stopped."""

from __future__ import annotations

import re
from pathlib import Path

from llava_stf.errors import DataError


def cpu_seconds(file: Path) -> float:
    """The sum of all lines "USER SYSTEM"; others are bash's own messages.

    Raises:
        DataError: there is no such file or line.
    """
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    parts = re.findall(r"^(\d+\.\d+) (\d+\.\d+)$", text, re.MULTILINE)
    if not parts:
        raise DataError(f"Expected lines of user and system seconds in {file}, found none; measure the run again.")
    return sum(float(user) + float(system) for user, system in parts)
