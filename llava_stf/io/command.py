"""A module that is run as a command: what goes wrong there is a sentence and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

from llava_stf.errors import LlavaStfError
from llava_stf.io.signals import report, terminable


def run(main: Callable[[], object]) -> NoReturn:
    """Run a module's `main` and exit: with 0, 2 and one sentence for a `LlavaStfError`, or a signal's code."""
    try:
        with terminable():
            main()
    except KeyboardInterrupt as stop:
        sys.exit(report(stop))
    except LlavaStfError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0)
