"""A local Ray of two workers answers as one process does, also when a worker is killed, and says what is wrong."""

import logging
import os
import re
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llava_stf.batch import on_ray
from llava_stf.batch.job import BatchJob
from llava_stf.batch.on_ray import RayWorkers
from llava_stf.batch.run import run_batch
from llava_stf.errors import LlavaStfError

from .conftest import QUESTION, kill_who_has_a_shard, results


@pytest.fixture(scope="module")
def workers() -> Iterator[RayWorkers]:
    import ray

    options = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 100 * 2**20}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")  # else workers wait for every other process of a busy machine
        for attempt in range(4):  # Ray gives its own daemon 30 seconds to start, which is not much on such a machine
            try:
                ray.init(**options, logging_level=logging.ERROR)
                break
            except Exception:  # it raises no narrower one
                ray.shutdown()
                if attempt == 3:
                    raise
    yield RayWorkers(workers=2)
    ray.shutdown()


def test_two_workers_of_which_one_is_killed_answer_as_one_process(
    workers: RayWorkers, album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = BatchJob(album, tmp_path / "whole", question=QUESTION, shard_size=2, dtype="float32", max_new_tokens=8)
    run_batch(whole)
    monkeypatch.chdir(tmp_path)
    shared = replace(whole, output=Path("shared"))  # a relative path means the same to workers that start elsewhere
    with ThreadPoolExecutor(1) as thread:
        killed = thread.submit(kill_who_has_a_shard, tmp_path / "shared", 2)
        summary = run_batch(shared, distribute=workers)
        assert killed.result() > 0
    assert (summary.rows, summary.errors) == (24, 0)
    assert summary.rows_now >= 22  # the killed one may have finished its shard without being able to say so
    assert results(tmp_path / "shared") == results(tmp_path / "whole")
    assert run_batch(shared, distribute=workers).rows_now == 0


def test_error_of_a_worker_is_that_of_the_run(workers: RayWorkers, album: Path, tmp_path: Path) -> None:
    job = BatchJob(album, tmp_path / "output", question=QUESTION, vision_tokens=7, shard_size=24)
    with pytest.raises(LlavaStfError, match="7"):
        run_batch(job, distribute=workers)


def test_machine_with_another_version_is_named_before_the_work(
    workers: RayWorkers, album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is this process that has another one than Ray's."""
    (tmp_path / "llava_stf-0.0.9.dist-info").mkdir()
    (tmp_path / "llava_stf-0.0.9.dist-info" / "METADATA").write_text("Name: llava-stf\nVersion: 0.0.9\n")
    monkeypatch.syspath_prepend(tmp_path)
    job = BatchJob(album, tmp_path / "output", question=QUESTION)
    with pytest.raises(LlavaStfError, match=r"^The machine \S+ \(\w{8}\) has llava-stf \S+, this one 0\.0\.9: install"):
        run_batch(job, distribute=workers)
    assert not list((tmp_path / "output").glob("part-*"))


class Dying:
    """A worker that ends with its second shard, always."""

    def start(self) -> tuple[bool, str]:
        return False, ""

    def fill(self, shard: int) -> tuple[bool, str]:
        if shard == 1:
            os._exit(1)
        return True, ""


def test_shard_that_every_worker_dies_of_is_given_up(workers: RayWorkers, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(on_ray, "_DEATHS", 1)
    actor: Any = ray.remote(Dying)
    filled = on_ray._fill(actor.remote, 1, deque([0, 1, 2]))
    assert next(filled) == 0
    with pytest.raises(LlavaStfError, match=r"^The worker of shard 1 died 1 times: "):
        list(filled)


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9", "nowhere.invalid:6379", "[::1]:99999"])
def test_address_where_nobody_listens_is_said_at_once(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(LlavaStfError, match=rf"^No Ray cluster answers at {re.escape(address)} \("):
        RayWorkers(address)
