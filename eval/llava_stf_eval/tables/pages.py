"""The tables in README.md and the guides, each between its markers, made of the results that docs/ holds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from llava_stf.errors import DataError, LlavaStfError
from llava_stf.io.publish import write_file
from llava_stf_eval.measurement.result import read_result
from llava_stf_eval.serving.tables import section
from llava_stf_eval.tables import (
    bundled,
    distillation,
    encoders,
    evaluation,
    methods,
    resamplers,
    speed,
    tiles,
    training,
)
from llava_stf_eval.tables.answers import read_measured

END = "<!-- end of table -->"


def _distillation(docs: Path) -> str:
    return distillation.table(read_measured(docs / "training" / "distillation.json"))


def _training(docs: Path) -> str:
    return training.table(*training.read_report(docs / "training" / "accuracy.json"))


def _encoders(docs: Path) -> str:
    return encoders.encoder_table(read_measured(docs / "encoders" / "encoders.json"))


def _towers(docs: Path) -> str:
    return encoders.tower_table(read_measured(docs / "encoders" / "towers.json"))


def _resamplers(docs: Path) -> str:
    return resamplers.table(docs / "bundled", docs / "speed" / "methods-cpu.json")


def _serving(docs: Path) -> str:
    files = sorted((docs / "serving").glob("*.json"), key=lambda file: file.stem)
    return section({file.stem: read_result(file) for file in files})


# Page -> name of the table -> what makes it of docs/.
TABLES: dict[str, dict[str, Callable[[Path], str]]] = {
    "README.md": {"methods": methods.summary_table},
    "docs/bundled.md": {"bundled": lambda docs: bundled.table(docs / "bundled")},
    "docs/encoders.md": {"encoders": _encoders, "towers": _towers},
    "docs/evaluate.md": {"benchmarks": evaluation.benchmarks_table, "turns": evaluation.turns_table},
    "docs/export.md": {"exports": evaluation.exports_table},
    "docs/family.md": {"tiles": lambda docs: tiles.table(docs / "family")},
    "docs/reduction.md": {
        "methods": methods.answers_table,
        "choosing": speed.choosing_table,
        "clock": speed.clock_table,
        "selection": speed.selection_table,
        "resamplers": _resamplers,
        "size": methods.size_table,
    },
    "docs/serving.md": {"serving": _serving},
    "docs/speed.md": {
        "stages": speed.stages_table,
        "precision": speed.precision_table,
        "exports": partial(speed.exports_table, name="export-cpu-1b"),
        "exports-avx2": partial(speed.exports_table, name="export-cpu"),
    },
    "docs/training.md": {"distillation": _distillation, "training": _training},
}


def insert(text: str, name: str, table: str) -> str:
    """The page with the table of this name between its markers.

    Raises:
        DataError: these are not there once.
    """
    start = f"<!-- table {name} -->"
    before, found, rest = text.partition(start)
    _, end, after = rest.partition(END)
    if not (found and end) or start in after:
        raise DataError(f"Expected {start} and, behind it, {END} in the page, once.")
    return f"{before}{start}\n{table.strip()}\n{END}{after}"


def write_pages(root: Path, *, check: bool = False) -> list[str]:
    """Bring the tables of a clone up to date.

    Args:
        root: of the clone.
        check: only look.

    Returns:
        The pages that were out of date.

    Raises:
        DataError: a marker is missing, or results that a table sets beside each other are about other questions.
        LlavaStfError: the folder is no clone.
    """
    changed = []
    for page, tables in TABLES.items():
        try:
            text = written = (root / page).read_text(encoding="utf-8")
        except OSError as error:
            raise LlavaStfError(f"{root} is no clone of this project, it has no {page}: {error.strerror}.") from error
        for name, make in tables.items():
            written = insert(written, name, make(root / "docs"))
        if written != text:
            changed.append(page)
            if not check:
                write_file(root / page, written)
    return changed
