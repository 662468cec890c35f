"""What a method keeps beside a key-value cache follows the cache's rows, as beams and branches move them.

Shapes: B rows of a cache.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from torch import Tensor
from transformers import Cache

Moved = Callable[[Tensor], Tensor]


class Rows(Protocol):
    """Something with one part for each row of a cache."""

    def moved(self, rows: Moved) -> Any:
        """The same for other rows: `rows` takes a tensor [B, ...] to that of the new rows."""


def keep_beside(cache: Cache, name: str, kept: Rows) -> None:
    """Set an attribute of a cache, which from now on moves when the cache's rows do."""
    setattr(cache, name, kept)
    for method in ("reorder_cache", "batch_repeat_interleave", "batch_select_indices"):
        # Of the instance, and a partial function: so a deep copy of the cache moves what is its own.
        if method not in vars(cache):
            setattr(cache, method, partial(_move, cache, name, method))


def _move(cache: Cache, name: str, method: str, rows: Any) -> None:
    getattr(type(cache), method)(cache, rows)
    kept = getattr(cache, name, None)
    if kept is not None:
        setattr(cache, name, kept.moved(partial(_MOVES[method], rows)))


def _repeated(times: int, values: Tensor) -> Tensor:
    return values.repeat_interleave(times, dim=0)


def _selected(rows: Any, values: Tensor) -> Tensor:
    return values[rows.to(values.device) if isinstance(rows, Tensor) else rows]


_MOVES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "reorder_cache": _selected,
    "batch_repeat_interleave": _repeated,
    "batch_select_indices": _selected,
}
