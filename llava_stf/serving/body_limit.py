"""Reads the bodies of requests, of which a client may send as much as it likes, as slowly as it likes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from starlette.requests import ClientDisconnect, Request

from llava_stf.serving.errors import BusyError, ClientGoneError, MediaTypeError, SlowRequestError, TooLargeError
from llava_stf.serving.memory import Memory

MAX_SECONDS = 60  # until a body is there
# Bodies that are held at a time, of all requests, as a multiple of the longest one.
MAX_BODIES = 3


@dataclass
class Body:
    """What a client sent; `length` stays when `data` is cleared."""

    data: bytearray = field(default_factory=bytearray)
    length: int = 0


class BodyLimiter:
    """Holds the bodies of requests until the first piece of their answers is there.

    Args:
        max_bytes: Of one body.
        memory: Is told when a body is done with.
    """

    def __init__(self, max_bytes: int, memory: Memory) -> None:
        self._max_bytes = max_bytes
        self._memory = memory
        self._held = 0

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[Body]:
        """The body of a JSON request, which counts as held inside the context, also when its data has been cleared.

        Raises:
            MediaTypeError: It is not declared to be JSON; a web page of another host cannot declare that unasked.
            TooLargeError: It is too long, told as early as possible.
            BusyError: Too much is held already.
            SlowRequestError: It did not come in time.
            ClientGoneError: The client has left.
        """
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise MediaTypeError("The body of a request is JSON, sent with the content type application/json.")
        length = request.headers.get("content-length", "")
        if length.isdecimal() and (len(length) > 15 or int(length) > self._max_bytes):
            raise self._too_large()
        body = Body()
        try:
            await self._read(request, body)
            yield body
        finally:
            self._held -= body.length
            self._memory.note_freed(body.length)

    async def _read(self, request: Request, body: Body) -> None:
        try:
            async with asyncio.timeout(MAX_SECONDS):
                async for chunk in request.stream():
                    body.data += chunk
                    body.length += len(chunk)
                    self._held += len(chunk)
                    if body.length > self._max_bytes:
                        raise self._too_large()
                    if self._held > MAX_BODIES * self._max_bytes:
                        raise BusyError("Too many large requests are being answered; try again in a moment.")
        except TimeoutError as error:
            raise SlowRequestError(f"The request did not arrive within {MAX_SECONDS} seconds.") from error
        except ClientDisconnect as error:
            raise ClientGoneError("The client has closed the connection.") from error

    def _too_large(self) -> TooLargeError:
        return TooLargeError(f"A request may have {self._max_bytes:,} bytes; send fewer or smaller images.")
