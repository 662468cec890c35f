"""`llava-stf encoders`: the image encoders that are known as towers, and how good the features of one are."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from llava_stf.cli.common import Device, importing, waiting

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
    protocol: Annotated[
        Literal["knn", "linear", "finetune"],
        typer.Argument(help="Nearest neighbours, a linear layer, or all weights trained with one."),
    ],
    encoder: Annotated[str, typer.Argument(help="Folder or hub model of an encoder with its image processor.")],
    data: Annotated[str, typer.Option(help="Labelled images: an npz file, a folder, or a Hugging Face data set.")],
    pooling: Annotated[
        Literal["class", "mean"], typer.Option(help="What is measured: the class token, or the mean of the patches.")
    ] = "class",
    epochs: Annotated[int, typer.Option(min=1, help="Of the linear layer, or of fine-tuning.")] = 100,
    augment: Annotated[bool, typer.Option(help="Random views to train on, as in the papers.")] = True,
    recipe: Annotated[
        Literal["patchmix", "aps"] | None, typer.Option(help="Whose fine-tuning protocol; default: PatchMix's.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Of fine-tuning, such as mixup=0; repeatable.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for the fine-tuned encoder with its classifier.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of what is trained: start, order, views.")] = 0,
    device: Device = None,
) -> None:
    """Measure an encoder by its test accuracy in percent, frozen or fine-tuned; prints one JSON object."""
    of_finetuning = {"--recipe": recipe, "--option": option, "--output": output}
    stray = [name for name, value in of_finetuning.items() if value is not None]
    if stray and protocol != "finetune":
        raise typer.BadParameter(f"{stray[0]} goes with finetune only")
    with importing():
        import torch
        from transformers.utils.logging import disable_progress_bar

        from llava_stf.encoders.labelled import load_encoder, open_labelled
        from llava_stf.errors import DataError

    disable_progress_bar()
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    measured = load_encoder(encoder, where, pooling=pooling)
    train, test = open_labelled(data)
    record: dict[str, Any] = {"encoder": encoder, "pooling": pooling, "train": len(train), "test": len(test)}
    with waiting(f"Measuring by {protocol}"):
        if protocol == "knn":
            from llava_stf.encoders.knn import NEIGHBOURS, knn_accuracy
            from llava_stf.encoders.labelled import features

            neighbours = [k for k in NEIGHBOURS if k <= len(train)]
            if not neighbours:
                raise DataError(f"{NEIGHBOURS[0]} nearest neighbours need as many training images, found {len(train)}.")
            found = knn_accuracy(
                features(measured, train), train.labels, features(measured, test), test.labels, neighbours=neighbours
            )
            record["knn"] = {str(k): round(accuracy, 2) for k, accuracy in found.items()}
        elif protocol == "linear":
            from llava_stf.encoders.linear import linear_probe

            result = linear_probe(measured, train, test, epochs=epochs, augment=augment, seed=seed)
            record["linear"] = {"last": round(result.last, 2), "best": round(result.best, 2)}
        else:
            from llava_stf.encoders.finetune import finetune
            from llava_stf.encoders.finetune_options import recipe_options
            from llava_stf.io.options import read_pairs

            values = {"epochs": epochs, "augment": augment, **read_pairs(option or [])}
            options = recipe_options(recipe or "patchmix", measured.model.config.hidden_size, values)
            result = finetune(measured, train, test, options, seed=seed, output=output)
            record["finetune"] = {"last": round(result.last, 2), "best": round(result.best, 2)}
    print(json.dumps(record))


def _lines(encoder: "KnownEncoder") -> list[str]:
    from llava_stf.models.vision.layers import default_fusion_layers

    layers = ",".join(map(str, default_fusion_layers(encoder.depth)))
    way = "" if encoder.encoder is None else f" (llava-stf convert --encoder {encoder.encoder})"
    return [
        f"{encoder.name}: {encoder.parameters / 1e6:,.0f} million parameters, {encoder.depth} blocks of width "
        f"{encoder.width}",
        f"images of {encoder.image_size} px, {encoder.grid}x{encoder.grid} patches of {encoder.patch} px, "
        f"{encoder.special} tokens before them",
        f"fuses layers {layers}",
        f"weights: {encoder.licence}; {encoder.source}{way}",
    ]


def _record(encoder: "KnownEncoder") -> dict:
    from llava_stf.models.vision.layers import default_fusion_layers

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
