"""`llava-stf convert SRC DST`: a LLaVA or LLaVA-STF checkpoint into this package's format, or back."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer


def convert(
    src: Annotated[str, typer.Argument(help="Checkpoint to read: a folder, an mm_projector.bin or a hub model.")],
    dst: Annotated[Path, typer.Argument(help="Folder to write; it must not exist yet.")],
    to: Annotated[
        Literal["hf", "original"], typer.Option(help="'hf': this package's; 'original': the authors' format.")
    ] = "hf",
    base: Annotated[str | None, typer.Option(help="Base model of an mm_projector.bin.")] = None,
    vision_tower: Annotated[
        str | None, typer.Option(help="Vision tower, where the checkpoint neither holds nor names one.")
    ] = None,
    subfolder: Annotated[str | None, typer.Option(help="Folder inside the hub model.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the hub model.")] = None,
) -> None:
    """Convert a checkpoint, shard by shard; a conversion that fails leaves DST absent."""
    from llava_stf.conversion import convert_checkpoint

    convert_checkpoint(src, dst, to=to, base=base, vision_tower=vision_tower, subfolder=subfolder, revision=revision)
    print(f"wrote {dst}", file=sys.stderr)
