"""Accuracy on drawn images, per question family, and what it costs: tokens and time to first token.

The questions are those of the held-out split: images that no training seed can draw. An answer is right if it equals
the reference but for case and a closing period.

    python -m llava_stf_eval.drawn --images 1500          # the bundled models
    python -m llava_stf_eval.drawn --method tome --method fastv --vision-tokens 16
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from llava_stf.errors import DataError, LlavaStfError
from llava_stf.io.command import run
from llava_stf.io.publish import refuse_unwritable, write_json
from llava_stf.world import ALL, BENCHMARKS, SIDE, Question, draw, is_right, questions_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from llava_stf import LlavaStf

MAX_NEW_TOKENS = 12
TIMED_IMAGES = 5


@dataclass(frozen=True)
class Result:
    """One model on the drawn images: shares of right answers, tokens per image, seconds to the first token.

    `vision_tokens` are kept of an image, of all its tiles together where it is cut; `mean_tokens` is the mean over the
    LLM's layers.
    """

    model: str
    images: int
    seed: int
    questions: int
    accuracy: float
    families: dict[str, float]
    vision_tokens: int
    mean_tokens: float
    first_token_seconds: float


def held_out(
    images: int, seed: int, *, side: int = SIDE, families: Sequence[str] = ALL
) -> list[tuple[Image, Question]]:
    """The questions of these families about the first images of a held-out seed, one of each, with their images.

    `side` is that of the images, in pixels.

    Raises:
        DataError: there is no image, or no question of these families.
    """
    from PIL import Image

    if images < 1:
        raise DataError(f"questions are asked about 1 image or more, found {images}")
    pairs = []
    for index in range(images):
        scene, pixels = draw(index, seed=seed, split="held_out", side=side)
        image = Image.fromarray(pixels)
        asked = questions_of(scene, index, seed=seed, split="held_out", families=families, count=len(families))
        pairs += [(image, question) for question in asked]
    if not pairs:
        raise DataError(f"the first {images} images of seed {seed} have no question of {', '.join(families)}; ask more")
    return pairs


def evaluate(
    name: str,
    llava: LlavaStf,
    *,
    images: int,
    seed: int = 0,
    side: int = SIDE,
    families: Sequence[str] = ALL,
    batch_size: int = 64,
) -> Result:
    """Ask the model everything about the first `images` of a held-out seed, see `held_out`; `name` is the result's."""
    from rich.console import Console
    from rich.progress import track

    from llava_stf.inference import measure_first_token

    pairs = held_out(images, seed, side=side, families=families)
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter(question.family for _, question in pairs)
    starts = range(0, len(pairs), batch_size)
    for start in track(starts, f"Asking {name}", console=Console(stderr=True), disable=not sys.stderr.isatty()):
        batch = pairs[start : start + batch_size]
        answers = llava.ask_batch(
            [(image, question.text) for image, question in batch],
            batch_size=batch_size,
            max_new_tokens=MAX_NEW_TOKENS,
        )
        for answer, (_, question) in zip(answers, batch, strict=True):
            right[question.family] += is_right(answer, question.answer)
    times = [measure_first_token(llava, image, question.text) for image, question in pairs[:TIMED_IMAGES]]
    kept, mean = _budget(llava, side)
    return Result(
        model=name,
        images=images,
        seed=seed,
        questions=len(pairs),
        accuracy=right.total() / len(pairs),
        families={family: right[family] / asked[family] for family in BENCHMARKS if asked[family]},
        vision_tokens=kept,
        mean_tokens=mean,
        first_token_seconds=statistics.median(times),
    )


def _budget(llava: LlavaStf, side: int) -> tuple[int, float]:
    """Tokens kept of an image of so many pixels a side, and their mean over the LLM's layers."""
    from llava_stf.models.fusion.tiles import has_tiles

    reduction = getattr(getattr(llava.model, "model", None), "reduction", None)  # an export has no modules
    if reduction is None:
        assert llava.processor is not None  # it was asked with one
        tiled = has_tiles(llava.processor.image_processor)
        count = llava.processor.num_image_tokens([(side, side)])[0] if tiled else llava.vision_tokens
        return count, count
    return reduction.vision_tokens, reduction.mean_tokens(llava.model.config.text_config.num_hidden_layers)


