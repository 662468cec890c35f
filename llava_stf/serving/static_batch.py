"""Batches whose rows begin together, for models whose rows cannot join others: `generate` answers the whole of them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from llava_stf.inference import LlavaStf
from llava_stf.inference.generation import searches
from llava_stf.inference.prefix import PrefixCache
from llava_stf.inference.reading import Heard, Reading
from llava_stf.serving.encoder import RequestEncoder
from llava_stf.serving.metrics import Metrics
from llava_stf.serving.rows import Row, fail_all, request_ids

logger = logging.getLogger(__name__)


class StaticBatch:
    """Answers rows, batch by batch, in one thread at a time.

    A batch is made of the first row that waits and those behind it that fit to it; whoever comes later waits for the
    next one. A row of a batch ends on its own, and the batch ends with its last row.

    Args:
        llava: the model.
        encoder: of its requests.
        metrics: where it counts.
        max_rows: of a batch.
        prefixes: what was read is kept there; `None` keeps nothing.
    """

    def __init__(
        self,
        llava: LlavaStf,
        encoder: RequestEncoder,
        metrics: Metrics,
        max_rows: int,
        prefixes: PrefixCache | None,
    ) -> None:
        self._llava = llava
        self._encoder = encoder
        self._metrics = metrics
        self._max_rows = max_rows
        self._prefixes = prefixes
        self._ends = llava.end_ids
        self._reuses = llava.reuses()
        self.running = 0

    def choose(self, waiting: Iterable[Row]) -> list[Row]:
        """The first of the rows that wait, and those that can be answered in one batch with it."""
        batch: list[Row] = []
        for row in waiting:
            if len(batch) < self._max_rows and (not batch or self._fit(row, batch[0])):
                batch.append(row)
        return batch

    def run(self, new: Sequence[Row]) -> None:
        """Generates until all rows are done; one that the model failed at is told so."""
        self.running = len(new)
        self._metrics.batch_size.observe(len(new))
        try:
            self._answer(new)
        except Exception:  # whatever went wrong in this batch, the next one may do well
            logger.exception("The model failed at a batch of %d: %s.", len(new), request_ids(new))
            fail_all(new)
        self.running = 0

    def _fit(self, row: Row, first: Row) -> bool:
        return row.request.fits(first.request) and (self._reuses or len({*row.budgets, *first.budgets}) < 2)

    def _answer(self, rows: Sequence[Row]) -> None:
        request = rows[0].request
        heard, at_once = Heard(), searches({}, self._llava.model.generation_config)
        criteria = _RowCriteria(rows, self._ends, self._metrics)
        with _seeded(request.seed if request.samples else None, self._llava.model.device):
            reading = None
            if self._prefixes is not None:
                reading = Reading(self._llava, [row.prompt for row in rows], self._prefixes)
            for row, cached in zip(rows, reading.cached if reading else [0] * len(rows), strict=True):
                row.begin(cached, self._metrics)
            inputs = self._encoder.batch([row.prompt for row in rows]) if reading is None else reading.inputs
            whole = self._llava.generate(
                inputs,
                max_new_tokens=max(row.limit for row in rows),
                stopping_criteria=StoppingCriteriaList([heard] if at_once else [criteria, heard]),
                **request.generate_options,
            )
        if at_once:
            for row, tokens in zip(rows, whole[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
                for token in tokens:
                    row.add(token, self._ends, self._metrics)
        for row in rows:
            row.end(self._metrics)
        if reading is not None and self._prefixes is not None and heard.ids is not None:
            for prefix in reading.prefixes(heard.ids, [row.completion_tokens for row in rows]):
                self._prefixes.put(prefix)


class _RowCriteria(StoppingCriteria):
    """Hands each row of a batch its new ids, and ends those that are over."""

    def __init__(self, rows: Sequence[Row], ends: frozenset[int], metrics: Metrics) -> None:
        self._rows = rows
        self._ends = ends
        self._metrics = metrics

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Whether each row of `input_ids` [B, L + T] is over: bool [B]."""
        for row, token in zip(self._rows, input_ids[:, -1].tolist(), strict=True):
            row.add(token, self._ends, self._metrics)
        return torch.tensor([row.over for row in self._rows], device=input_ids.device)


@contextmanager
def _seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Draws from this seed inside, and as before behind it."""
    if seed is None:
        yield
        return
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield
