"""A batch answers as `ask` does, gives every row one result whatever happens, and goes on where it was killed."""

import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llava_stf.batch.job import BatchJob
from llava_stf.batch.run import Worker, run_batch
from llava_stf.errors import DataError, LlavaStfError, ModelNotFoundError
from llava_stf.inference import LlavaStf
from llava_stf.loading import load_model

from .conftest import QUESTION, kill_who_has_a_shard, results

# Processes that can be killed, with torch and transformers imported once for all of them.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["llava_stf.batch.run", "llava_stf.loading"])


@pytest.fixture(scope="module")
def llava() -> LlavaStf:
    return load_model("tiny", dtype="float32")


@pytest.fixture(scope="module")
def job(album: Path, tmp_path_factory: pytest.TempPathFactory) -> BatchJob:
    """The album's 24 images in 12 shards, answered by one run that nobody disturbs."""
    output = tmp_path_factory.mktemp("whole") / "output"
    job = BatchJob(album, output, question=QUESTION, shard_size=2, batch_size=2, dtype="float32", max_new_tokens=8)
    run_batch(job)
    return job


def files(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in output.iterdir()}


def start(job: BatchJob) -> Any:
    process = PROCESSES.Process(target=run_batch, args=(job,), daemon=True)
    process.start()
    return process


def test_answers_are_those_of_ask_in_the_order_of_the_input(job: BatchJob, album: Path, llava: LlavaStf) -> None:
    paths = sorted(path.relative_to(album).as_posix() for path in album.rglob("*.png"))
    found = results(job.output)
    assert [row["index"] for row in found] == list(range(24))
    assert [row["id"] for row in found] == paths
    assert [row["error"] for row in found] == [None] * 24
    assert [row["answer"] for row in found] == [llava.ask(album / path, QUESTION, max_new_tokens=8) for path in paths]


