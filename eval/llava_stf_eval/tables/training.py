"""Accuracy against training steps: what `scripts/measure_training.sh` measures, and the table and plot made of it.

`report` writes accuracy.json, all that was measured, and accuracy.png, the plot; the table is made of the first.

    python -m llava_stf_eval.tables.training evaluate RUN --images 300 --every 100
    python -m llava_stf_eval.tables.training report FOLDER --output docs/training

Accuracy is the share of right answers to the questions about held-out drawn images, see `llava_stf_eval.drawn`.
"""

from __future__ import annotations

import argparse
import re
import statistics
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_stf.errors import DataError
from llava_stf.io.command import run
from llava_stf.io.publish import write_json
from llava_stf_eval.tables.answers import read_measured
from llava_stf_eval.tables.markdown import markdown
from llava_stf_eval.tables.seconds import cpu_seconds

ACCURACY = "accuracy.json"
IMAGES = 300
# Runs whose first steps are another run: name of the run, name of the run it goes on from.
CONTINUED = {"paper": "paper-align"}
RANDOM_STARTS = ("distill-random", "paper")  # all others start as mean pooling
TITLES = {
    "distill-warm": "warm start, distilled",
    "distill-features": "warm start, distilled, with matched image tokens",
    "distill-random": "random start, distilled",
    "supervised-projector": "warm start, supervised, projector alone",
    "supervised-warm": "warm start, supervised, projector and LLM",
    "paper": "random start, the paper's two stages",
    "several": "one model for 16 and 4 tokens, distilled",
    "several-descending": "one model, first 16 tokens, then 4, distilled",
    "four": "a model for 4 tokens alone, distilled",
}


@dataclass(frozen=True)
class Point:
    """Accuracy of one kind of run at one step and budget: mean and standard deviation over its seeds."""

    step: int
    vision_tokens: int
    mean: float
    deviation: float
    seeds: int


def evaluate_run(run: Path, images: int, every: int | None = None) -> None:
    """Ask the checkpoints of a run at every budget that they were made for; writes RUN/accuracy.json.

    Args:
        run: folder of a run that is finished.
        images: held-out images that are asked about.
        every: steps from one planned checkpoint to the next. A run that was stopped wrote another one, which is passed
            over, as other seeds have none there. `None` asks every checkpoint.

    Raises:
        DataError: there is no checkpoint, or a planned one is not there.
    """
    from llava_stf import load_model
    from llava_stf.loading import read_config
    from llava_stf_eval.drawn import evaluate

    if every is not None and every < 1:
        raise DataError(f"Expected 1 step or more between two checkpoints, found {every}.")
    names = {path: re.fullmatch(r"checkpoint-(\d+)", path.name) for path in run.glob("checkpoint-*")}
    checkpoints = {int(name[1]): path for path, name in names.items() if name is not None}
    if not checkpoints:
        raise DataError(f"Expected checkpoints in {run}, found none; train it first.")
    steps = sorted(checkpoints) if every is None else range(every, max(checkpoints) + 1, every)
    for step in steps:
        if step not in checkpoints:
            raise DataError(f"Expected checkpoint-{step} in {run}, found none; remove the folder and train it again.")
    rows = []
    for step in steps:
        checkpoint = checkpoints[step]
        for count in read_config(checkpoint).vision_token_counts:
            result = evaluate(run.name, load_model(checkpoint, vision_tokens=count), images=images)
            rows.append({"step": step, "vision_tokens": count, "accuracy": result.accuracy})
    write_json(run / ACCURACY, rows)


def evaluate_untrained(images: int) -> dict[str, float]:
    """Accuracy without training: the bundled LLaVA at all its tokens, and by mean pooling at fewer."""
    from llava_stf import load_model
    from llava_stf_eval.drawn import evaluate

    counts: list[Any] = ["all", 16, 4]
    models = {str(count): load_model("tiny-full", vision_tokens=count) for count in counts}
    return {name: evaluate(name, llava, images=images).accuracy for name, llava in models.items()}


def read_runs(folder: Path) -> dict[str, dict[str, Any]]:
    """Points and costs of the kinds of run that a folder holds, over the seeds that are there.

    Raises:
        DataError: it holds none.
    """
    accuracies: dict[str, dict[tuple[int, int], list[float]]] = defaultdict(lambda: defaultdict(list))
    seconds: dict[str, list[float]] = defaultdict(list)
    for file in sorted(folder.glob(f"*/{ACCURACY}")):
        name, _, seed = file.parent.name.rpartition("-")
        earlier = folder / f"{CONTINUED[name]}-{seed}" if name in CONTINUED else None
        offset = 0 if earlier is None else max(row["step"] for row in read_measured(earlier / ACCURACY))
        for row in read_measured(file):
            key = (row["step"] + offset, row["vision_tokens"])
            accuracies[name][key].append(row["accuracy"])
        parts = [file.parent] if earlier is None else [file.parent, earlier]
        logs = [part.with_name(part.name + ".seconds") for part in parts]
        seconds[name].append(sum(map(cpu_seconds, logs)))
    if not accuracies.keys() & TITLES.keys():
        raise DataError(
            f"Expected runs with {ACCURACY} in {folder}, found none; run scripts/measure_training.sh first."
        )
    return {
        name: {
            "points": [_point(*key, values) for key, values in sorted(points.items())],
            "cpu_seconds": statistics.mean(seconds[name]),
        }
        for name, points in accuracies.items()
    }


