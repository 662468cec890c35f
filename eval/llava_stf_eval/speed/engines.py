"""Where the time of an export goes: its engine with a clock around each graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llava_stf.export.model import Array, Engine, EngineState, ExportedLlava


class _Timed:
    """An engine, and the state of a `generate`, whose first vision and decoder call are timed."""

    def __init__(self, engine: Engine, seconds: dict[str, float], now: Callable[[], float]) -> None:
        self._engine, self._seconds, self._now = engine, seconds, now
        self._state: EngineState | None = None

    def image_tokens(self, pixel_values: Array) -> Array:
        """As `Engine` says; tower and projector are one graph, and counted as the tower."""
        return self._time("tower", self._engine.image_tokens, pixel_values)

    def embeddings(self, ids: Array) -> Array:
        """As `Engine` says."""
        return self._engine.embeddings(ids)

    def start(self) -> _Timed:
        """As `Engine` says."""
        self._state = self._engine.start()
        return self

    def step(self, *inputs: Any) -> Array:
        """As `EngineState` says."""
        assert self._state is not None
        return self._time("prefill", self._state.step, *inputs)

    def _time(self, part: str, call: Any, *inputs: Any) -> Array:
        start = self._now()
        result = call(*inputs)
        self._seconds.setdefault(part, self._now() - start)
        return result


@contextmanager
def timed_engine(model: ExportedLlava, seconds: dict[str, float], now: Callable[[], float]) -> Iterator[None]:
    """Puts the times of one `generate` into `seconds`: `tower`, `projector` (0) and `prefill`."""
    engine = model.engine
    seconds["projector"] = 0.0
    model.engine = _Timed(engine, seconds, now)
    try:
        yield
    finally:
        model.engine = engine
