"""What a record of a data set says, in LLaVA's form or in Hugging Face's: its images, its conversation, its length.

LLaVA: `{"id", "image", "conversations": [{"from": "human" | "gpt", "value"}]}`, `image` a path or a list of paths.
Hugging Face: `{"id", "images", "messages": [{"role": "user" | "assistant", "content"}]}`, `content` a text or a list of
`{"type": "image"}` and `{"type": "text", "text"}`; `images` paths, bytes, or what a column of images holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from PIL import Image

from llava_stf.errors import DataError
from llava_stf.models.llava_stf.chunks import IMAGE_TOKEN

Reason = Literal[
    "no record",
    "other media",
    "turn order",
    "broken text",
    "image markers",
    "missing image",
    "broken image",
    "too long",
    "no target",
]
REASONS: tuple[Reason, ...] = get_args(Reason)
CONVERSATION_FIELDS = ("conversations", "messages")
# What a record can hold that nothing here looks at or listens to.
_OTHER_MEDIA = ("video", "videos", "audio", "audios")
_LONGEST_PATH, _LONGEST_NAME, _LONGEST_MESSAGE = 4096, 200, 600

_SPEAKERS = {"user": "human", "assistant": "gpt"}


class SampleError(DataError):
    """One sample cannot be trained on: `reason` is the kind of reason, `sample_id` names the sample.

    The sentence may quote the sample: it is cut to a length that one reads, and to characters that can be printed.
    """

    def __init__(self, reason: Reason, sample_id: str, sentence: str) -> None:
        super().__init__(printable(sentence, _LONGEST_MESSAGE))
        self.reason: Reason = reason
        self.sample_id = sample_id


def sample_id(record: Mapping[str, Any], number: int) -> str:
    """The record's `id`, or its number in the data set; what is too long for a name is cut."""
    name = record.get("id")
    return printable(str(number if name in (None, "") else name), _LONGEST_NAME)


def printable(text: str, length: int) -> str:
    """The first `length` characters on one line; what cannot be printed (a newline, half of a pair) as an escape."""
    shown = (one if one.isprintable() else one.encode("unicode_escape").decode() for one in text[:length])
    return "".join(shown) + "..." * (len(text) > length)


def check_media(record: Mapping[str, Any]) -> None:
    """Check that what the record has to see or hear is images.

    Raises:
        DataError: it has something else.
    """
    found = [name for name in _OTHER_MEDIA if record.get(name)]
    if found:
        raise DataError(f"it has {' and '.join(map(repr, found))}, and only text and images can be used")


def conversation(record: Mapping[str, Any]) -> Sequence[Mapping[str, str]]:
    """The turns in LLaVA's form; `messages` come with a marker and a newline per image in front of their text.

    Raises:
        DataError: messages that are no chat of text and images.
    """
    messages = record.get("messages")
    if messages is None:
        return record.get("conversations") or ()
    try:
        return [_turn(message["role"], message["content"]) for message in messages]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"every message must have a 'role' and a 'content' of text and images, found {messages!r:.200}"
        ) from error


def record_images(record: Mapping[str, Any], folder: Path) -> list[Path | bytes | Image.Image]:
    """The record's images in order; paths start from `folder`.

    Raises:
        DataError: something in place of an image is none.
    """
    if record.get("images") and record.get("image"):
        raise DataError("it has both 'image' and 'images': leave out one of them")
    found = record.get("images") or record.get("image") or []
    found = found if isinstance(found, list) else [found]
    return [_image(item, folder) for item in found]


def signed_length(record: Any) -> int:
    """Words of all turns, negative where there is no image, as LLaVA groups by; 0 for what is no conversation.

    Words are what ASCII spaces separate, so that UTF-8 read as Latin-1 has as many.
    """
    try:
        texts = [turn["value"] for turn in conversation(record)]
        words = sum(len(text.encode().split()) for text in texts)
    except (DataError, KeyError, TypeError, AttributeError, UnicodeEncodeError):
        return 0
    return words if any(IMAGE_TOKEN in text for text in texts) else -words


def _turn(role: str, content: Any) -> dict[str, str]:
    if not isinstance(content, str):
        unknown = {item["type"] for item in content} - {"image", "text"}
        if unknown:
            raise DataError(f"a message is made of text and images, found content of type {', '.join(unknown)}")
        marks = [IMAGE_TOKEN for item in content if item["type"] == "image"]
        content = "\n".join([*marks, *(item["text"] for item in content if item["type"] == "text")])
    return {"from": _SPEAKERS.get(role, role), "value": content}


def _image(item: Any, folder: Path) -> Path | bytes | Image.Image:
    if isinstance(item, Mapping):  # an undecoded cell of a `datasets` image column
        item = item.get("path") if item.get("bytes") is None else item["bytes"]
    if isinstance(item, str) and len(item) > _LONGEST_PATH:
        raise DataError(
            f"'image' must be a path, found a text of {len(item):,} characters, {item:.40}...: write it to a file"
        )
    if isinstance(item, str):
        return folder / item
    if isinstance(item, bytes | Image.Image):
        return item
    raise DataError(f"'image' must be a path or a list of paths, found {item!r:.80}")
