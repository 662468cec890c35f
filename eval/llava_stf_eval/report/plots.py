"""Two figures of one or several runs: a radar plot as in the paper, and a bar chart. PNG, no display needed."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llava_stf_eval.protocols import BENCHMARKS
from llava_stf_eval.report.compare import highest_score, strata_of
from llava_stf_eval.report.runs import Run, table_order
from llava_stf_eval.report.scores import bundled_patches, published_of, title

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#2563eb", "#d97706", "#059669", "#9333ea", "#dc2626", "#0891b2", "#65a30d", "#db2777")
PUBLISHED_COLOUR = "#6b7280"
PAPER, INK, RULE = ("#ffffff", "#181b20"), ("#1f2430", "#e6e8ec"), ("#d1d5db", "#414855")  # light, dark
FEWEST_AXES = 3
DPI = 130


@dataclass(frozen=True)
class Series:
    """One line of the radar and one colour of the bars: a run, or a published row.

    `highest` is what right answers to all of its questions score.
    """

    label: str
    scores: dict[str, float]
    highest: dict[str, float]
    published: bool


def series_of(runs: Sequence[Run]) -> list[Series]:
    """The runs' scores, then the published rows they may be compared with; a range stands at its middle."""
    series = []
    for run in runs:
        scores = {name: result.score for name, result in run.benchmarks.items() if result.score is not None}
        series.append(Series(run.label, scores, {name: _highest(run, name) for name in scores}, False))
    for run in runs:
        row = published_of(run)
        label = f"{row.title}, {row.budget} (published)" if row else ""
        if row is None or bundled_patches(run) is not None or any(item.label == label for item in series):
            continue
        ranges = {name: row.scores.get(name.partition(":")[0]) for name in run.benchmarks}
        scores = {name: (found[0] + found[1]) / 2 for name, found in ranges.items() if found is not None}
        highest = {name: float(BENCHMARKS[name.partition(":")[0]].scale) for name in scores}
        series.append(Series(label, scores, highest, True))
    return series


def draw_radar(series: Sequence[Series], *, dark: bool = False) -> bytes | None:
    """A PNG with one axis for each benchmark that every run in `series_of` has a score of; None for fewer than three.

    One series is shown as the share of the highest possible score. Several are shown as the share of the best of them
    on that axis, and the rings begin where the weakest lies: differences are visible, and the rings say how large.
    """
    own = [item.scores for item in series if not item.published]
    names = [name for name in own[0] if all(name in scores for scores in own)]
    if len(names) < FEWEST_AXES:
        return None
    alone = len(series) == 1
    best = {
        name: series[0].highest[name] if alone else max((s.scores.get(name, 0.0) for s in series), default=0.0)
        for name in names
    }
    shares = [[s.scores[n] / best[n] if n in s.scores and best[n] else math.nan for n in names] for s in series]
    lowest = min((share for row in shares for share in row if not math.isnan(share)), default=0.0)
    start, rings = _rings(0.0 if alone else lowest)

    figure = _figure((10.5, 7.8), dark)
    axes: Any = figure.add_subplot(projection="polar", facecolor=PAPER[dark])  # polar axes have methods of their own
    axes.set_theta_offset(math.pi / 2)
    axes.set_theta_direction(-1)
    angles = [2 * math.pi * place / len(names) for place in range(len(names))]
    for item, row, colour in zip(series, shares, _colours(series), strict=True):
        line = "--" if item.published else "-"
        axes.plot(
            [*angles, angles[0]],
            [*row, row[0]],
            line,
            color=colour,
            linewidth=2,
            marker="o",
            label=item.label,
            clip_on=False,
        )
        if not item.published:
            axes.fill([*angles, angles[0]], [*row, row[0]], color=colour, alpha=0.08)
    axes.set_ylim(start, 1.0)
    axes.set_yticks(rings, [f"{100 * ring:.0f} %" for ring in rings], color=INK[dark], fontsize=8)
    axes.set_xticks(angles, [_axis_label(name, series) for name in names], color=INK[dark], fontsize=10)
    axes.tick_params(axis="x", pad=12)
    for label, angle in zip(axes.get_xticklabels(), angles, strict=True):
        side = math.sin(angle)  # to the right of the circle, to the left, or above and below it
        label.set_horizontalalignment("center" if abs(side) < 0.1 else "left" if side > 0 else "right")
    axes.grid(color=RULE[dark])
    axes.spines["polar"].set_color(RULE[dark])
    measure = "highest possible score" if alone else "best score on each axis"
    axes.set_title(f"share of the {measure}; the centre is {100 * start:.0f} %", color=INK[dark], fontsize=11, pad=24)
    _legend(figure, dark)
    return _png(figure)


