"""`python -m llava_stf.world --out DIR --count N --seed S [--held-out]`: writes a data set of drawn images."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from llava_stf.errors import LlavaStfError
from llava_stf.world.dataset import write_dataset
from llava_stf.world.families import ALL, BENCHMARKS
from llava_stf.world.scene import SIDE


def main(
    out: Annotated[Path, typer.Option(help="Folder to write to; it is created.")],
    count: Annotated[int, typer.Option(help="Number of images.")] = 1000,
    seed: Annotated[int, typer.Option(help="Another seed, other images.")] = 0,
    held_out: Annotated[bool, typer.Option("--held-out", help="The split that is never trained on.")] = False,
    captions: Annotated[bool, typer.Option("--captions", help="Also align.json for stage 1.")] = False,
    describe: Annotated[bool, typer.Option("--describe", help="End conversations with the caption.")] = False,
    family: Annotated[list[str], typer.Option(help="Ask this family only (may be repeated).")] = list(ALL),  # noqa: B006
    max_objects: Annotated[int, typer.Option(help="At most this many shapes in an image.")] = 4,
    side: Annotated[int, typer.Option(help="Side of an image in pixels; shapes and letters stay as large.")] = SIDE,
    questions_per_image: Annotated[int, typer.Option(help="At most this many questions an image.")] = 8,
    workers: Annotated[int, typer.Option(min=1, help="Processes that draw.")] = 1,
) -> None:
    """Draw images with questions in eight families, as LLaVA-format JSON and PNG files."""
    try:
        priors = write_dataset(
            out, count, seed, families=family, captions=captions, describe=describe, max_objects=max_objects, side=side,
            questions_per_image=questions_per_image, split="held_out" if held_out else "train", workers=workers,
            progress=True,
        )  # fmt: skip
    except LlavaStfError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2) from None
    table = Table("family", "mirrors", "most frequent answer, %", title=f"{count} images in {out}")
    for name, share in priors.items():
        table.add_row(name, BENCHMARKS[name], f"{100 * share:.1f}")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
