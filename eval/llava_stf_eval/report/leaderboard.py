"""Many runs in one table and one plot: mean accuracy with its interval, against the time to the first token.

A run's accuracy is the mean over the benchmarks that all runs scored, each in per cent of the highest score that
its questions give. All runs must have answered the same questions; those are resampled as `compare_runs` resamples
them, in pairs with the first run. Times come from a measurement of `bench speed`; without one the plot is against the
mean number of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llava_stf.errors import DataError
from llava_stf.io.publish import write_figure
from llava_stf_eval.measurement.result import read_result
from llava_stf_eval.report.bootstrap import CONFIDENCE, RESAMPLES, interval, resampled
from llava_stf_eval.report.compare import highest_score, pair_samples, strata_of
from llava_stf_eval.report.runs import Run, table_order
from llava_stf_eval.report.scores import PATCHES_7B, bundled_patches, title


@dataclass(frozen=True)
class Place:
    """One run: accuracy in per cent with its interval, what it differs by from the first run, seconds to a token.

    `scores` are the benchmarks' own. `first_token` is the median and the interquartile range of `bench speed`, `None`
    where that did not measure the method at this share of the patches.
    """

    run: Run
    accuracy: float
    low: float
    high: float
    difference: tuple[float, float, float]
    scores: dict[str, float]
    first_token: tuple[float, float] | None


@dataclass(frozen=True)
class Leaderboard:
    """Places, the best first, and what was measured for the times."""

    places: list[Place]
    benchmarks: list[str]
    speed: str | None


def leaderboard(
    runs: Sequence[Run], *, speed: Path | None = None, seed: int = 0, resamples: int = RESAMPLES
) -> Leaderboard:
    """Rank the runs by accuracy.

    Args:
        runs: the first is what the others are compared with.
        speed: `speed.json` of a measurement.
        seed: of the resampling.
        resamples: number of draws.

    Raises:
        DataError: runs of different protocols, data or questions; no benchmark that all scored; no such measurement.
    """
    first = runs[0]
    for run in runs:
        if run.protocol != first.protocol:
            raise DataError(
                f"Expected runs of one protocol, found {first.protocol} in {first.folder} and {run.protocol} in "
                f"{run.folder}; run one of them again with the other's --protocol."
            )
    names = [name for name in first.benchmarks if all(_scored(run, name) for run in runs)]
    if not names:
        raise DataError("Expected a benchmark that all runs scored, found none; run the missing ones.")
    measured, about = (None, None) if speed is None else _read_speed(speed)
    places = [_place(first, run, sorted(names, key=table_order), measured, seed, resamples) for run in runs]
    places.sort(key=lambda place: -place.accuracy)
    return Leaderboard(places, sorted(names, key=table_order), about)


def _place(first: Run, run: Run, names: list[str], measured: dict[str, Any] | None, seed: int, resamples: int) -> Place:
    totals, drawn, scores = np.zeros(2), np.zeros((resamples, 2)), {}
    for at, name in enumerate(names):
        pairs, unpaired = pair_samples(first, run, name)
        if unpaired:
            raise DataError(
                f"Expected the same questions of {name} in all runs, found {unpaired} that only one of {first.folder} "
                f"and {run.folder} has; run them with the same --limit."
            )
        strata, statistic = strata_of(name, run.protocol, pairs)
        own, again = resampled(strata, statistic, seed=seed + at, resamples=resamples)
        scores[name] = float(own[1])
        share = 100 / highest_score(name, strata) / len(names)
        totals += share * own
        drawn += share * again
    difference = (float(totals[1] - totals[0]), *interval(drawn[:, 1] - drawn[:, 0]))
    return Place(run, float(totals[1]), *interval(drawn[:, 1]), difference, scores, _first_token(run, measured))


def _read_speed(path: Path) -> tuple[dict[str, Any], str]:
    """A measurement, and of which models it is."""
    from llava_stf_eval.speed.output import names_of_models  # imports torch, which scores do not need

    measured = read_result(path)
    if "models" not in measured:
        raise DataError(
            f"{path} does not say of which models it is, as files of older versions; run bench speed again."
        )
    return measured, names_of_models(measured)


def _first_token(run: Run, measured: dict[str, Any] | None) -> tuple[float, float] | None:
    """What `bench speed` says of the run, in the first case and precision that it measured."""
    rows = [] if measured is None else measured["rows"]
    for row in rows:
        if row["error"] is None and row["case"] == rows[0]["case"] and _is_of(row, run, rows):
            stage = row["stages"]["first_token"]
            return stage["median"], stage["spread"]
    return None


def _is_of(row: dict[str, Any], run: Run, rows: Sequence[dict[str, Any]]) -> bool:
    """Whether a row is of the run's export, or of its method at its share of the patches, whatever the weights."""
    from llava_stf_eval.speed.variants import EXPORT

    if row["method"] == EXPORT:
        return Path(row["model"]) == Path(run.model)
    own = bundled_patches(run) or PATCHES_7B
    everything = max(other["mean_tokens"] for other in rows if other["model"] == row["model"])
    same = (row["method"], row["method_options"]) == (run.method, run.method_options)
    return same and row["vision_tokens"] * own == run.vision_tokens * everything


