"""What a client sends to OpenAI's routes, checked, and as a request for the engine.

A field that changes the answer and cannot be obeyed is refused; others that are not known are passed over, as clients
send many.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from llava_stf.errors import PromptError
from llava_stf.inference import Message
from llava_stf.models.llava_stf.conversation import IMAGE_TOKEN
from llava_stf.serving.errors import RequestError
from llava_stf.serving.rows import GenerationRequest

# Fields that change the answer, and the values with which they do not.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "ignore_eos": (False,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "min_p": (0,),
    "min_tokens": (0,),
    "modalities": (["text"],),
    "n": (1,),
    "presence_penalty": (0,),
    "prompt_logprobs": (),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "stop_token_ids": ([],),
    "structured_outputs": (),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_k": (-1, 0),
    "top_logprobs": (0,),
    "use_beam_search": (False,),
}
_COMPLETION_TOKENS = 16  # OpenAI's default for the older route
_FIELD = re.compile("(?!(str|int|bool|float)$)[a-z_]+")  # in the path to a reason, where kinds of values stand, too
Body = TypeVar("Body", bound="_Request")
_Stop = Annotated[str, Field(min_length=1, max_length=256)]


class _Part(BaseModel):
    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: dict[str, Any] | str | None = None

    @model_validator(mode="after")
    def _whole(self) -> _Part:
        if self.type == "text" and self.text is None:
            raise ValueError("a part of type 'text' needs its 'text'")
        if self.type == "image_url" and not self.url:
            raise ValueError("a part of type 'image_url' needs an 'image_url' with its 'url'")
        return self

    @property
    def url(self) -> str:
        """The address of an image; empty where there is none."""
        url = self.image_url.get("url") if isinstance(self.image_url, dict) else self.image_url
        return url if isinstance(url, str) else ""


class _ChatMessage(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_Part]

    @property
    def parts(self) -> list[_Part]:
        """The content as parts."""
        return [_Part(type="text", text=self.content)] if isinstance(self.content, str) else self.content


class _StreamOptions(BaseModel):
    include_usage: bool = False


class _Request(BaseModel):
    """What both routes take."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    stop: _Stop | Annotated[list[_Stop], Field(max_length=16)] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stream: bool = False
    stream_options: _StreamOptions | None = None

    def check_extra(self) -> None:
        """Raises `RequestError` for a field that changes the answer and cannot be obeyed."""
        for name, value in (self.model_extra or {}).items():
            if name in _NEUTRAL and value is not None and value not in _NEUTRAL[name]:
                raise RequestError(
                    f"{name}: {json.dumps(value)[:80]} is not supported by this server; leave the field out.",
                    param=name,
                )

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return self.stream_options is not None and self.stream_options.include_usage

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

    messages: list[_ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    vision_tokens: Annotated[int, Field(ge=1)] | Literal["all"] | None = None
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
            if asked != "all" and not (isinstance(asked, int) and asked >= 1):
                raise ValueError("vision_tokens must be a count or 'all'")
            self.vision_tokens = asked
        return self

    def urls(self) -> Iterator[str]:
        """The addresses of all images, in their order."""
        for message in self.messages:
            yield from (part.url for part in message.parts if part.type == "image_url")

    def request(self, images: list[bytes]) -> GenerationRequest:
        """What the engine is asked, with the images behind `urls`. Raises `PromptError` for a turn that is none."""
        return GenerationRequest(
            [_message(message) for message in self.messages],
            images,
            vision_tokens=self.vision_tokens,
            max_new_tokens=self.max_completion_tokens or self.max_tokens,
            **self.sampling,
        )


class CompletionRequest(_Request):
    """A body of `/v1/completions`."""

    prompt: str | list[str]

    def request(self) -> GenerationRequest:
        """What the engine is asked. Raises `PromptError` for several prompts, an empty one, or a place for an image."""
        prompts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        if len(prompts) != 1 or not prompts[0]:
            raise PromptError(f"A request completes one prompt that is not empty, found {len(prompts)}.")
        prompt = prompts[0]
        if IMAGE_TOKEN in prompt:
            raise PromptError(f"A completion has no images, and the prompt holds {IMAGE_TOKEN}; use chat completions.")
        return GenerationRequest(prompt, max_new_tokens=self.max_tokens or _COMPLETION_TOKENS, **self.sampling)


def parse(kind: type[Body], body: bytes) -> Body:
    """A body as what it should be. Raises `RequestError` with the first reason in a sentence."""
    try:
        asked = kind.model_validate_json(body)
    except ValidationError as error:
        # Where several kinds of value are allowed each has its reason; the deepest is of the kind that was meant.
        reason = max(error.errors(include_url=False, include_input=False), key=lambda reason: len(reason["loc"]))
        place = ".".join(str(part) for part in reason["loc"] if isinstance(part, int) or _FIELD.fullmatch(part))
        sentence = reason["msg"].removeprefix("Value error, ")
        raise RequestError(f"{place}: {sentence}." if place else f"{sentence}.", param=place or None) from error
    asked.check_extra()
    return asked


def _message(message: _ChatMessage) -> Message:
    """A message in Hugging Face's form. Its images stand before the text, unless that holds a marker for each."""
    images = sum(part.type == "image_url" for part in message.parts)
    texts = [part.text or "" for part in message.parts if part.type == "text"]
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
