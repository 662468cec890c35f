"""The JSON of a request: images are cut out, what cannot fit into the model's context is refused, the rest is parsed.

Parsing holds the interpreter, and with it every other request. So the long strings, images as data: URLs, never come
to the parser, and what is left is as short as the context lets it be.
"""

from __future__ import annotations

import binascii
import re
import secrets
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

from llava_stf.errors import ImageError, PromptError
from llava_stf.serving.errors import RequestError

_BOM = b"\xef\xbb\xbf"
_DATA_URL = re.compile(rb'"(data:[^",]{0,200};base64,)', re.IGNORECASE)
_SHORT = 1024  # bytes of an image that is not worth cutting out
_SLICE = 4 * 2**20  # bytes that are looked at in one go, with the interpreter held
_MAX_CUTS = 1024
# Stands for an image that was cut out; no client knows it.
_PLACEHOLDER = f"data:{secrets.token_hex(8)};"


@dataclass(frozen=True)
class Bounds:
    """What a request may hold at most, whatever its tokens are.

    Attributes:
        tokens: Positions of the model; a message and a part take one at least.
        characters: Of all texts together, `tokens` times those of the longest token.
        images: Of one request.
    """

    tokens: int
    characters: int
    images: int

    @property
    def json_bytes(self) -> int:
        """Of a body without its images: 6 a character, which may be escaped, names, and other fields."""
        return 6 * self.characters + 256 * self.tokens + 2**18

    @property
    def brackets(self) -> int:
        """Objects and lists of a body, with a quarter of its text being brackets, too."""
        return self.characters // 4 + 8 * self.tokens + 1024


@dataclass(frozen=True)
class ParsedBody:
    """A body as values.

    Attributes:
        fields: What the JSON holds.
        images: The base64 of each image that was cut out, by the text that stands for its URL in `fields`.
    """

    fields: dict[str, Any]
    images: dict[str, memoryview | bytes]


def parse_body(data: bytearray, bounds: Bounds) -> ParsedBody:
    """The values of a body that can fit.

    Raises:
        RequestError: It is no JSON object, or holds an image where none is read.
        PromptError: It holds more messages, parts or text than the model's context.
        ImageError: It holds too many images.
    """
    pieces, images = _cut_images(data)
    length = sum(map(len, pieces))
    if length > bounds.json_bytes:
        raise RequestError(
            f"The request has {length:,} bytes beside its images, and this model reads texts of {bounds.characters:,} "
            "characters at most: ask shorter, and send images as data:image/...;base64,... in parts of type image_url."
        )
    json = b"".join(pieces)
    if json.count(b"[") + json.count(b"{") > bounds.brackets:
        raise RequestError(
            f"The request has more than {bounds.brackets:,} objects and lists, and the model takes {bounds.tokens:,} "
            "tokens; send fewer messages and fields."
        )
    try:
        fields = from_json(json, allow_inf_nan=False, cache_strings="keys")
    except ValueError as error:
        raise RequestError(f"The body is no JSON: {error}.") from error
    if not isinstance(fields, dict):
        raise RequestError("The body of a request is a JSON object with its fields.")
    asked = _check_size(fields, bounds)
    if not images.keys() <= asked:
        raise RequestError(
            "An image stands where none is read: send it as a part {'type': 'image_url', 'image_url': {'url': ...}} of "
            "a message of the user."
        )
    return ParsedBody(fields, images)


def decode_base64(data: memoryview | bytes, max_bytes: int) -> bytes:
    """The file that stands there in base64.

    Raises:
        ImageError: It is longer than `max_bytes`, or no base64.
    """
    if 3 * len(data) // 4 - 2 > max_bytes:
        raise ImageError(f"it has more than {max_bytes:,} bytes.")
    decoded = bytearray()
    for start in range(0, len(data), _SLICE):
        part = data[start : start + _SLICE]
        try:
            decoded += binascii.a2b_base64(part, strict_mode=True)
        except binascii.Error as error:
            raise ImageError("its data: URL is not base64.") from error
        if start + _SLICE < len(data) and len(decoded) != 3 * (start + _SLICE) // 4:
            raise ImageError("its data: URL is not base64.")
    if len(decoded) > max_bytes:
        raise ImageError(f"it has more than {max_bytes:,} bytes.")
    return bytes(decoded)


def _cut_images(data: bytearray) -> tuple[list[memoryview | bytes], dict[str, memoryview | bytes]]:
    """The body in pieces, placeholders among them, and what they stand for.

    In JSON an unescaped quote before a letter opens a string, and the next one closes it if no backslash is between.
    """
    view = memoryview(data)
    pieces: list[memoryview | bytes] = []
    images: dict[str, memoryview | bytes] = {}
    done = len(_BOM) if data.startswith(_BOM) else 0
    at = done
    for _ in range(_MAX_CUTS):
        at = _find(data, b'"data:', at)
        if at < 0:
            break
        found = _DATA_URL.match(data, at)
        end = _find(data, b'"', at + 1)
        if found is None or end - at < _SHORT or data[at - 1 : at] == b"\\":
            at += 1
            continue
        image: memoryview | bytes = view[found.end() : end]
        if _find(data, b"\\", at, end) >= 0:  # a slash may be escaped, and anything else is left to the parser
            image = bytes(image).replace(b"\\/", b"/")
            if b"\\" in image:
                at = end
                continue
        name = f"{_PLACEHOLDER}{len(images)}"
        images[name] = image
        pieces += [view[done : at + 1], name.encode()]
        done = at = end
    return [*pieces, view[done:]], images


def _find(data: bytearray, what: bytes, start: int, end: int | None = None) -> int:
    """`data.find`, with the interpreter let go now and then."""
    end = len(data) if end is None else end
    while start < end:
        stop = min(end, start + _SLICE)
        at = data.find(what, start, min(end, stop + len(what) - 1))
        if at >= 0:
            return at
        start = stop
    return -1


def _check_size(fields: dict[str, Any], bounds: Bounds) -> set[str]:
    """Refuses what cannot fit, before anything is made of it; the addresses of the images in their places."""
    messages = fields.get("messages")
    if not isinstance(messages, list):
        return set()
    contents = [message.get("content") for message in messages if isinstance(message, dict)]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    for found, what in ((len(messages), "messages"), (len(parts), "parts")):
        if found > bounds.tokens:
            raise PromptError(
                f"The request has {found:,} {what}, and the model takes {bounds.tokens:,} tokens; send fewer."
            )
    texts = [*contents, *(part.get("text") for part in parts if isinstance(part, dict))]
    characters = sum(len(text) for text in texts if isinstance(text, str))
    if characters > bounds.characters:
        raise PromptError(
            f"The prompt has {characters:,} characters, and the model takes {bounds.tokens:,} tokens; ask shorter."
        )
    urls = [_url(part) for part in parts if isinstance(part, dict) and part.get("type") == "image_url"]
    if len(urls) > bounds.images:
        raise ImageError(f"A request may hold {bounds.images} images, found {len(urls)}.")
    return {url for url in urls if isinstance(url, str)}


def _url(part: dict[str, Any]) -> Any:
    url = part.get("image_url")
    return url.get("url") if isinstance(url, dict) else url
