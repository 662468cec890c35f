"""A file or folder appears whole or not at all, whoever writes it, and what a killed writer left goes with the next."""

import ast
import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest

from llava_stf.errors import LlavaStfError
from llava_stf.io.publish import publish, refuse_unwritable, reserve, write_file

ROOT = Path(__file__).resolve().parents[2]
WRITER = """
import sys
from pathlib import Path
from llava_stf.io.publish import write_json
for number in range(int(sys.argv[2])):
    write_json(Path(sys.argv[1]), [number] * 20_000)
    print(number, flush=True)
"""


def writer(path: Path, times: int) -> "subprocess.Popen[str]":
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(times)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "0\n"
    return process


def test_a_file_is_whole_whenever_its_writer_is_killed_and_the_next_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    rng = random.Random(0)
    for _ in range(6):
        with writer(path, 10_000) as process:
            time.sleep(rng.uniform(0, 0.02))  # the moment, not a wait for anything
            process.send_signal(signal.SIGKILL)
        content = json.loads(path.read_bytes())
        assert content == [content[0]] * 20_000
    write_file(path, "done")
    assert [each.name for each in tmp_path.iterdir()] == ["result.json"]
    assert path.read_text() == "done"


def test_two_who_write_one_file_take_turns(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    with writer(path, 40) as one, writer(path, 40) as other:
        assert (one.wait(), other.wait()) == (0, 0)
    assert json.loads(path.read_bytes()) == [39] * 20_000
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file_and_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text("old")
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, -1))\n"
    done = subprocess.run(
        [sys.executable, "-c", limit + WRITER, str(path), "1"], capture_output=True, text=True, check=False
    )
    assert "result.json cannot be written: File too large" in done.stderr.splitlines()[-1]
    assert (path.read_text(), list(tmp_path.iterdir())) == ("old", [path])
    with pytest.raises(LlavaStfError, match="cannot be written: File exists"):
        write_file(path / "below.json", "new")


def test_a_folder_that_takes_no_files_is_known_before_anything_is_made_in_it(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for folder in (file, file / "below", Path("/proc/self"), Path("/proc/self/below")):
        with pytest.raises(LlavaStfError, match=f"{folder} cannot be written to: .*; name another place"):
            refuse_unwritable(folder)
    refuse_unwritable(tmp_path / "one" / "two")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_reserved_file_is_nobody_elses_and_stays_as_it_was_if_it_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "part"
    path.write_text("old")
    with reserve(path) as mine, reserve(path) as other:
        assert (mine is not None, other) == (True, None)
    assert (path.read_text(), list(tmp_path.iterdir())) == ("old", [path])
    with reserve(path) as mine:
        assert mine is not None
        waiting = Thread(target=write_file, args=(path, "second"))
        waiting.start()
        mine.write(b"first")
        assert path.read_text() == "first"
    waiting.join()
    assert (path.read_text(), list(tmp_path.iterdir())) == ("second", [path])


@pytest.mark.parametrize("moment", range(4))
def test_a_signal_at_any_moment_leaves_nothing_beside_a_reserved_file(
    moment: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes while the file is made, locked or looked at; Python raises when the call has been done."""
    calls = 0

    def interrupted(call: Callable[..., object]) -> Callable[..., object]:
        def then(*arguments: object, **options: object) -> object:
            nonlocal calls
            result = call(*arguments, **options)
            calls += 1
            if calls == moment + 1:
                raise KeyboardInterrupt
            return result

        return then

    for where, name in ((os, "open"), (fcntl, "flock"), (os, "fstat")):
        monkeypatch.setattr(where, name, interrupted(getattr(where, name)))
    with pytest.raises(KeyboardInterrupt), reserve(tmp_path / "part"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_appears_when_its_block_ends_well(tmp_path: Path) -> None:
    with publish(tmp_path / "deep" / "model") as folder:
        (folder / "weights").write_text("all")
        assert not (tmp_path / "deep" / "model").exists()
    assert (tmp_path / "deep" / "model" / "weights").read_text() == "all"
    with pytest.raises(ZeroDivisionError), publish(tmp_path / "deep" / "other") as folder:
        (folder / "weights").write_text(str(1 // 0))
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["model"]


def test_nobody_else_moves_files_into_place() -> None:
    """Renaming is what `llava_stf.io` does; who renames by himself forgets the disk or the leftovers."""
    renames = {"rename", "replace", "link"}
    found = []
    for source in [*(ROOT / "llava_stf").rglob("*.py"), *(ROOT / "eval" / "llava_stf_eval").rglob("*.py")]:
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in renames:
                of_os = isinstance(node.func.value, ast.Name) and node.func.value.id == "os"
                of_path = node.func.attr != "link" and len(node.args) == 1 and not node.keywords
                if (of_os or of_path) and "io" not in source.relative_to(ROOT).parts:
                    found.append(f"{source.relative_to(ROOT)}:{node.lineno}")
    assert found == []
