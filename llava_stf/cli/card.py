"""`llava-stf card FOLDER`: the model card of a saved model."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from llava_stf.errors import LlavaStfError


def card(
    folder: Annotated[Path, typer.Argument(help="Folder of a saved model.")],
    base: Annotated[str | None, typer.Option(help="Model that it was made from, a folder or hub id.")] = None,
    license: Annotated[str | None, typer.Option(help="Identifier of its licence, as the hub names it.")] = None,
    measured: Annotated[
        Path | None, typer.Option(help="Markdown file with what was measured, a table of bench for instance.")
    ] = None,
) -> None:
    """Write README.md with metadata for the hub; a README.md of your own is never replaced."""
    from llava_stf.io.json import read_text
    from llava_stf.models.model_card import CARD, write_card

    try:
        table = None if measured is None else read_text(measured).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise LlavaStfError(f"{measured} cannot be read as text: {error}") from error
    if not write_card(folder, base=base, license=license, measured=table):
        raise LlavaStfError(f"{folder / CARD} says something of its own and is not replaced; move it away first.")
    print(f"wrote {folder / CARD}", file=sys.stderr)
