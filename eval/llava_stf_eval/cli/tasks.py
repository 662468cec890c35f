"""`llava-stf bench tasks`: scores on the benchmarks."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llava_stf.cli.common import Device, Dtype, Model, Quantization, VisionTokens, importing, token_count
from llava_stf_eval.cli.names import check_names, split_names

if TYPE_CHECKING:
    from llava_stf_eval.benchmarks.run import TaskOptions


def tasks(
    model: Model = "tiny",
    names: Annotated[
        str,
        typer.Option(
            "--tasks",
            callback=check_names,
            help="Benchmarks, for instance 'pope,gqa' or 'vqav2:test'; 'all' are the nine of LLaVA-1.5's tables. "
            "Beside them: ocrbench, docvqa, chartqa, refcoco.",
        ),
    ] = "all",
    protocol: Annotated[
        str, typer.Option(help="'llava': prompts and scoring of LLaVA-1.5's scripts; 'lmms-eval': that toolkit's own.")
    ] = "llava",
    data: Annotated[
        Path | None, typer.Option(help="Folder of local data sets, <org>/<name>/ as on the hub; nothing is fetched.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for results, samples, images and the report.")] = Path(
        "runs/bench"
    ),
    method: Annotated[
        str | None, typer.Option(help="'full', 'stf', or another way to shorten: pool, tome, visionzip, fastv, ...")
    ] = None,
    vision_tokens: VisionTokens = None,
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="An option of the method: full_layers=3, order=raster; repeatable."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many documents of each benchmark.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions at a time.")] = 1,
    check_batch: Annotated[
        bool,
        typer.Option("--check-batch", help="Ask again one by one, in OUTPUT/one-by-one; count answers that differ."),
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --output.")] = False,
    fetch: Annotated[
        bool, typer.Option("--fetch", help="Only download the data sets into --data, after saying how large they are.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="For methods that draw at random.")] = 0,
    instructions: Annotated[
        bool | None,
        typer.Option(help="Keep the lines that tell how to answer; default: yes, but for the bundled models."),
    ] = None,
    quantization: Quantization = None,
    dtype: Dtype = None,
    device: Device = None,
    attn_implementation: Annotated[str | None, typer.Option(help="'sdpa', 'eager', 'flash_attention_2', ...")] = None,
    subfolder: Annotated[str | None, typer.Option(help="Folder of the hub repository that holds the model.")] = None,
) -> None:
    """Score a model on the benchmarks, each in a process of its own; exit code 1 if one of them failed.

    A run that was stopped goes on with --resume from its last finished batch.
    """
    asked = [] if names == "all" else split_names(names)
    if fetch:
        from llava_stf_eval.data.fetch import fetch_data

        if data is None:
            raise typer.BadParameter("--fetch needs --data, the folder to download into")
        fetch_data(asked, data)
        return
    with importing():
        from llava_stf.reduction.options import parse_options
        from llava_stf_eval.benchmarks.models import ModelOptions
        from llava_stf_eval.benchmarks.run import TaskOptions

    options = ModelOptions(
        pretrained=model,
        method=method,
        vision_tokens=token_count(vision_tokens),
        method_options=parse_options(option or []),
        seed=seed,
        dtype=dtype,
        quantization=quantization,
        device=device,
        attn_implementation=attn_implementation,
        subfolder=subfolder,
        instructions=instructions,
    )
    run = TaskOptions(options, asked, protocol, output, data, limit, batch_size, resume)
    if check_batch and batch_size == 1:
        raise typer.BadParameter("--check-batch compares with answers one by one: give a --batch-size above 1")
    raise typer.Exit(_check_batch(run) if check_batch else _run(run))


def _check_batch(options: "TaskOptions") -> int:
    """Runs at the batch size and one by one, and says which answers the batch changed; returns the exit code."""
    from dataclasses import replace

    from llava_stf_eval.report import load_run
    from llava_stf_eval.report.batches import batch_changes, print_changes

    alone = replace(options, batch_size=1, output=options.output / "one-by-one")
    code = max(_run(options), _run(alone))
    print_changes(batch_changes(load_run(alone.output), load_run(options.output)))
    return code


def _run(options: "TaskOptions") -> int:
    """Runs, reports, and says in the last line what failed; returns the exit code."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    from llava_stf.io.signals import keeping
    from llava_stf_eval.benchmarks.run import run_tasks
    from llava_stf_eval.protocols import parse
    from llava_stf_eval.report import load_run, print_scores, write_report

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        shown: dict[str, Any] = {}

        def progress(name: str, done: int, total: int) -> None:
            if name not in shown:
                shown[name] = bar.add_task(name)
            bar.update(shown[name], completed=done, total=total)

        with keeping(f"the answers in {options.output} are kept, and --resume goes on from there"):
            results = run_tasks(options, progress)
    print_scores([load_run(options.output)])
    for path in write_report(options.output):
        print(path)
    for name, found in results["benchmarks"].items():
        if found["status"] == "submission":
            print(
                f"{name} is scored by a server: send {options.output / found['submission']} to {parse(name)[0].server}"
            )
    failed = {name: found["error"] for name, found in results["benchmarks"].items() if found["status"] == "failed"}
    for name, error in failed.items():
        print(f"{name} failed: {error}", file=sys.stderr)
    if failed:
        print(
            f"{len(failed)} of {len(results['benchmarks'])} benchmarks failed: {', '.join(failed)}; logs are in "
            f"{options.output / 'parts'}, --resume tries them again.",
            file=sys.stderr,
        )
    return 1 if failed else 0
