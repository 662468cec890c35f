"""Shards appear whole or not at all, one process has one at a time, and a folder belongs to one command."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from llava_stf.batch.shards import Shards, open_output
from llava_stf.errors import DataError

ROWS, SIZE = 1003, 4
# Writes what it can of these shards, each row with a text that takes several pages.
WRITER = f"""
import sys
from pathlib import Path
from llava_stf.batch.shards import Shards
shards = Shards(Path(sys.argv[1]), {ROWS}, {SIZE})
print("ready", flush=True)
for shard in shards.open():
    with shards.claim(shard) as claim:
        if claim is not None:
            claim.write([{{"index": i, "answer": "x" * 5000, "error": None}} for i in shards.span(shard)])
"""


def rows(span: range) -> list[dict[str, Any]]:
    return [{"id": str(index), "index": index, "answer": "?", "error": None} for index in span]


def filled(shards: Shards) -> Shards:
    for shard in shards.open():
        with shards.claim(shard) as claim:
            assert claim is not None
            claim.write(rows(shards.span(shard)))
    return shards


def writer(folder: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_every_row_is_in_one_shard(tmp_path: Path) -> None:
    for count, size in ((1, 1), (1, 256), (256, 256), (257, 256), (10, 3)):
        shards = Shards(tmp_path, count, size)
        assert [index for shard in range(len(shards)) for index in shards.span(shard)] == list(range(count))


def test_writers_that_are_killed_at_any_moment_leave_whole_shards(tmp_path: Path) -> None:
    rng = random.Random(0)
    shards = Shards(tmp_path, ROWS, SIZE)
    kills = 0
    while shards.open():
        process = writer(tmp_path)
        if kills < 8:
            time.sleep(rng.uniform(0, 0.03))  # the moment, not a wait for anything
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
        assert process.returncode in (0, -signal.SIGKILL)
        for path in tmp_path.glob("part-*"):
            assert path.read_bytes().count(b"\n") == len(shards.span(int(path.stem[5:])))
    assert kills == 8
    assert shards.check() == 0


def test_writers_side_by_side_share_the_shards(tmp_path: Path) -> None:
    shards = Shards(tmp_path, ROWS, SIZE)
    processes = [writer(tmp_path) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert (shards.open(), shards.check()) == ([], 0)
    assert not list(tmp_path.glob(".part-*"))


def test_claim_is_for_one_and_ends_with_its_process(tmp_path: Path) -> None:
    shards = Shards(tmp_path, 2, 1)
    code = WRITER.split("print")[0] + "with shards.claim(0):\n    print('ready', flush=True)\n    sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    with shards.claim(0) as first, shards.claim(1) as second, shards.claim(1) as again:
        assert (first, second is not None, again) == (None, True, None)
    process.kill()
    process.wait()
    with shards.claim(0) as first:
        assert first is not None
        first.write(rows(shards.span(0)))
    with shards.claim(0) as first:
        assert first is None  # it is there
    assert shards.open() == [1]
    process.communicate()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (rows(range(3, 5)), "must hold rows 3 to 5 once each, in order, found 2"),
        (rows(range(4, 7)), "must hold rows 3 to 5"),
        ([*rows(range(3, 6)), *rows(range(5, 6))], "must hold rows 3 to 5 once each, in order, found 4"),
        ([{"index": 3}], "is damaged"),
        (None, "is damaged"),
    ],
    ids=["missing", "others", "double", "no-error", "cut"],
)
def test_check_names_the_shard_that_is_wrong(tmp_path: Path, content: Any, sentence: str) -> None:
    shards = filled(Shards(tmp_path, 10, 3))
    assert shards.check() == 0
    path = tmp_path / "part-00001.jsonl"
    path.write_text('{"ind' if content is None else "".join(json.dumps(row) + "\n" for row in content))
    with pytest.raises(DataError, match=sentence) as caught:
        shards.check()
    assert str(path) in str(caught.value)


def test_folder_is_for_one_command(tmp_path: Path) -> None:
    output = tmp_path / "deep" / "output"
    open_output(output, {"model": "a", "rows": 3, "vision_tokens": None})
    filled(Shards(output, 3, 1))
    open_output(output, {"model": "a", "rows": 3, "vision_tokens": None})
    with pytest.raises(DataError, match=r"another command \(model was a, now it is b\)"):
        open_output(output, {"model": "b", "rows": 3, "vision_tokens": None})
    with pytest.raises(DataError, match=r"another command \(it also has vision_tokens\)"):
        open_output(output, {"model": "a", "rows": 3})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match=r"holds something else than a batch, thesis\.txt"):
        open_output(tmp_path / "other", {"model": "a"})
    assert os.listdir(tmp_path / "other") == ["thesis.txt"]
    with pytest.raises(DataError, match="Cannot write to"):
        open_output(tmp_path / "other" / "thesis.txt", {"model": "a"})
    (output / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="is no JSON"):
        open_output(output, {"model": "a"})


def test_full_disk_leaves_no_shard_and_the_next_run_writes_it(tmp_path: Path) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, -1))\n"
    code = [sys.executable, "-c", limit + WRITER, str(tmp_path)]
    process = subprocess.run(code, capture_output=True, text=True, check=False)
    assert "part-00000.jsonl (File too large): put that right" in process.stderr.splitlines()[-1]
    shards = Shards(tmp_path, ROWS, SIZE)
    assert len(shards.open()) == len(shards)
    assert filled(shards).check() == 0


def test_shard_that_cannot_be_written_is_said_in_a_sentence(tmp_path: Path) -> None:
    shards = Shards(tmp_path / "gone", 1, 1)
    with pytest.raises(DataError, match=r"Cannot write .*part-00000\.jsonl \(No such file"), shards.claim(0):
        pass