def test_row_that_cannot_be_answered_takes_no_other_with_it(
    lines: Callable[..., Path], album: Path, llava: LlavaStf, tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes((album / "01.png").read_bytes()[:200])
    good = {"image": str(album / "01.png"), "question": QUESTION}
    path = lines(
        {"id": "first", **good},
        {"image": "broken.png", "question": QUESTION},
        {**good, "question": "x" * 3000},
        {**good, "question": " "},
        {**good, "question": "<image> <image> ?"},
        {"image": "missing.png", "question": QUESTION},
        "no json",
        {"id": "pair", "images": [good["image"], str(album / "02.png")], "question": "Is there a star?"},
        {**good, "image": "http://127.0.0.1:9/a.png"},
    )
    summary = run_batch(BatchJob(path, tmp_path / "output", shard_size=9, batch_size=9, dtype="float32"))
    found = results(tmp_path / "output")
    assert (summary.rows, summary.errors, summary.rows_now) == (9, 7, 9)
    assert [row["id"] for row in found] == ["first", "1", "2", "3", "4", "5", "6", "pair", "8"]
    assert found[0]["answer"] == llava.ask(good["image"], QUESTION)
    assert found[7]["answer"] == llava.ask([good["image"], album / "02.png"], "Is there a star?")
    sentences = [row["error"] for row in found]
    assert (sentences[0], sentences[7]) == (None, None)
    parts = "truncated or damaged", "The prompt has 30", "question is empty", "2 <image> markers for 1", "No image file"
    for sentence, part in zip(sentences[1:6], parts, strict=True):
        assert part in sentence
    assert sentences[6].startswith("The line is no JSON")
    assert "is not fetched" in sentences[8]
    assert [row["answer"] for row in found if row["error"] is not None] == [None] * 7


def test_run_killed_at_random_moments_ends_with_the_files_of_one_that_was_not(job: BatchJob, tmp_path: Path) -> None:
    killed = replace(job, output=tmp_path / "killed")
    rng = random.Random(0)
    for least in (1, 3, 6):
        process = start(killed)
        if least == 3:
            assert kill_who_has_a_shard(killed.output, least) == process.pid
        else:
            deadline = time.monotonic() + 600
            while len(list(killed.output.glob("part-*"))) < least and time.monotonic() < deadline:
                time.sleep(0.0005)
            time.sleep(rng.uniform(0, 0.05))  # the moment, not a wait for anything
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert least <= len(list(killed.output.glob("part-*"))) < 12
    assert json.loads((killed.output / "summary.json").read_text()) == {"complete": False, "rows": 24}
    before = 2 * len(list(killed.output.glob("part-*")))
    summary = run_batch(killed)
    assert (summary.rows, summary.errors, summary.rows_now) == (24, 0, 24 - before)
    assert files(killed.output) == files(job.output)
    assert json.loads((killed.output / "summary.json").read_text()) == {"complete": True, "rows": 24, "errors": 0}
    assert run_batch(killed).rows_now == 0


def test_runs_side_by_side_share_the_rows_and_take_over_from_one_that_dies(job: BatchJob, tmp_path: Path) -> None:
    shared = replace(job, output=tmp_path / "shared")
    victim = start(shared)
    kill_who_has_a_shard(shared.output, least=1)
    victim.join()
    before = 2 * len(list(shared.output.glob("part-*")))
    with ProcessPoolExecutor(2, mp_context=PROCESSES) as pool:
        summaries = list(pool.map(run_batch, [shared, shared]))
    assert [summary.rows for summary in summaries] == [24, 24]
    assert sum(summary.rows_now for summary in summaries) == 24 - before
    assert files(shared.output) == files(job.output)


def test_progress_ends_with_all_rows_whoever_filled_them(job: BatchJob, tmp_path: Path) -> None:
    def fill_and_die(job: BatchJob, shards: Sequence[int]) -> Iterator[int]:
        assert all(map(Worker(job).fill, shards))
        return iter(())

    told: list[tuple[int, int]] = []
    run_batch(
        replace(job, output=tmp_path / "out"), distribute=fill_and_die, progress=lambda *count: told.append(count)
    )
    assert told == [(0, 24), (24, 24)]


def test_another_command_is_refused_and_a_faster_one_goes_on(job: BatchJob, tmp_path: Path) -> None:
    before = files(job.output)
    others = {"question": "Is there a star?", "model": "tiny-full", "max_new_tokens": 9, "shard_size": 3}
    others |= {"vision_tokens": 16, "dtype": "bfloat16", "allow_urls": True}
    for option, other in others.items():
        with pytest.raises(DataError, match=rf"another command \({option} was "):
            run_batch(replace(job, **{option: other}))
    assert run_batch(replace(job, batch_size=5, device="cpu")).rows_now == 0
    assert files(job.output) == before


def test_another_input_under_the_same_name_is_refused(album: Path, tmp_path: Path) -> None:
    (tmp_path / "album").mkdir()
    for name in ("01.png", "02.png"):
        (tmp_path / "album" / name).write_bytes((album / name).read_bytes())
    job = BatchJob(tmp_path / "album", tmp_path / "output", question=QUESTION)
    run_batch(job)
    Image.new("RGB", (30, 30)).save(tmp_path / "album" / "02.png")
    with pytest.raises(DataError, match=r"another command \(input_sha256 was "):
        run_batch(job)


def test_other_weights_in_the_same_folder_are_refused(album: Path, plain_folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    load_model(plain_folder, vision_tokens=4).model.save_pretrained(model)
    load_model(plain_folder).processor.save_pretrained(model)
    job = BatchJob(album / "more", tmp_path / "output", question=QUESTION, model=str(model), max_new_tokens=2)
    run_batch(job)
    load_model(plain_folder, vision_tokens=4, init="random").model.save_pretrained(model)
    with pytest.raises(DataError, match=r"another command \(model_sha256 was "):
        run_batch(job)


def test_nothing_is_left_behind_by_a_command_that_cannot_start(job: BatchJob, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        run_batch(replace(job, question=None, output=tmp_path / "none"))
    assert not (tmp_path / "none").exists()
    with pytest.raises(ModelNotFoundError):
        run_batch(replace(job, model="nowhere", output=tmp_path / "again"))
    assert not list((tmp_path / "again").glob("part-*"))
    for options, sentence in (({"device": "cpu"}, "for transformers"), ({}, "cannot be spread over 4 ranks")):
        asked = replace(
            job, output=tmp_path / "spread", engine="vllm", vllm_options={"tensor_parallel_size": 4}, **options
        )
        with pytest.raises(LlavaStfError, match=sentence):
            run_batch(asked)
        assert not (tmp_path / "spread").exists()
