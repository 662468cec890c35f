"""The answers as HTML: a card each, with the image as the model sees it, the words so far, and what they cost."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from html import escape
from typing import Literal

import numpy as np
from PIL import Image

from llava_stf.analysis.visualise import Visualisation

EMPTY = '<div class="empty">The answer appears here.</div>'
VIEW_SIDE = 336  # pixels, of an image that is shown without windows


@dataclass
class Card:
    """One answer, as far as it has come.

    Attributes:
        title: of the budget, for instance "25 %".
        vision_tokens: of the image.
        view: SVG of the image, with its windows where it is one tile.
        text: the answer so far.
        state: whether its turn has come, and is over.
        first_token_seconds: from the request to the first text, queueing included; `None` before it.
        seconds: from the request to the end; `None` before it.
        prompt_tokens: `None` before the end.
        completion_tokens: `None` before the end.
        error: the sentence that stands in place of an answer.
    """

    title: str
    vision_tokens: int
    view: str
    text: str = ""
    state: Literal["waiting", "running", "done"] = "waiting"
    first_token_seconds: float | None = None
    seconds: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    error: str | None = None


def draw_view(seen: Visualisation, window: int) -> str:
    """SVG of what enters the tower, cut into the `window` x `window` patches that become a token each."""
    image = Image.fromarray(np.rint(seen.image * 255).astype(np.uint8))
    places = range(0, seen.grid, window)
    kind, inset = ("windows", 0.04 * window) if window > 1 else ("patches", 0.0)
    side = window - 2 * inset
    boxes = "".join(
        f'<rect x="{left + inset:.3g}" y="{top + inset:.3g}" width="{side:.3g}" height="{side:.3g}"/>'
        for top in places
        for left in places
    )
    label = f"The image in {len(places) ** 2} windows of {window} by {window} patches, a token each"
    return _svg(image, (seen.grid, seen.grid), label, f'<g class="{kind}">{boxes}</g>')


def draw_whole(image: Image.Image) -> str:
    """SVG of an image whose windows lie in tiles, small and without them."""
    small = image.copy()
    small.thumbnail((VIEW_SIDE, VIEW_SIDE))
    return _svg(small, small.size, "The image, which the model cuts into tiles")


def _svg(image: Image.Image, size: tuple[int, int], label: str, above: str = "") -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    data, (width, height) = base64.b64encode(file.getvalue()).decode(), size
    return (
        f'<svg class="view" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">'
        f'<image href="data:image/png;base64,{data}" width="{width}" height="{height}"/>{above}</svg>'
    )


def render(cards: list[Card]) -> str:
    """The cards side by side where there is room."""
    kind = "answers alone" if len(cards) == 1 else "answers"
    return f'<div class="{kind}">{"".join(map(_card, cards))}</div>'


def render_error(sentence: str) -> str:
    """A sentence in place of all answers."""
    return f'<div class="problem" role="alert">{escape(sentence)}</div>'


def _card(card: Card) -> str:
    if card.error is not None:
        body = render_error(card.error)
    else:
        said = escape(card.text)
        if card.state == "done" and not card.text.strip():
            said = '<em class="mark">The model gave an empty answer.</em>'
        body = f'<p class="answer {card.state}">{said}</p>'
    return (
        f'<article class="card"><header><h2>{escape(card.title)}</h2><span>{card.vision_tokens:,} vision tokens</span>'
        f'</header><div class="seen">{card.view}{body}{_costs(card)}</div></article>'
    )


def _costs(card: Card) -> str:
    figures = {
        "first token": _seconds(card.first_token_seconds),
        "whole answer": _seconds(card.seconds),
        "prompt": _tokens(card.prompt_tokens),
        "answer": _tokens(card.completion_tokens),
    }
    rows = "".join(f"<div><dt>{name}</dt><dd>{figure}</dd></div>" for name, figure in figures.items())
    return f'<dl class="costs">{rows}</dl>'


def _seconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1000 * seconds:,.0f} ms" if seconds < 1 else f"{seconds:,.1f} s"


def _tokens(count: int | None) -> str:
    return "–" if count is None else f"{count:,} token{'s' * (count != 1)}"