def _scored(run: Run, name: str) -> bool:
    return name in run.benchmarks and run.benchmarks[name].status == "scored"


def as_records(board: Leaderboard) -> list[dict[str, Any]]:
    """What `--json` prints of each place."""
    return [
        {
            "run": str(place.run.folder),
            "method": place.run.method_name,
            "vision_tokens": place.run.vision_tokens,
            "mean_tokens": place.run.mean_tokens,
            "accuracy": place.accuracy,
            "low": place.low,
            "high": place.high,
            "difference": dict(zip(("value", "low", "high"), place.difference, strict=True)),
            "first_token_seconds": None if place.first_token is None else place.first_token[0],
            "scores": place.scores,
        }
        for place in board.places
    ]


def print_leaderboard(board: Leaderboard) -> None:
    """Print the table, best run first."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    share = f"{100 * CONFIDENCE:.0f} %"
    heads = ["accuracy, %", f"{share} interval", "against the first run", "mean tokens"]
    table = Table("", box=SIMPLE_HEAD, padding=(0, 1))
    for head in [*heads, *(["first token, ms"] if board.speed else []), *map(title, board.benchmarks)]:
        table.add_column(head, justify="right")
    for place in board.places:
        value, low, high = place.difference
        against = "" if (value, low, high) == (0.0, 0.0, 0.0) else f"{value:+.1f} ({low:+.1f} to {high:+.1f})"
        cells = [f"{place.accuracy:.1f}", f"{place.low:.1f} to {place.high:.1f}", against]
        cells.append(f"{place.run.mean_tokens:.4g}")
        if board.speed:
            cells.append("" if place.first_token is None else f"{1000 * place.first_token[0]:,.1f}")
        table.add_row(Text(place.run.label), *cells, *(f"{place.scores[name]:.1f}" for name in board.benchmarks))
    console = Console(highlight=False)
    console.print(table)
    if board.speed:
        console.print(Text(f"First token: measured on {board.speed}, at the same share of the patches."))


def save_leaderboard(board: Leaderboard, path: Path) -> Path:
    """Write the plot: accuracy with its interval against the first token, or against tokens without a measurement."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 5.5), facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    for place in board.places:
        x, spread = place.run.mean_tokens, 0.0
        if board.speed:
            if place.first_token is None:
                continue
            x, spread = (1000 * seconds for seconds in place.first_token)
        bars = [[place.accuracy - place.low], [place.high - place.accuracy]]
        axes.errorbar(x, place.accuracy, yerr=bars, xerr=spread / 2, fmt="o", capsize=3, color="#2563eb")
        label = axes.annotate(f" {place.run.method_name}, {place.run.vision_tokens}", (x, place.accuracy), fontsize=8)
        label.set_parse_math(False)
    axes.set_xlabel(f"ms to the first token, median ({board.speed})" if board.speed else "tokens, mean over LLM layers")
    axes.set_ylabel(f"accuracy, % of the highest score; bars: {100 * CONFIDENCE:.0f} % interval")
    axes.grid(color="#d1d5db", linewidth=0.6)
    axes.set_axisbelow(True)
    return write_figure(path, figure)
