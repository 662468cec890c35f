"""Where the time of an export goes: its engine with a clock around each graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llava_stf.export.model import Array, Engine, EngineState, ExportedLlava


class _Clock:
    """Times the first call of each part."""

    def __init__(self, seconds: dict[str, float], now: Callable[[], float]) -> None:
        self._seconds, self._now = seconds, now

    def time(self, part: str, call: Any, *inputs: Any) -> Array:
        start = self._now()
        result = call(*inputs)
        self._seconds.setdefault(part, self._now() - start)
        return result


class _TimedEngine:
    """An engine, see `Engine`, whose tower and projector, one graph, are counted as the tower."""

    def __init__(self, engine: Engine, clock: _Clock) -> None:
        self._engine, self._clock = engine, clock
        self.embeddings = engine.embeddings

    def image_tokens(self, pixel_values: Array) -> Array:
        return self._clock.time("tower", self._engine.image_tokens, pixel_values)

    def start(self) -> EngineState:
        return _TimedState(self._engine.start(), self._clock)


class _TimedState:
    """A state, see `EngineState`, whose first step is the prefill."""

    def __init__(self, state: EngineState, clock: _Clock) -> None:
        self._state, self._clock = state, clock
        self.layers, self.fill = state.layers, state.fill

    def step(self, embeddings: Array, mask: Array, positions: Array, rows: Array, keep: int) -> Array:
        return self._clock.time("prefill", self._state.step, embeddings, mask, positions, rows, keep)


@contextmanager
def timed_engine(model: ExportedLlava, seconds: dict[str, float], now: Callable[[], float]) -> Iterator[None]:
    """Puts the times of one `generate` into `seconds`: `tower`, `projector` (0) and `prefill`."""
    engine = model.engine
    seconds["projector"] = 0.0
    model.engine = _TimedEngine(engine, _Clock(seconds, now))
    try:
        yield
    finally:
        model.engine = engine
