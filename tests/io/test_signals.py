"""A process that was started by another ends with it, whatever ended that, and however it was started."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llava_stf.io.signals import keeping, report, terminable

# An engine as vLLM has one, and the processes that it starts in turn; each prints its id and would never end.
PROGRAM = """
import multiprocessing, os, sys, time
from llava_stf.io.signals import end_with_parent

# In a spawned process while it imports this file; what is forked inherits it.
end_with_parent()

def work(depth, method):
    os.write(1, f"{os.getpid()}\\n".encode())  # a line at once, where print may write two pieces
    if depth:
        multiprocessing.get_context(method).Process(target=work, args=(depth - 1, method)).start()
    time.sleep(600)

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    for _ in range(2):
        context.Process(target=work, args=(1, sys.argv[1])).start()
    time.sleep(600)
"""


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_a_killed_process_leaves_no_child_behind(tmp_path: Path, method: str) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    with subprocess.Popen(
        [sys.executable, tmp_path / "program.py", method], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        try:
            children = [int(parent.stdout.readline()) for _ in range(4)]
            assert all(map(is_running, children))
        finally:
            parent.kill()
        deadline = time.monotonic() + 60
        while any(map(is_running, children)):
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_error_that_native_code_makes_of_a_signal_is_the_signals(
    number: signal.Signals, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def read_a_shape() -> None:
        try:
            os.kill(os.getpid(), number)
            time.sleep(60)
        except KeyboardInterrupt:
            raise ValueError("could not determine the shape") from None

    with pytest.raises(KeyboardInterrupt) as stop, terminable(), keeping("the shards are kept"):
        read_a_shape()
    assert report(stop.value) == code
    assert capsys.readouterr().err == f"Stopped by {number.name}: the shards are kept.\n"
    with pytest.raises(ValueError, match="no signal came"), terminable(), keeping("nothing"):
        raise ValueError("no signal came")
