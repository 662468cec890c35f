"""Result files: one JSON file per GPU, day and benchmark, rewritten whole after every row.

    {"what": "projector", "date": "2026-01-31", "commands": [...], "machine": {...}, "rates": {...}, "rows": [...]}

Derived figures (TFLOP/s, shares, ratios) are not stored: whoever shows them computes them from the rows.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from measuring import Machine
from shapes import Rates, Work

RESULTS = Path(__file__).resolve().parent / "results"

Case = dict[str, str | int]


@dataclass(frozen=True)
class Row:
    """One measured case. Milliseconds of one call; `graph_ms` without the time to launch; `None` was not measured."""

    case: Case
    ms: float
    spread_ms: float
    repeats: int
    launches: int
    flops: int
    bytes: int
    graph_ms: float | None = None
    peak_bytes: int | None = None
    error: float | None = None  # relative norm of the difference to the float32 reference, the largest of all outputs

    @property
    def best_ms(self) -> float:
        """The time on the device: that of the graph's replay where there is one."""
        return self.ms if self.graph_ms is None else min(self.ms, self.graph_ms)

    def floor_share(self, rates: Rates) -> float:
        return Work(self.flops, self.bytes).floor_ms(rates) / self.best_ms


@dataclass
class Results:
    """The rows of one benchmark on one machine, and where they are kept."""

    path: Path
    what: str
    date: str
    commands: list[str]
    machine: Machine
    rates: Rates
    rows: list[Row] = field(default_factory=list)

    def add(self, row: Row) -> None:
        """Keep a row, in place of one of the same case, and write the file."""
        self.rows = [kept for kept in self.rows if kept.case != row.case] + [row]
        self.write()

    def write(self) -> None:
        """Atomically: the file is the old one or the new one, never half of it."""
        content = {name: value for name, value in asdict(self).items() if name != "path"}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_suffix(".tmp")
        with beside.open("w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self.path)


def read_results(path: Path) -> Results:
    """Raises `ValueError`, naming the file, if it is not one of these."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Results(
            path=path,
            machine=Machine(**content.pop("machine")),
            rates=Rates(**content.pop("rates")),
            rows=[Row(**row) for row in content.pop("rows")],
            **content,
        )
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no benchmark result: {error}") from error


def all_results(folder: Path) -> list[Results]:
    """Every result file of a folder, oldest first."""
    return sorted((read_results(path) for path in folder.glob("*.json")), key=lambda results: results.date)


def open_results(folder: Path, new: Results, *, fresh: bool) -> Results:
    """The file of the same benchmark, machine, software and code to go on with, or `new`; nothing is written yet.

    A file of the same day but of other code is replaced at the first row: its figures are of what is no more.
    """
    new.path = folder / f"{slug(new.machine.gpu)}-{new.date}-{new.what}.json"
    if fresh:
        return new
    for earlier in reversed(all_results(folder)):
        if (earlier.what, _identity(earlier.machine)) == (new.what, _identity(new.machine)):
            earlier.commands += [command for command in new.commands if command not in earlier.commands]
            return earlier
    return new


def _identity(machine: Machine) -> Machine:
    """The commit's name is no part of it: what counts is the digest of the sources."""
    return Machine(**asdict(machine) | {"commit": ""})


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def select(rows: Iterable[Row], **case: str | int) -> list[Row]:
    """The rows whose case has these values."""
    return [row for row in rows if case.items() <= row.case.items()]


def only(rows: Iterable[Row], **case: str | int) -> Row | None:
    """The one row of that case, or `None` if it was not measured."""
    found = select(rows, **case)
    return found[0] if found else None
