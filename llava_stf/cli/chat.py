"""`llava-stf chat IMAGE...`: a conversation; every line is a question, `/image PATH` adds an image, `/quit` ends."""

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

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
from llava_stf.errors import ImageError, PromptError, VideoError

if TYPE_CHECKING:
    from llava_stf.inference import Chat


def chat(
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGE...", help="Paths or http(s) URLs of the images, or paths of videos.")
    ],
    model: Model = "tiny",
    vision_tokens: Budget = None,
    max_vision_tokens: MaxVisionTokens = None,
    quantization: Quantization = None,
    dtype: Dtype = None,
    device: Device = None,
    compile: Compile = False,
    max_new_tokens: MaxNewTokens = 128,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per turn instead.")] = False,
) -> None:
    """Talk about images, a question a line; also from a pipe. `/image PATH` adds an image, `/quit` ends.

    A line that cannot be answered is a sentence on stderr, and the chat goes on; from a pipe it ends with exit code 2.
    """
    loaded = [read_visual(source) for source in images]
    llava = load(
        model, vision_tokens=vision_tokens, quantization=quantization, dtype=dtype, device=device, compile=compile
    )
    conversation = llava.chat(loaded, vision_tokens=budget_word(vision_tokens), max_vision_tokens=max_vision_tokens)
    notice(model)
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    refused = False
    for line in _lines(interactive):
        if line == "/quit":
            break
        try:
            _turn(conversation, line, max_new_tokens, as_json)
        except (ImageError, PromptError, VideoError) as error:
            refused = True
            print(error, file=sys.stderr)
            if as_json:
                print(json.dumps({"question": line, "error": str(error)}, ensure_ascii=False), flush=True)
    if refused and not interactive:
        raise typer.Exit(2)


def _turn(conversation: "Chat", line: str, max_new_tokens: int, as_json: bool) -> None:
    command, _, argument = line.partition(" ")
    if command == "/image":
        conversation.add_image(read_visual(argument.strip()))
        return
    if command.startswith("/"):
        raise PromptError(f"There is no command {command}; there are /image PATH and /quit.")
    if as_json:
        answer = conversation.ask(line, max_new_tokens=max_new_tokens)
        print(json.dumps({"question": line, "answer": answer}, ensure_ascii=False), flush=True)
        return
    for piece in conversation.stream(line, max_new_tokens=max_new_tokens):
        print(piece, end="", flush=True)
    print()


def _lines(interactive: bool) -> Iterator[str]:
    """Non-empty lines of stdin, asked for with a prompt at a terminal."""
    if interactive:
        import readline  # noqa: F401 - gives input() its line editing and history
    mark = "\N{ZERO WIDTH NO-BREAK SPACE}"  # of a file's first line
    while True:
        try:
            line = input("> " if interactive else "").removeprefix(mark).strip()
        except EOFError:
            return
        if line:
            yield line
