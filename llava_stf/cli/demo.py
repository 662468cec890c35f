"""`llava-stf demo`: the bundled models answer questions about images at 100 % and at 25 % of the vision tokens."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llava_stf.cli.answers import Asked, Cost, Shown
from llava_stf.cli.common import load, notice, read_image, waiting
from llava_stf.errors import LlavaStfError

if TYPE_CHECKING:
    from llava_stf.inference import LlavaStf

FULL, FUSED = "tiny-full", "tiny"
MAX_NEW_TOKENS = 16
TIMED_RUNS = 9
OWN_QUESTIONS = ("How many shapes are there?", "Is there a red circle?", "What word is written?")


def demo(
    image: Annotated[list[str] | None, typer.Option(help="Your own image instead of drawn ones; repeatable.")] = None,
    question: Annotated[list[str] | None, typer.Option(help="Your own question instead; repeatable.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Another seed, other drawn images.")] = 0,
    count: Annotated[int, typer.Option(min=1, max=100, help="Number of drawn images.")] = 3,
    output: Annotated[Path, typer.Option(help="The figure: images, patch grid, fused windows, answers.")] = Path(
        "demo.png"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Ask the bundled models about drawn images they never saw in training. Works offline, on a CPU."""
    if not output.absolute().parent.is_dir():
        raise LlavaStfError(f"There is no folder {output.absolute().parent} to write {output.name} to; create it.")
    shown = _own(image, question) if image else _drawn(seed, count, question)
    full, fused = load(FULL, vision_tokens="all"), load(FUSED)
    shown = _answer(shown, full, fused)
    with waiting("Timing the first token"):
        costs = _cost(full, shown[0]), _cost(fused, shown[0])
    with waiting("Drawing the figure"):
        _save_figure(output, shown, costs, fused)
    if as_json:
        _print_json(shown, costs, output)
    else:
        _print_tables(shown, costs, output)
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


def _cost(llava: "LlavaStf", item: Shown) -> Cost:
    from llava_stf.inference import measure_first_token

    seconds = measure_first_token(llava, item.image, item.asked[0].question, runs=TIMED_RUNS)
    return Cost(llava.vision_tokens, seconds)


def _save_figure(output: Path, shown: Sequence[Shown], costs: tuple[Cost, Cost], fused: "LlavaStf") -> None:
    from llava_stf.cli.figure import save_figure

    config = fused.model.config
    try:
        save_figure(output, shown, costs, grid=config.grid, window=config.fusion_window)
    except (OSError, ValueError) as error:
        raise LlavaStfError(f"Cannot write the figure to {output}: {error}.") from error


def _print_json(shown: Sequence[Shown], costs: tuple[Cost, Cost], output: Path) -> None:
    record = {
        "models": {name: asdict(cost) for name, cost in zip((FULL, FUSED), costs, strict=True)},
        "pictures": [{"source": item.source, "questions": [asdict(asked) for asked in item.asked]} for item in shown],
        "figure": str(output),
    }
    print(json.dumps(record, ensure_ascii=False))


def _print_tables(shown: Sequence[Shown], costs: tuple[Cost, Cost], output: Path) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def cell(asked: Asked, answer: str) -> Text:
        return Text(answer, style={True: "green", False: "red", None: ""}[asked.right(answer)])

    console = Console()
    share = f"{100 * costs[1].vision_tokens / costs[0].vision_tokens:.0f} %"
    for item in shown:
        table = Table(title=item.source, title_justify="left", expand=True)
        for header in ("family", "question", "reference", "100 %", share):
            table.add_column(
                header, ratio=1 if header == "question" else None, min_width=9 if header == "family" else 12
            )
        for asked in item.asked:
            question = " ".join(asked.question.split())
            row = asked.family or "", question, asked.reference or "", cell(asked, asked.full), cell(asked, asked.fused)
            table.add_row(*(Text(entry) if isinstance(entry, str) else entry for entry in row))
        console.print(table)
    table = Table()
    for header in ("model", "vision tokens", "right answers", "median time to first token"):
        table.add_column(header)
    rows = [asked for item in shown for asked in item.asked if asked.reference is not None]
    for name, cost, answers in (
        (FULL, costs[0], [(asked, asked.full) for asked in rows]),
        (FUSED, costs[1], [(asked, asked.fused) for asked in rows]),
    ):
        right = f"{sum(bool(asked.right(answer)) for asked, answer in answers)} of {len(rows)}" if rows else ""
        table.add_row(name, str(cost.vision_tokens), right, f"{1000 * cost.first_token_seconds:.1f} ms")
    console.print(table)
    console.print(f"figure: {output}", markup=False, highlight=False, soft_wrap=True)
