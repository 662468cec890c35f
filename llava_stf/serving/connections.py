"""uvicorn's HTTP/1.1 with bounds that it has no option for: the time for a request's head, and open connections.

The other servers of ASGI were weighed: hypercorn has no bound on connections, and granian runs the application in a
process of its own that would have to load the model itself. uvicorn takes its protocol as an option.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from llava_stf.serving.replies import error_body

logger = logging.getLogger(__name__)

HEAD_SECONDS = 10  # until the head of a request is there, the next one of a connection, too
_PHRASES = {400: "Bad Request", 408: "Request Timeout", 503: "Service Unavailable"}


class BoundedProtocol(H11Protocol):
    """One connection.

    Where as many are open as may be, the one that has waited longest for its next request is closed; if all are
    answered, the new one is refused.

    Args:
        max_connections: That are open at a time.
        waiting: Connections without a request, oldest first; all connections of a server share it.
        *args: As uvicorn gives them.
        **options: As uvicorn gives them.
    """

    def __init__(self, *args: Any, max_connections: int, waiting: dict[BoundedProtocol, None], **options: Any) -> None:
        super().__init__(*args, **options)
        self._max_connections = max_connections
        self._waiting = waiting
        self._deadline: asyncio.TimerHandle | None = None
        self._has_sent = False  # something of a head that is not whole

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Takes a connection, or makes room for it, or refuses it."""
        super().connection_made(transport)
        if len(self.connections) > self._max_connections:
            if not self._waiting:
                self._refuse(503, f"{self._max_connections} connections are open, and no more are taken.")
                return
            next(iter(self._waiting)).give_up()
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the connection."""
        self._end_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Reads on."""
        self._has_sent = True
        super().data_received(data)

    def handle_events(self) -> None:
        """Answers what has arrived whole."""
        super().handle_events()
        if self._is_answering:
            self._end_waiting()

    def on_response_complete(self) -> None:
        """Waits for the next request."""
        self._has_sent = False
        super().on_response_complete()
        if not self._is_answering and not self.transport.is_closing():
            self._await_request()

    def shutdown(self) -> None:
        """Ends the connection as soon as a running answer is done; a request that is still coming is given up."""
        if self._is_answering and self.cycle.more_body and not self.cycle.response_started:
            self._refuse(503, "The server is about to stop.")
        else:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """Refuses what is no HTTP in the form of OpenAI's errors."""
        self._refuse(400, "The request is no valid HTTP.")

    def give_up(self) -> None:
        """Closes the connection at once: another one needs its place."""
        self._end_waiting()
        self.connections.discard(self)
        self.transport.abort()

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _await_request(self) -> None:
        self._end_waiting()
        self._waiting[self] = None
        self._deadline = self.loop.call_later(HEAD_SECONDS, self._too_late)

    def _end_waiting(self) -> None:
        self._waiting.pop(self, None)
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_late(self) -> None:
        if self._has_sent:
            self._refuse(408, f"The head of the request did not arrive within {HEAD_SECONDS} seconds.")
        else:
            self.transport.close()

    def _refuse(self, status: int, sentence: str) -> None:
        """A whole reply, written past h11, which may be in any state."""
        body = json.dumps(error_body(sentence, status)).encode()
        head = f"HTTP/1.1 {status} {_PHRASES[status]}\r\ncontent-type: application/json\r\n"
        head += f"content-length: {len(body)}\r\nconnection: close\r\n" + "retry-after: 1\r\n" * (status == 503)
        self._end_waiting()
        self.transport.write(head.encode() + b"\r\n" + body)
        self.transport.close()
