"""Trained resamplers beside one another: what `scripts/measure_fusion.sh` measured, as a table.

    python -m llava_stf_eval.tables.resamplers FOLDER --speed docs/speed/methods-cpu.json

Accuracy is that of `llava_stf_eval.drawn`, mean and standard deviation over the seeds. Parameters and FLOPs are counted
of the projector at the width of LLaVA-1.5-7B, 144 of 576 tokens. First tokens are those that
`llava_stf_eval.measurement.methods` measured.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from itertools import chain
from pathlib import Path
from typing import Any

from llava_stf.io.command import run
from llava_stf_eval.tables.answers import read_kinds, read_measured
from llava_stf_eval.tables.markdown import markdown, spread

# Of each kind its title and its projector.
TITLES = {
    "fused": ("STF and MBTF, starts as pooling", "stf"),
    "random": ("STF and MBTF, random start", "stf"),
    "tokenpacker": ("TokenPacker, random start", "tokenpacker"),
    "mqt": ("MQT, random start", "mqt"),
    "pool": ("mean pooling", "pool"),
    "m3": ("M3: pooling at 16, 4 and 1", "pool"),
}


def costs(fusion: Any) -> tuple[int, int]:
    """Parameters of a projector, and FLOPs of one image, at the shape of LLaVA-1.5-7B with 144 of 576 tokens."""
    import torch
    from transformers import LlamaConfig

    from llava_stf import LlavaStfConfig
    from llava_stf.analysis.counting import projector_flops
    from llava_stf.models.fusion.build import build_projector

    config = LlavaStfConfig(text_config=LlamaConfig(), fusion=fusion)
    with torch.device("meta"):
        projector = build_projector(config)
    return sum(parameter.numel() for parameter in projector.parameters()), projector_flops(config)


def table(folder: Path, speed: Path) -> str:
    """Markdown, one row for each kind of run that the folder holds; nothing if it holds none of them.

    Args:
        folder: of runs.
        speed: the file of `llava_stf_eval.measurement.methods`.

    Raises:
        DataError: the results are about other questions.
    """
    seconds = {row["method"]: row["first token"] for row in read_measured(speed)["rows"]}
    found: defaultdict[str, defaultdict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for kind, seeds in read_kinds(folder, TITLES).items():
        for result in chain.from_iterable(seeds.values()):
            found[kind][result["vision_tokens"]].append(100 * result["accuracy"])
    rows = []
    for kind, (title, fusion) in TITLES.items():
        if kind in found:
            parameters, flops = costs(fusion)
            cells = [spread(found[kind][count]) if found[kind][count] else "" for count in (16, 4, 1)]
            counted = [f"{parameters / 1e6:.0f} M", f"{flops / 1e9:.0f} G", f"{seconds[fusion]:.2f}"]
            rows.append([title, *cells, str(len(found[kind][16])), *counted])
    counts = "right answers, % at 16", "at 4", "at 1", "seeds"
    columns = *counts, "parameters, 7B", "FLOPs an image, 7B", "first token, s"
    return markdown(["", *columns], rows) if rows else ""


def main() -> None:
    """Print the table of the folder that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--speed", type=Path, required=True)
    options = parser.parse_args()
    print(table(options.folder, options.speed))


if __name__ == "__main__":
    run(main)
