"""`llava-stf data label`: a model's answers to questions about images, as training data for another model."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llava_stf.cli.common import Device, Dtype, MaxNewTokens, Model, Quantization, VisionTokens, load, notice

if TYPE_CHECKING:
    from llava_stf.data.label_questions import Questions
    from llava_stf.training.label import Labeller


def _check_part(text: str) -> str:
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise typer.BadParameter(f"expected a part such as 2/4, found '{text}'")
    return text


def label(
    source: Annotated[str, typer.Argument(help="A folder of images, or questions in LLaVA's JSON or JSON lines.")],
    output: Annotated[str, typer.Argument(help="JSON lines to write; a run that was cut short goes on with its own.")],
    model: Model = "tiny-full",
    vision_tokens: VisionTokens = "all",
    images: Annotated[
        str | None, typer.Option(help="Folder that image paths start from; default: SOURCE, or the folder it lies in.")
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="What to ask about each image of a folder; repeatable.")
    ] = None,
    prompts: Annotated[str | None, typer.Option(help="A file of such prompts, one per line.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions that are asked together.")] = 16,
    max_new_tokens: MaxNewTokens = 256,
    max_bad_samples: Annotated[float, typer.Option(min=0, max=1, help="Stop when a larger share is bad.")] = 0.01,
    part: Annotated[
        str, typer.Option(metavar="N/M", callback=_check_part, help="Only every Mth question, from the Nth on.")
    ] = "1/1",
    device: Device = None,
    dtype: Dtype = None,
    quantization: Quantization = None,
) -> None:
    """Let a model write the answers, so that images without labels train another.

    Every prompt about every image of a folder; or of each record in a file the human turns, each asked with the turns
    before it. The output is what --data of finetuning takes. The same command goes on where an earlier one was killed.
    """
    from llava_stf.errors import DataError
    from llava_stf.io.signals import keeping
    from llava_stf.training.label_file import open_labels

    questions, folder = _questions(source, images, prompt, prompts)
    first, parts = map(int, part.split("/"))
    if first > len(questions):
        raise DataError(f"part {part} is empty: the questions are {len(questions):,}")
    teacher = {
        "model": model,
        "vision_tokens": vision_tokens,
        "quantization": quantization,
        "max_new_tokens": max_new_tokens,
    }
    kept = keeping(f"the answers in {output} are kept, and the same command goes on from there")
    with kept, open_labels(Path(output), questions, range(first - 1, len(questions), parts), teacher) as labels:
        before, todo = labels.answered, len(labels.open)
        if not todo:
            print(f"{output} has all {before:,} answers already")
            return
        llava = load(model, vision_tokens=vision_tokens, quantization=quantization, dtype=dtype, device=device)
        notice(model)
        labels.add_to_teacher(
            {"dtype": str(llava.model.dtype).removeprefix("torch."), "device": llava.model.device.type}
        )

        from llava_stf.training.label import Labeller

        labeller = Labeller(
            llava,
            questions,
            labels,
            images=folder,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            max_bad_samples=max_bad_samples,
        )
        started = time.perf_counter()
        _run(labeller, before, todo)
        seconds = time.perf_counter() - started
        answered = labels.answered - before
    left_out = [f"{labeller.unanswered:,} without an answer"] * bool(labeller.unanswered)
    left_out += filter(None, [labeller.bad_samples.summary()])
    print(
        f"{output}: {before + answered:,} samples, {answered:,} of them answered now in {seconds:.1f} s "
        f"({answered / seconds:.2f} samples per second){'; left out: ' * bool(left_out)}{', '.join(left_out)}"
    )


def _questions(
    source: str, images: str | None, prompt: Sequence[str] | None, prompts: str | None
) -> tuple["Questions", Path]:
    """What is asked, and the folder that image paths start from."""
    from llava_stf.data.label_questions import PROMPTS, ImageQuestions, read_prompts
    from llava_stf.data.sources import JsonRecords, image_folder
    from llava_stf.errors import DataError

    if prompt and prompts is not None:
        raise DataError("prompts come from --prompt or from a file (--prompts), not from both")
    path = Path(source)
    if path.is_dir():
        folder = image_folder(source, source if images is None else images)
        asked = prompt or (PROMPTS if prompts is None else read_prompts(Path(prompts)))
        return ImageQuestions(path, asked, folder), folder
    if prompt or prompts is not None:
        raise DataError(f"prompts are for a folder of images, and {source} is none")
    folder = image_folder(source, images)
    return JsonRecords(path), folder


def _run(labeller: "Labeller", before: int, todo: int) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("Answering", total=before + todo, completed=before)
        for done in labeller.run():
            bar.update(task, completed=before + done)
