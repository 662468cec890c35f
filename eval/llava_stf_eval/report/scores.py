"""A run's scores beside the published ones: rows, footnotes and the tables of the terminal.

The published column is of the same method with the same options that keeps as many tokens. For the bundled models,
which answer drawn images, it is of LLaVA-1.5-7B at the same share of the tokens in the mean over the LLM's layers, and
no difference is formed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

from llava_stf_eval.protocols import BENCHMARKS, LLAVA
from llava_stf_eval.report.published import (
    MODEL_7B,
    MODEL_7B_LORA,
    MODEL_13B,
    Published,
    find_published,
    published_counts,
)
from llava_stf_eval.report.runs import BenchmarkResult, Run, table_order

if TYPE_CHECKING:
    from rich.table import Table

PATCHES_7B = 576
NONE = "–"  # nothing to show in a cell


@dataclass(frozen=True)
class ScoreRow:
    """One benchmark of a run; `difference` is score minus published."""

    benchmark: str
    title: str
    result: BenchmarkResult
    published: str | None
    difference: float | None

    @property
    def score(self) -> str:
        """The score as printed, or why there is none."""
        if self.result.score is None:
            return {"failed": "failed", "submission": "to submit", "scored": NONE}[self.result.status]
        return f"{self.result.score:.1f}"

    @property
    def cells(self) -> tuple[str, ...]:
        """What the columns `HEADERS` show of this row."""
        result = self.result
        return (
            self.score,
            self.published or NONE,
            NONE if self.difference is None else f"{self.difference:+.1f}",
            f"{result.questions:,}",
            _number(result.input_tokens),
            _number(result.output_tokens),
            _number(result.samples_per_second),
        )


HEADERS = ("score", "published", "diff.", "asked", "prompt tokens", "answer tokens", "samples per s")


def title(benchmark: str) -> str:
    """A benchmark's name as its authors write it, with the split that was asked for: `vqav2:test` is VQAv2, test."""
    name, _, split = benchmark.partition(":")
    known = BENCHMARKS[name].title if name in BENCHMARKS else name
    return f"{known}, {split}" if split else known


def bundled_patches(run: Run) -> int | None:
    """Patches of an image in the bundled model of a run; None for another model."""
    config = files("llava_stf").joinpath("assets", run.model, "config.json")
    if "/" in run.model or not config.is_file():
        return None
    vision = json.loads(config.read_text(encoding="utf-8"))["vision_config"]
    return (vision["image_size"] // vision["patch_size"]) ** 2


def published_of(run: Run) -> Published | None:
    """The published row to show beside a run."""
    patches = bundled_patches(run)
    if patches is not None:
        mean = round(run.mean_tokens * PATCHES_7B / patches)
        return find_published(run.method, mean_tokens=mean, options=run.method_options)
    return find_published(run.method, run.vision_tokens, options=run.method_options, model=_family(run))


def score_rows(run: Run) -> list[ScoreRow]:
    """One row for each benchmark of the run, in the run's order."""
    published = published_of(run)
    comparable = published is not None and bundled_patches(run) is None
    rows = []
    for name, result in run.benchmarks.items():
        base = name.partition(":")[0]
        difference = None
        if published is not None and comparable and result.score is not None:
            difference = published.difference(base, result.score)
        rows.append(ScoreRow(name, title(name), result, published.text(base) if published else None, difference))
    return rows


def footnotes(run: Run) -> list[str]:
    """Sentences that a reader of the table needs: whose the published figures are, and what failed."""
    notes = []
    published = published_of(run)
    asked = {name.partition(":")[0] for name in run.benchmarks}
    if published is not None and not asked & published.scores.keys():
        notes.append(f"No figures of {published.title}, {published.budget}, on these benchmarks are known.")
    elif published is not None:
        notes.append(f"Published: {published.title}, {published.budget}; from {'; '.join(published.sources)}.")
        notes += published.remarks(asked)
        if bundled_patches(run) is not None:
            notes.append(
                f"The bundled model '{run.model}' answers drawn images, the published figures are of the real "
                "benchmarks at the same share of tokens: no difference is formed."
            )
        else:
            notes += _other_conditions(run)
    else:
        model = MODEL_7B if bundled_patches(run) is not None else _family(run)
        counts = ", ".join(str(count) for count in published_counts(run.method, model=model))
        found = f"published of {run.method} are {counts} in the mean over layers" if counts else "none are published"
        notes.append(f"No figures of {run.method_name} at {run.budget} of {model} are known: {found}.")
    if run.limit is not None:
        notes.append(f"Only the first {run.limit:,} questions of each benchmark were asked.")
    for name, result in run.benchmarks.items():
        if result.status == "failed":
            notes.append(f"{title(name)} failed: {result.error}")
        elif result.status == "submission":
            notes.append(f"{title(name)} is scored by a server; send it {result.submission}.")
    return notes


def score_table(run: Run) -> Table:
    """A run's scores for the terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    # Eighty columns hold it: nothing but the headers may wrap, and the box's own blanks part the columns.
    table = Table(title=Text(f"{run.label} · protocol {run.protocol}"), box=SIMPLE_HEAD, padding=0)
    table.add_column("benchmark", no_wrap=True)
    for header in HEADERS:
        table.add_column(header, justify="right", min_width=max(map(len, header.split())))
    for row in score_rows(run):
        style = {"failed": "red", "submission": "yellow", "scored": ""}[row.result.status]
        table.add_row(Text(row.title), *(Text(cell) for cell in row.cells), style=style)
    return table


def side_by_side(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """One row for each benchmark that any run has: its title and each run's score.

    From the second run on a score comes with the difference to the first run.
    """
    rows_of = [{row.benchmark: row for row in score_rows(run)} for run in runs]
    names = sorted({name for rows in rows_of for name in rows}, key=table_order)
    table = []
    for name in names:
        first = rows_of[0][name].result.score if name in rows_of[0] else None
        cells = []
        for place, rows in enumerate(rows_of):
            cell = rows[name].score if name in rows else NONE
            score = rows[name].result.score if name in rows else None
            if place and first is not None and score is not None:
                cell += f" ({score - first:+.1f})"
            cells.append(cell)
        table.append((title(name), cells))
    return table


def print_scores(runs: Sequence[Run]) -> None:
    """Print one run's table with its footnotes, or several runs side by side."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if len(runs) == 1:
        console.print(score_table(runs[0]))
        console.print(*(Text(note) for note in footnotes(runs[0])), sep="\n")
        return
    table = Table("benchmark")
    for run in runs:
        table.add_column(Text(run.label), justify="right")
    for name, cells in side_by_side(runs):
        table.add_row(Text(name), *(Text(cell) for cell in cells))
    console.print(table)


def _family(run: Run) -> str:
    """Which published model a checkpoint stands beside, by its name; 7B unless it says otherwise."""
    name = run.model.lower()
    if "13b" in name:
        return MODEL_13B
    return MODEL_7B_LORA if "lora" in name and run.method == "full" else MODEL_7B


def _other_conditions(run: Run) -> list[str]:
    """Where the published figures are of another protocol or split than the run."""
    notes = []
    if run.protocol != LLAVA:
        notes.append(f"Published figures follow the authors' protocol, this run followed {run.protocol}.")
    for name, result in run.benchmarks.items():
        base, _, split = name.partition(":")
        known = BENCHMARKS.get(base)
        if known is None or known.server is None or result.score is None:
            continue
        split = split or known.splits[0]
        if split != known.published_split:
            notes.append(f"Published {known.title} is of {known.published_split}, this score of {split}.")
    return notes


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:,.1f}"
