"""Runs the application under uvicorn, until a signal ends it."""

from __future__ import annotations

import copy
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.config import LOGGING_CONFIG

from llava_stf.serving.options import ServeOptions

# For running answers after the first SIGTERM; a second signal ends them at once.
SHUTDOWN_SECONDS = 300


def run(app: FastAPI, options: ServeOptions) -> None:
    """Serves until SIGINT or SIGTERM; then no connection is accepted, and what was asked is still answered."""
    uvicorn.run(
        app,
        host=options.host,
        port=options.port,
        log_config=_logging(),
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        server_header=False,
    )


def _logging() -> dict[str, Any]:
    """uvicorn's logging, all of it on stderr, and our own beside it."""
    config = copy.deepcopy(LOGGING_CONFIG)
    config["handlers"]["access"]["stream"] = "ext://sys.stderr"
    config["loggers"]["llava_stf"] = {"handlers": ["default"], "level": "INFO", "propagate": False}
    return config
