"""A comparison of two runs as a table for the terminal, as JSON, as JSON lines of flipped answers, and as a page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava_stf.errors import LlavaStfError
from llava_stf.io.publish import write_file
from llava_stf_eval.report.bootstrap import CONFIDENCE
from llava_stf_eval.report.compare import FEW, Comparison, Difference, Pair
from llava_stf_eval.report.page import Item, Page, Table, fair_share, render
from llava_stf_eval.report.scores import title
from llava_stf_eval.report.write import MAX_ITEMS, reference_text

GAINED, LOST = "wrong in A, right in B", "right in A, wrong in B"
SUFFIXES = (".html", ".jsonl")
SHOWN = 2  # flipped answers of each direction and benchmark in the terminal
HEADERS = ("questions", "A", "B", "B - A", f"{100 * CONFIDENCE:.0f} % interval", "gained", "lost")


def check_output(path: Path, suffixes: Sequence[str] = SUFFIXES) -> None:
    """Check, before anything is read, that the file can be written: by `write_comparison`, or as one of `suffixes`.

    Raises:
        LlavaStfError: it cannot.
    """
    if path.suffix not in suffixes:
        raise LlavaStfError(f"Expected --output to end in {' or '.join(suffixes)}, found {path.name}.")
    if not path.absolute().parent.is_dir():
        raise LlavaStfError(f"There is no folder {path.absolute().parent} to write {path.name} to; create it.")


def write_comparison(comparison: Comparison, path: Path) -> Path:
    """Write the flipped answers, as a page with the table (`.html`) or one JSON object a line (`.jsonl`)."""
    check_output(path)
    text = render(_page(comparison)) if path.suffix == ".html" else flips_as_lines(comparison)
    return write_file(path, text)


def flips_as_lines(comparison: Comparison) -> str:
    """One JSON object for each answer that flipped, both answers and scores in it."""
    records = (
        {
            "benchmark": difference.benchmark,
            "id": one.id,
            "change": change,
            "question": one.question,
            "reference": one.reference,
            "answer_a": one.answer,
            "answer_b": other.answer,
            "score_a": one.score,
            "score_b": other.score,
            "image_id": one.image_id,
            "image": image and str(image),
        }
        for difference in comparison.differences
        for change, pairs in (("gained", difference.gained), ("lost", difference.lost))
        for one, other in pairs
        for image in (image_of(comparison, (one, other)),)
    )
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def image_of(comparison: Comparison, pair: Pair) -> Path | None:
    """A question's image, from the run that kept it: runs keep those of wrong answers."""
    return comparison.a.image(pair[0]) or comparison.b.image(pair[1])


def as_record(comparison: Comparison) -> dict[str, Any]:
    """What `--json` prints: numbers, settings that differ, and the ids of the answers that flipped."""
    return {
        "a": str(comparison.a.folder),
        "b": str(comparison.b.folder),
        "protocol": comparison.a.protocol,
        "confidence": CONFIDENCE,
        "seed": comparison.seed,
        "settings": {name: {"a": a, "b": b} for name, (a, b) in comparison.settings.items()},
        "left_out": comparison.left_out,
        "benchmarks": {
            d.benchmark: {
                "score_a": d.score_a,
                "score_b": d.score_b,
                "difference": d.difference,
                "low": d.low,
                "high": d.high,
                "clear": d.clear,
                "questions": d.questions,
                "unpaired": d.unpaired,
                "units": d.units,
                "differing_units": d.differing,
                "gained": [one.id for one, _ in d.gained],
                "lost": [one.id for one, _ in d.lost],
            }
            for d in comparison.differences
        },
    }


