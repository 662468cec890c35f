"""What a process does that the fixture `start` has forked: it turns its output into a file and becomes the program.

Not imported: `start` has it run in the fork, with `told` as its one global.
"""

import multiprocessing
import os
import resource
import runpy
import sys
from importlib import import_module
from typing import Any

told: dict[str, Any] = globals()["told"]
written = os.open(told["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
os.dup2(written, 1)
os.dup2(written, 2)
os.environ.update(told["environment"])
multiprocessing.set_start_method(None, force=True)  # its own workers start as in a process that nobody has forked
if told["files"] is not None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (told["files"], told["files"]))
module, _, function = told["program"].rpartition(":")
found = runpy.run_path(module) if module.endswith(".py") else vars(import_module(module))
sys.exit(found[function](told["arguments"]))
