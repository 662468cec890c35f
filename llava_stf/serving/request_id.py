"""The id of a request: in its reply as `x-request-id`, and at the end of every line that is logged for it."""

from __future__ import annotations

import logging
import re
import uuid
from contextvars import ContextVar

_GIVEN = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_current: ContextVar[str] = ContextVar("request_id", default="")


def begin(given: str) -> str:
    """Sets the id of the request that this task answers: what the client gave as its id, or a new one."""
    request_id = given if _GIVEN.fullmatch(given) else f"req-{uuid.uuid4().hex}"
    _current.set(request_id)
    return request_id


def current() -> str:
    """The id of the request that is being answered; empty outside of one."""
    return _current.get()


class AddRequestId(logging.Filter):
    """Puts the id behind the message of every record that is logged while a request is answered."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Always true."""
        if request_id := current():
            record.msg, record.args = f"{record.getMessage()} [{request_id}]", ()
        return True
