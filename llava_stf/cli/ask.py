"""`llava-stf ask IMAGE QUESTION`: one answer, streamed."""

import json
from typing import Annotated

import typer

from llava_stf.cli.common import (
    Budget,
    Compile,
    Device,
    Dtype,
    MaxNewTokens,
    MaxVisionTokens,
    Model,
    Quantization,
    budget_word,
    load,
    notice,
    read_visual,
)


def ask(
    image: Annotated[str, typer.Argument(help="Path or http(s) URL of the image, or path of a video.")],
    question: Annotated[str, typer.Argument(help="What to ask about it.")],
    also: Annotated[list[str] | None, typer.Option(help="One more image for the same question; repeatable.")] = None,
    frames: Annotated[
        int | None,
        typer.Option(min=1, help="Show IMAGE as a video, in so many frames at most; 8 of a path that ends as a video."),
    ] = None,
    model: Model = "tiny",
    vision_tokens: Budget = None,
    max_vision_tokens: MaxVisionTokens = None,
    quantization: Quantization = None,
    dtype: Dtype = None,
    device: Device = None,
    compile: Compile = False,
    max_new_tokens: MaxNewTokens = 128,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False,
) -> None:
    """Ask one question about one or more images; the answer streams."""
    sources = [image, *(also or [])]
    images = [read_visual(image, frames), *map(read_visual, also or [])]
    llava = load(
        model, vision_tokens=vision_tokens, quantization=quantization, dtype=dtype, device=device, compile=compile
    )
    pieces = llava.stream(
        images,
        question,
        vision_tokens=budget_word(vision_tokens),
        max_vision_tokens=max_vision_tokens,
        max_new_tokens=max_new_tokens,
    )
    notice(model)
    if as_json:
        answer = "".join(pieces).strip()
        record = {
            "model": model,
            "images": sources,
            "question": question,
            "answer": answer,
            "vision_tokens_per_image": llava.vision_tokens,
        }
        print(json.dumps(record, ensure_ascii=False))
        return
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
