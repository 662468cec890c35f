"""Figures that papers and repositories publish for LLaVA-1.5 and its token-reducing variants, each with its source.

They stand in `published.json`; none of them was measured by this project.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from llava_stf.errors import LlavaStfError

MODEL_7B, MODEL_13B, MODEL_7B_LORA = "llava-1.5-7b", "llava-1.5-13b", "llava-1.5-7b-lora"
HALF_A_TOKEN = 0.5  # rows give whole tokens


@dataclass(frozen=True)
class Published:
    """One published row.

    `mean_tokens` is the budget: tokens of an image in the mean over the LLM's layers. `table_tokens` is the number that
    a table gives where it counts otherwise. `vision_tokens` is what is kept of the image, the number that methods here
    take: less than the mean for methods that drop tokens inside the LLM, and `None` where a source does not say which.
    `options` are those in which the row differs from the method's defaults. `scores` maps a benchmark to the lowest and
    highest figure of the sources, mostly equal: per cent, for `mme` the perception sum; `mme_total` is perception and
    cognition, which no benchmark of ours reports. `trained` says whether the method trains the model for its count.
    `note` is about all of the row, `notes` about single benchmarks.
    """

    model: str
    method: str
    title: str
    mean_tokens: int
    vision_tokens: int | None
    trained: bool
    scores: dict[str, tuple[float, float]]
    sources: tuple[str, ...]
    options: dict[str, Any]
    table_tokens: int | None = None
    note: str | None = None
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def budget(self) -> str:
        """The tokens in words, both numbers where they differ."""
        return budget_text(self.vision_tokens, self.mean_tokens)

    def text(self, benchmark: str) -> str | None:
        """The figure as printed, a range where sources differ."""
        if benchmark not in self.scores:
            return None
        low, high = self.scores[benchmark]
        return f"{low:.1f}" if low == high else f"{low:.1f}-{high:.1f}"

    def remarks(self, benchmarks: Collection[str]) -> list[str]:
        """Sentences that a reader of these benchmarks' figures needs."""
        own = [note for benchmark, note in self.notes.items() if benchmark in benchmarks]
        return own if self.note is None else [self.note, *own]

    def difference(self, benchmark: str, score: float) -> float | None:
        """How far a score lies above (or, negative, below) the published figure; 0 inside a range."""
        if benchmark not in self.scores:
            return None
        low, high = self.scores[benchmark]
        return score - min(max(score, low), high)


@cache
def published_rows() -> tuple[Published, ...]:
    """All rows, sources spelt out."""
    content = json.loads(files("llava_stf_eval").joinpath("report", "published.json").read_text(encoding="utf-8"))
    return tuple(
        Published(
            **{name: row[name] for name in ("model", "method", "title", "vision_tokens", "trained")},
            mean_tokens=row.get("mean_tokens", row["vision_tokens"]),
            table_tokens=row.get("table_tokens"),
            note=row.get("note"),
            notes=row.get("notes", {}),
            scores={name: _range(value) for name, value in row["scores"].items()},
            sources=tuple(content["sources"][source] for source in row["sources"]),
            options=row.get("options", {}),
        )
        for row in content["rows"]
    )


def find_published(
    method: str,
    vision_tokens: int | None = None,
    *,
    mean_tokens: float | None = None,
    options: Mapping[str, Any] | None = None,
    model: str = MODEL_7B,
) -> Published | None:
    """The row of a method at a budget, or `None` where nobody published one.

    Args:
        method: its name.
        vision_tokens: the budget as tokens kept of an image; FastV's row of 192 keeps 166.
        mean_tokens: or as the mean over the LLM's layers, as `Method.mean_tokens` gives it, or the number that
            published tables give for it, either to the nearest token; one of the two.
        options: in which the method differs from its defaults, such as `{"full_layers": 3}` of FastV.
        model: of whose rows.

    Raises:
        LlavaStfError: both budgets are given, or none.
    """
    if (vision_tokens is None) == (mean_tokens is None):
        raise LlavaStfError("A published row is found by vision_tokens or by mean_tokens; give one of the two.")
    for row in published_rows():
        means = [mean for mean in (row.mean_tokens, row.table_tokens) if mean is not None]
        if mean_tokens is None:
            same = row.vision_tokens == vision_tokens
        else:
            same = any(abs(mean - mean_tokens) <= HALF_A_TOKEN for mean in means)
        if same and (row.model, row.method, row.options) == (model, method, dict(options or {})):
            return row
    return None


def published_counts(method: str, *, model: str = MODEL_7B) -> list[int]:
    """The budgets, as means over layers, at which a method has published figures, fewest first."""
    return sorted(row.mean_tokens for row in published_rows() if (row.model, row.method) == (model, method))


def budget_text(vision_tokens: int | None, mean_tokens: float) -> str:
    """A budget in words: "64 tokens", or both numbers where layers see more than is kept."""
    if vision_tokens == mean_tokens:
        return f"{vision_tokens} tokens"
    mean = f"{mean_tokens:.0f} tokens in the mean over layers"
    return mean if vision_tokens is None else f"{mean}, {vision_tokens} kept"


def _range(value: float | list[float]) -> tuple[float, float]:
    return (value[0], value[1]) if isinstance(value, list) else (value, value)
