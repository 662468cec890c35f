"""A batch on the machines of a Ray cluster: Ray Data hands out the shards, and each worker fills them as one would.

A worker reads its rows and writes its shard itself, so input, output and model must lie at the same paths everywhere,
and images and answers never pass through Ray. Whatever dies, a shard is there as a whole or not at all; Ray starts a
worker that died again and gives its shard to the next one.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llava_stf.batch.job import BatchJob
from llava_stf.batch.run import Worker
from llava_stf.errors import LlavaStfError, MissingDependencyError


class RayWorkers:
    """Fills shards by Ray Data, for `run_batch(distribute=...)`.

    Args:
        address: of a running cluster; `None` is that of the variable RAY_ADDRESS, else one is started on this machine.
        workers: how many models are loaded; `None` is one per GPU of the cluster, without GPUs one per machine.

    A cluster that this starts ends with the process.

    Raises:
        MissingDependencyError: Ray is not installed.
        LlavaStfError: the cluster cannot be reached.
    """

    def __init__(self, address: str | None = None, workers: int | None = None) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anyone
        try:
            import ray
            import ray.data
        except ImportError as error:
            raise MissingDependencyError("The engine ray needs Ray: pip install 'llava-stf[ray]'") from error
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # it would tell its plan
        if not ray.is_initialized():
            try:
                ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise LlavaStfError(f"The Ray cluster {address or ''} cannot be reached: {error}") from error
        self._gpus = int(ray.cluster_resources().get("GPU", 0))
        self._workers = workers or self._gpus or sum(node["Alive"] for node in ray.nodes())

    def __call__(self, job: BatchJob, shards: Sequence[int]) -> Iterator[int]:
        """Yields the shards as they are filled. Raises what a worker raises, and `LlavaStfError` if Ray gives up."""
        import ray
        from ray.data import ActorPoolStrategy

        workers = min(self._workers, len(shards))
        filled = ray.data.from_items(
            [{"shard": shard} for shard in shards], override_num_blocks=len(shards)
        ).map_batches(
            _RayWorker,
            batch_size=1,
            compute=ActorPoolStrategy(size=workers),
            num_gpus=1 / -(-workers // self._gpus) if self._gpus else 0,
            fn_constructor_args=(_absolute(job),),
        )
        try:
            for row in filled.iter_rows():
                if row["reason"]:
                    raise LlavaStfError(row["reason"])
                if row["is_filled"]:
                    yield int(row["shard"])
        except ray.exceptions.RayError as error:
            raise LlavaStfError(f"Ray gave up: {str(error).splitlines()[-1]}") from error


class _RayWorker:
    """What Ray Data starts once per worker and calls with one shard after the other.

    The user's errors are part of its answers: Ray hands on the text of an exception, but not its class.
    """

    def __init__(self, job: BatchJob) -> None:
        self._reason = ""
        try:
            self._worker = Worker(job)
        except LlavaStfError as error:
            self._reason = str(error)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        reason, is_filled = self._reason, False
        if not reason:
            try:
                is_filled = self._worker.fill(int(batch["shard"][0]))
            except LlavaStfError as error:
                reason = str(error)
        return {"shard": batch["shard"], "is_filled": [is_filled], "reason": [reason]}


def _absolute(job: BatchJob) -> BatchJob:
    """The same job from whatever folder a worker starts in."""
    images = None if job.images is None else job.images.absolute()
    model = str(Path(job.model).absolute()) if Path(job.model).is_dir() else job.model
    return replace(job, input=job.input.absolute(), output=job.output.absolute(), images=images, model=model)
