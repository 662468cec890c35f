"""How the models of `scripts/measure_fusion.sh` answer, all of one start and one budget, as a table.

    python -m llava_stf_eval.tables.bundled FOLDER

Shares of right answers are those of `llava_stf_eval.drawn`, their mean over the seeds, with the standard deviation
where all families are taken together.
"""

from __future__ import annotations

import argparse
import statistics
from itertools import chain
from pathlib import Path
from typing import Any

from llava_stf.io.command import run
from llava_stf.world import ALL, BENCHMARKS
from llava_stf_eval.tables.answers import read_kinds
from llava_stf_eval.tables.spread import spread

TITLES = {
    "full": "all tokens",
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


def rows_of(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The results of each kind of model and budget, over the seeds, under the title of their row.

    Raises:
        DataError: they are about other questions.
    """
    rows: dict[str, list[dict[str, Any]]] = {}
    for kind, seeds in read_kinds(folder, TITLES).items():
        for result in chain.from_iterable(seeds.values()):
            rows.setdefault(f"{TITLES[kind]} ({result['vision_tokens']})", []).append(result)
    return rows


def table(folder: Path) -> str:
    """Markdown: a row for each kind of model and budget that the folder holds answers of, a column for each family."""
    lines = [f"| tokens in brackets | {' | '.join(ALL)} | **all** | seeds |", "| --- |" + " ---: |" * (len(ALL) + 2)]
    lines.append(f"| mirrors | {' | '.join(BENCHMARKS[family] for family in ALL)} | | |")
    for title, results in rows_of(folder).items():
        shares = (100 * statistics.mean(one["families"][family] for one in results) for family in ALL)
        cells = [*(f"{share:.1f}" for share in shares), spread([100 * one["accuracy"] for one in results])]
        lines.append(f"| {title} | {' | '.join(cells)} | {len(results)} |")
    for kind, other in COMPARED.items():
        if ahead := leads(folder, kind, other):
            lines += ["", f"{kind} less {other}, points: {spread(ahead)} over {len(ahead)} seeds."]
    return "\n".join(lines)


def leads(folder: Path, kind: str, other: str) -> list[float]:
    """How far a kind is ahead of another one, in points, for each seed that both have.

    Raises:
        DataError: they are about other questions.
    """
    found = read_kinds(folder, (kind, other))
    mine, theirs = found.get(kind, {}), found.get(other, {})
    return [100 * (mine[seed][0]["accuracy"] - theirs[seed][0]["accuracy"]) for seed in mine if seed in theirs]


def main() -> None:
    """Print the table of the folder that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    print(table(parser.parse_args().folder))


if __name__ == "__main__":
    run(main)
