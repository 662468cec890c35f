"""One thread that owns the model and answers the requests that wait, together where they can be.

Prompts are encoded (see `RequestEncoder`) in other threads, before a request enters the queue, so that what waits is
small. Where the model allows it they join a running batch between two tokens (`ContinuousBatch`), else one batch after
the other is answered (`StaticBatch`).
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor

from llava_stf.errors import CheckpointError
from llava_stf.inference import LlavaStf
from llava_stf.inference.answer_text import AnswerText
from llava_stf.inference.generation import check_one_answer
from llava_stf.serving.batching import make_batch, warm_up
from llava_stf.serving.encoder import RequestEncoder
from llava_stf.serving.errors import BusyError
from llava_stf.serving.memory import Memory
from llava_stf.serving.metrics import Metrics
from llava_stf.serving.options import ServeOptions
from llava_stf.serving.request_body import Bounds
from llava_stf.serving.rows import GenerationRequest, Piece, Row

__all__ = ["Engine", "GenerationRequest", "Piece"]

DECODERS = 4
MAX_WAITING_BYTES = 256 * 2**20  # of preprocessed images in the queue


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
        self._decode = llava.decoder
        self._encoder = RequestEncoder(llava, options, self.memory)
        self._batch = make_batch(llava, self._encoder, self.metrics, options)
        self._pool = ThreadPoolExecutor(DECODERS, thread_name_prefix="llava_stf_decode")
        self._worker = threading.Thread(target=self._work, name="llava_stf_engine", daemon=True)
        self._changed = threading.Condition()
        self._waiting: deque[Row] = deque()
        self._decoding = 0  # requests on their way to the queue, which have a place in it already
        self._closed = False
        self.metrics.watch(
            queue=lambda: len(self._waiting), decoding=lambda: self._decoding, running=lambda: self._batch.running
        )

    @property
    def bounds(self) -> Bounds:
        """What a request may hold at most."""
        return self._encoder.bounds

    def warm_up(self) -> None:
        """Lets the model do once what it does at its first requests, before the thread starts."""
        warm_up(self.llava, self._encoder)

    def start(self) -> None:
        """Starts the thread; once is enough."""
        if not self._worker.is_alive():
            self._worker.start()

    def close(self) -> None:
        """Ends the thread when all that runs is answered; what waits fails with a sentence. Blocks until then."""
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
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._batch.running or self._closed)
                new = self._batch.choose(self._waiting)
                for row in new:
                    self._waiting.remove(row)
            if not new and not self._batch.running:  # closed
                return
            self._batch.run(new)


def _image_bytes(rows: Sequence[Row]) -> int:
    """Of the images of these requests, each counted once."""
    return sum({image.key: image.nbytes for row in rows for image in row.prompt.images}.values())
