"""The page's one job: an image and a question go to one engine or, in turn, to several, and cards come back."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llava_stf.analysis.visualise import visualise
from llava_stf.errors import ImageError, LlavaStfError
from llava_stf.images import load_image, read_header
from llava_stf.inference import user_turn
from llava_stf.models.fusion.budget import budget_per_image, num_image_tokens, patch_grid, token_budgets
from llava_stf.models.fusion.tiles import has_tiles
from llava_stf.serving.engine import Engine, GenerationRequest
from llava_stf.serving.memory import Memory, needed
from llava_stf.serving.page_cards import Card, draw_view, draw_whole, render, render_error

if TYPE_CHECKING:
    from PIL.Image import Image

    from llava_stf.serving.options import ServeOptions


@dataclass(frozen=True)
class Budget:
    """One choice of the page: the vision tokens that an engine is asked for, of `patches` in all.

    Where the model cuts images `in_tiles` both are of a tile.
    """

    title: str
    engine: Engine
    vision_tokens: int
    patches: int
    in_tiles: bool = False


def budgets(engines: Sequence[Engine]) -> list[Budget]:
    """What can be chosen: every count that the models serve, a model's default first, by titles such as "25 %"."""
    found: dict[str, Budget] = {}
    for engine in engines:
        config = engine.llava.model.config
        patches, default = patch_grid(config) ** 2, budget_per_image(config)
        for count in sorted(token_budgets(config), key=lambda count: count != default):
            share = f"{100 * count / patches:.3g} %"
            title = share if share not in found else f"{share}, second model"
            found[title] = Budget(title, engine, count, patches, has_tiles(config))
    return list(found.values())


class AnswerHandler:
    """Answers for the page.

    Args:
        budgets: what can be chosen.
        options: limits of images and answers, those of the HTTP routes.
        memory: where images are decoded, that of the engines.
    """

    def __init__(self, budgets: Sequence[Budget], options: ServeOptions, memory: Memory) -> None:
        self.budgets = list(budgets)
        self.options = options
        self._memory = memory

    def check(self, upload: str | None) -> None:
        """Reads the uploaded file.

        Raises:
            ImageError: there is none, or it is broken or too large.
        """
        self._prepare(upload, [])

    async def answer(self, upload: str | None, question: str, chosen: Sequence[Budget]) -> AsyncIterator[str]:
        """HTML of the answers as they grow, one model after the other, so that neither slows the other's clock."""
        try:
            turn = user_turn(question.strip(), 1)
            data, cards = await asyncio.to_thread(self._prepare, upload, chosen)
        except LlavaStfError as error:
            yield render_error(str(error))
            return
        if len(chosen) > 1:  # or the first card would pay for caches gone cold, and for the drawing of both
            yield render(cards)
            for budget in chosen:
                warming = GenerationRequest([turn], [data], vision_tokens=budget.vision_tokens, max_new_tokens=1)
                with suppress(LlavaStfError):  # said on its card
                    async for _ in budget.engine.stream(warming):
                        pass
        for card, budget in zip(cards, chosen, strict=True):
            card.state = "running"
            yield render(cards)
            request = GenerationRequest([turn], [data], vision_tokens=budget.vision_tokens)
            started = time.perf_counter()
            try:
                async for piece in budget.engine.stream(request):
                    if piece.text and card.first_token_seconds is None:
                        card.first_token_seconds = time.perf_counter() - started
                    card.text += piece.text
                    card.prompt_tokens, card.completion_tokens = piece.prompt_tokens, piece.completion_tokens
                    yield render(cards)
                card.seconds = time.perf_counter() - started
            except LlavaStfError as error:
                card.error = str(error)
            card.state = "done"
            yield render(cards)

    def _prepare(self, upload: str | None, chosen: Sequence[Budget]) -> tuple[bytes, list[Card]]:
        """The file of an image, and its cards."""
        if upload is None:
            raise ImageError("There is no image yet: drop one, paste one, or start from an example.")
        try:
            data = Path(upload).read_bytes()
        except OSError as error:
            raise ImageError("The image is no longer on the server; upload it again.") from error
        limit = self.options.max_image_pixels
        try:
            with self._memory.hold(needed(read_header(data, max_pixels=limit))):
                image = load_image(data, max_pixels=limit)
                cards = [_card(budget, image) for budget in chosen]
        except ImageError as error:
            raise ImageError(f"This image cannot be used: {error}") from error
        return data, cards


def _card(budget: Budget, image: Image) -> Card:
    config = budget.engine.llava.model.config
    if budget.in_tiles:
        (count,) = num_image_tokens(config, [(image.height, image.width)], budget.vision_tokens)
        return Card(budget.title, count, draw_whole(image))
    seen = visualise(budget.engine.llava, image)
    window = seen.grid // math.isqrt(budget.vision_tokens)
    return Card(budget.title, budget.vision_tokens, draw_view(seen, window))