def print_table(results: list[Result]) -> None:
    """One row per family that was asked, one column per model."""
    from rich.console import Console
    from rich.table import Table

    table = Table("family", "mirrors", *(result.model for result in results))
    for family in results[0].families:
        shares = (f"{100 * result.families[family]:.1f}" for result in results)
        table.add_row(family, BENCHMARKS[family], *shares)
    table.add_row("all", "", *(f"{100 * result.accuracy:.1f}" for result in results), end_section=True)
    table.add_row("vision tokens kept", "", *(str(result.vision_tokens) for result in results))
    table.add_row("mean over LLM layers", "", *(f"{result.mean_tokens:.4g}" for result in results))
    table.add_row("ms to first token", "", *(f"{1000 * result.first_token_seconds:.1f}" for result in results))
    Console().print(table)


def main() -> None:
    """Ask the models of the command line and print their table."""
    from llava_stf import load_model
    from llava_stf.reduction.options import parse_options
    from llava_stf_eval.benchmarks.models import ModelOptions

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        help="model to ask, at its own vision tokens, see `load_model`; repeatable",
    )
    parser.add_argument(
        "--budget",
        action="append",
        default=[],
        type=int,
        help="vision tokens that each --model is asked at; repeatable",
    )
    parser.add_argument(
        "--full", action="append", default=[], help="plain LLaVA to ask at all vision tokens; repeatable"
    )
    parser.add_argument(
        "--method", action="append", default=[], help="method to ask the bundled plain LLaVA by; repeatable"
    )
    parser.add_argument("--option", action="append", default=[], help="NAME=VALUE of the methods; repeatable")
    parser.add_argument("--vision-tokens", type=int, help="tokens that the methods keep, by default 16")
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--dtype", help="float32, bfloat16 or float16; by default as `load_model` chooses")
    parser.add_argument("--seed", type=int, default=0, help="of the held-out images")
    parser.add_argument("--side", type=int, default=SIDE, help="of the images, in pixels")
    parser.add_argument("--family", action="append", default=[], choices=ALL, help="ask these alone; repeatable")
    parser.add_argument("--output", type=Path, help="also write the results to this JSON file")
    options = parser.parse_args()
    if not options.full and not options.model and not options.method:
        options.model = ["tiny-full", "tiny"]
    if options.vision_tokens is not None and not options.method:
        raise LlavaStfError("--vision-tokens is what each --method keeps, and none is given; models take --budget.")
    if options.option and not options.method:
        raise LlavaStfError("--option is of each --method, and none is given.")
    if options.budget and not options.model:
        raise LlavaStfError(
            "--budget is what each --model is asked at, and none is given; methods take --vision-tokens."
        )
    if options.output:
        refuse_unwritable(options.output.parent)
    own, kept = parse_options(options.option), 16 if options.vision_tokens is None else options.vision_tokens
    given = {} if options.dtype is None else {"dtype": options.dtype}
    asked = [ModelOptions("tiny-full", name, kept, own, **given) for name in options.method]
    methods = [method.resolved() for method in asked]
    loaded = chain(
        ((name, load_model(name, vision_tokens="all", **given)) for name in options.full),
        (
            (name, load_model(name, vision_tokens=budget, **given))
            for name in options.model
            for budget in options.budget or [None]
        ),
        ((method.method or "", method.load()) for method in methods),
    )
    shown = {"images": options.images, "seed": options.seed, "side": options.side, "families": options.family or ALL}
    results = [evaluate(name, llava, **shown) for name, llava in loaded]
    print_table(results)
    if options.output:
        write_json(options.output, [asdict(result) for result in results])


if __name__ == "__main__":
    run(main)
