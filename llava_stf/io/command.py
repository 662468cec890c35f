"""A module that is run as a command: what goes wrong there is a sentence and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

from llava_stf.errors import LlavaStfError
from llava_stf.io.signals import report, terminable


def exit_code(work: Callable[[], object]) -> int:
    """Do the work of a command: 0, 2 and one sentence on stderr for a `LlavaStfError`, or a signal's code."""
    try:
        with terminable():
            work()
    except KeyboardInterrupt as stop:
        return report(stop)
    except LlavaStfError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run(main: Callable[[], object]) -> NoReturn:
    """Run a module's `main` and exit with its `exit_code`."""
    sys.exit(exit_code(main))
