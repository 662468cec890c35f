"""What is left of a measurement: `serving.json`, tables for the terminal and for Markdown, and `serving.png`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_stf.io.publish import write_figure
from llava_stf_eval.tables.markdown import markdown as in_markdown

if TYPE_CHECKING:
    from rich.console import Console

RESULT, FIGURE = "serving.json", "serving.png"
COLUMNS = (
    "model", "load", "requests/s", "output tokens/s", "first token, ms", "inter-token, ms", "prompt tokens",
    "running", "KV blocks used", "requests that fit",
)  # fmt: skip
EMPTY = "–"


def table(result: dict[str, Any]) -> list[list[str]]:
    """The cells under `COLUMNS`, a row for each model and load. Times are p50 / p99, ratios against the first model."""
    return [_cells(row, _base(result, row)) for row in result["rows"]]


def markdown(result: dict[str, Any]) -> str:
    """The table, and what it is of."""
    return f"{in_markdown(COLUMNS, table(result), words=2)}\n\n{conditions(result)}\n"


def print_table(result: dict[str, Any], console: Console) -> None:
    """The table, and below it what it is of."""
    from rich.table import Table

    shown = Table(*COLUMNS)
    for column in shown.columns[2:]:
        column.justify = "right"
    for cells in table(result):
        shown.add_row(*cells)
    console.print(shown)
    console.print(conditions(result))
    for sentence in failures(result):
        console.print(sentence)


def conditions(result: dict[str, Any]) -> str:
    """With what, where and when a table was measured."""
    machine, plan = result["machine"], result["plan"]
    arguments = f" ({' '.join(plan['arguments'])})" if plan["arguments"] else ""
    served = f"server at {plan['url']}" if plan["url"] else f"engine {plan['engine']}{arguments}"
    return (
        f"{served}, client {result['client']}; {plan['requests']} requests of each load, every one with an image of "
        f"its own, {plan['new_tokens']} new tokens; {machine['gpu'] or machine['cpu']}, {machine['cores']} cores for "
        f"server and client, {result['date'][:10]}. Times are p50 / p99."
    )


def failures(result: dict[str, Any]) -> list[str]:
    """A sentence for each error of each row."""
    return [
        f"{row['model']}, {row['load']['name']}: {count} of {row['requests']} requests failed: {error}"
        for row in result["rows"]
        for error, count in row["errors"].items()
    ]


def save_figure(folder: Path, result: dict[str, Any]) -> Path:
    """Writes `serving.png`: requests a second, and time to first token with its p99, of every row."""
    from matplotlib.figure import Figure

    rows = [row for row in result["rows"] if row["completed"]]
    figure = Figure(figsize=(11, 1.6 + 0.5 * len(rows)), facecolor="white", layout="constrained")
    throughput, first = figure.subplots(1, 2, sharey=True)
    models = list(dict.fromkeys(row["model"] for row in rows))
    for place, row in enumerate(rows):
        colour = f"C{models.index(row['model'])}"
        median, tail = row["first_token_ms"]["p50"], row["first_token_ms"]["p99"]
        throughput.barh(place, row["requests_per_second"], color=colour)
        throughput.annotate(f" {row['requests_per_second']:.3g}", (row["requests_per_second"], place), va="center")
        first.barh(place, median, color=colour, xerr=[[0], [tail - median]], ecolor="grey")
        first.annotate(f" {median:,.0f}", (median, place), xytext=(0, 7), textcoords="offset points", fontsize=8)
    throughput.set_yticks(range(len(rows)), [f"{row['model']}\n{row['load']['name']}" for row in rows], fontsize=9)
    throughput.invert_yaxis()
    throughput.margins(x=0.15)
    throughput.set_xlabel("requests a second")
    first.set_xlabel("ms to the first token, median; line to the 99th percentile")
    return write_figure(folder / FIGURE, figure)


def _base(result: dict[str, Any], row: dict[str, Any]) -> dict[str, Any] | None:
    """The row of the first model under the same load; `None` of that row itself."""
    same = next(other for other in result["rows"] if other["load"] == row["load"])
    return None if same is row else same


def _cells(row: dict[str, Any], base: dict[str, Any] | None) -> list[str]:
    server, fits = row["server"], row["fits"]
    tokens = "" if row["vision_tokens"] is None else f" ({row['vision_tokens']})"
    used = EMPTY if server["kv_blocks_used"] is None else f"{server['kv_blocks_used']} of {server['kv_blocks']}"
    if server["preemptions"]:
        used += f", {server['preemptions']} preempted"
    faster = None if row["load"]["rate"] else base  # a Poisson load says how many come
    return [
        f"{row['model']}{tokens}",
        row["load"]["name"] + (f", {row['failed']} failed" if row["failed"] else ""),
        *(_number(row, faster, name) for name in ("requests_per_second", "output_tokens_per_second")),
        _times(row, base, "first_token_ms"),
        _times(row, base, "inter_token_ms"),
        EMPTY if row["prompt_tokens"] is None else f"{row['prompt_tokens']:.0f}",
        EMPTY if server["running"] is None else str(server["running"]),
        used,
        EMPTY if fits is None else f"{fits['requests']}" + _ratio(fits, base and base["fits"], "requests"),
    ]


def _number(row: dict[str, Any], base: dict[str, Any] | None, name: str) -> str:
    return f"{row[name]:.3g}" + _ratio(row, base, name)


def _ratio(row: dict[str, Any], base: dict[str, Any] | None, name: str) -> str:
    return f" ({row[name] / base[name]:.2f}x)" if base and base[name] else ""


def _times(row: dict[str, Any], base: dict[str, Any] | None, name: str) -> str:
    """Medians are compared as how many times faster, but for those of less than a millisecond.

    Those are of tokens that came together.
    """
    median, tail = row[name]["p50"], row[name]["p99"]
    if median is None:
        return EMPTY
    before = base[name]["p50"] if base else None
    return f"{median:,.0f} / {tail:,.0f}" + (
        f" ({before / median:.2f}x)" if before and min(before, median) >= 1 else ""
    )
