"""`llava-stf export MODEL OUT`: a model in a form that OpenVINO or ONNX Runtime runs."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from llava_stf.cli.common import VisionTokens, importing, load, token_count, waiting


def export(
    model: Annotated[str, typer.Argument(help="'tiny', 'tiny-full', a folder, or a model of the Hugging Face hub.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; it must not exist yet.")],
    format: Annotated[str, typer.Option(help="'openvino' or 'onnx'.")] = "openvino",
    weights: Annotated[
        str, typer.Option(help="'fp32', 'fp16', 'int8' or 'int4'; 'onnx' has 'fp32' and 'int8'.")
    ] = "fp32",
    kv_cache: Annotated[
        str, typer.Option(help="'f32', exact, or 'u8': a quarter of the memory, and answers may differ.")
    ] = "f32",
    vision_tokens: VisionTokens = None,
    method: Annotated[
        str | None, typer.Option(help="How a plain model comes to --vision-tokens: pool, tome, ...; default: stf.")
    ] = None,
) -> None:
    """Export a model for CPUs; an export that fails leaves OUT absent."""
    from llava_stf.io.exports import check_choices
    from llava_stf.io.publish import refuse_existing

    check_choices(format, weights, kv_cache)
    refuse_existing(out)
    from llava_stf.export.dependencies import require

    require(format, writing=True)
    with importing():
        from llava_stf.errors import ExportError
        from llava_stf.export.write import check_memory, export_model
        from llava_stf.loading import read_config_to_ask
        from llava_stf.reduction import apply_reduction

    check_memory(read_config_to_ask(model))
    count = token_count(vision_tokens)
    if method is None:
        llava = load(model, vision_tokens=vision_tokens, dtype="float32", device="cpu")
    else:
        if not isinstance(count, int):
            raise ExportError(f"--method {method} needs a number of tokens to come to: --vision-tokens N.")
        llava = load(model, vision_tokens="all", dtype="float32", device="cpu")
        apply_reduction(llava.model, llava.processor, method, vision_tokens=count)
    with waiting(f"Exporting {model}"):
        export_model(llava, out, format=format, weights=weights, kv_cache=kv_cache)  # type: ignore[arg-type]
    print(f"wrote {out}", file=sys.stderr)
