"""How the requests that wait become batches: the kind that a model takes, with what is kept between them."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable, Sequence
from typing import Protocol

from PIL import Image

from llava_stf.inference import LlavaStf, user_turn
from llava_stf.inference.prefix import PrefixCache
from llava_stf.models.fusion.budget import token_budgets
from llava_stf.serving.continuous_batch import ContinuousBatch, takes_rows
from llava_stf.serving.encoder import RequestEncoder
from llava_stf.serving.metrics import Metrics
from llava_stf.serving.options import ServeOptions
from llava_stf.serving.rows import GenerationRequest, Row
from llava_stf.serving.static_batch import StaticBatch

logger = logging.getLogger(__name__)

WARM_UP_ROUNDS, WARM_UP_TOKENS = 2, 4


class Batch(Protocol):
    """What an engine's thread runs, again and again."""

    @property
    def running(self) -> int:
        """Rows that are being answered."""

    def choose(self, waiting: Iterable[Row]) -> list[Row]:
        """Those of the rows that wait which `run` may take now, in their order."""

    def run(self, new: Sequence[Row]) -> None:
        """Takes new rows, and answers a part of all or the whole; raises nothing that the model does."""


def make_batch(llava: LlavaStf, encoder: RequestEncoder, metrics: Metrics, options: ServeOptions) -> Batch:
    """The batch of a model: rows join it between tokens where they can, else all of a batch begin together."""
    prefixes = None
    if llava.reuses() and options.max_cache_bytes:
        llava.image_cache.limit = options.max_cache_bytes // 4
        prefixes = PrefixCache(options.max_cache_bytes - llava.image_cache.limit)
    if takes_rows(llava):
        return ContinuousBatch(llava, metrics, options.max_batch, prefixes)
    return StaticBatch(llava, encoder, metrics, options.max_batch, prefixes)


def warm_up(llava: LlavaStf, encoder: RequestEncoder) -> None:
    """Answers about a blank image at each count, before a server starts: no client pays for what is done once."""
    blank = io.BytesIO()
    Image.new("RGB", (64, 64)).save(blank, "PNG")
    counts = token_budgets(llava.model.config)
    for count in counts if len(counts) > 1 else [None]:
        request = GenerationRequest([user_turn("What is it?", 1)], [blank.getvalue()], vision_tokens=count)
        try:
            for _ in range(WARM_UP_ROUNDS):
                llava.generate(encoder.batch([encoder.encode(request)]), max_new_tokens=WARM_UP_TOKENS)
        except Exception:  # requests may do well all the same
            logger.exception("The model failed at the warm-up with %s vision tokens.", count or counts[0])
