"""From a run's folder to its report: `report.html`, `radar.png` and `bars.png` beside the results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from llava_stf.io.publish import write_file
from llava_stf_eval.protocols import BENCHMARKS, USUAL
from llava_stf_eval.report.images import data_uri
from llava_stf_eval.report.page import Item, Page, Plot, Table, fair_share, render
from llava_stf_eval.report.plots import draw_bars, draw_radar, series_of
from llava_stf_eval.report.published import published_rows
from llava_stf_eval.report.runs import RIGHT, Run, load_runs
from llava_stf_eval.report.scores import HEADERS, NONE, footnotes, score_rows, side_by_side, title

MAX_ITEMS = 4000
_SCALES = "Scores in per cent, MME as its perception sum, OCRBench in right answers."


def write_report(folder: Path | str, others: Sequence[Path | str] = ()) -> list[Path]:
    """Write a run's report into its folder, with other runs beside it if given.

    Returns:
        The files: `report.html`, `bars.png`, and `radar.png` where there are at least three scores to draw. Each
        appears whole or not at all; a report from before is replaced.

    Raises:
        DataError: a folder holds no finished run, or a damaged one.
    """
    runs = load_runs([folder, *others])
    series = series_of(runs)
    files: dict[str, bytes] = {"bars.png": draw_bars(series)}
    plots = [_plot("Bars: every benchmark's score", files["bars.png"], draw_bars(series, dark=True))]
    radar, dark_radar = draw_radar(series), draw_radar(series, dark=True)
    if radar is not None and dark_radar is not None:
        files["radar.png"] = radar
        plots.insert(0, _plot("Radar: the scores, an axis for each benchmark", radar, dark_radar))
    files["report.html"] = render(_page(runs, plots)).encode()
    if "radar.png" not in files:
        runs[0].folder.joinpath("radar.png").unlink(missing_ok=True)  # of an earlier report
    return [write_file(runs[0].folder / name, content) for name, content in files.items()]


def settings(run: Run) -> list[tuple[str, str]]:
    """How a run was made, as names and texts."""
    machine = "; ".join(f"{name} {value}" for name, value in run.machine.items() if value is not None)
    return [
        ("model", run.model),
        ("checkpoint", f"{run.checkpoint.get('path')}, sha256 {run.checkpoint.get('hash')}"),
        ("method", f"{run.method_name}; vision tokens: {run.budget}"),
        ("protocol", run.protocol),
        ("batch size", str(run.batch_size)),
        ("seed", str(run.seed)),
        ("limit", "none" if run.limit is None else f"{run.limit:,} questions"),
        ("date", run.date),
        ("machine", machine),
        ("versions", ", ".join(f"{name} {version}" for name, version in run.versions.items())),
    ]


def _plot(words: str, light: bytes, dark: bytes) -> Plot:
    alt = f"{words}. The tables above hold the same numbers."
    return Plot(data_uri(light, "image/png"), data_uri(dark, "image/png"), alt)


def _page(runs: Sequence[Run], plots: Sequence[Plot]) -> Page:
    tables = [] if len(runs) == 1 else [_side_by_side(runs)]
    for run in runs:
        rows = [(row.title, *row.cells) for row in score_rows(run)]
        tables.append(Table(run.label, ("benchmark", *HEADERS), rows, footnotes(run), settings(run)))
    items, wrong = _wrong_answers(runs)
    share = f"the first {len(items):,} of {wrong:,}" if len(items) < wrong else f"all {wrong:,}"
    return Page(
        title=f"{runs[0].label}: benchmark report" if len(runs) == 1 else f"{len(runs)} runs side by side",
        subtitle=f"Protocol {runs[0].protocol}, {runs[0].date}. {_SCALES}" if len(runs) == 1 else _SCALES,
        tables=tables,
        items_title="Wrong answers",
        items_note=f"Answers that score less than {RIGHT:g} of 1: {share}.",
        group_label="Run",
        items=items,
        plots=plots,
        published_columns=[BENCHMARKS[name].title for name in USUAL] + ["MME, both parts"],
        published=[
            {
                "title": row.title,
                "tokens": row.budget,
                "trained": "yes" if row.trained else "no",
                "cells": [row.text(name) or NONE for name in (*USUAL, "mme_total")],
                "source": ". ".join(["; ".join(row.sources), *row.remarks(BENCHMARKS)]),
            }
            for row in published_rows()
        ],
    )


def _side_by_side(runs: Sequence[Run]) -> Table:
    headers = ("benchmark", *(run.label for run in runs))
    rows = [(name, *cells) for name, cells in side_by_side(runs)]
    notes = ["In brackets: the difference to the first run."]
    protocols = list(dict.fromkeys(run.protocol for run in runs))
    if len(protocols) > 1:
        notes.append(f"The runs follow different protocols, {' and '.join(protocols)}: their scores do not compare.")
    return Table("Side by side", headers, rows, notes)


def _wrong_answers(runs: Sequence[Run]) -> tuple[list[Item], int]:
    """At most `MAX_ITEMS` wrong answers, benchmarks and runs alike, and how many there are."""
    kinds: list[list[Item]] = []
    counts: list[int] = []
    for run in runs:
        for benchmark, result in run.benchmarks.items():
            if result.status != "scored":
                continue
            items: list[Item] = []
            count = 0
            for sample in run.samples(benchmark):
                if not sample.wrong:
                    continue
                count += 1
                if count > MAX_ITEMS:
                    continue
                facts = [
                    ("answer", sample.answer),
                    ("reference", reference_text(sample.reference)),
                    ("score", f"{sample.score:g}"),
                    ("question", sample.id),
                ]
                items.append(Item(title(benchmark), run.label, sample.question, facts, run.image(sample)))
            kinds.append(items)
            counts.append(count)
    shares = fair_share([len(items) for items in kinds], MAX_ITEMS)
    shown = [item for items, share in zip(kinds, shares, strict=True) for item in items[:share]]
    return shown, sum(counts)


def reference_text(reference: object) -> str:
    """A reference as one reads it: equal answers of several people once."""
    if isinstance(reference, list) and all(isinstance(answer, str) for answer in reference):
        return ", ".join(dict.fromkeys(reference))
    return reference if isinstance(reference, str) else json.dumps(reference, ensure_ascii=False)
