"""Rows about drawn images, jobs over them, and processes that can be killed in the middle of one."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llava_stf.world import draw

QUESTION = "How many shapes are there?"


@pytest.fixture(scope="session")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 24 drawn images in two levels, and what is none."""
    folder = tmp_path_factory.mktemp("album")
    (folder / "more").mkdir()
    for index in range(24):
        Image.fromarray(draw(index, split="held_out")[1]).save(
            folder / ("more" if index % 3 == 0 else "") / f"{index:02d}.png"
        )
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def lines(tmp_path: Path) -> Callable[..., Path]:
    """Writes objects, or lines as they are, to a JSON lines file."""

    def write(*rows: Any, name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return path

    return write


def results(output: Path) -> list[dict[str, Any]]:
    """All results of a folder, in the order of its files."""
    return [json.loads(line) for path in sorted(output.glob("part-*")) for line in path.read_text().splitlines()]


def who_has_a_shard(output: Path) -> list[int]:
    """The other processes that have a shard, by the kernel's list of locks."""
    places = {str(path.stat().st_ino) for path in output.glob(".part-*") if path.exists()}
    locks = [lock.split() for lock in Path("/proc/locks").read_text().splitlines()]
    owners = [int(lock[4]) for lock in locks if lock[1] == "FLOCK" and lock[5].split(":")[-1] in places]
    return [owner for owner in owners if owner != os.getpid()]


def kill_who_has_a_shard(output: Path, least: int, seconds: float = 600) -> int:
    """Kills the process that has the next shard once `least` are there; its id."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if len(list(output.glob("part-*"))) >= least and (owners := who_has_a_shard(output)):
            os.kill(owners[0], signal.SIGKILL)
            return owners[0]
        time.sleep(0.0005)
    raise AssertionError(f"nobody took a shard of {output} in {seconds} seconds")
