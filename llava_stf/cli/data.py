"""`llava-stf data check | label | mosaic`: what training would stumble over, answers by a model, images of pieces."""

import json
import os
import sys
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from llava_stf.cli.common import Model, VisionTokens, token_count
from llava_stf.cli.label import label
from llava_stf.cli.mosaic import mosaic

if TYPE_CHECKING:
    from llava_stf.training.data_check import Report

data = typer.Typer(help="Look after training data.")
data.command()(label)
data.command()(mosaic)


@data.command()
def check(
    file: Annotated[str, typer.Argument(help="What --data of finetuning takes: JSON, JSON lines, parquet, a folder.")],
    images: Annotated[str | None, typer.Option(help="Folder of the images; default: the one FILE lies in.")] = None,
    stage: Annotated[Literal["align", "instruct", "distill"], typer.Option(help="Stage the data is for.")] = "instruct",
    model: Model = "tiny",
    vision_tokens: VisionTokens = None,
    max_length: Annotated[int, typer.Option(min=1, help="Longest sequence in training.")] = 2048,
    workers: Annotated[int | None, typer.Option(min=0, help="Processes that read; default: one per core.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False,
) -> None:
    """Read every sample and image once; exit code 0 if training can use all of them, 1 if not.

    Lengths are counted with the tokenizer and the vision tokens of --model.
    """
    from pathlib import Path

    from rich.console import Console
    from rich.progress import Progress

    from llava_stf.data.sources import image_folder, open_records

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its processes are forked
    folder = image_folder(file, images)
    records = open_records(file)

    from llava_stf.data.preparation import Preparation
    from llava_stf.data.templates import template_of
    from llava_stf.loading import load_processor
    from llava_stf.training.data_check import check_data

    processor = load_processor(model, vision_tokens=token_count(vision_tokens))
    prepare = Preparation(
        processor,
        name=Path(file).name,
        images=folder,
        template="plain" if stage == "align" else template_of(processor),
        max_length=max_length,
    )
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("Reading", total=len(records))
        report = check_data(
            records,
            prepare,
            workers=len(os.sched_getaffinity(0)) if workers is None else workers,
            progress=lambda done: bar.update(task, completed=done),
        )
    print(_as_json(report, max_length) if as_json else _as_text(report, max_length))
    raise typer.Exit(1 if report.bad else 0)


def _as_json(report: "Report", max_length: int) -> str:
    lengths = None if report.lengths is None else dict(zip(("min", "median", "max"), report.lengths, strict=True))
    record = {
        "samples": report.samples,
        "bad": report.bad,
        "faults": {
            reason: {
                "count": count,
                "first": [{"id": name, "problem": sentence} for name, sentence in report.offenders[reason]],
            }
            for reason, count in report.reasons.items()
        },
        "tokens": lengths,
        "max_length": max_length,
        "longer_than_max_length": report.cut,
        "seconds": round(report.seconds, 1),
    }
    return json.dumps(record, ensure_ascii=False)


def _as_text(report: "Report", max_length: int) -> str:
    lines = [f"{report.samples:,} samples read in {report.seconds:.1f} s, {report.bad:,} are bad"]
    for reason, count in report.reasons.items():
        lines.append(f"{reason}: {count:,}")
        lines += [f"  {sentence}" for _, sentence in report.offenders[reason]]
        if count > len(report.offenders[reason]):
            lines.append("  ...")
    if report.lengths is not None:
        shortest, median, longest = report.lengths
        lines.append(f"tokens per sample: {shortest:,} to {longest:,}, median {median:,.0f}")
        lines.append(f"longer than {max_length:,} tokens, cut in training: {report.cut:,}")
    return "\n".join(lines)
