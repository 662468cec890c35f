"""Errors of a running server, each with the HTTP status and the kind that a client of OpenAI's API understands."""

from __future__ import annotations

from llava_stf.errors import FusionError, ImageError, LlavaStfError, PromptError


class ServerError(LlavaStfError):
    """A request that is not answered; `status` is the HTTP status, `param` the field at fault."""

    status = 500
    code: str | None = None

    def __init__(self, sentence: str, *, param: str | None = None) -> None:
        super().__init__(sentence)
        self.param = param


class RequestError(ServerError):
    """The request itself is at fault: no JSON, a value out of range, a field that this server cannot obey."""

    status = 400


class KeyRefusedError(ServerError):
    """No API key, or another one than the server's."""

    status = 401
    code = "invalid_api_key"


class ModelUnknownError(ServerError):
    """The request names a model that is not served here."""

    status = 404
    code = "model_not_found"


class SlowRequestError(ServerError):
    """The body of a request did not arrive in time."""

    status = 408


class TooLargeError(ServerError):
    """The body of a request is too long."""

    status = 413


class MediaTypeError(ServerError):
    """The body of a request is not declared to be JSON."""

    status = 415


class ClientGoneError(ServerError):
    """The client has closed the connection; nobody reads this."""

    status = 499


class ModelFailureError(ServerError):
    """The model failed at the batch in which the request was."""


class BusyError(ServerError):
    """Too many requests wait, or the server is about to stop."""

    status = 503
    code = "server_busy"


def status_of(error: LlavaStfError) -> int:
    """The HTTP status of an error: 400 where the request is at fault."""
    if isinstance(error, ServerError):
        return error.status
    return 400 if isinstance(error, ImageError | PromptError | FusionError) else 500


def kind_of(status: int) -> str:
    """OpenAI's name for errors of a status."""
    named = {401: "authentication_error", 404: "not_found_error", 503: "overloaded_error"}
    return named.get(status, "invalid_request_error" if status < 500 else "server_error")
