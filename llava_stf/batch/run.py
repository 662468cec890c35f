"""A whole batch: who answers it, and going on until every row has its result.

summary = run_batch(BatchJob(Path("photos"), Path("runs/answers"), question="What is this?", model="path/to/model"))
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from llava_stf.batch.engines import Engine, TransformersEngine
from llava_stf.batch.job import BatchJob
from llava_stf.batch.places import open_place
from llava_stf.batch.rows import Rows
from llava_stf.batch.shards import Shards, open_output
from llava_stf.models.fusion.detail import DETAILS


@dataclass(frozen=True)
class Summary:
    """A finished batch: `rows` results, `errors` of them without an answer, `rows_now` by this run in `seconds`."""

    rows: int
    errors: int
    rows_now: int
    seconds: float


# Fills shards elsewhere and yields each that it has filled; other runs may have taken some of them.
Distribute = Callable[[BatchJob, Sequence[int]], Iterator[int]]


class Worker:
    """Fills shards in this process, with a model that is loaded once.

    Raises:
        LlavaStfError: as `load_engine` and `BatchJob.rows`.
    """

    def __init__(self, job: BatchJob, rows: Rows | None = None) -> None:
        self._rows = job.rows() if rows is None else rows
        self._shards = Shards(open_place(job.output), len(self._rows), job.shard_size)
        self._engine = load_engine(job)

    def fill(self, shard: int) -> bool:
        """Answers the rows of a shard and writes it; `False` if another run has it."""
        with self._shards.claim(shard) as claim:
            if claim is None:
                return False
            rows = [self._rows[index] for index in self._shards.span(shard)]
            answers = self._engine.answer_rows(rows)
            claim.write(
                [
                    {"id": row.id, "index": row.index, "answer": answer.text, "error": answer.error}
                    for row, answer in zip(rows, answers, strict=True)
                ]
            )
        return True


def run_batch(
    job: BatchJob, *, distribute: Distribute | None = None, progress: Callable[[int, int], None] | None = None
) -> Summary:
    """Answers every row that has no result yet, and returns when all have one, also from other runs of the same job.

    Args:
        job: what is asked.
        distribute: who fills the shards; default: this process.
        progress: called with the number of rows that have a result, and of all rows.

    Raises:
        DataError: the input cannot be read, or the output is that of another job or damaged.
        LlavaStfError: the engine cannot do the job, or the model cannot be loaded; of the same kinds as `load_model`'s.
    """
    check_job(job)
    rows = job.rows()
    output = open_place(job.output)
    open_output(output, job.manifest(rows))
    shards = Shards(output, len(rows), job.shard_size)
    distribute = distribute or _here(rows)
    rows_now, done, started = 0, len(rows), time.perf_counter()
    if shards.open():
        shards.sum_up({"complete": False, "rows": len(rows)})
    while waiting := shards.wait_for_open():
        done = len(rows) - sum(len(shards.span(shard)) for shard in waiting)
        if progress is not None:
            progress(done, len(rows))
        for shard in distribute(job, waiting):
            rows_now += len(shards.span(shard))
            done += len(shards.span(shard))
            if progress is not None:
                progress(done, len(rows))
    if progress is not None and done < len(rows):  # who filled the last ones could not say so, or was another run
        progress(len(rows), len(rows))
    seconds = time.perf_counter() - started
    errors = shards.check()
    shards.sum_up({"complete": True, "rows": len(rows), "errors": errors})
    return Summary(len(rows), errors, rows_now, seconds)


def _here(rows: Rows) -> Distribute:
    worker: Worker | None = None

    def fill(job: BatchJob, shards: Sequence[int]) -> Iterator[int]:
        nonlocal worker
        worker = worker or Worker(job, rows)
        return filter(worker.fill, shards)

    return fill


def check_job(job: BatchJob) -> None:
    """Check that the engine can do a job, as far as that can be told without loading the model.

    Raises:
        LlavaStfError: it cannot.
    """
    if job.engine == "vllm":
        from llava_stf.batch import vllm_engine

        vllm_engine.check_job(job)


def load_engine(job: BatchJob) -> Engine:
    """Loads the model.

    Raises:
        LlavaStfError: as `load_model`.
        MissingDependencyError: vLLM is asked for and not installed.
    """
    if job.engine == "vllm":
        from llava_stf.batch.vllm_engine import load_vllm

        return load_vllm(job)

    from llava_stf.loading import load_model

    word = job.vision_tokens if job.vision_tokens in DETAILS else None
    llava = load_model(
        job.model,
        vision_tokens=None if word else job.vision_tokens,  # type: ignore[arg-type]  # no word
        dtype=job.dtype,
        quantization=job.quantization,
        device=job.device,
    )
    return TransformersEngine(
        llava,
        batch_size=job.batch_size,
        vision_tokens=word,
        max_vision_tokens=job.max_vision_tokens,
        max_new_tokens=job.max_new_tokens,
    )
