"""The file of a measurement in its folder: never written over unasked, and never taken for whole before it is.

A result has `complete`, which is false until its last row is there; `plan` and `machine` say of what its rows are.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from llava_stf.errors import DataError, LlavaStfError

_MACHINE = ("cpu", "cores", "gpu", "threads", "versions")


def open_result(path: Path, *, resume: bool, overwrite: bool) -> dict[str, Any] | None:
    """Make the folder of a result file.

    Returns:
        The measurement that is there and is gone on with; None to begin with the first row.

    Raises:
        LlavaStfError: one is there and neither option is given, or the folder cannot be made.
        DataError: what is there is no measurement.
    """
    folder = path.parent
    if path.exists() and not overwrite:
        found = read_result(path)
        if resume:
            return found
        if not is_complete(found):
            raise LlavaStfError(
                f"{folder} holds a measurement that was broken off; finish it with --resume, or take another folder or "
                "--overwrite."
            )
        raise LlavaStfError(f"{folder} holds an earlier measurement; take another folder or --overwrite.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LlavaStfError(f"Cannot make the folder {folder}: {error}.") from error
    return None


def begin_or_resume(
    fresh: dict[str, Any], before: dict[str, Any] | None, *, row_fields: Collection[str]
) -> dict[str, Any]:
    """The result to add rows to: `fresh`, or the one from before if it is of the same plan on the same machine.

    Args:
        fresh: without rows.
        before: what `open_result` found.
        row_fields: what every row says today; a row of an older version may lack some.

    Raises:
        LlavaStfError: they differ, so rows of both would not compare; it names in what.
    """
    if before is None:
        return {"complete": False, **fresh}
    now = json.loads(json.dumps(fresh))
    pairs = [(f"{name} of the plan", now["plan"].get(name), before["plan"].get(name)) for name in now["plan"]]
    pairs += [(f"{name} of the machine", now["machine"].get(name), before["machine"].get(name)) for name in _MACHINE]
    for name, here, there in pairs:
        if here != there:
            raise LlavaStfError(
                f"The measurement to go on with has another {name} ({there}, and now {here}): go on as it was begun, "
                "or take another folder or --overwrite."
            )
    for name in row_fields:
        if not all(name in row for row in before["rows"]):
            raise LlavaStfError(
                f"The measurement to go on with is an older version's, whose rows do not say {name}: take another "
                "folder or --overwrite."
            )
    return before


def read_result(path: Path) -> dict[str, Any]:
    """A result file.

    Raises:
        DataError: it is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a measurement: {error}") from error
    if not isinstance(found, dict) or not {"rows", "plan", "machine"} <= found.keys():
        raise DataError(f"{path} is no measurement: expected an object with machine, plan and rows.")
    return found


def is_complete(result: dict[str, Any]) -> bool:
    """Whether all that was planned was measured; results of before this was written down are taken at their word."""
    return bool(result.get("complete", True))
