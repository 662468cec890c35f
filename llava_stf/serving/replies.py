"""What clients get, in the shapes of OpenAI's API."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

from starlette.responses import JSONResponse

from llava_stf.errors import LlavaStfError
from llava_stf.serving.errors import ServerError, kind_of, status_of
from llava_stf.serving.rows import Piece


class Reply:
    """The JSON of one answer, whole or in chunks.

    Args:
        model: name of the model.
        chat: whether it answers `/v1/chat/completions`, else `/v1/completions`.
    """

    def __init__(self, model: str, *, chat: bool) -> None:
        self._chat = chat
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }
        self._chunk = "chat.completion.chunk" if chat else "text_completion"

    def whole(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """The answer that these pieces make."""
        text = "".join(piece.text for piece in pieces)
        said: dict[str, Any] = {"text": text}
        if self._chat:
            said = {"message": {"role": "assistant", "content": text}}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": pieces[-1].finish_reason}
        kind = "chat.completion" if self._chat else "text_completion"
        return {**self._head, "object": kind, "choices": [choice], "usage": usage(pieces[-1])}

    def chunk(self, piece: Piece, *, first: bool) -> dict[str, Any]:
        """One piece; the first of a chat says who speaks."""
        said: dict[str, Any] = {"text": piece.text}
        if self._chat:
            said = {"delta": {"role": "assistant"} if first else {}}
            if piece.text or first:
                said["delta"]["content"] = piece.text
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": piece.finish_reason}
        return {**self._head, "object": self._chunk, "choices": [choice]}

    def usage_chunk(self, last: Piece) -> dict[str, Any]:
        """The end of a stream that was asked for its usage."""
        return {**self._head, "object": self._chunk, "choices": [], "usage": usage(last)}


def usage(last: Piece) -> dict[str, Any]:
    """Tokens of a request and its answer; and what each image was given, whatever its `detail`."""
    details: dict[str, Any] = {"image_tokens": last.image_tokens, "cached_tokens": last.cached_tokens}
    if last.budgets:
        details["vision_tokens"] = list(last.budgets)
    return {
        "prompt_tokens": last.prompt_tokens,
        "completion_tokens": last.completion_tokens,
        "total_tokens": last.prompt_tokens + last.completion_tokens,
        "prompt_tokens_details": details,
    }


def error_body(sentence: str, status: int, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error as clients of OpenAI's API expect it."""
    return {"error": {"message": sentence, "type": kind_of(status), "param": param, "code": code}}


def error_reply(error: LlavaStfError) -> JSONResponse:
    """The response to a request that raised this."""
    status = status_of(error)
    param, code = (error.param, error.code) if isinstance(error, ServerError) else (None, None)
    headers = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}.get(status, {})
    if status in (408, 413):
        headers["Connection"] = "close"  # what is left of the body is not read
    return JSONResponse(error_body(str(error), status, param=param, code=code), status, headers)
