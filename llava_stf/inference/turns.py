"""What is said in a turn: a question and the images that it is about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from llava_stf.errors import PromptError
from llava_stf.images import ImageSource

Images = ImageSource | Sequence[ImageSource]
Message = dict[str, Any]
Conversation = Sequence[Message] | str


def user_turn(question: str, images: int) -> Message:
    """One user message about a number of images, which stand before the text unless it holds a marker for each.

    Raises:
        PromptError: the question is no text or empty, or holds another number of `<image>` markers.
    """
    if not isinstance(question, str):
        raise PromptError(f"A question is a text, and stands behind the images; found {type(question).__name__}.")
    markers = question.count("<image>")
    if not question.replace("<image>", "").strip():
        raise PromptError("The question is empty; ask something.")
    if markers not in (0, images):
        raise PromptError(
            f"The question holds {markers} <image> markers for {images} images; write one per image, or none."
        )
    places = [] if markers else [{"type": "image"}] * images
    return {"role": "user", "content": [*places, {"type": "text", "text": question}]}


def as_list(images: Images, *, required: bool = False) -> list[ImageSource]:
    """One source or a list of them as a list.

    Raises:
        PromptError: there is none where there has to be one.
    """
    sources = list(images) if isinstance(images, (list, tuple)) else [cast("ImageSource", images)]
    if required and not sources:
        raise PromptError("There is no image; give at least one.")
    return sources
