"""How every command ends on a signal: 130 after SIGINT, 143 after SIGTERM, and a sentence on what is kept.

SIGTERM unwinds a command as Ctrl-C does, so that whatever it opened is closed and what it began is taken away. Training
does the step under way and writes its checkpoint first.
"""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.connection
import multiprocessing.util
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import FrameType
from typing import Any, Self

logger = logging.getLogger(__name__)

NOTHING = "nothing is kept, and the same command starts afresh"


class Terminated(KeyboardInterrupt):
    """SIGTERM, where `terminable` has it end a command."""


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM raise `Terminated` in this process meanwhile; a process that it forks ends at once, as by default.

    Native code may make an error of its own of what a signal raises in it, as torch does of one that comes while it
    reads the shape of a storage. Such an error becomes the signal's again here, and in `keeping`.
    """
    owner = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() == owner:
            raise _remembered(Terminated)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise _remembered(KeyboardInterrupt)

    previous: dict[int, Any] = {signal.SIGTERM: signal.signal(signal.SIGTERM, end)}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        previous[signal.SIGINT] = signal.signal(signal.SIGINT, interrupt)
    try:
        with _errors_of_signals():
            yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        _raised.clear()


@contextmanager
def keeping(what: str | Callable[[], str]) -> Iterator[None]:
    """Say what is left of a command that a signal ends in here, and how it goes on.

    Args:
        what: half a sentence, or what makes one when the signal has come.
    """
    try:
        with _errors_of_signals():
            yield
    except KeyboardInterrupt as stop:
        stop.add_note(what if isinstance(what, str) else what())
        raise


_raised: list[type[KeyboardInterrupt]] = []  # by the signals that came since `terminable` began


def _remembered(kind: type[KeyboardInterrupt]) -> KeyboardInterrupt:
    _raised.append(kind)
    return kind()


@contextmanager
def _errors_of_signals() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not _raised:
            raise
        raise _raised[0] from error


def report(stop: KeyboardInterrupt) -> int:
    """Print the sentence of the innermost `keeping` on stderr; returns the command's exit code."""
    number = signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT
    kept = getattr(stop, "__notes__", [NOTHING])[0]
    print(f"Stopped by {number.name}: {kept}.", file=sys.stderr)
    return 128 + number


class StepEnd:
    """Signals of a training run, put off to the end of the step under way; a second SIGINT is one at once.

    Attributes:
        asked: whether this process has been told to stop.
    """

    def __init__(self) -> None:
        self._number: int | None = None

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @property
    def asked(self) -> bool:
        """Whether a signal has come."""
        return self._number is not None

    def stop(self, step: int) -> SystemExit:
        """What ends the process after a step whose checkpoint is written: neither trained (0) nor failed (1, 2)."""
        number = signal.Signals(self._number or signal.SIGTERM)  # it came to another process of the run
        logger.warning("stopped by %s after step %d: go on with --resume", number.name, step)
        return SystemExit(128 + number)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if number == self._number == signal.SIGINT:
            raise KeyboardInterrupt
        self._number = number


@cache
def end_with_parent() -> None:
    """Let this process end when the one that started it does, however that happens; nothing in one that nobody started.

    What a process starts by `multiprocessing` outlives its `kill -9` otherwise, with all its memory. It holds for what
    is forked from here on as well, and may be called while a spawned process still imports what it is to run.
    """
    multiprocessing.util.register_after_fork(_watch_parent, lambda watch: watch())
    _watch_parent()


def _watch_parent() -> None:
    spawned = "--multiprocessing-fork" in sys.orig_argv
    if multiprocessing.parent_process() is None and not spawned:
        return

    def watch() -> None:
        while (parent := multiprocessing.parent_process()) is None:  # not before all is imported
            time.sleep(0.05)
        multiprocessing.connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def shield_worker() -> None:
    """Let a worker process, which this is, end by its parent's SIGTERM alone.

    A machine that is taken away may send it to all processes, as a terminal sends SIGINT, and the last step still needs
    its samples. Only on Linux does a process learn who sent a signal; elsewhere nothing changes.
    """
    if sys.platform != "linux":
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_obey_parent, daemon=True).start()


def _obey_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
        pass
    os._exit(0)
