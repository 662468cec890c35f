"""`llava-stf bench speed`: what fewer vision tokens save, stage by stage, beside all of them, in one process."""

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from llava_stf.cli.common import Device, Quantization, importing
from llava_stf_eval.cli.names import check_names, split_names


def _counts(text: str | None) -> str | None:
    if text is not None and not (split_names(text) and all(name.isdecimal() for name in split_names(text))):
        raise typer.BadParameter(f"expected counts such as '1,8', found '{text}'")
    return text


def _size(text: str) -> str:
    sides = text.split("x")
    if len(sides) != 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise typer.BadParameter(f"expected height x width such as '672x672', found '{text}'")
    return text


def speed(
    shape: Annotated[
        str | None, typer.Option(help="Random weights of a shape: medium, 1b, 7b, 13b, tiny (default).")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Instead a plain LLaVA, a folder or a model of the hub, or an export; several run beside each other."
        ),
    ] = None,
    model_type: Annotated[
        str, typer.Option(help="Class of the shape: llava, llava_next, llava_next_video, llava_onevision.")
    ] = "llava",
    image_size: Annotated[
        str, typer.Option(metavar="HxW", callback=_size, help="Image of each prompt, height x width in pixels.")
    ] = "480x640",
    frames: Annotated[int | None, typer.Option(min=1, help="A video of so many frames instead of the image.")] = None,
    methods: Annotated[
        str,
        typer.Option(callback=check_names, help="full, stf or ways of llava_stf.reduction; compared with the first."),
    ] = "full,stf",
    vision_tokens: Annotated[
        str | None, typer.Option(metavar="N,N", callback=_counts, help="Budgets; default: a quarter of the patches.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="An option of the methods that have it: full_layers=3; repeatable."),
    ] = None,
    batch_sizes: Annotated[str, typer.Option(metavar="N,N", callback=_counts, help="Images asked at once.")] = "1",
    text_tokens: Annotated[str, typer.Option(metavar="N,N", callback=_counts, help="Prompt without image.")] = "64",
    new_tokens: Annotated[str, typer.Option(metavar="N,N", callback=_counts, help="Length of the answer.")] = "32",
    attention: Annotated[
        str, typer.Option(callback=check_names, help="sdpa, eager, flash_attention_2; several with commas.")
    ] = "sdpa",
    dtype: Annotated[
        str,
        typer.Option(
            callback=check_names, help="float32, bfloat16, float16; several with commas; auto is float32 on slow CPUs."
        ),
    ] = "auto",
    quantization: Quantization = None,
    device: Device = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of each.")] = 5,
    warm_up: Annotated[int, typer.Option(min=0, help="Runs before them.")] = 1,
    clock: Annotated[
        Literal["wall", "cpu"],
        typer.Option(help="'cpu': seconds of computing, where other programs run on the CPU."),
    ] = "wall",
    output: Annotated[Path, typer.Option(help="Folder for speed.json and speed.png.")] = Path("runs/speed"),
    resume: Annotated[bool, typer.Option("--resume", help="Finish the measurement that is there.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the measurement that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the JSON instead of tables.")] = False,
) -> None:
    """Time every stage from the image to the last token, for all methods in turns on the same inputs.

    Several models, an export among them, or dtypes run in a process each, so that each row's memory is its own.
    Times do not depend on what was trained: --shape 7b makes random weights and needs no download.
    """
    with importing():
        from llava_stf.io.publish import write_json
        from llava_stf.io.signals import keeping
        from llava_stf.reduction.options import parse_options
        from llava_stf_eval.measurement.result import open_result
        from llava_stf_eval.speed.output import RESULT, print_tables, save_figure
        from llava_stf_eval.speed.plan import Plan
        from llava_stf_eval.speed.run import measure
        from llava_stf_eval.speed.verdict import verdicts
    from rich.console import Console

    plan = Plan(
        shape=shape if shape or model else "tiny",
        models=model or [],
        model_type=model_type,
        image_size=[int(side) for side in image_size.split("x")],
        frames=frames,
        methods=split_names(methods),
        vision_tokens=_integers(vision_tokens) if vision_tokens else None,
        options=parse_options(option or []),
        batch_sizes=_integers(batch_sizes),
        text_tokens=_integers(text_tokens),
        new_tokens=_integers(new_tokens),
        attention=split_names(attention),
        dtype=split_names(dtype),  # type: ignore[arg-type]  # which the plan checks
        quantization=quantization,
        device=device,
        repeats=repeats,
        warm_up=warm_up,
        clock=clock,
    )
    before = open_result(output / RESULT, resume=resume, overwrite=overwrite)
    with keeping(f"the cases that were measured are kept in {output}, and --resume goes on from there"):
        result = measure(
            plan,
            before=before,
            on_row=lambda so_far: write_json(output / RESULT, so_far),
            progress=lambda text: print(text, file=sys.stderr),
        )
    result["verdicts"] = verdicts(result)
    written = write_json(output / RESULT, result), save_figure(output, result)
    if as_json:
        print(json.dumps(result))
        return
    print_tables(result, Console(width=None if sys.stdout.isatty() else 140))
    for sentence in result["verdicts"]:
        print(sentence)
    print("written:", *written)


def _integers(text: str) -> list[int]:
    return [int(name) for name in split_names(text)]
