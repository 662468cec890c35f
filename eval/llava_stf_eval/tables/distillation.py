"""What a projector learns from images of several sources: what `scripts/measure_distillation.sh` measured, as a table.

    python -m llava_stf_eval.tables.distillation FOLDER --output docs/training/distillation.json

Accuracy is that of `llava_stf_eval.tables.training`, on held-out drawn images; the divergence from the teacher is that
of `llava_stf_eval.measurement.divergence`. Mean and standard deviation over the seeds.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from llava_stf.io.command import run
from llava_stf.io.publish import write_json
from llava_stf_eval.tables.answers import read_measured
from llava_stf_eval.tables.markdown import markdown, spread

TITLES = {
    "tiny-full": "all tokens (the teacher)",
    "pool": "mean pooling, no training",
    "drawn": "drawn images, as those that are asked about",
    "photos": "photographs",
    "cifar": "CIFAR pictures",
    "mosaics": "mosaics of photographs and CIFAR pictures",
    "noise": "noise",
    "inverted": "images inverted from the teacher",
}


def read_runs(folder: Path) -> list[dict[str, Any]]:
    """What each model answers: those without training, then the runs of each source, seed by seed.

    Raises:
        DataError: a result is missing or damaged, such as that of the models without training, asked last.
    """
    untrained = read_measured(folder / "untrained.json")
    found = [{"source": row["model"], "accuracy": row["accuracy"]} for row in untrained]
    for source in TITLES:
        for told in sorted(folder.glob(f"{source}-[0-9]*/divergence.json")):
            accuracy = read_measured(told.parent / "accuracy.json")[-1]["accuracy"]
            seed = int(told.parent.name.removeprefix(f"{source}-"))
            divergence = read_measured(told)["divergence"]
            found.append({"source": source, "seed": seed, "accuracy": accuracy, "divergence": divergence})
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: models without training, then one row for each source that there are runs of."""
    cells = []
    for source, title in TITLES.items():
        runs = [row for row in rows if row["source"] == source]
        trained = [row["divergence"] for row in runs if "divergence" in row]
        if runs:
            shares = spread([100 * row["accuracy"] for row in runs])
            seeds = [spread(trained, 3), str(len(runs))] if trained else ["", ""]
            cells.append([title, shares, *seeds])
    return markdown(["distilled on", "right answers, %", "divergence, nats a token", "seeds"], cells)


def main() -> None:
    """Print the table of the folder that the command line names, and write what it is made of."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--output", type=Path, help="also write its rows to this JSON file")
    options = parser.parse_args()
    rows = read_runs(options.folder)
    print(table(rows))
    if options.output:
        write_json(options.output, rows)


if __name__ == "__main__":
    run(main)
