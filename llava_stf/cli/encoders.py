"""`llava-stf encoders`: the image encoders that are known as towers, and how good the features of one are."""

import json
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from llava_stf.cli.common import Device, waiting

if TYPE_CHECKING:
    from llava_stf.encoders.catalogue import KnownEncoder

encoders = typer.Typer(
    help="Image encoders as vision towers: what is known, how good one is.", invoke_without_command=True
)
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


@encoders.command("eval")
def evaluate(
    protocol: Annotated[Literal["knn", "linear"], typer.Argument(help="Nearest neighbours, or a linear layer.")],
    encoder: Annotated[str, typer.Argument(help="Folder or hub model of an encoder with its image processor.")],
    data: Annotated[str, typer.Option(help="Labelled pictures: an npz file, a folder, or a Hugging Face data set.")],
    pooling: Annotated[
        Literal["class", "mean"], typer.Option(help="What is measured: the class token, or the mean of the patches.")
    ] = "class",
    epochs: Annotated[int, typer.Option(min=1, help="Of the linear layer.")] = 100,
    augment: Annotated[bool, typer.Option(help="Random crops for the linear layer, as in the papers.")] = True,
    seed: Annotated[int, typer.Option(help="Of the linear layer's start and order.")] = 0,
    device: Device = None,
) -> None:
    """Measure a frozen encoder by its test accuracy in percent; prints one JSON object."""
    with waiting("Importing torch and transformers"):
        import torch

        from llava_stf.encoders.knn import NEIGHBOURS, knn_accuracy
        from llava_stf.encoders.labelled import features, load_encoder, open_labelled
        from llava_stf.encoders.linear import linear_probe

    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    measured = load_encoder(encoder, where, pooling=pooling)
    train, test = open_labelled(data)
    record = {"encoder": encoder, "pooling": pooling, "train": len(train), "test": len(test)}
    if protocol == "knn":
        neighbours = [k for k in NEIGHBOURS if k <= len(train)]
        found = knn_accuracy(
            features(measured, train), train.labels, features(measured, test), test.labels, neighbours=neighbours
        )
        record["knn"] = {str(k): round(accuracy, 2) for k, accuracy in found.items()}
    else:
        result = linear_probe(measured, train, test, epochs=epochs, augment=augment, seed=seed)
        record["linear"] = {"last": round(result.last, 2), "best": round(result.best, 2)}
    print(json.dumps(record))


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
