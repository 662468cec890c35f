"""The measured part of docs/serving.md, made from the results of `scripts/measure_serving.sh`.

    python -m llava_stf_eval.serving.tables runs/serving --output docs/serving

Copies NAME/serving.json and its figure to OUTPUT/NAME.json and .png; `llava_stf_eval.tables` makes the tables of them.
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


def main() -> None:
    """Copy a folder of results to where the tables are made of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    collect(options.folder, options.output)


if __name__ == "__main__":
    run(main)
