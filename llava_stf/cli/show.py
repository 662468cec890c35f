"""`llava-stf show IMAGE`: the image as the model sees it, cut into the patches and windows that become tokens."""

from pathlib import Path
from typing import Annotated

import typer

from llava_stf.cli.common import Device, VisionTokens, figure_path, importing, load, notice, read_image, token_count
from llava_stf.errors import LlavaStfError

WINDOWS = "stf"


def show(
    image: Annotated[str, typer.Argument(help="An image: path or URL.")],
    model: Annotated[str | None, typer.Option(help="Default: the bundled model that --method needs.")] = None,
    method: Annotated[
        str, typer.Option(help="stf draws the fused windows; divprune, visionzip or random the patches they keep.")
    ] = WINDOWS,
    vision_tokens: VisionTokens = None,
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="An option of the method: class_token=false; repeatable."),
    ] = None,
    weights: Annotated[
        bool, typer.Option("--weights", help="Also draw what MBTF reads of each block of the vision tower.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the method that draws at random.")] = 0,
    device: Device = None,
    output: Annotated[
        Path | None,
        typer.Option(help="The drawing; default: show.png, or show-2.png where that is another file."),
    ] = None,
) -> None:
    """Draw an image with its patch grid, or its tiles, and what of it reaches the language model.

    --weights: norm of a block's part of MBTF's first layer, |W_i x_i|, as share of the sum over the blocks, per patch.
    """
    drawing = figure_path(output, "show.png")
    if weights and method != WINDOWS:
        raise LlavaStfError(f"--weights looks into MBTF, and '{method}' has none; leave --method out.")
    loaded = read_image(image)
    with importing():
        from llava_stf.analysis.visualise import visualise, visualise_selection
        from llava_stf.cli.show_figure import save_visualisation
        from llava_stf.models.fusion.tiles import has_tiles
        from llava_stf.reduction import find_method, with_options
        from llava_stf.reduction.options import parse_options

    chosen = with_options(find_method(method), parse_options(option or []))
    if method == WINDOWS:
        name = model or "tiny"
        llava = load(name, vision_tokens=vision_tokens, device=device)
        if has_tiles(llava.model.config) and not weights:
            from llava_stf.analysis.tiled_view import view_tiles
            from llava_stf.cli.show_tiles import save_tiles

            print(f"{save_tiles(drawing, view_tiles(llava, loaded), name=name)}\ndrawn: {drawing}")
            return
        seen = visualise(llava, loaded, contributions=weights)
    else:
        name = model or "tiny-full"
        llava = load(name, vision_tokens="all", device=device)
        budget = token_count(vision_tokens)
        seen = visualise_selection(llava, loaded, chosen, vision_tokens=budget if budget != "all" else None, seed=seed)
    print(f"{save_visualisation(drawing, seen, name=name, method=method)}\ndrawn: {drawing}")
    notice(name)
