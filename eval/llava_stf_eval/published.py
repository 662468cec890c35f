"""Figures that papers and repositories publish for LLaVA-1.5 and its token-reducing variants, each with its source.

They stand in `published.json`; none of them was measured by this project.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

MODEL_7B, MODEL_13B, MODEL_7B_LORA = "llava-1.5-7b", "llava-1.5-13b", "llava-1.5-7b-lora"


@dataclass(frozen=True)
class Published:
    """One published row.

    `scores` maps a benchmark to the lowest and highest figure of the sources, mostly equal: per cent, for `mme` the
    perception sum; `mme_total` is perception and cognition, which no benchmark of ours reports. `trained` says whether
    the method trains the model for its token count.
    """

    model: str
    method: str
    title: str
    vision_tokens: int
    trained: bool
    scores: dict[str, tuple[float, float]]
    sources: tuple[str, ...]
    note: str | None = None

    def text(self, benchmark: str) -> str | None:
        """The figure as printed, a range where sources differ."""
        if benchmark not in self.scores:
            return None
        low, high = self.scores[benchmark]
        return f"{low:.1f}" if low == high else f"{low:.1f}-{high:.1f}"

    def difference(self, benchmark: str, score: float) -> float | None:
        """How far a score lies above (or, negative, below) the published figure; 0 inside a range."""
        if benchmark not in self.scores:
            return None
        low, high = self.scores[benchmark]
        return score - min(max(score, low), high)


@cache
def published_rows() -> tuple[Published, ...]:
    """All rows, sources spelt out."""
    content = json.loads(files("llava_stf_eval").joinpath("published.json").read_text(encoding="utf-8"))
    return tuple(
        Published(
            **{name: value for name, value in row.items() if name not in ("scores", "sources")},
            scores={name: _range(value) for name, value in row["scores"].items()},
            sources=tuple(content["sources"][source] for source in row["sources"]),
        )
        for row in content["rows"]
    )


def find_published(method: str, vision_tokens: int, *, model: str = MODEL_7B) -> Published | None:
    """The row of a method at a token count, or None where nobody published one."""
    for row in published_rows():
        if (row.model, row.method, row.vision_tokens) == (model, method, vision_tokens):
            return row
    return None


def published_counts(method: str, *, model: str = MODEL_7B) -> list[int]:
    """The token counts at which a method has published figures, fewest first."""
    return sorted(row.vision_tokens for row in published_rows() if (row.model, row.method) == (model, method))


def _range(value: float | list[float]) -> tuple[float, float]:
    return (value[0], value[1]) if isinstance(value, list) else (value, value)
