"""`llava-stf encoders`: the image encoders that are known as towers, and what each of them is."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from llava_stf.encoders.catalogue import KnownEncoder

encoders = typer.Typer(help="Image encoders as vision towers: what is known.", invoke_without_command=True)
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object per encoder and line.")]


@encoders.callback()
def _default(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        show_encoders()


@encoders.command("list")
def show_encoders(as_json: AsJson = False) -> None:
    """List the known encoders: sizes, licence of the weights, fusion layers, where to get them."""
    from llava_stf.encoders.catalogue import ENCODERS

    if as_json:
        for encoder in ENCODERS:
            print(json.dumps(_record(encoder)))
        return
    for encoder in ENCODERS:
        print("\n  ".join(_lines(encoder)))
    print(
        "\nOther ViTs of transformers are taken as they are (llava-stf assemble), files in timm's layout by way of "
        "llava-stf convert --encoder timm."
    )


def _lines(encoder: "KnownEncoder") -> list[str]:
    from llava_stf.configuration_llava_stf import default_fusion_layers

    layers = ",".join(map(str, default_fusion_layers(encoder.depth)))
    way = "" if encoder.encoder is None else f" (llava-stf convert --encoder {encoder.encoder})"
    return [
        f"{encoder.name}: {encoder.parameters / 1e6:,.0f} million parameters, {encoder.depth} blocks of width "
        f"{encoder.width}",
        f"pictures of {encoder.image_size} px, {encoder.grid}x{encoder.grid} patches of {encoder.patch} px, "
        f"{encoder.special} tokens before them",
        f"fuses layers {layers}",
        f"weights: {encoder.licence}; {encoder.source}{way}",
    ]


def _record(encoder: "KnownEncoder") -> dict:
    from llava_stf.configuration_llava_stf import default_fusion_layers

    return {
        "name": encoder.name,
        "model_type": encoder.model_type,
        "parameters": encoder.parameters,
        "image_size": encoder.image_size,
        "patch_size": encoder.patch,
        "grid": encoder.grid,
        "width": encoder.width,
        "blocks": encoder.depth,
        "tokens_before_patches": encoder.special,
        "fusion_layers": default_fusion_layers(encoder.depth),
        "licence": encoder.licence,
        "source": encoder.source,
        "convert_as": encoder.encoder,
    }
