"""`llava-stf merge ADAPTER_DIR DST`: the result of finetuning with LoRA and its base, as one ordinary checkpoint."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from llava_stf.cli.common import waiting


def merge(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER_DIR", help="Folder that finetuning with LoRA wrote.")],
    dst: Annotated[Path, typer.Argument(help="Folder to write; it must not exist yet.")],
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="Precision of the merged weights; default: the base's."),
    ] = None,
) -> None:
    """Merge LoRA weights into their base model; a merge that fails leaves DST absent."""
    with waiting(f"Merging {adapter}"):
        from llava_stf.loading.merge import merge_lora

        merge_lora(adapter, dst, dtype=dtype)
    print(f"wrote {dst}", file=sys.stderr)
