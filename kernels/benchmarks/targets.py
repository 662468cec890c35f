"""What the kernels are meant to reach on an H200, beside what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from records import Results, Row, only, select
from shapes import MODELS

COMPILED = ("compile", "compile-no-graphs")
EAGER_RATIOS = {1: 1.3, 16: 1.15, 64: 1.15}
FIRST_TOKEN_RATIOS = {1: 2.3, 16: 2.5}
POOL_SHARE, POOL_BATCHES = 0.8, (16, 64)
MEMORY_SHARE, MEMORY_BATCH = 0.5, 64


def compiled_ms(rows: Iterable[Row], **case: str | int) -> float | None:
    """Time of torch.compile in its faster mode, or `None` if neither was measured."""
    found = [row.ms for name in COMPILED for row in select(rows, **case, implementation=name)]
    return min(found, default=None)


def ratio(rows: Iterable[Row], other: str, **case: str | int) -> float | None:
    """How many times as long as ours the implementation `other` ("compile": the faster mode) takes."""
    rows = list(rows)
    ours, theirs = only(rows, **case, implementation="ours"), only(rows, **case, implementation=other)
    ms = compiled_ms(rows, **case) if other == "compile" else None if theirs is None else theirs.ms
    return None if ours is None or ms is None else ms / ours.ms


def first_token_ratio(rows: Iterable[Row], **case: str | int) -> float | None:
    """Time to the first token at all tokens over that at the fused number."""
    rows = list(rows)
    projector = MODELS[str(case["model"])].projector
    full, fused = (
        only(rows, **case, part="first_token", tokens=tokens) for tokens in (projector.patches, projector.tokens)
    )
    return None if full is None or fused is None else full.ms / fused.ms


def target_lines(results: Sequence[Results]) -> list[str]:
    """One line for each target and size: the target, the measured value, and whether it is met."""
    lines = []
    for result in results:
        rows = result.rows
        if result.what == "projector":
            lines += _projector_lines(rows)
        elif result.what == "model":
            for mode in ("eager", "compiled"):
                for batch, wanted in FIRST_TOKEN_RATIOS.items():
                    found = first_token_ratio(rows, model="7b", batch=batch, mode=mode)
                    lines.append(_line(f"first token, {mode}, 576 over 144 tokens, B={batch}", found, wanted))
        else:
            for batch in POOL_BATCHES:
                row = only(rows, model="7b", op="pool_tokens", batch=batch, implementation="ours")
                share = None if row is None else row.floor_share(result.rates)
                lines.append(_line(f"pool_tokens, share of the copy rate, B={batch}", share, POOL_SHARE))
    return lines


def _projector_lines(rows: list[Row]) -> list[str]:
    case = {"model": "7b", "op": "projector", "direction": "forward"}
    lines = [
        _line(f"projector, eager over ours, B={batch}", ratio(rows, "eager", **case, batch=batch), wanted)
        for batch, wanted in EAGER_RATIOS.items()
    ]
    lines += [
        _line(f"projector, torch.compile over ours, B={batch}", ratio(rows, "compile", **case, batch=batch), 1.0)
        for batch in EAGER_RATIOS
    ]
    ours, eager = (only(rows, **case, batch=MEMORY_BATCH, implementation=name) for name in ("ours", "eager"))
    share = None
    if ours is not None and eager is not None and ours.peak_bytes is not None and eager.peak_bytes is not None:
        share = ours.peak_bytes / eager.peak_bytes
    label = f"projector, peak activation memory over eager's, B={MEMORY_BATCH}"
    return [*lines, _line(label, share, MEMORY_SHARE, at_most=True)]


def _line(label: str, found: float | None, wanted: float, *, at_most: bool = False) -> str:
    bound = f"target {'at most' if at_most else 'at least'} {wanted:.2f}"
    if found is None:
        return f"{label}: not measured ({bound})"
    met = found <= wanted if at_most else found >= wanted
    return f"{label}: {found:.2f} ({bound}: {'met' if met else 'MISSED'})"
