"""How the models of `scripts/measure_fusion.sh` answer, all of one start and one budget, as a table.

    python -m llava_stf_eval.tables.bundled FOLDER

Shares of right answers are those of `llava_stf_eval.drawn`, their mean over the seeds, with the standard deviation
where all families are taken together.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from llava_stf.world import ALL, BENCHMARKS
from llava_stf_eval.tables.spread import spread

TITLES = {
    "full": "100 %",
    "blocks": "MBTF alone",
    "pool": "mean pooling",
    "spatial": "STF alone",
    "fused": "**STF and MBTF**",
    "random": "STF and MBTF, random start",
    "tokenpacker": "TokenPacker",
    "mqt": "MQT",
    "m3": "M3",
    "nested": "one model",
    "pool4": "mean pooling",
    "fused4": "STF and MBTF",
}
COMPARED = {"fused": "pool", "fused4": "pool4"}


def columns_of(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The results of each kind of model and budget, over the seeds, under the title of their column."""
    columns: dict[str, list[dict[str, Any]]] = {}
    for kind, title in TITLES.items():
        for path in _answers(folder, kind):
            for result in json.loads(path.read_text()):
                columns.setdefault(f"{title} ({result['vision_tokens']})", []).append(result)
    return columns


def table(folder: Path) -> str:
    """Markdown: a row for each family, a column for each kind of model that the folder holds answers of."""
    columns = columns_of(folder)
    lines = [f"| questions | mirrors | {' | '.join(columns)} |", "| --- | --- |" + " ---: |" * len(columns)]
    for family in ALL:
        cells = (
            f"{100 * statistics.mean(one['families'][family] for one in results):.1f}" for results in columns.values()
        )
        lines.append(f"| {family} | {BENCHMARKS[family]} | {' | '.join(cells)} |")
    cells = (spread([100 * result["accuracy"] for result in results]) for results in columns.values())
    lines.append(f"| **all** | | {' | '.join(cells)} |")
    for kind, other in COMPARED.items():
        if ahead := leads(folder, kind, other):
            lines += ["", f"{kind} less {other}, points: {spread(ahead)} over {len(ahead)} seeds."]
    return "\n".join(lines)


def leads(folder: Path, kind: str, other: str) -> list[float]:
    """How far a kind is ahead of another one, in points, for each seed that both have."""
    mine, theirs = (
        {path.stem.partition("-")[2]: json.loads(path.read_text())[0]["accuracy"] for path in _answers(folder, one)}
        for one in (kind, other)
    )
    return [100 * (mine[seed] - theirs[seed]) for seed in sorted(mine.keys() & theirs.keys())]


def _answers(folder: Path, kind: str) -> list[Path]:
    """The files of a kind's results, by seed."""
    return sorted(folder.glob(f"{kind}-[0-9]*.json"))


def main() -> None:
    """Print the table of the folder that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    print(table(parser.parse_args().folder))


if __name__ == "__main__":
    main()
