"""One thread that owns the model and answers the requests that wait, together where they can be.

Prompts are encoded (see `RequestEncoder`) in other threads, before a request enters the queue, so that what waits is
small. A batch is made of the first request that waits and those behind it that fit to it; whoever comes later waits for
the next batch. A row of a batch ends on its own, and the batch ends with its last row.
"""

from __future__ import annotations

import asyncio
import io
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from transformers import StoppingCriteriaList

from llava_stf.errors import CheckpointError
from llava_stf.inference import LlavaStf, user_turn
from llava_stf.inference.answer_text import AnswerText
from llava_stf.inference.generation import check_one_answer, searches
from llava_stf.inference.prefix import PrefixCache
from llava_stf.inference.reading import Heard, Reading
from llava_stf.models.fusion.budget import token_budgets
from llava_stf.serving.encoder import RequestEncoder
from llava_stf.serving.errors import BusyError
from llava_stf.serving.memory import Memory
from llava_stf.serving.metrics import Metrics
from llava_stf.serving.options import ServeOptions
from llava_stf.serving.request_body import Bounds
from llava_stf.serving.rows import GenerationRequest, Piece, Row, RowStoppingCriteria

logger = logging.getLogger(__name__)

__all__ = ["Engine", "GenerationRequest", "Piece"]

DECODERS = 4
MAX_WAITING_BYTES = 256 * 2**20  # of preprocessed images in the queue
WARM_UP_ROUNDS, WARM_UP_TOKENS = 2, 4


