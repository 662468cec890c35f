"""`llava-stf assemble`: an untrained LLaVA-STF from a vision tower and a language model."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from llava_stf.cli.common import FusionLayers, VisionTokens, importing, layer_list, token_count, waiting


def assemble(
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; it must not exist yet.")],
    vision_encoder: Annotated[str, typer.Option(help="Folder or hub model: any Vision Transformer of transformers.")],
    language_model: Annotated[str, typer.Option(help="Folder or hub model: a causal language model, or a LLaVA.")],
    vision_tokens: VisionTokens = None,
    fusion_layers: FusionLayers = None,
    init: Annotated[
        Literal["random", "pool"], typer.Option(help="'pool' starts as the mean over each window.")
    ] = "random",
    image_size: Annotated[
        int | None, typer.Option(min=1, help="Side of the images in pixels; default: the encoder's own.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of what is drawn.")] = 0,
) -> None:
    """Put an untrained LLaVA-STF together; train it with stage align, then instruct."""
    with importing():
        from transformers.utils.logging import disable_progress_bar

        from llava_stf.training.assemble import assemble as write

        disable_progress_bar()
    with waiting(f"Assembling {vision_encoder} and {language_model}"):
        write(
            vision_encoder,
            language_model,
            output,
            vision_tokens=token_count(vision_tokens),
            fusion_layers=layer_list(fusion_layers),
            init=init,
            image_size=image_size,
            seed=seed,
        )
    print(f"wrote {output}", file=sys.stderr)
