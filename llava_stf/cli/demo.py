"""`llava-stf demo`: the bundled models answer questions about images at 100 % and at 25 % of the vision tokens."""

import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llava_stf.cli.answers import Asked, Cost, Shown
from llava_stf.cli.common import figure_path, load, notice, read_image, waiting

if TYPE_CHECKING:
    from llava_stf.inference import LlavaStf

FULL, FUSED = "tiny-full", "tiny"
MAX_NEW_TOKENS = 16
TIMED_RUNS = 9
PRINTED = 6  # answers in the terminal; all of them are in the figure and in --json
CHANCE_IMAGES = 200
OWN_QUESTIONS = ("How many shapes are there?", "Is there a red circle?", "What word is written?")


def demo(
    image: Annotated[list[str] | None, typer.Option(help="Your own image instead of drawn ones; repeatable.")] = None,
    question: Annotated[list[str] | None, typer.Option(help="Your own question instead; repeatable.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Another seed, other drawn images.")] = 0,
    count: Annotated[int, typer.Option(min=1, max=100, help="Number of drawn images.")] = 3,
    output: Annotated[
        Path | None,
        typer.Option(help="The figure; default: demo.png, or demo-2.png where that is another file."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Ask the bundled models about drawn images they never saw in training. Works offline, on a CPU."""
    figure = figure_path(output, "demo.png")
    shown = _own(image, question) if image else _drawn(seed, count, question)
    full, fused = load(FULL, vision_tokens="all"), load(FUSED)
    shown = _answer(shown, full, fused)
    with waiting("Timing the first token"):
        costs = _costs(full, fused, shown[0])
    with waiting("Drawing the figure"):
        _save_figure(figure, shown, costs, fused)
    if as_json:
        _print_json(shown, costs, figure)
    else:
        _print_tables(shown, costs, figure)
    if image:
        notice(FUSED)


def _own(images: Sequence[str], questions: Sequence[str] | None) -> list[Shown]:
    asked = [Asked(None, question, None) for question in questions or OWN_QUESTIONS]
    return [Shown(source, read_image(source), asked) for source in images]


def _drawn(seed: int, count: int, questions: Sequence[str] | None) -> list[Shown]:
    """The first images of the held-out split that can be read, with one question of every family that fits."""
    from PIL import Image

    from llava_stf.world import draw, questions_of

    shown: list[Shown] = []
    index = 0
    while len(shown) < count:
        scene, pixels = draw(index, seed=seed, split="held_out")
        if not scene.degraded:
            own = [Asked(None, question, None) for question in questions or ()]
            drawn = [Asked(q.family, q.text, q.answer) for q in questions_of(scene, index, seed=seed, split="held_out")]
            source = f"held-out image {index} of seed {seed}"
            shown.append(Shown(source, Image.fromarray(pixels), own or drawn))
        index += 1
    return shown


def _answer(shown: Sequence[Shown], full: "LlavaStf", fused: "LlavaStf") -> list[Shown]:
    from rich.console import Console
    from rich.progress import track

    answered = []
    console = Console(stderr=True)
    for item in track(shown, "Asking", console=console, transient=True, disable=not sys.stderr.isatty()):
        pairs = [(item.image, asked.question) for asked in item.asked]
        at_full = full.ask_batch(pairs, max_new_tokens=MAX_NEW_TOKENS)
        at_fused = fused.ask_batch(pairs, max_new_tokens=MAX_NEW_TOKENS)
        asked = [
            Asked(old.family, old.question, old.reference, *answers)
            for old, *answers in zip(item.asked, at_full, at_fused, strict=True)
        ]
        answered.append(Shown(item.source, item.image, asked))
    return answered


def _costs(full: "LlavaStf", fused: "LlavaStf", item: Shown) -> tuple[Cost, Cost]:
    """What an answer of each costs, measured in turns: what else the machine does slows both."""
    from llava_stf.inference import measure_first_token

    question = item.asked[0].question
    runs = [
        [measure_first_token(llava, item.image, question, runs=1) for llava in (full, fused)] for _ in range(TIMED_RUNS)
    ]
    at_full, at_fused = (statistics.median(seconds) for seconds in zip(*runs, strict=True))
    return Cost(full.vision_tokens, at_full), Cost(fused.vision_tokens, at_fused)


def _save_figure(path: Path, shown: Sequence[Shown], costs: tuple[Cost, Cost], fused: "LlavaStf") -> None:
    from llava_stf.cli.figure import save_figure

    config = fused.model.config
    save_figure(path, shown, costs, grid=config.grid, window=config.fusion_window)


def _rated(shown: Sequence[Shown]) -> list[Asked]:
    """The questions that have a right answer."""
    return [asked for item in shown for asked in item.asked if asked.reference is not None]


def _chance(shown: Sequence[Shown]) -> float | None:
    """The share that is right by giving each family's commonest answer, without looking; None without references."""
    from llava_stf.world import generator, prior_accuracy, questions_of, sample_scene

    families = [asked.family for asked in _rated(shown) if asked.family is not None]
    if not families:
        return None
    scenes = (sample_scene(generator("train", 0, index, 0)) for index in range(CHANCE_IMAGES))
    prior = prior_accuracy(question for index, scene in enumerate(scenes) for question in questions_of(scene, index))
    return sum(prior[family] for family in families) / len(families)


def _print_json(shown: Sequence[Shown], costs: tuple[Cost, Cost], figure: Path) -> None:
    record = {
        "models": {name: asdict(cost) for name, cost in zip((FULL, FUSED), costs, strict=True)},
        "chance": _chance(shown),
        "images": [{"source": item.source, "questions": [asdict(asked) for asked in item.asked]} for item in shown],
        "figure": str(figure),
    }
    print(json.dumps(record, ensure_ascii=False))


def _print_tables(shown: Sequence[Shown], costs: tuple[Cost, Cost], figure: Path) -> None:
    """A few answers, one image after the other in turns, and what all of them come to."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def cell(asked: Asked, answer: str) -> Text:
        mark, style = {True: ("✓ ", "green"), False: ("✗ ", "red"), None: ("", "")}[asked.right(answer)]
        return Text(mark + answer, style=style)

    console = Console()
    share = f"{100 * costs[1].vision_tokens / costs[0].vision_tokens:.0f} %"
    turns = [asked for row in zip_longest(*(item.asked for item in shown)) for asked in row if asked is not None]
    sources = shown[0].source if len(shown) == 1 else f"{shown[0].source} and {len(shown) - 1} more"
    table = Table(title=Text(f"{len(turns[:PRINTED])} of {len(turns)} answers: {sources}"), title_justify="left")
    for header in ("question", "right answer", "100 %", share):
        table.add_column(header, ratio=1 if header == "question" else None, min_width=12)
    for asked in turns[:PRINTED]:
        row = " ".join(asked.question.split()), asked.reference or "", cell(asked, asked.full), cell(asked, asked.fused)
        table.add_row(*(Text(entry) if isinstance(entry, str) else entry for entry in row))
    console.print(table)
    table = Table()
    for header in ("model", "vision tokens", "right answers", "median time to first token"):
        table.add_column(header)
    rated = _rated(shown)
    for name, cost, answers in (
        (FULL, costs[0], [(asked, asked.full) for asked in rated]),
        (FUSED, costs[1], [(asked, asked.fused) for asked in rated]),
    ):
        right = sum(bool(asked.right(answer)) for asked, answer in answers)
        told = f"{right} of {len(rated)} ({right / len(rated):.0%})" if rated else ""
        table.add_row(name, str(cost.vision_tokens), told, f"{1000 * cost.first_token_seconds:.1f} ms")
    console.print(table)
    chance = _chance(shown)
    if chance is not None:
        console.print(f"By chance, giving the commonest answer to each kind of question, {chance:.0%} are right.")
    console.print(f"figure: {figure}", markup=False, highlight=False, soft_wrap=True)
