"""Do answers change with the batch? One run at two batch sizes, answer by answer.

In 16 bits a batch sums in another order than a single prompt, so near ties between two tokens may fall otherwise. More
than that a batch may not do: padding and neighbours have no part in an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llava_stf_eval.report.compare import pair_samples
from llava_stf_eval.report.runs import RIGHT, Run, Sample
from llava_stf_eval.report.scores import title


@dataclass(frozen=True)
class BatchChange:
    """One benchmark: how many answers differ between the batch sizes, and how many of them are right in one only.

    `examples` are pairs of samples, one by one and in a batch, whose answers differ.
    """

    benchmark: str
    questions: int
    differing: int
    gained: int
    lost: int
    alone: float
    batch: float
    examples: list[tuple[Sample, Sample]]


def batch_changes(alone: Run, batch: Run) -> list[BatchChange]:
    """Compare every benchmark that both runs scored; `gained` and `lost` are by the batch.

    Raises:
        DataError: the runs answered other data.
    """
    changes = []
    for name, result in alone.benchmarks.items():
        other = batch.benchmarks.get(name)
        if other is None or result.score is None or other.score is None:
            continue
        pairs, _ = pair_samples(alone, batch, name)
        differing = [pair for pair in pairs if pair[0].answer != pair[1].answer]
        hits = [[(sample.score or 0.0) >= RIGHT for sample in pair] for pair in differing]
        gained, lost = hits.count([False, True]), hits.count([True, False])
        changes.append(
            BatchChange(name, len(pairs), len(differing), gained, lost, result.score, other.score, differing)
        )
    return changes


def print_changes(changes: Sequence[BatchChange]) -> None:
    """Print the table and an example of each benchmark."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    heads = (
        "questions",
        "answers differ",
        "right in the batch only",
        "right alone only",
        "score alone",
        "in the batch",
    )
    table = Table("", box=SIMPLE_HEAD, padding=(0, 1))
    for head in heads:
        table.add_column(head, justify="right")
    for change in changes:
        counts = (change.questions, change.differing, change.gained, change.lost)
        scores = (f"{change.alone:.1f}", f"{change.batch:.1f}")
        table.add_row(Text(title(change.benchmark)), *(f"{count:,}" for count in counts), *scores)
    console = Console(highlight=False)
    console.print(table)
    for change in changes:
        for one, other in change.examples[:1]:
            text = f"{title(change.benchmark)} {one.id}: alone '{one.answer}', in the batch '{other.answer}'"
            console.print(Text(text))
