"""What is said in a turn: a question and the images and videos that it is about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from PIL import Image

from llava_stf.errors import PromptError
from llava_stf.images import ImageSource, load_image
from llava_stf.images.frames import Video, is_video

Visual = ImageSource | Video
Images = Visual | Sequence[Visual]
Message = dict[str, Any]
Conversation = Sequence[Message] | str


def user_turn(question: str, images: int, videos: int = 0) -> Message:
    """One user message about a number of images and videos, which stand before the text unless it holds their markers.

    Raises:
        PromptError: the question is no text or empty, or holds another number of `<image>` or, with videos, `<video>`
            markers.
    """
    if not isinstance(question, str):
        raise PromptError(f"A question is a text, and stands behind the images; found {type(question).__name__}.")
    counts = {"image": images, "video": videos} if videos else {"image": images}
    markers = {kind: question.count(f"<{kind}>") for kind in counts}
    text = question
    for kind in counts:
        text = text.replace(f"<{kind}>", "")
    if not text.strip():
        raise PromptError("The question is empty; ask something.")
    marked = any(markers.values())
    for kind, count in counts.items():
        if marked and markers[kind] != count:
            raise PromptError(
                f"The question holds {markers[kind]} <{kind}> markers for {count} {kind}s; write one per {kind}, or "
                "none."
            )
    places = [] if marked else [{"type": kind} for kind, count in counts.items() for _ in range(count)]
    return {"role": "user", "content": [*places, {"type": "text", "text": question}]}


def turn_about(question: str, sources: Sequence[Any]) -> Message:
    """`user_turn` about what these sources are."""
    videos = sum(map(is_video, sources))
    return user_turn(question, len(sources) - videos, videos)


def load_visual(source: Visual) -> Image.Image | Video:
    """A source as `load_image` reads it, or as `Video` does where it is one.

    Raises:
        ImageError: the image cannot be read.
        VideoError: the video cannot be read.
    """
    if isinstance(source, Video):
        return source
    return Video(cast("Any", source)) if is_video(source) else load_image(source)


def as_list(images: Images, *, required: bool = False) -> list[Visual]:
    """One source or a list of them as a list.

    Raises:
        PromptError: there is none where there has to be one.
    """
    sources = list(images) if isinstance(images, (list, tuple)) else [cast("Visual", images)]
    if required and not sources:
        raise PromptError("There is no image; give at least one.")
    return sources
