"""What a client sends to OpenAI's routes, checked, and as a request for the engine.

A field that is not known is refused, as it may change the answer; those of `HARMLESS` are passed over.
"""

from __future__ import annotations

import re
from functools import cached_property
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_validator

from llava_stf.errors import PromptError
from llava_stf.inference import Detail, Message
from llava_stf.models.fusion.detail import DETAILS
from llava_stf.models.llava_stf.chunks import IMAGE_TOKEN
from llava_stf.serving.errors import RequestError
from llava_stf.serving.known_fields import HARMLESS, refuse_unknown
from llava_stf.serving.request_body import Bounds, ParsedBody, parse_body
from llava_stf.serving.rows import GenerationRequest

_COMPLETION_TOKENS = 16  # OpenAI's default for the older route
_FIELD = re.compile("(?!(str|int|bool|float)$)[a-z_]+")  # in the path to a fault, where kinds of values stand, too
Body = TypeVar("Body", bound="_Request")
_Stop = Annotated[str, Field(min_length=1, max_length=256)]


class _ImageUrl(BaseModel):
    url: str = Field(min_length=1)
    detail: Detail | None = None


class _Part(BaseModel):
    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: _ImageUrl | str | None = None

    @model_validator(mode="after")
    def _whole(self) -> _Part:
        other = "image_url" if self.type == "text" else "text"
        if getattr(self, self.type) is None or self.url == "":
            needed = "its 'text'" if self.type == "text" else "an 'image_url' with its 'url'"
            raise ValueError(f"a part of type '{self.type}' needs {needed}")
        if getattr(self, other) is not None:
            raise ValueError(f"a part of type '{self.type}' holds no '{other}'; give that a part of its own")
        return self

    @property
    def url(self) -> str | None:
        """The address of an image."""
        return self.image_url.url if isinstance(self.image_url, _ImageUrl) else self.image_url


class _ChatMessage(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[_Part], Field(fail_fast=True)] | None

    @model_validator(mode="after")
    def _said(self) -> _ChatMessage:
        if self.content is None and self.role != "assistant":
            raise ValueError(f"a message of the {self.role} needs its content")
        return self

    @cached_property
    def parts(self) -> list[_Part]:
        """The content as parts."""
        return self.content if isinstance(self.content, list) else [_Part(type="text", text=self.content or "")]


class _StreamOptions(BaseModel):
    include_usage: bool | None = None


