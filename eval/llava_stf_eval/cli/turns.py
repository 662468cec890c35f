"""`llava-stf bench turns`: several questions about one image, from the cache and read again."""

from typing import Annotated

import typer

from llava_stf.cli.common import Dtype, Model, waiting
from llava_stf_eval.cli.names import check_names, split_names


def turns(
    model: Model = "tiny-full",
    methods: Annotated[
        str,
        typer.Option(
            callback=check_names, help="full or ways of llava_stf.reduction, of one plain LLaVA, with commas."
        ),
    ] = "full,divprune,fastv,pyramiddrop,sparsevlm,dart",
    vision_tokens: Annotated[int, typer.Option(min=1, help="Tokens that the methods keep of an image.")] = 16,
    images: Annotated[int, typer.Option(min=1, help="Held-out synthetic images.")] = 50,
    turns: Annotated[int, typer.Option(min=1, help="Questions about each, one after another.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Of the images.")] = 0,
    dtype: Dtype = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Right answers at each turn of a chat: read again every time, and going on from the cache.

    A method that chooses tokens by the question has chosen for the first; from the cache the others get those.
    """
    import json
    from dataclasses import asdict

    with waiting("Importing torch and transformers"):
        from llava_stf_eval.benchmarks.models import FULL, ModelOptions
        from llava_stf_eval.turns import measure_turns
    from rich.console import Console
    from rich.table import Table

    names = split_names(methods)
    asked = [
        ModelOptions(model, name, None if name == FULL else vision_tokens, dtype=dtype).resolved() for name in names
    ]
    found = []
    for name, options in zip(names, asked, strict=True):
        assert isinstance(options.vision_tokens, int)
        with waiting(f"Asking {name}"):
            llava = options.load()
            found.append(measure_turns(name, llava, options.vision_tokens, images=images, turns=turns, seed=seed))
    if as_json:
        print(json.dumps([asdict(result) for result in found]))
        return
    table = Table("right answers, %", *(f"turn {turn + 1}" for turn in range(turns)))
    for result in found:
        for way, shares in (("read again", result.again), ("from the cache", result.cached)):
            table.add_row(f"{result.method} {result.vision_tokens}, {way}", *(f"{100 * share:.0f}" for share in shares))
    Console().print(table)
