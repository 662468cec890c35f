"""Comparisons of vision encoders: what `scripts/measure_encoders.sh` and `measure_towers.sh` measure, and the tables.

    python -m llava_stf_eval.tables.encoders untrained OUT --config pretrain.yaml --data images.npz
    python -m llava_stf_eval.tables.encoders embedded OUT
    python -m llava_stf_eval.tables.encoders encoders FOLDER --output docs/encoders
    python -m llava_stf_eval.tables.encoders towers FOLDER --output docs/encoders

`encoders` and `towers` write encoders.json and towers.json with all that was measured, of what is in FOLDER.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from llava_stf.errors import DataError
from llava_stf.io.command import run
from llava_stf.io.publish import write_json
from llava_stf_eval.tables.answers import read_measured
from llava_stf_eval.tables.markdown import markdown
from llava_stf_eval.tables.seconds import cpu_seconds

TITLES = {
    "random": "random weights",
    "mocov3": "MoCo v3",
    "patchmix": "PatchMix",
    "aps": "APS",
    "mgc": "MGC",
    "mos": "MOS (reconstruction)",
}
MAIN_NEIGHBOURS = "20"


def write_untrained(output: Path, options: list[str]) -> None:
    """Write the encoder that a pre-training run of MoCo v3 with these options (`--config`, ...) starts from."""
    import torch
    from accelerate.utils import set_seed

    from llava_stf.encoders.pretrain.build import build_objective
    from llava_stf.encoders.pretrain.config import parse
    from llava_stf.encoders.pretrain.loop import image_processor
    from llava_stf.io.runs import save_model

    config = parse([*options, "--method", "mocov3", "--output", str(output)])
    set_seed(config.seed)
    objective = build_objective(config)
    recipe = objective.recipes[0]
    output.mkdir(parents=True)
    processor = image_processor(recipe.size, recipe.mean, recipe.std)
    save_model(objective.trained_encoder(), processor, output, torch.float32)


def write_bundled(output: Path) -> None:
    """Write the bundled model's vision tower with its image processor as an encoder of its own."""
    from llava_stf import load_model

    model, processor = load_model("tiny-full")
    model.model.vision_tower.float().save_pretrained(output)
    processor.image_processor.save_pretrained(output)


def read_encoders(folder: Path) -> dict[str, dict[str, Any]]:
    """Test accuracies in percent of every encoder measured in a folder: protocol and pooling, then their result.

    Raises:
        DataError: none was.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in TITLES:
        files = {
            kind: folder / f"{name}.{kind}.json" for kind in ("knn-class", "knn-mean", "linear-class", "linear-mean")
        }
        results = {kind: read_measured(file) for kind, file in files.items() if file.is_file()}
        if results:
            found[name] = {kind: result[kind.partition("-")[0]] for kind, result in results.items()}
            seconds = folder / f"{name}.seconds"
            if seconds.is_file():
                found[name]["cpu_seconds"] = round(cpu_seconds(seconds))
    if not found:
        raise DataError(f"Expected results of encoders in {folder}, found none; run scripts/measure_encoders.sh first.")
    return found


def encoder_table(found: dict[str, dict[str, Any]]) -> str:
    """A Markdown table, one row per encoder: kNN with 20 neighbours and the linear layer's last epoch.

    What was not measured is left blank.
    """
    kinds = {"knn-class": MAIN_NEIGHBOURS, "knn-mean": MAIN_NEIGHBOURS, "linear-class": "last", "linear-mean": "last"}
    rows = []
    for name, result in found.items():
        cells = [f"{result[kind][figure]:.1f}" if kind in result else "" for kind, figure in kinds.items()]
        rows.append([TITLES[name], *cells, str(result.get("cpu_seconds", ""))])
    columns = "kNN, class token", "kNN, mean", "linear, class token", "linear, mean", "CPU seconds"
    return markdown(["pre-training", *columns], rows)


def read_towers(folder: Path) -> dict[str, dict[str, Any]]:
    """Accuracy of the LLaVA on every tower in a folder, by name of the tower: of many states fused, and of one.

    Raises:
        DataError: there is no tower of which both were measured.
    """
    towers: dict[str, dict[str, Any]] = {}
    for name in ("embedded", *TITLES):
        files = {states: folder / f"llava-{name}-{states}.json" for states in ("one", "many")}
        if all(file.is_file() for file in files.values()):
            towers[name] = {states: read_measured(file)[0] for states, file in files.items()}
    if not towers:
        raise DataError(
            f"Expected a tower with results of one state and of many in {folder}, found none; run "
            "scripts/measure_towers.sh first."
        )
    return towers


def tower_table(towers: dict[str, dict[str, Any]]) -> str:
    """A Markdown table, two rows per tower, right answers in percent per family."""
    families = list(next(iter(towers.values()))["one"]["families"])
    rows = []
    for name, results in towers.items():
        for states, result in results.items():
            cells = [result["accuracy"], *(result["families"][family] for family in families)]
            title = TITLES.get(name, "the bundled model's own")
            rows.append([title, states, *(f"{100 * cell:.1f}" for cell in cells)])
    return markdown(["tower", "states", "all", *families], rows, words=2)


def main() -> None:
    """Run the subcommand of the command line: write an untrained encoder, measure, or write a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("untrained").add_argument("output", type=Path)
    commands.add_parser("embedded").add_argument("output", type=Path)
    for name in ("encoders", "towers"):
        report = commands.add_parser(name)
        report.add_argument("folder", type=Path)
        report.add_argument("--output", type=Path, required=True)
    known, rest = parser.parse_known_args()
    if known.command == "untrained":
        write_untrained(known.output, rest)
    elif known.command == "embedded":
        write_bundled(known.output)
    elif known.command == "encoders":
        write_json(known.output / "encoders.json", read_encoders(known.folder))
    else:
        write_json(known.output / "towers.json", read_towers(known.folder))


if __name__ == "__main__":
    run(main)