class Engine:
    """Answers requests with one model, in batches.

    Args:
        llava: the model, which nothing else may run as long as the engine does.
        options: `max_batch`, `max_queue`, `max_new_tokens`, `max_images`, `max_image_pixels`, `max_vision_tokens` and
            `max_cache_bytes` are read.
        metrics: where it counts.
        memory: where images are decoded; engines of one server share it.

    Raises:
        CheckpointError: the model has no tokenizer.
        PromptError: its generation settings ask for several answers.
    """

    def __init__(
        self, llava: LlavaStf, options: ServeOptions, metrics: Metrics | None = None, memory: Memory | None = None
    ) -> None:
        if llava.processor is None:
            raise CheckpointError("This checkpoint came without a tokenizer, so it cannot be served.")
        check_one_answer({}, llava.model.generation_config)
        self.llava = llava
        self.options = options
        self.metrics = Metrics() if metrics is None else metrics
        self.memory = Memory() if memory is None else memory
        self.metrics.watch(queue=lambda: len(self._waiting), decoding=lambda: self._decoding)
        self._decode = llava.decoder
        self._encoder = RequestEncoder(llava, options, self.memory)
        self._ends = llava.end_ids
        self._reuses = llava.reuses()
        self._prefixes: PrefixCache | None = None
        if self._reuses and options.max_cache_bytes:
            llava.image_cache.limit = options.max_cache_bytes // 4
            self._prefixes = PrefixCache(options.max_cache_bytes - llava.image_cache.limit)
        self._pool = ThreadPoolExecutor(DECODERS, thread_name_prefix="llava_stf_decode")
        self._worker = threading.Thread(target=self._work, name="llava_stf_engine", daemon=True)
        self._changed = threading.Condition()
        self._waiting: deque[Row] = deque()
        self._decoding = 0  # requests on their way to the queue, which have a place in it already
        self._closed = False

    @property
    def bounds(self) -> Bounds:
        """What a request may hold at most."""
        return self._encoder.bounds

    def warm_up(self) -> None:
        """Answers about a blank image at each count, before it starts: no client pays for what is done once."""
        blank = io.BytesIO()
        Image.new("RGB", (64, 64)).save(blank, "PNG")
        counts = token_budgets(self.llava.model.config)
        for count in counts if len(counts) > 1 else [None]:
            request = GenerationRequest([user_turn("What is it?", 1)], [blank.getvalue()], vision_tokens=count)
            try:
                for _ in range(WARM_UP_ROUNDS):
                    self.llava.generate(
                        self._encoder.batch([self._encoder.encode(request)]), max_new_tokens=WARM_UP_TOKENS
                    )
            except Exception:  # requests may do well all the same
                logger.exception("The model failed at the warm-up with %s vision tokens.", count or counts[0])

    def start(self) -> None:
        """Starts the thread; once is enough."""
        if not self._worker.is_alive():
            self._worker.start()

    def close(self) -> None:
        """Ends the thread when the running batch is done; what waits fails with a sentence. Blocks until then."""
        with self._changed:
            self._closed = True
            left = list(self._waiting)
            self._waiting.clear()
            self._changed.notify_all()
        for row in left:
            row.fail("The server has stopped.")
        if self._worker.is_alive():
            self._worker.join()
        self._pool.shutdown(cancel_futures=True)

    @property
    def is_alive(self) -> bool:
        """Whether requests are answered."""
        return self._worker.is_alive() and not self._closed

    def check_room(self) -> None:
        """Check that another request would be taken now.

        Raises:
            BusyError: it would not.
        """
        if self._closed:
            raise BusyError("The server is about to stop.")
        if self._decoding + len(self._waiting) >= self.options.max_queue:
            raise BusyError(f"{self.options.max_queue} requests wait, and no more are taken; try again in a moment.")

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[Piece, None]:
        """The answer piece by piece; the last one has a `finish_reason`. Closing it ends the row.

        Raises at the first piece:
            BusyError: as many requests wait as may.
            ImageError: an image cannot be read; it is named by its index.
            PromptError: as `LlavaStf.encode`.
            FusionError: as `LlavaStf.encode`.
            ModelFailureError: the model failed, also at a later piece.
        """
        row = await self._submit(request)
        try:
            while True:
                piece = await row.piece()
                yield piece
                if piece.finish_reason is not None:
                    return
        finally:
            self._cancel(row)

    async def _submit(self, request: GenerationRequest) -> Row:
        started = time.perf_counter()
        with self._changed:
            self.check_room()
            self._decoding += 1
        try:
            prepared = self._pool.submit(self._encoder.encode, request)
            prompt = await asyncio.wrap_future(prepared)
            limit = self.options.max_new_tokens if request.max_new_tokens is None else request.max_new_tokens
            row = Row(
                request,
                prompt,
                limit=min(limit, self.llava.positions - len(prompt.ids)),
                text=AnswerText(self._decode, request.stop),
                started=started,
            )
            with self._changed:
                if self._closed:
                    raise BusyError("The server is about to stop.")
                if _image_bytes([*self._waiting, row]) > MAX_WAITING_BYTES and self._waiting:
                    raise BusyError("Too many images wait, and no more are taken; try again in a moment.")
                self._waiting.append(row)
                self._changed.notify_all()
        finally:
            with self._changed:
                self._decoding -= 1
        return row

    def _cancel(self, row: Row) -> None:
        row.cancelled = True
        with self._changed:
            if row in self._waiting:
                self._waiting.remove(row)

    def _work(self) -> None:
        while batch := self._next_batch():
            self.metrics.batch_size.observe(len(batch))
            self.metrics.running.set(len(batch))
            self._answer(batch)
            self.metrics.running.set(0)

    def _next_batch(self) -> list[Row]:
        """The first row that waits and those that fit to it, as soon as there is one; nothing once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            batch: list[Row] = []
            for row in list(self._waiting):
                if len(batch) < self.options.max_batch and (not batch or self._fit(row, batch[0])):
                    batch.append(row)
                    self._waiting.remove(row)
            return batch

    def _fit(self, row: Row, first: Row) -> bool:
        """Whether both can be answered in one batch."""
        return row.request.fits(first.request) and (self._reuses or len({*row.budgets, *first.budgets}) < 2)

    def _answer(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self.metrics.prompt_tokens.inc(row.prompt_tokens)
            self.metrics.image_tokens.inc(row.image_tokens)
        criteria = RowStoppingCriteria(rows, self._take)
        request = rows[0].request
        sampling: dict[str, Any] = {"do_sample": False}
        if request.samples:
            sampling = {"do_sample": True, "temperature": request.temperature, "top_p": request.top_p, "top_k": 0}
        heard, at_once = Heard(), searches({}, self.llava.model.generation_config)
        try:
            with _seeded(request.seed if request.samples else None, self.llava.model.device):
                reading = None
                if self._prefixes is not None:
                    reading = Reading(self.llava, [row.prompt for row in rows], self._prefixes)
                    for row, cached in zip(rows, reading.cached, strict=True):
                        row.cached_tokens = cached
                        self.metrics.cached_tokens.inc(cached)
                inputs = self._encoder.batch([row.prompt for row in rows]) if reading is None else reading.inputs
                whole = self.llava.generate(
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
                row.end(self.metrics)
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
        row.add(token, self._ends, self.metrics)


def _image_bytes(rows: Sequence[Row]) -> int:
    """Of the images of these requests, each counted once."""
    return sum({image.key: image.nbytes for row in rows for image in row.prompt.images}.values())


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
