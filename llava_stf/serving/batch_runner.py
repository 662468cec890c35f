"""A batch of rows with the model: which rows go together, how their tokens are chosen, and what is kept of them."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from transformers import StoppingCriteriaList

from llava_stf.inference import LlavaStf, user_turn
from llava_stf.inference.generation import searches
from llava_stf.inference.prefix import PrefixCache
from llava_stf.inference.reading import Heard, Reading
from llava_stf.models.fusion.budget import token_budgets
from llava_stf.serving.encoder import RequestEncoder
from llava_stf.serving.metrics import Metrics
from llava_stf.serving.rows import GenerationRequest, Row, RowStoppingCriteria

logger = logging.getLogger(__name__)

WARM_UP_ROUNDS, WARM_UP_TOKENS = 2, 4


class BatchRunner:
    """Answers rows, batch by batch, in one thread at a time.

    Args:
        llava: the model.
        encoder: of its requests.
        metrics: where it counts.
        cache_bytes: for what is kept of images and prompts, in bytes; 0 keeps nothing.
    """

    def __init__(self, llava: LlavaStf, encoder: RequestEncoder, metrics: Metrics, cache_bytes: int) -> None:
        self._llava = llava
        self._encoder = encoder
        self._metrics = metrics
        self._ends = llava.end_ids
        self._reuses = llava.reuses()
        self._prefixes: PrefixCache | None = None
        if self._reuses and cache_bytes:
            llava.image_cache.limit = cache_bytes // 4
            self._prefixes = PrefixCache(cache_bytes - llava.image_cache.limit)

    def warm_up(self) -> None:
        """Answers about a blank image at each count, before it starts: no client pays for what is done once."""
        blank = io.BytesIO()
        Image.new("RGB", (64, 64)).save(blank, "PNG")
        counts = token_budgets(self._llava.model.config)
        for count in counts if len(counts) > 1 else [None]:
            request = GenerationRequest([user_turn("What is it?", 1)], [blank.getvalue()], vision_tokens=count)
            try:
                for _ in range(WARM_UP_ROUNDS):
                    self._llava.generate(
                        self._encoder.batch([self._encoder.encode(request)]), max_new_tokens=WARM_UP_TOKENS
                    )
            except Exception:  # requests may do well all the same
                logger.exception("The model failed at the warm-up with %s vision tokens.", count or counts[0])

    def fit(self, row: Row, first: Row) -> bool:
        """Whether both can be answered in one batch."""
        return row.request.fits(first.request) and (self._reuses or len({*row.budgets, *first.budgets}) < 2)

    def answer(self, rows: Sequence[Row]) -> None:
        """Generates until all rows are done; one that the model failed at is told so."""
        for row in rows:
            self._metrics.prompt_tokens.inc(row.prompt_tokens)
            self._metrics.image_tokens.inc(row.image_tokens)
        criteria = RowStoppingCriteria(rows, self._take)
        request = rows[0].request
        sampling: dict[str, Any] = {"do_sample": False}
        if request.samples:
            sampling = {"do_sample": True, "temperature": request.temperature, "top_p": request.top_p, "top_k": 0}
        heard, at_once = Heard(), searches({}, self._llava.model.generation_config)
        try:
            with _seeded(request.seed if request.samples else None, self._llava.model.device):
                reading = None
                if self._prefixes is not None:
                    reading = Reading(self._llava, [row.prompt for row in rows], self._prefixes)
                    for row, cached in zip(rows, reading.cached, strict=True):
                        row.cached_tokens = cached
                        self._metrics.cached_tokens.inc(cached)
                inputs = self._encoder.batch([row.prompt for row in rows]) if reading is None else reading.inputs
                whole = self._llava.generate(
                    inputs,
                    max_new_tokens=max(row.limit for row in rows),
                    stopping_criteria=StoppingCriteriaList([heard] if at_once else [criteria, heard]),
                    prompt_lookup_num_tokens=None,
                    return_dict_in_generate=False,
                    **sampling,
                )
            if at_once:
                for row, tokens in zip(rows, whole[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
                    for token in tokens:
                        self._take(row, token)
            for row in rows:
                row.end(self._metrics)
            if reading is not None and self._prefixes is not None and heard.ids is not None:
                for prefix in reading.prefixes(heard.ids, [row.completion_tokens for row in rows]):
                    self._prefixes.put(prefix)
        except Exception:  # whatever went wrong in this batch, the next one may do well
            ids = ", ".join(row.request_id for row in rows if row.request_id)
            logger.exception("The model failed at a batch of %d: %s.", len(rows), ids or "the page's")
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        for row in rows:
            row.fail("The model failed at this request or at one that it was answered with; the log says why.")

    def _take(self, row: Row, token: int) -> None:
        row.add(token, self._ends, self._metrics)


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
