"""A module that is run as a command: what goes wrong there is a sentence and an exit code."""

from __future__ import annotations

import logging
import sys
import warnings
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


def log_training() -> None:
    """Set up the log of a training command: our lines, and what libraries warn its user of.

    Call it before transformers is imported, which looks once whether it may draw bars.
    """
    from huggingface_hub.utils import disable_progress_bars

    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s")
    for package in ("llava_stf", "llava_stf_kernels"):
        logging.getLogger(package).setLevel(logging.INFO)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # PEFT imports it, and it warns of what nobody asked for
    warnings.simplefilter("ignore", FutureWarning)  # of libraries about each other
    if not sys.stderr.isatty():
        disable_progress_bars()


def run(main: Callable[[], object]) -> NoReturn:
    """Run a module's `main` and exit with its `exit_code`."""
    sys.exit(exit_code(main))
