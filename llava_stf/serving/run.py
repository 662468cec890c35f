"""Runs the application under uvicorn, until a signal ends it."""

from __future__ import annotations

import copy
import gc
import logging
import os
import socket
from collections.abc import Callable, Sequence
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.config import LOGGING_CONFIG

from llava_stf.errors import LlavaStfError
from llava_stf.serving.connections import BoundedProtocol
from llava_stf.serving.listening import QUEUE, ConnectionLimits, connection_limits

logger = logging.getLogger(__name__)

# For running answers after the first signal; a second one ends them at once.
SHUTDOWN_SECONDS = 300


class Server(uvicorn.Server):
    """uvicorn's server, which a second signal of any kind ends at once.

    Args:
        config: uvicorn's.
        clean_ups: What is called before such an end.
    """

    def __init__(self, config: uvicorn.Config, clean_ups: Sequence[Callable[[], None]]) -> None:
        super().__init__(config)
        self._clean_ups = clean_ups

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to accept connections, and says where."""
        await super().startup(sockets=sockets)
        if self.started:
            for one in sockets or []:
                one.listen(QUEUE)  # asyncio took its number of accepts for the length of the queue, too
            gc.freeze()  # what is loaded stays: collections that parsing sets off pass it over
            logger.info("Serving at %s (Ctrl+C ends it)", ", ".join(_addresses(sockets or [])))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begins the end, or makes it."""
        if not self.should_exit:
            super().handle_exit(sig, frame)
            return
        os.write(2, b"Ended at once by a second signal; answers that were running are lost.\n")
        for clean_up in self._clean_ups:
            clean_up()
        os._exit(128 + sig)


def run(app: FastAPI, sockets: Sequence[socket.socket]) -> None:
    """Serves until SIGINT or SIGTERM; then no connection is accepted, and what was asked is still answered.

    Raises:
        LlavaStfError: Another process has begun to listen at the same address.
        KeyboardInterrupt: After SIGINT, when all is done; SIGTERM ends the process then.
    """
    server = Server(configure(app, connection_limits()), app.state.clean_ups)
    try:
        server.run(list(sockets))
    except OSError as error:
        if server.started:
            raise
        raise LlavaStfError(f"Cannot listen: {error.strerror or error}.") from error


def configure(app: FastAPI, limits: ConnectionLimits) -> uvicorn.Config:
    """How uvicorn runs the application."""
    return uvicorn.Config(
        app,
        http=partial(BoundedProtocol, max_connections=limits.connections, waiting={}),  # type: ignore[arg-type]
        ws="none",
        log_config=_logging(),
        access_log=False,  # `auth` writes a line for every request, with its id
        backlog=limits.accepts,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        server_header=False,
    )


def _addresses(sockets: Sequence[socket.socket]) -> list[str]:
    """The URLs at which these sockets can be asked."""
    names = [one.getsockname() for one in sockets]
    return [f"http://[{name[0]}]:{name[1]}" if len(name) == 4 else f"http://{name[0]}:{name[1]}" for name in names]


def _logging() -> dict[str, Any]:
    """Logging of uvicorn, and our own beside it, each line with the id of the request that it is about."""
    config = copy.deepcopy(LOGGING_CONFIG)
    config["filters"] = {"request_id": {"()": "llava_stf.serving.request_id.AddRequestId"}}
    config["handlers"]["default"]["filters"] = ["request_id"]
    config["loggers"]["llava_stf"] = {"handlers": ["default"], "level": "INFO", "propagate": False}
    return config
