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

from llava_stf.errors import DataError
from llava_stf.io.command import run
from llava_stf.world import ALL, BENCHMARKS
from llava_stf_eval.tables.answers import read_kinds
from llava_stf_eval.tables.markdown import markdown, spread

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
COMPARED = (("fused", "pool"), ("spatial", "pool"), ("fused", "spatial"), ("fused4", "pool4"))


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
    """Markdown: a row for each kind of model and budget that the folder holds answers of, a column for each family.

    Raises:
        DataError: it holds none, or they are about other questions.
    """
    found = rows_of(folder)
    if not found:
        raise DataError(f"Expected answers of models in {folder}, found none; run scripts/measure_fusion.sh first.")
    rows = [["mirrors", *(BENCHMARKS[family] for family in ALL), "", ""]]
    for title, results in found.items():
        shares = [[100 * one["families"][family] for one in results if family in one["families"]] for family in ALL]
        cells = [f"{statistics.mean(share):.1f}" if share else "" for share in shares]
        rows.append([title, *cells, spread([100 * one["accuracy"] for one in results]), str(len(results))])
    shown = markdown(["tokens in brackets", *ALL, "**all**", "seeds"], rows)
    compared = [sentence for pair in COMPARED if (sentence := lead(folder, *pair))]
    return "\n".join([shown, "", *compared] if compared else [shown])


def lead(folder: Path, kind: str, other: str) -> str:
    """How far a kind is ahead of another one, over the seeds that both have, as an item of a list; "" without any.

    Raises:
        DataError: they are about other questions.
    """
    found = read_kinds(folder, (kind, other))
    mine, theirs = found.get(kind, {}), found.get(other, {})
    pairs = [(mine[seed][0], theirs[seed][0]) for seed in mine if seed in theirs]
    if not pairs:
        return ""
    ahead = spread([100 * (one["accuracy"] - two["accuracy"]) for one, two in pairs], 2)
    names = f"{TITLES[kind].strip('*')} less {TITLES[other].strip('*')}, {pairs[0][0]['vision_tokens']} tokens"
    return f"* {names}: {ahead} points over {len(pairs)} seed{'s' * (len(pairs) > 1)}."


def main() -> None:
    """Print the table of the folder that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    print(table(parser.parse_args().folder))


if __name__ == "__main__":
    run(main)
