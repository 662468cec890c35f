"""One request on its way through the engine: what is asked, the row of a batch that it becomes, and what comes back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from PIL import Image

from llava_stf.inference import Conversation, Detail, VisionTokens
from llava_stf.inference.answer_text import AnswerText
from llava_stf.inference.prefix import Prompt
from llava_stf.serving import request_id
from llava_stf.serving.errors import ModelFailureError
from llava_stf.serving.metrics import Metrics

FinishReason = Literal["stop", "length"]
# Below it logits divided by it leave the range of floats, and the likeliest token is all that is left to draw.
MIN_TEMPERATURE = 1e-3


@dataclass(frozen=True)
class GenerationRequest:
    """What is asked of an engine.

    Attributes:
        conversation: messages in Hugging Face's form, or a prompt as the model is to read it.
        images: one for each place in the conversation, in order: the bytes of a file, or a PIL image.
        vision_tokens: tokens per image, also in a word; `None` takes the model's default.
        details: for each image a word in place of that, or `None`.
        max_vision_tokens: most tokens that all images take; `None` takes the server's.
        max_new_tokens: longest answer; `None` takes the server's.
        temperature: 0 is greedy decoding.
        top_p: draws from the likeliest tokens that together have this probability.
        stop: texts that end the answer and are not part of it.
        seed: of the draws, which others do not change.
    """

    conversation: Conversation
    images: Sequence[bytes | Image.Image] = ()
    vision_tokens: VisionTokens | Detail = None
    details: Sequence[Detail | None] = ()
    max_vision_tokens: int | None = None
    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn at random."""
        return self.temperature >= MIN_TEMPERATURE

    @property
    def generate_options(self) -> dict[str, Any]:
        """The keywords of `generate` with which its tokens are chosen."""
        options = {"prompt_lookup_num_tokens": None, "return_dict_in_generate": False, "do_sample": self.samples}
        drawn = {"temperature": self.temperature, "top_p": self.top_p, "top_k": 0} if self.samples else {}
        return {**options, **drawn}

    def fits(self, other: GenerationRequest) -> bool:
        """Whether the tokens of both are chosen in one way, as those of one `generate` are."""
        if self.samples != other.samples:
            return False
        sampling = (self.temperature, self.top_p), (other.temperature, other.top_p)
        return not self.samples or (self.seed is None and other.seed is None and sampling[0] == sampling[1])


@dataclass(frozen=True)
class Piece:
    """A piece of an answer.

    Attributes:
        text: goes behind the pieces before; it may be empty in the last one.
        prompt_tokens: of the request, image tokens included.
        image_tokens: of the request.
        completion_tokens: of the answer so far.
        finish_reason: of the last piece: "stop" at the model's end or a stop string, "length" where there is no room.
        cached_tokens: of the request, which had been read before.
        budgets: tokens of each image of the request, or of a tile of it.
    """

    text: str
    prompt_tokens: int
    image_tokens: int
    completion_tokens: int
    finish_reason: FinishReason | None = None
    cached_tokens: int = 0
    budgets: Sequence[int] = ()


class Row:
    """One request in the queue or in a batch; written by the engine's thread, read by the event loop that asked.

    Args:
        request: what is asked.
        prompt: its ids and images.
        limit: most new tokens.
        text: its answer, empty so far.
        started: `time.perf_counter` at which it came.
    """

    def __init__(
        self,
        request: GenerationRequest,
        prompt: Prompt,
        *,
        limit: int,
        text: AnswerText,
        started: float,
    ) -> None:
        self.request = replace(request, images=())  # they are in the prompt, and would only take memory
        self.request_id = request_id.current()
        self.prompt = prompt
        self.prompt_tokens = len(prompt.ids)
        self.image_tokens = sum(image.count for image in prompt.images)
        self.budgets = [image.budget for image in prompt.images]
        self.cached_tokens = 0
        self.limit = limit
        self.cancelled = False
        self.done = False
        self.completion_tokens = 0
        self.started = started
        self._text = text
        self._pieces: asyncio.Queue[Piece | ModelFailureError] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    @property
    def over(self) -> bool:
        """Whether no token is wanted any more: the answer is whole, or its client has left."""
        return self.done or self.cancelled

    def begin(self, cached_tokens: int, metrics: Metrics) -> None:
        """Takes note that the prompt is read, but for so many tokens that had been read before."""
        self.cached_tokens = cached_tokens
        metrics.prompt_tokens.inc(self.prompt_tokens)
        metrics.image_tokens.inc(self.image_tokens)
        metrics.cached_tokens.inc(cached_tokens)

    def add(self, token: int, ends: frozenset[int], metrics: Metrics) -> None:
        """Takes the next id of the answer; one that comes behind the end is none of it."""
        if self.over:
            return
        if not self.completion_tokens:
            metrics.first_token.observe(time.perf_counter() - self.started)
        self.completion_tokens += 1
        fresh, stopped = ("", False) if token in ends else self._text.add(token)
        if stopped:
            self._finish(fresh, "stop", metrics)
        elif token in ends:
            self._finish(self._text.finish(), "stop", metrics)
        elif self.completion_tokens == self.limit:
            self._finish(fresh + self._text.finish(), "length", metrics)
        elif fresh:
            self._put(self._piece(fresh))

    def end(self, metrics: Metrics) -> None:
        """Ends the answer where the model's generation settings have ended it, at a stop string of theirs for one."""
        if not self.over:
            self._finish(self._text.finish(), "stop", metrics)

    def fail(self, sentence: str) -> None:
        """Gives the reader an error in place of what is missing."""
        if not self.done:
            self.done = True
            self._put(ModelFailureError(sentence))

    async def piece(self) -> Piece:
        """The next piece.

        Raises:
            ModelFailureError: the model failed.
        """
        piece = await self._pieces.get()
        if isinstance(piece, ModelFailureError):
            raise piece
        return piece

    def _finish(self, text: str, reason: FinishReason, metrics: Metrics) -> None:
        self.done = True
        metrics.completion_tokens.inc(self.completion_tokens)
        metrics.request.observe(time.perf_counter() - self.started)
        self._put(self._piece(text, reason))

    def _piece(self, text: str, reason: FinishReason | None = None) -> Piece:
        counts = self.prompt_tokens, self.image_tokens, self.completion_tokens
        return Piece(text, *counts, reason, self.cached_tokens, self.budgets)

    def _put(self, item: Piece | ModelFailureError) -> None:
        try:
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, item)
        except RuntimeError:  # the reader's event loop has been closed
            self.cancelled = True


def fail_all(rows: Sequence[Row]) -> None:
    """Tells rows that the model failed."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    for row in rows:
        row.fail("The model failed at this request or at one that it was answered with; the log says why.")


def request_ids(rows: Sequence[Row]) -> str:
    """Which requests these are, for the log."""
    return ", ".join(row.request_id for row in rows if row.request_id) or "the page's"
