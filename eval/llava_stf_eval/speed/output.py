"""What is left of a measurement: `speed.json`, a table on the terminal, and `speed.png`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_stf.io.publish import write_figure
from llava_stf_eval.speed.variants import EXPORT

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

RESULT, FIGURE = "speed.json", "speed.png"
COMPARED = ("first_token", "end_to_end")  # shown with their spread and ratio
COLOURS = {"tower": "#2563eb", "projector": "#f59e0b", "prefill": "#15803d", "rest": "#9ca3af"}


def print_tables(result: dict[str, Any], console: Console) -> None:
    """Two tables for each case, a row for each method: milliseconds of the stages, and what they are spent on."""
    computing = " of computing" if result["plan"]["clock"] == "cpu" else ""
    for rows in _by_case(result):
        case, measured = rows[0]["case"], [row for row in rows if row["error"] is None]
        console.print(
            f"batch {case['batch_size']}, {case['text_tokens']} text and {case['new_tokens']} new tokens, "
            f"{case['attention']}; median ms{computing} of {result['plan']['repeats']} runs ± spread"
        )
        for row in rows:
            if row["error"] is not None:
                console.print(f"{name_of(row)}: {row['error']}")
        if measured:
            console.print(_times(measured), _costs(measured))


def _times(rows: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    stages = list(rows[0]["stages"])
    table = Table("", *(stage.replace("_", " ") for stage in stages), "tokens/s")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(name_of(row), *(_time(row, stage) for stage in stages), f"{row['tokens_per_second']:.3g}")
    return table


def _time(row: dict[str, Any], stage: str) -> str:
    values = row["stages"][stage]
    text = f"{1000 * values['median']:,.1f}"
    if stage not in COMPARED:
        return text
    faster = "" if values["times_faster"] is None else f" ({values['times_faster']:.2f}x)"
    spread = f" ± {1000 * values['spread']:,.1f}" if len(values["seconds"]) > 1 else ""
    return f"{text}{spread}{faster}"


def _costs(rows: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table(
        "",
        "mean image tokens",
        "LLM tokens x layers",
        "TFLOP to first token",
        "KV cache of a prompt, MiB",
        "peak memory, GiB",
    )
    for column in table.columns[2:]:
        column.justify = "right"
    for row in rows:
        counted, peak = row["counted"], row["peak_bytes"]
        flops = counted["tower_flops"] + (counted["projector_flops"] or 0) + counted["prefill_flops"]
        table.add_row(
            name_of(row), f"{row['mean_tokens']:.4g}", _layers(row), f"{flops / 1e12:.3g}",
            f"{row['kv_bytes'] / 2**20:.3g}", "not measured" if peak is None else f"{peak / 2**30:.2f}",
        )  # fmt: skip
    return table


def save_figure(folder: Path, result: dict[str, Any]) -> Path:
    """Writes `speed.png`: for each case and method the parts of the time to the first token, stacked."""
    from matplotlib.figure import Figure

    rows = [row for row in result["rows"] if row["error"] is None]
    figure = Figure(figsize=(11, 1.6 + 0.5 * len(rows)), facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    labels = []
    for place, row in enumerate(rows):
        left = 0.0
        for part, colour in COLOURS.items():
            width = max(0.0, 1000 * row["stages"][part]["median"])
            axes.barh(place, width, left=left, color=colour, label=part if place == 0 else None)
            left += width
        first, decode = row["stages"]["first_token"], row["stages"]["decode"]
        text = (
            f" {1000 * first['median']:,.1f} ms ({first['times_faster']:.2f}x), {1000 * decode['median']:,.1f} a token"
        )
        axes.annotate(text, (left, place), va="center", fontsize=9)
        case = row["case"]
        labels.append(f"{name_of(row)}\nbatch {case['batch_size']}, {case['text_tokens']} text, {case['attention']}")
    axes.set_yticks(range(len(rows)), labels, fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.35)
    axes.set_xlim(left=0)
    axes.set_xlabel("ms to the first token, median")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(COLOURS), frameon=False)
    machine, models = result["machine"], result["models"]
    by = f", {models[0]['run_by']}" if len(models) == 1 else ""
    figure.suptitle(f"{names_of_models(result)}{by}, {machine['gpu'] or machine['cpu']}", fontsize=11)
    return write_figure(folder / FIGURE, figure)


def _by_case(result: dict[str, Any]) -> list[list[dict[str, Any]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in result["rows"]:
        groups.setdefault(json.dumps(row["case"]), []).append(row)
    return list(groups.values())


def names_of_models(result: dict[str, Any]) -> str:
    """What was measured: "7b (random weights)", each once whatever its precisions."""
    return ", ".join(dict.fromkeys(f"{model['name']} ({model['weights']} weights)" for model in result["models"]))


def name_of(row: dict[str, Any]) -> str:
    """What a table calls a row."""
    options = [f"{name}={value}" for name, value in row["method_options"].items()]
    export = [f"({Path(row['model']).name})"] if row["method"] == EXPORT else []
    return " ".join([", ".join([f"{row['method']} {row['vision_tokens']}", *options, row["run_by"]]), *export])


def _layers(row: dict[str, Any]) -> str:
    """The tokens of each layer, equal neighbours joined: "640 x2, 208 x30"."""
    runs: list[list[int]] = []
    for tokens in row["llm_tokens"]:
        if runs and runs[-1][0] == tokens:
            runs[-1][1] += 1
        else:
            runs.append([tokens, 1])
    return ", ".join(f"{tokens} x{layers}" for tokens, layers in runs)
