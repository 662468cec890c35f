"""`llava-stf bench serve`: how a server does under load, for models of 100 % and 25 % of the vision tokens in turn."""

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from llava_stf.cli.common import importing


def _counts(text: str) -> str:
    if not all(part.strip().isdecimal() and int(part) > 0 for part in text.split(",")):
        raise typer.BadParameter(f"expected counts such as '1,8', found '{text}'")
    return text


def serve(
    model: Annotated[
        list[str] | None,
        typer.Option(help="NAME or NAME:TOKENS, several in turn; default: tiny-full:all and tiny."),
    ] = None,
    shape: Annotated[
        str | None, typer.Option(help="Random weights of this shape instead, at 100 % and 25 %: medium, 7b, ...")
    ] = None,
    engine: Annotated[Literal["transformers", "vllm"], typer.Option(help="What to start as server.")] = "transformers",
    url: Annotated[str | None, typer.Option(help="A server that runs already; none is started.")] = None,
    clients: Annotated[
        str, typer.Option(metavar="N,N", callback=_counts, help="Fixed loads: clients that ask without a pause.")
    ] = "8",
    rate: Annotated[
        float | None,
        typer.Option(help="Poisson load, requests a second; default: 70 % of what the first model reached."),
    ] = None,
    requests: Annotated[int, typer.Option(min=1, help="Of each load.")] = 64,
    new_tokens: Annotated[int, typer.Option(min=1, help="Length of each answer.")] = 32,
    client: Annotated[
        Literal["auto", "vllm", "own"], typer.Option(help="'vllm bench serve', or our own; auto: vLLM's if installed.")
    ] = "auto",
    images: Annotated[Path | None, typer.Option(help="Folder of images, one a request; default: drawn ones.")] = None,
    kv_blocks: Annotated[
        int | None, typer.Option(min=2, help="Blocks of vLLM's KV cache: how many requests do they hold?")
    ] = None,
    server_arguments: Annotated[str, typer.Option(help="Further arguments of the server's command, quoted.")] = "",
    seed: Annotated[int, typer.Option(min=0, help="Of drawn images and arrivals.")] = 0,
    output: Annotated[Path, typer.Option(help="Folder for serving.json, serving.png and the servers' logs.")] = Path(
        "runs/serving"
    ),
    resume: Annotated[bool, typer.Option("--resume", help="Finish the measurement that is there.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the measurement that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the JSON instead of a table.")] = False,
) -> None:
    """Throughput, time to first token, inter-token latency and KV cache of servers under a fixed and a Poisson load.

    Exit code 1 if a request failed. OPENAI_API_KEY is sent where it is set.
    """
    import shlex

    with importing():
        from llava_stf.io.publish import write_json
        from llava_stf.io.signals import keeping
        from llava_stf_eval.measurement.result import open_result
        from llava_stf_eval.serving.output import RESULT, failures, print_table, save_figure
        from llava_stf_eval.serving.run import Plan, measure
    from rich.console import Console
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    if model and shape:
        raise typer.BadParameter("--model and --shape exclude each other")
    named = {"models": model} if model else {}
    plan = Plan(
        **named,
        shape=shape,
        engine=engine,
        url=url,
        clients=[int(part) for part in clients.split(",")],
        rate=rate,
        requests=requests,
        new_tokens=new_tokens,
        client=client,
        images=images,
        kv_blocks=kv_blocks,
        arguments=shlex.split(server_arguments),
        seed=seed,
    )
    before = open_result(output / RESULT, resume=resume, overwrite=overwrite)
    with keeping(f"the loads that were measured are kept in {output}, and --resume goes on from there"):
        result = measure(
            plan,
            output,
            before=before,
            on_row=lambda so_far: write_json(output / RESULT, so_far),
            progress=lambda text: print(text, file=sys.stderr),
        )
    written = write_json(output / RESULT, result), save_figure(output, result)
    if as_json:
        print(json.dumps(result))
    else:
        print_table(result, Console(width=None if sys.stdout.isatty() else 180))
        print("written:", *written)
    if failures(result):
        raise typer.Exit(1)