def read_report(file: Path) -> tuple[dict[str, float], dict[str, dict[str, Any]]]:
    """Accuracies without training, and the kinds of run, of the accuracy.json that `report` wrote."""
    report = read_measured(file)
    runs = {
        name: {**run, "points": [Point(**point) for point in run["points"]]} for name, run in report["runs"].items()
    }
    return report["untrained"], runs


def table(untrained: dict[str, float], runs: dict[str, dict[str, Any]]) -> str:
    """A Markdown table, one row per kind of run and budget, accuracy in percent after 100, 200 and 300 steps.

    Kinds that were not run are left out. A mean over fewer seeds than others says over how many.
    """
    seeds = max(point.seeds for run in runs.values() for point in run["points"])
    rows = [["no training, all 64 tokens (the teacher)", "64", f"{100 * untrained['all']:.1f}", "", "", "", ""]]
    for fewer in ("16", "4"):
        rows.append(["no training, mean pooling", fewer, f"{100 * untrained[fewer]:.1f}", "", "", "", ""])
    for name, title in _titles(runs).items():
        for count in (16, 4):
            points = {point.step: point for point in runs[name]["points"] if point.vision_tokens == count}
            if points:
                cells = [_cell(points.get(step), seeds) for step in (100, 200, 300)]
                rows.append([title, str(count), "", *cells, f"{runs[name]['cpu_seconds']:.0f}"])
    return markdown(["", "tokens", "no step", "100 steps", "200 steps", "300 steps", "CPU seconds"], rows)


def plot(untrained: dict[str, float], runs: dict[str, dict[str, Any]], path: Path) -> None:
    """Accuracy against steps, one panel per budget, with the standard deviation over seeds; warm starts from step 0."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(11, 5.5), sharey=True, layout="constrained")
    shown: dict[str, Any] = {}
    for panel, count in zip(panels, (16, 4), strict=True):
        shown["no training, all 64 tokens"] = panel.axhline(100 * untrained["all"], color="black", linestyle="--")
        shown["no training, mean pooling"] = panel.axhline(100 * untrained[str(count)], color="black", linestyle=":")
        for number, (name, title) in enumerate(_titles(runs).items()):
            points = [point for point in runs[name]["points"] if point.vision_tokens == count]
            if not points:
                continue
            if name not in RANDOM_STARTS:
                points = [Point(0, count, untrained[str(count)], 0.0, 1), *points]
            steps, means = [point.step for point in points], [100 * point.mean for point in points]
            deviations = [100 * point.deviation for point in points]
            shown[title] = panel.errorbar(steps, means, deviations, marker="o", markersize=4, color=f"C{number}")
        panel.set(title=f"{count} vision tokens", xlabel="steps of 16 images", ylabel="right answers, %")
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=3, fontsize=8)
    figure.savefig(path, dpi=110)


def _titles(runs: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {name: title for name, title in TITLES.items() if name in runs}


def _point(step: int, vision_tokens: int, values: list[float]) -> Point:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return Point(step, vision_tokens, statistics.mean(values), deviation, len(values))


def _cell(point: Point | None, seeds: int) -> str:
    if point is None:
        return ""
    fewer = f" ({point.seeds} of {seeds} seeds)" if point.seeds < seeds else ""
    deviation = f" ± {100 * point.deviation:.1f}" if point.seeds > 1 else ""
    return f"{100 * point.mean:.1f}{deviation}{fewer}"


def main() -> None:
    """Run the subcommand of the command line: evaluate a run, or write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("evaluate")
    one.add_argument("run", type=Path)
    one.add_argument("--images", type=int, default=IMAGES)
    one.add_argument("--every", type=int, help="steps between the checkpoints that are asked; default: all")
    report = commands.add_parser("report")
    report.add_argument("folder", type=Path)
    report.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    if options.command == "evaluate":
        evaluate_run(options.run, options.images, options.every)
        return
    runs, untrained = read_runs(options.folder), evaluate_untrained(IMAGES)
    options.output.mkdir(parents=True, exist_ok=True)
    plot(untrained, runs, options.output / "accuracy.png")
    results = {"untrained": untrained, "runs": {name: _plain(run) for name, run in runs.items()}}
    write_json(options.output / ACCURACY, results)


def _plain(run: dict[str, Any]) -> dict[str, Any]:
    return {**run, "points": [vars(point) for point in run["points"]]}


if __name__ == "__main__":
    run(main)
