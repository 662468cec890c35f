"""`llava-stf batch`: one question, or each row's own, over any number of images."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import typer

from llava_stf.cli.common import (
    Budget,
    Device,
    Dtype,
    MaxNewTokens,
    MaxVisionTokens,
    Model,
    Quantization,
    budget_word,
    notice,
    token_count,
)
from llava_stf.errors import DataError
from llava_stf.io.json import parse_json


def batch(
    input: Annotated[
        str,
        typer.Argument(
            help="A folder of images; or JSON lines or parquet with image or images, question, id. A path or s3://bucket/key."
        ),
    ],
    output: Annotated[
        str, typer.Argument(help="Folder of the answers, as INPUT; the same command goes on with its own.")
    ],
    question: Annotated[str | None, typer.Option(help="For rows that have no question of their own.")] = None,
    images: Annotated[
        str | None, typer.Option(help="Folder that image paths start from; default: the one INPUT is or lies in.")
    ] = None,
    allow_urls: Annotated[bool, typer.Option("--allow-urls", help="Fetch images from http(s) URLs.")] = False,
    engine: Annotated[
        Literal["transformers", "vllm", "ray"], typer.Option(help="Who answers; 'ray' works on a whole cluster.")
    ] = "transformers",
    model: Model = "tiny",
    vision_tokens: Budget = None,
    max_vision_tokens: MaxVisionTokens = None,
    shard_size: Annotated[int, typer.Option(min=1, help="Rows per file; what a run that is killed loses.")] = 256,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Rows that are asked together; default: 16, with vLLM 256.")
    ] = None,
    max_new_tokens: MaxNewTokens = 128,
    dtype: Dtype = None,
    quantization: Quantization = None,
    device: Device = None,
    vllm_option: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Argument of vLLM's LLM, as in tensor_parallel_size=2; repeatable."),
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="Of a running cluster; default: RAY_ADDRESS, else this machine.")
    ] = None,
    ray_engine: Annotated[
        Literal["transformers", "vllm"], typer.Option(help="What answers in the workers of Ray.")
    ] = "transformers",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Models that Ray loads; default: one per GPU, else one per machine.")
    ] = None,
) -> None:
    """Answer questions about many images, with exactly one result for every row, even after kill -9.

    OUTPUT gets part-00000.jsonl and so on, in the order of INPUT, with id, index, answer and error for each row. Runs
    of the same command on several machines with one OUTPUT share the work. Prints one JSON object at the end.
    """
    from llava_stf.loading import check_name

    check_name(model)
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from transformers.utils.logging import disable_progress_bar

    from llava_stf.batch.job import BatchJob
    from llava_stf.batch.run import Distribute, run_batch
    from llava_stf.errors import LlavaStfError
    from llava_stf.io.signals import keeping

    if engine != "ray" and (ray_address, workers, ray_engine) != (None, None, "transformers"):
        raise LlavaStfError("--ray-address, --ray-engine and --workers are for --engine ray.")
    who = ray_engine if engine == "ray" else engine
    job = BatchJob(
        input=input,
        output=output,
        question=question,
        images=images,
        allow_urls=allow_urls,
        shard_size=shard_size,
        engine=who,
        model=model,
        vision_tokens=budget_word(vision_tokens) or token_count(vision_tokens),
        max_vision_tokens=max_vision_tokens,
        dtype=dtype,
        quantization=quantization,
        device=device,
        batch_size=batch_size or (256 if who == "vllm" else 16),
        max_new_tokens=max_new_tokens,
        vllm_options=dict(map(_parse_option, vllm_option or ())),
    )
    distribute: Distribute | None = None
    if engine == "ray":
        from llava_stf.batch.on_ray import RayWorkers

        distribute = RayWorkers(ray_address, workers)
    notice(model)
    disable_progress_bar()
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("Answering", total=None)

        def show(done: int, rows: int) -> None:
            bar.update(task, completed=done, total=rows)
            if bar.disable:
                print(f"{done:,} of {rows:,} rows", file=sys.stderr, flush=True)

        with _stdout_on_stderr(), keeping(f"the shards in {output} are kept, and the same command goes on from there"):
            summary = run_batch(job, distribute=distribute, progress=show)
    record = {
        "output": output,
        "rows": summary.rows,
        "errors": summary.errors,
        "rows_now": summary.rows_now,
        "seconds": round(summary.seconds, 1),
    }
    print(json.dumps(record, ensure_ascii=False))
    if summary.errors == summary.rows > 0:
        raise DataError(f"No row has an answer; the field 'error' of the rows in {output} says why.")


@contextmanager
def _stdout_on_stderr() -> Iterator[None]:
    """Keeps stdout for the summary: vLLM, and C++ libraries below it, log there."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def _parse_option(text: str) -> tuple[str, Any]:
    """A name and its value, which is a text where it is no JSON."""
    name, sign, value = text.partition("=")
    if not (sign and name.isidentifier()):
        raise typer.BadParameter(f"expected an option such as tensor_parallel_size=2, found '{text}'")
    try:
        return name, parse_json(value)
    except ValueError:
        return name, value
