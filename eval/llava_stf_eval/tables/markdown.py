"""Tables in Markdown, and the figures in their cells."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]], *, words: int = 1) -> str:
    """A table whose first columns are words, left-aligned, and whose others are figures, right-aligned."""
    rules = ["---"] * words + ["---:"] * (len(header) - words)
    return "\n".join(f"|{'|'.join(f' {cell} ' if cell else ' ' for cell in line)}|" for line in (header, rules, *rows))


def spread(values: Sequence[float], digits: int = 1) -> str:
    """The mean of the values, with their standard deviation where there are several: "54.7 ± 0.4"."""
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"
