"""`llava-stf data mosaic`: new images of pieces of others, for `data label` and stage distill."""

import sys
from pathlib import Path
from typing import Annotated

import typer


def mosaic(
    source: Annotated[str, typer.Argument(help="A folder of images.")],
    output: Annotated[str, typer.Argument(help="Folder to write to; it is created.")],
    count: Annotated[int, typer.Option(min=1, help="Number of mosaics.")] = 2000,
    side: Annotated[int, typer.Option(min=1, max=4096, help="Side of a mosaic in pixels.")] = 336,
    pieces: Annotated[int, typer.Option(min=1, help="Pieces in a row of a mosaic, and rows.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, other mosaics.")] = 0,
    max_bad_samples: Annotated[float, typer.Option(min=0, max=1, help="Stop when a larger share is bad.")] = 0.01,
) -> None:
    """Put local pieces of images together anew, to distil on where there are no images of the domain.

    Each piece is a random place of one of the folder's images, cut to a square of --side; images are read over and over
    until there are --count mosaics. The output is what data label takes.
    """
    from rich.console import Console
    from rich.progress import Progress

    from llava_stf.data.label_questions import image_files
    from llava_stf.data.mosaic import write_mosaics
    from llava_stf.data.sources import image_folder

    files = image_files(image_folder(source, source))
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("Cutting", total=count)
        bad = write_mosaics(
            files,
            Path(output),
            count=count,
            side=side,
            pieces=pieces,
            seed=seed,
            max_bad_samples=max_bad_samples,
            progress=lambda done: bar.update(task, completed=done),
        )
    print(f"{output}: {count:,} mosaics of {pieces * pieces} pieces{'; left out: ' * bool(bad)}{bad}")
