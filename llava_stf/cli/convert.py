"""`llava-stf convert SRC DST`: a LLaVA or LLaVA-STF checkpoint into this package's format or back; an encoder too."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from llava_stf.cli.common import FusionLayers, layer_list


def convert(
    src: Annotated[str, typer.Argument(help="Checkpoint: a folder, an mm_projector.bin, a hub model, or 'tiny'.")],
    dst: Annotated[Path, typer.Argument(help="Folder to write; it must not exist yet.")],
    to: Annotated[
        Literal["hf", "original"], typer.Option(help="'hf': this package's; 'original': the authors' format.")
    ] = "hf",
    base: Annotated[str | None, typer.Option(help="Base model of an mm_projector.bin.")] = None,
    vision_tower: Annotated[
        str | None, typer.Option(help="Vision tower, where the checkpoint neither holds nor names one.")
    ] = None,
    fusion_layers: FusionLayers = None,
    subfolder: Annotated[str | None, typer.Option(help="Folder inside the hub model.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the hub model.")] = None,
    encoder: Annotated[
        str | None,
        typer.Option(help="SRC is an image encoder's .pth or .safetensors: patchmix, aps, mgc, mos or timm."),
    ] = None,
    heads: Annotated[int | None, typer.Option(help="Attention heads of the encoder; default: its method's.")] = None,
    select: Annotated[
        Literal["momentum", "query"] | None,
        typer.Option(help="Encoder of a training checkpoint; default: momentum where there is one."),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Image side of the encoder in pixels; default: that of its positions.")
    ] = None,
) -> None:
    """Convert a checkpoint, shard by shard; a conversion that fails leaves DST absent."""
    of_model = {
        "--to": to if to != "hf" else None, "--base": base, "--vision-tower": vision_tower,
        "--fusion-layers": fusion_layers, "--subfolder": subfolder, "--revision": revision,
    }  # fmt: skip
    of_encoder = {"--heads": heads, "--select": select, "--image-size": image_size}
    stray = [name for name, value in (of_encoder if encoder is None else of_model).items() if value is not None]
    if stray:
        what = "goes with --encoder only" if encoder is None else "does not go with --encoder"
        raise typer.BadParameter(f"{stray[0]} {what}")
    from llava_stf.io.publish import refuse_existing
    from llava_stf.loading import bundled_folder, check_name, is_bundled

    refuse_existing(dst)
    for name in filter(None, (src, base)):
        check_name(name)
    if encoder is not None:
        from llava_stf.encoders.convert import convert_encoder

        convert_encoder(src, dst, encoder=encoder, heads=heads, select=select, image_size=image_size)
        print(f"wrote {dst}", file=sys.stderr)
        return
    from llava_stf.conversion import convert_checkpoint

    convert_checkpoint(
        bundled_folder(src) if is_bundled(src) else src,
        dst,
        to=to,
        base=base,
        vision_tower=vision_tower,
        fusion_layers=layer_list(fusion_layers),
        subfolder=subfolder,
        revision=revision,
        progress=sys.stderr.isatty(),
    )
    print(f"wrote {dst}", file=sys.stderr)