class _Request(BaseModel):
    """What both routes take."""

    model: str | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    stop: _Stop | Annotated[list[_Stop], Field(max_length=16, fail_fast=True)] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stream: bool | None = None
    stream_options: _StreamOptions | None = None

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def sampling(self) -> dict[str, Any]:
        """The fields of a `GenerationRequest` that say how tokens are chosen; greedily unless told otherwise."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return {
            "temperature": self.temperature or 0.0,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "stop": tuple(stop),
            "seed": self.seed,
        }


class ChatRequest(_Request):
    """A body of `/v1/chat/completions`."""

    messages: list[_ChatMessage] = Field(min_length=1, fail_fast=True)
    max_completion_tokens: int | None = Field(None, ge=1)
    vision_tokens: Annotated[int, Field(ge=1)] | Literal["all"] | Detail | None = None
    max_vision_tokens: int | None = Field(None, ge=1)
    mm_processor_kwargs: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _one_count(self) -> ChatRequest:
        unknown = sorted(set(self.mm_processor_kwargs or {}) - {"vision_tokens"})
        if unknown:
            raise ValueError(f"mm_processor_kwargs may hold vision_tokens alone, found {unknown[0]:.80}")
        asked = (self.mm_processor_kwargs or {}).get("vision_tokens")
        if asked is not None:
            if self.vision_tokens not in (None, asked):
                raise ValueError("vision_tokens and mm_processor_kwargs ask for different counts")
            if asked not in ("all", *DETAILS) and not (isinstance(asked, int) and asked >= 1):
                raise ValueError("vision_tokens must be a count, 'all', 'low', 'high' or 'auto'")
            self.vision_tokens = asked
        if self.vision_tokens is not None and not {*self.details()} <= {None, "auto", self.vision_tokens}:
            raise ValueError("an image's detail and vision_tokens ask for different counts; leave out one of them")
        return self

    def urls(self) -> list[str]:
        """The addresses of all images, in their order."""
        return [part.url for message in self.messages for part in message.parts if part.url is not None]

    def details(self) -> list[Detail | None]:
        """What is asked of each image, in their order."""
        images = [part.image_url for message in self.messages for part in message.parts if part.url is not None]
        return [image.detail if isinstance(image, _ImageUrl) else None for image in images]

    def request(self, images: list[bytes]) -> GenerationRequest:
        """What the engine is asked, with the images behind `urls`; a count for all of them stands over "auto" of one.

        Raises:
            PromptError: a turn that is none.
        """
        return GenerationRequest(
            [_message(message) for message in self.messages],
            images,
            vision_tokens=self.vision_tokens,
            details=self.details() if self.vision_tokens is None else (),
            max_vision_tokens=self.max_vision_tokens,
            max_new_tokens=self.max_completion_tokens or self.max_tokens,
            **self.sampling,
        )


class CompletionRequest(_Request):
    """A body of `/v1/completions`."""

    prompt: str | Annotated[list[str], Field(fail_fast=True)]

    def request(self) -> GenerationRequest:
        """What the engine is asked.

        Raises:
            PromptError: several prompts, an empty one, or a place for an image.
        """
        prompts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        if len(prompts) != 1 or not prompts[0]:
            raise PromptError(f"A request completes one prompt that is not empty, found {len(prompts)}.")
        prompt = prompts[0]
        if IMAGE_TOKEN in prompt:
            raise PromptError(f"A completion has no images, and the prompt holds {IMAGE_TOKEN}; use chat completions.")
        return GenerationRequest(prompt, max_new_tokens=self.max_tokens or _COMPLETION_TOKENS, **self.sampling)


_OF_MESSAGE = frozenset((
    *_ChatMessage.model_fields, "annotations", "cache_control", "id", "name", "reasoning", "reasoning_content",
))  # fmt: skip
_OF_PART = frozenset((*_Part.model_fields, "cache_control", "uuid"))
_OF_IMAGE_URL = frozenset(_ImageUrl.model_fields)
_OF_STREAM_OPTIONS = frozenset((*_StreamOptions.model_fields, "include_obfuscation"))


def parse(kind: type[Body], body: bytearray, bounds: Bounds) -> tuple[Body, ParsedBody]:
    """A body as what it should be, and its images.

    Raises:
        RequestError: With the first fault in a sentence.
        PromptError: More than the model's context can be asked for.
        ImageError: Too many images.
    """
    parsed = parse_body(body, bounds)
    _check_fields(parsed.fields, kind)
    try:
        return kind.model_validate(parsed.fields), parsed
    except ValidationError as error:
        # Where several kinds of value are allowed there is a fault for each; the deepest is of the kind that was meant.
        fault = max(error.errors(include_url=False, include_input=False), key=lambda fault: len(fault["loc"]))
        place = ".".join(str(part) for part in fault["loc"] if isinstance(part, int) or _FIELD.fullmatch(part))
        sentence = fault["msg"].removeprefix("Value error, ")
        raise RequestError(f"{place}: {sentence}." if place else f"{sentence}.", param=place or None) from error


def _check_fields(fields: dict[str, Any], kind: type[_Request]) -> None:
    """Raises `RequestError` for a field that may change the answer and cannot be obeyed."""
    refuse_unknown(fields, HARMLESS | kind.model_fields.keys(), "")
    refuse_unknown(fields.get("stream_options"), _OF_STREAM_OPTIONS, "stream_options.")
    messages = fields.get("messages") if kind is ChatRequest else None
    for index, message in enumerate(messages if isinstance(messages, list) else []):
        refuse_unknown(message, _OF_MESSAGE, f"messages.{index}.")
        parts = message.get("content") if isinstance(message, dict) else None
        for number, part in enumerate(parts if isinstance(parts, list) else []):
            place = f"messages.{index}.content.{number}."
            refuse_unknown(part, _OF_PART, place)
            if isinstance(part, dict):
                refuse_unknown(part.get("image_url"), _OF_IMAGE_URL, f"{place}image_url.")


def _message(message: _ChatMessage) -> Message:
    """A message in Hugging Face's form. Its images stand before the text, unless that holds a marker for each."""
    texts = [part.text for part in message.parts if part.text is not None]
    images = len(message.parts) - len(texts)
    markers = sum(text.count(IMAGE_TOKEN) for text in texts)
    if images and message.role != "user":
        raise PromptError(f"Images are for messages of the user, found one in a message of the {message.role}.")
    if markers not in (0, images) or (markers and message.role != "user"):
        raise PromptError(
            f"A message holds {markers} {IMAGE_TOKEN} markers for {images} images; write one per image, or none."
        )
    if message.role == "user" and not "".join(texts).replace(IMAGE_TOKEN, "").strip():
        raise PromptError("A message of the user has no text; ask something.")
    places = [] if markers else [{"type": "image"}] * images
    role = "system" if message.role == "developer" else message.role
    return {"role": role, "content": [*places, *({"type": "text", "text": text} for text in texts)]}
