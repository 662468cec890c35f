"""What the commands share: options, the loading of a model with a sign of life, and the notice about the default."""

import atexit
import gc
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from PIL.Image import Image

    from llava_stf.images.frames import Video
    from llava_stf.inference import LlavaStf

_WORDS = ("low", "high", "auto")  # for one of the counts that a model has
NOTICE = (
    "'{model}' knows only images drawn by llava_stf itself; name a real model for photographs, "
    "for instance --model llava-hf/llava-1.5-7b-hf."
)


def _check_vision_tokens(text: str | None) -> str | None:
    if text is not None and text != "all" and not (text.isdecimal() and int(text) > 0):
        raise typer.BadParameter(f"expected a count or 'all', found '{text}'")
    return text


def _check_budget(text: str | None) -> str | None:
    return text if text in _WORDS else _check_vision_tokens(text)


def _check_layers(text: str | None) -> str | None:
    if text is not None and not re.fullmatch(r"-?\d+(,-?\d+)*", text):
        raise typer.BadParameter(f"expected whole numbers with commas between, found '{text}'")
    return text


Model = Annotated[str, typer.Option(help="'tiny', 'tiny-full', a folder, or a model of the Hugging Face hub.")]
VisionTokens = Annotated[
    str | None,
    typer.Option(
        metavar="N|all",
        callback=_check_vision_tokens,
        help="Tokens per image: a count, or 'all' for the untouched 100 % model.",
    ),
]
Budget = Annotated[
    str | None,
    typer.Option(
        "--vision-tokens",
        metavar="N|all|low|high|auto",
        callback=_check_budget,
        help="Tokens per image: a count, 'all' for the untouched 100 % model, or a word for one of the model's counts.",
    ),
]
MaxVisionTokens = Annotated[int | None, typer.Option(min=1, help="Most tokens of all images together.")]
FusionLayers = Annotated[
    str | None,
    typer.Option(
        metavar="A,B,...",
        callback=_check_layers,
        help="Hidden states to fuse, in channel order; default: what is known of them, or by the tower's depth.",
    ),
]
Quantization = Annotated[
    Literal["8bit", "4bit"] | None, typer.Option(help="Quantize the language model with bitsandbytes.")
]
Dtype = Annotated[
    Literal["auto", "stored", "float32", "bfloat16", "float16"] | None,
    typer.Option(help="Precision; default: 'stored', that of the files, but float32 on a CPU that is slower at it."),
]
Device = Annotated[str | None, typer.Option(help="For instance 'cpu' or 'cuda:1'; default: a GPU if there is one.")]
Compile = Annotated[bool, typer.Option("--compile", help="Compile the model; the first answers wait for that.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")]


def token_count(text: str | None) -> int | Literal["all"] | None:
    """What a checked --vision-tokens says, as the loader takes it; a word is for the request."""
    return None if not text or text in _WORDS else "all" if text == "all" else int(text)


def budget_word(text: str | None) -> Any:
    """What a checked --vision-tokens says, as a request takes it; a count is for the loader."""
    return text if text in _WORDS else None


def layer_list(text: str | None) -> list[int] | None:
    """What a checked --fusion-layers says."""
    return [int(layer) for layer in text.split(",")] if text else None


def load(
    model: str,
    *,
    vision_tokens: str | None = None,
    quantization: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    compile: bool | None = None,
) -> "LlavaStf":
    """Loads a model for a command; options left out are the loader's own defaults."""
    from llava_stf.loading import check_name, is_bundled

    check_name(model)
    with importing():
        from transformers.utils.logging import disable_progress_bar

        from llava_stf.loading import load_model
    options: dict[str, Any] = {
        "vision_tokens": token_count(vision_tokens),
        "quantization": quantization,
        "dtype": dtype,
        "device": device,
        "compile": compile,
    }
    given = {name: value for name, value in options.items() if value is not None}
    if not is_bundled(model) and sys.stderr.isatty():
        return load_model(model, **given)  # the libraries' own bars: download, conversion, weights
    disable_progress_bar()
    with waiting(f"Loading {model}"):
        return load_model(model, **given)


def read_image(source: str) -> "Image":
    """`load_image` for a command: what a C library such as libtiff prints about a damaged file stays unheard."""
    from llava_stf.images import load_image

    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        return load_image(source)
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def read_visual(source: str, frames: int | None = None) -> "Image | Video":
    """An image, or a video where the path ends as one or `frames` are asked for.

    Raises:
        LlavaStfError: it cannot be read.
    """
    from llava_stf.images.frames import DEFAULT_FRAMES, Video, is_video

    if frames is None and not is_video(source):
        return read_image(source)
    return Video(source, DEFAULT_FRAMES if frames is None else frames)


def figure_path(asked: Path | None, name: str) -> Path:
    """Where a figure goes without taking the place of a file that this package has not drawn; nothing is written yet.

    Args:
        asked: what --output says.
        name: without --output; if another file has it, the first of name-2, name-3, ... that is free.

    Raises:
        LlavaStfError: there is no such folder, it takes no files, or another file is where --output says.
    """
    from llava_stf.errors import LlavaStfError
    from llava_stf.io.publish import refuse_unwritable

    if asked is None:
        refuse_unwritable(Path())
        stem, suffix = os.path.splitext(name)
        names = (name, *(f"{stem}-{number}{suffix}" for number in range(2, 1000)))
        return next(path for path in map(Path, names) if _may_be_drawn(path))
    if not asked.absolute().parent.is_dir():
        raise LlavaStfError(f"There is no folder {asked.absolute().parent} to write {asked.name} to; create it.")
    refuse_unwritable(asked.parent)
    if not _may_be_drawn(asked):
        raise LlavaStfError(f"{asked} is no figure of llava-stf and is not overwritten; name another --output.")
    return asked


def _may_be_drawn(path: Path) -> bool:
    """Whether nothing is there, or a figure of ours."""
    from PIL import Image, UnidentifiedImageError

    from llava_stf.io.publish import SOFTWARE

    if not os.path.lexists(path):
        return True
    try:
        with Image.open(path) as image:
            return image.info.get("Software") == SOFTWARE
    except (OSError, UnidentifiedImageError):
        return False


def notice(model: str) -> None:
    """Says on stderr, in one line, what a bundled model cannot do."""
    from llava_stf.loading import is_bundled

    if is_bundled(model):
        print(NOTICE.format(model=model), file=sys.stderr)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """A spinner with the elapsed time on stderr, gone when done; nothing where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        progress.add_task(what)
        yield


@contextmanager
def importing() -> Iterator[None]:
    """A spinner while torch and transformers are imported, which takes seconds.

    What an import makes stays until the end. The collector, which would walk it again and again while it grows, rests
    meanwhile and passes over it from then on, until the exit, at which C libraries complain of what is left.
    """
    gc.disable()
    atexit.register(gc.unfreeze)
    try:
        with waiting("Importing torch and transformers"):
            yield
    finally:
        gc.freeze()
        gc.enable()