def draw_bars(series: Sequence[Series], *, dark: bool = False) -> bytes:
    """A PNG with a group of bars for each benchmark, in per cent of its highest score; hatched bars are published."""
    names = sorted({name for item in series if not item.published for name in item.scores}, key=table_order)
    figure = _figure((max(6.5, 1.0 + len(names) * (0.45 + 0.3 * max(2, len(series)))), 4.6), dark)
    axes = figure.add_subplot(facecolor=PAPER[dark])
    width = 0.84 / len(series)
    for place, (item, colour) in enumerate(zip(series, _colours(series), strict=True)):
        shown = [(at, name) for at, name in enumerate(names) if name in item.scores]
        where = [at - 0.42 + (place + 0.5) * width for at, _ in shown]
        heights = [100 * item.scores[name] / item.highest[name] for _, name in shown]
        style = {"hatch": "///", "fill": False, "edgecolor": colour} if item.published else {"color": colour}
        axes.bar(where, heights, 0.92 * width, label=item.label, **style)
        for x, height, (_, name) in zip(where, heights, shown, strict=True):
            value = item.scores[name]
            text = f"{value:.0f}" if item.highest[name] > 100 else f"{value:.1f}"
            axes.text(x, height + 1, text, ha="center", fontsize=7, color=INK[dark])
    axes.set_xticks(range(len(names)), [title(name) for name in names], color=INK[dark])
    axes.set_ylim(0, 108)
    axes.set_ylabel("% of the highest score", color=INK[dark])
    axes.tick_params(colors=INK[dark])
    axes.grid(axis="y", color=RULE[dark], linewidth=0.6)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_color(RULE[dark])
    _legend(figure, dark)
    return _png(figure)


def _highest(run: Run, benchmark: str) -> float:
    """Of the questions that the run was asked: MME has no more than 200 for each category in them."""
    strata, _ = strata_of(benchmark, run.protocol, [(sample, sample) for sample in run.samples(benchmark)])
    return highest_score(benchmark, strata)


def _rings(lowest: float) -> tuple[float, list[float]]:
    """Where the centre lies, below `lowest`, and at most six rings from there to 1 at round shares."""
    for percent in (2, 5, 10, 20):
        first = max(0, math.ceil(100 * lowest / percent) - 1) * percent
        if 100 - first <= 6 * percent:
            break
    return first / 100, [ring / 100 for ring in range(first + percent, 101, percent)]


def _figure(size: tuple[float, float], dark: bool) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=size, facecolor=PAPER[dark], layout="constrained")


def _colours(series: Sequence[Series]) -> list[str]:
    return [PUBLISHED_COLOUR if item.published else COLOURS[at % len(COLOURS)] for at, item in enumerate(series)]


def _axis_label(name: str, series: Sequence[Series]) -> str:
    scores = " / ".join(f"{item.scores[name]:.1f}" for item in series if name in item.scores)
    return f"{title(name)}\n{scores}"


def _legend(figure: Figure, dark: bool) -> None:
    legend = figure.legend(loc="outside lower center", frameon=False, labelcolor=INK[dark], ncols=2)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a model's path may hold a dollar sign


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()
