"""What became of each request of a load, and what that comes to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

PERCENTILES = (50, 99)


@dataclass(frozen=True)
class Outcome:
    """One request, in seconds.

    Attributes:
        start: when it was sent, from the first one's sending on.
        first_token: from then to the first piece of the answer; `None` of a request that failed.
        gaps: between that piece and the next, and so on. A server may put several tokens in a piece.
        latency: from sending to the last piece, or to the failure.
        prompt_tokens: as the server counts them; 0 of a request that failed.
        output_tokens: as the server counts them; 0 of a request that failed.
        error: why it failed.
    """

    start: float
    first_token: float | None
    gaps: tuple[float, ...]
    latency: float
    prompt_tokens: int
    output_tokens: int
    error: str | None = None


def summarise(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What JSON holds of a load: counts, tokens, requests and tokens a second, and percentiles in milliseconds.

    The seconds of a load go from the first sending to the last answer. `time_per_output_token_ms` is, for each request,
    the time from its first token to its last over the tokens between, which also holds where pieces hold several. A
    percentile without values is `None`.
    """
    done = [outcome for outcome in outcomes if outcome.error is None]
    seconds = max(outcome.start + outcome.latency for outcome in outcomes)
    output = sum(outcome.output_tokens for outcome in done)
    paces = [
        (outcome.latency - outcome.first_token) / (outcome.output_tokens - 1)
        for outcome in done
        if outcome.first_token is not None and outcome.output_tokens > 1
    ]
    return {
        "requests": len(outcomes),
        "completed": len(done),
        "failed": len(outcomes) - len(done),
        "errors": dict(Counter(outcome.error for outcome in outcomes if outcome.error is not None)),
        "seconds": seconds,
        "requests_per_second": len(done) / seconds,
        "output_tokens_per_second": output / seconds,
        "prompt_tokens": _mean([outcome.prompt_tokens for outcome in done]),
        "longest_prompt_tokens": max((outcome.prompt_tokens for outcome in done), default=None),
        "output_tokens": _mean([outcome.output_tokens for outcome in done]),
        "first_token_ms": _percentiles([outcome.first_token for outcome in done if outcome.first_token is not None]),
        "inter_token_ms": _percentiles([gap for outcome in done for gap in outcome.gaps]),
        "time_per_output_token_ms": _percentiles(paces),
        "latency_ms": _percentiles([outcome.latency for outcome in done]),
    }


def _mean(values: Sequence[int]) -> float | None:
    return sum(values) / len(values) if values else None


def _percentiles(seconds: Sequence[float]) -> dict[str, float | None]:
    return {
        f"p{percentile}": 1000 * float(np.percentile(seconds, percentile)) if seconds else None
        for percentile in PERCENTILES
    }