def print_comparison(comparison: Comparison) -> None:
    """Print the table, what a reader must know of it, and the first flipped answers of each benchmark."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table as Terminal
    from rich.text import Text

    console = Console(highlight=False)
    table = Terminal(title=Text(_names(comparison)), box=SIMPLE_HEAD, padding=0)
    table.add_column("benchmark", no_wrap=True)
    for header in HEADERS:
        table.add_column(header, justify="right", no_wrap=True)
    for difference in comparison.differences:
        style = "" if not difference.clear else "green" if difference.difference > 0 else "red"
        table.add_row(Text(title(difference.benchmark)), *_cells(difference), style=style)
    console.print(table)
    for note in _notes(comparison):
        console.print(Text(note))
    for difference in comparison.differences:
        for change, pairs in ((GAINED, difference.gained), (LOST, difference.lost)):
            if pairs:
                more = f", {SHOWN} of {len(pairs):,}" if len(pairs) > SHOWN else ""
                console.print(Text(f"{title(difference.benchmark)}: {change}{more}", style="bold"))
            for one, other in pairs[:SHOWN]:
                console.print(Text(f"  {one.id}: {_in_a_line(one.question)}"))
                answers = f"A: {_in_a_line(one.answer)} | B: {_in_a_line(other.answer)}"
                console.print(Text(f"    {answers} | reference: {_in_a_line(reference_text(one.reference))}"))


def _page(comparison: Comparison) -> Page:
    items: list[list[Item]] = []
    for difference in comparison.differences:
        for change, pairs in ((GAINED, difference.gained), (LOST, difference.lost)):
            items.append([_item(comparison, difference, change, pair) for pair in pairs[:MAX_ITEMS]])
    shares = fair_share([len(kind) for kind in items], MAX_ITEMS)
    shown = [item for kind, share in zip(items, shares, strict=True) for item in kind[:share]]
    flipped = sum(len(difference.gained) + len(difference.lost) for difference in comparison.differences)
    rows = [(title(difference.benchmark), *_cells(difference)) for difference in comparison.differences]
    return Page(
        title="Two runs compared",
        subtitle=f"{_names(comparison)}. Protocol {comparison.a.protocol}.",
        tables=[Table("Differences", ("benchmark", *HEADERS), rows, _notes(comparison))],
        items_title="Answers that flipped",
        items_note=f"Flipped: {flipped:,}, here {'all' if len(shown) == flipped else f'the first {len(shown):,}'}.",
        group_label="Change",
        items=shown,
    )


def _item(comparison: Comparison, difference: Difference, change: str, pair: Pair) -> Item:
    one, other = pair
    facts = [
        ("A", one.answer),
        ("B", other.answer),
        ("reference", reference_text(one.reference)),
        ("question", one.id),
        ("change", change),
    ]
    return Item(title(difference.benchmark), change, one.question, facts, image_of(comparison, pair))


def _cells(difference: Difference) -> tuple[str, ...]:
    return (
        f"{difference.questions:,}",
        f"{difference.score_a:.1f}",
        f"{difference.score_b:.1f}",
        f"{difference.difference:+.1f}",
        f"{difference.low:+.1f} to {difference.high:+.1f}" + (" *" if difference.differing < FEW else ""),
        f"{len(difference.gained):,}",
        f"{len(difference.lost):,}",
    )


def _notes(comparison: Comparison) -> list[str]:
    a, b = comparison.a, comparison.b
    notes = [f"A: {a.label} ({a.folder})", f"B: {b.label} ({b.folder})"]
    notes += [f"differs: {name}, {one} in A, {other} in B" for name, (one, other) in comparison.settings.items()]
    notes.append("Scores and intervals are over the questions that both runs answered; gained and lost are B's.")
    if any(difference.differing < FEW for difference in comparison.differences):
        notes.append(f"* fewer than {FEW} questions differ: the interval is too narrow to rely on.")
    notes += [
        f"{title(d.benchmark)}: {d.unpaired:,} questions that only one run answered are left out."
        for d in comparison.differences
        if d.unpaired
    ]
    if comparison.left_out:
        notes.append(f"Left out, not scored in both runs: {'; '.join(map(title, comparison.left_out))}.")
    return notes


def _names(comparison: Comparison) -> str:
    return f"A: {comparison.a.label}, B: {comparison.b.label}"


def _in_a_line(text: str, longest: int = 100) -> str:
    line = " ".join(text.split())
    return line if len(line) <= longest else line[: longest - 1] + "…"
