"""What tiles are worth, and what fewer tokens keep of it: the answers that `scripts/measure_tiles.sh` got, as a table.

    python -m llava_stf_eval.tables.tiles FOLDER

Accuracy is that of `llava_stf_eval.drawn`, mean and standard deviation over the seeds.
"""

from __future__ import annotations

import argparse
from itertools import chain
from pathlib import Path

from llava_stf.errors import DataError
from llava_stf.io.command import run
from llava_stf_eval.tables.answers import read_kinds
from llava_stf_eval.tables.markdown import markdown, spread

TITLES = {
    "one-tile": "the image as one tile",
    "all": "all tokens of its tiles",
    "stf": "**STF and MBTF, a quarter**",
    "pool": "mean pooling, a quarter",
    "pool-untrained": "mean pooling of the model for all tokens, not trained further",
}
FAMILIES = {"text": "reading", "open": "open", "presence": "presence"}


def table(folder: Path) -> str:
    """Markdown, one row for each kind of model that the folder holds answers of.

    Raises:
        DataError: it holds none, or they are not about as many images, or at one seed about other questions.
    """
    kinds = read_kinds(folder, TITLES, of_one_seed=False)
    found = {kind: list(chain.from_iterable(seeds.values())) for kind, seeds in kinds.items()}
    if not found:
        raise DataError(f"Expected answers of models in {folder}, found none; run scripts/measure_tiles.sh first.")
    rows = []
    for kind, results in found.items():
        shares = [[100 * result["accuracy"] for result in results]]
        shares += [[100 * one["families"][name] for one in results if name in one["families"]] for name in FAMILIES]
        cells = [spread(share) if share else "" for share in shares]
        rows.append([TITLES[kind], str(results[0]["vision_tokens"]), *cells])
    return markdown(["", "tokens", "all questions, %", *FAMILIES.values()], rows)


def main() -> None:
    """Print the table of the folder that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    print(table(parser.parse_args().folder))


if __name__ == "__main__":
    run(main)
