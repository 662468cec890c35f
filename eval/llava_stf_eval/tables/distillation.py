"""What a projector learns from images of several sources: what `scripts/measure_distillation.sh` measured, as a table.

    python -m llava_stf_eval.tables.distillation FOLDER

Accuracy is that of `llava_stf_eval.tables.training`, on held-out drawn images; the divergence from the teacher is that
of `llava_stf_eval.measurement.divergence`. Mean and standard deviation over the seeds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from llava_stf.io.command import run
from llava_stf_eval.tables.spread import spread

TITLES = {
    "drawn": "drawn images, as those that are asked about",
    "photos": "photographs",
    "cifar": "CIFAR pictures",
    "mosaics": "mosaics of photographs and CIFAR pictures",
    "noise": "noise",
    "inverted": "images inverted from the teacher",
}
UNTRAINED = {"tiny-full": "all tokens (the teacher)", "pool": "mean pooling, no training"}


def table(folder: Path) -> str:
    """Markdown: models without training, then one row for each source that the folder holds runs of."""
    lines = [
        "| distilled on | right answers, % | divergence, nats a token | seeds |",
        "| --- | ---: | ---: | ---: |",
    ]
    for result in json.loads((folder / "untrained.json").read_text()):
        lines.append(f"| {UNTRAINED[result['model']]} | {100 * result['accuracy']:.1f} | | |")
    for source, title in TITLES.items():
        runs = sorted(path.parent for path in folder.glob(f"{source}-[0-9]*/divergence.json"))
        if runs:
            shares = [100 * json.loads((run / "accuracy.json").read_text())[-1]["accuracy"] for run in runs]
            distances = [json.loads((run / "divergence.json").read_text())["divergence"] for run in runs]
            lines.append(f"| {title} | {spread(shares)} | {spread(distances, 3)} | {len(runs)} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table of the folder that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    print(table(parser.parse_args().folder))


if __name__ == "__main__":
    run(main)
