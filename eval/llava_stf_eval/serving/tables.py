"""The measured part of docs/serving.md, made from the results of `scripts/measure_serving.sh`.

    python -m llava_stf_eval.serving.tables runs/serving --output docs/serving --document docs/serving.md

Copies NAME/serving.json and its figure to OUTPUT/NAME.json and .png, and writes their tables, in the order of their
names, between `<!-- serving:start -->` and `<!-- serving:end -->` of the document.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from llava_stf.errors import LlavaStfError
from llava_stf.io.command import run
from llava_stf_eval.measurement.result import is_complete, read_result
from llava_stf_eval.serving.output import FIGURE, RESULT, failures, markdown

START, END = "<!-- serving:start -->", "<!-- serving:end -->"


def collect(folder: Path, output: Path) -> dict[str, dict[str, Any]]:
    """Copies the results of every run in `folder`; returns them by name.

    Raises:
        LlavaStfError: there are none, or one was broken off.
    """
    files = sorted(folder.glob(f"*/{RESULT}"))
    if not files:
        raise LlavaStfError(f"{folder} holds no results; run scripts/measure_serving.sh first.")
    output.mkdir(parents=True, exist_ok=True)
    found = {}
    for file in files:
        name = file.parent.name
        found[name] = read_result(file)
        if not is_complete(found[name]):
            raise LlavaStfError(f"{file} is of a measurement that was broken off; finish it with bench serve --resume.")
        shutil.copyfile(file, output / f"{name}.json")
        if (file.parent / FIGURE).is_file():
            shutil.copyfile(file.parent / FIGURE, output / f"{name}.png")
    return found


def section(results: dict[str, dict[str, Any]]) -> str:
    """The tables, each under the name of its run."""
    parts = []
    for name, result in results.items():
        failed = "".join(f"* {sentence}\n" for sentence in failures(result))
        parts.append(f"**{name}**\n\n{markdown(result)}" + (f"\n{failed}" if failed else ""))
    return "\n".join(parts)


def insert(text: str, block: str) -> str:
    """The document with `block` between the markers.

    Raises:
        LlavaStfError: these are not there once each.
    """
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end) or START in after or END in before + after:
        raise LlavaStfError(f"Expected {START} and, behind it, {END} in the document, once each.")
    return f"{before}{START}\n{block}{END}{after}"


def main() -> None:
    """Put the tables of a folder of results into the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--document", type=Path, required=True)
    options = parser.parse_args()
    block = section(collect(options.folder, options.output))
    options.document.write_text(insert(options.document.read_text(), block))


if __name__ == "__main__":
    run(main)
