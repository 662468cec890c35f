"""A batch on the machines of a Ray cluster: workers that fill one shard after the other, as one process would.

A worker reads its rows and writes its shard itself, so input, output and model must be the same on all machines, which
is looked at first, and images and answers never pass through Ray. Whatever dies, a shard is there as a whole or not at
all: another worker takes the shard of one that died, in whose place a new one starts.
"""

from __future__ import annotations

import logging
import os
import re
import socket
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llava_stf.batch.job import BatchJob
from llava_stf.batch.places import Place, is_uri, open_place
from llava_stf.batch.ray_nodes import Node, check_nodes, working_nodes
from llava_stf.batch.run import Worker
from llava_stf.errors import LlavaStfError, MissingDependencyError, one_line

_DEATHS = 5  # over one shard, or while one worker starts: then it is no accident
_CONNECT_SECONDS = 10
_START_SECONDS = 60  # until it is said that no worker has started

logger = logging.getLogger(__name__)


class RayWorkers:
    """Fills shards on a Ray cluster, for `run_batch(distribute=...)`.

    Args:
        address: of a running cluster; `None` is that of the variable RAY_ADDRESS or the one that runs on this machine,
            else one is started here.
        workers: how many models are loaded; `None` is one per GPU of the cluster, without GPUs one per machine. They
            share out the GPUs, or the cores.

    A cluster that this starts ends with the process.

    Raises:
        MissingDependencyError: Ray is not installed.
        LlavaStfError: the cluster cannot be reached, or nothing of it works.
    """

    def __init__(self, address: str | None = None, workers: int | None = None) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anyone
        try:
            import ray
        except ImportError as error:
            raise MissingDependencyError("The engine ray needs Ray: pip install 'llava-stf[ray]'") from error
        if not ray.is_initialized():
            _refuse_silence(address or os.environ.get("RAY_ADDRESS", ""))
            try:
                ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
            except (ConnectionError, ValueError, RuntimeError) as error:
                hint = " (if one is there, it may ask for a token: RAY_AUTH_MODE)" if isinstance(error, OSError) else ""
                raise LlavaStfError(
                    f"The Ray cluster {address or ''} cannot be reached{hint}: {one_line(error)}"
                ) from error
        self._nodes = working_nodes()
        self._gpus = sum(node.gpus for node in self._nodes)
        self._workers = workers or self._gpus or len(self._nodes)

    def __call__(self, job: BatchJob, shards: Sequence[int]) -> Iterator[int]:
        """Yields the shards as they are filled.

        Raises:
            LlavaStfError: what a worker raises, a machine that differs from this one, or workers that die always.
        """
        import ray

        job = _absolute(job)
        count = min(self._workers, len(shards))
        options: dict[str, Any] = {"scheduling_strategy": "SPREAD", **_share(self._nodes, count)}
        actor: Any = ray.remote(**options)(_RayWorker)
        try:
            check_nodes(job, self._nodes)
            yield from _fill(lambda: actor.remote(job), count, deque(shards))
        except ray.exceptions.RayError as error:
            raise LlavaStfError(f"Ray gave up: {_last_line(error)}") from error


def _refuse_silence(address: str) -> None:
    """Checks that somebody listens there, which Ray would try again for minutes. Raises `LlavaStfError`."""
    found = re.fullmatch(r"(?:ray://)?(.+):(\d{1,5})", address)
    if found is None:
        return
    try:
        socket.create_connection((found[1].strip("[]"), int(found[2])), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise LlavaStfError(
            f"No Ray cluster answers at {address} ({error}): give the address that `ray start --head` told."
        ) from error


class _RayWorker:
    """What Ray starts once per worker and calls with one shard after the other.

    The user's errors are answers: Ray hands on the text of an exception, but not its class.
    """

    def __init__(self, job: BatchJob) -> None:
        self._reason = ""
        try:
            self._worker = Worker(job)
        except LlavaStfError as error:
            self._reason = str(error)

    def start(self) -> tuple[bool, str]:
        """Answered as soon as the worker is there: nothing filled, and what keeps it from filling."""
        return False, self._reason

    def fill(self, shard: int) -> tuple[bool, str]:
        """Whether the shard was filled, and what kept the worker from it."""
        try:
            return self._worker.fill(shard), ""
        except LlavaStfError as error:
            return False, str(error)


def _fill(begin: Callable[[], Any], count: int, waiting: deque[int]) -> Iterator[int]:
    """Hands out shards to workers that are there, and those of a worker that dies again; yields the filled ones.

    Args:
        begin: has Ray start a worker, as soon as a machine has room for it.
        count: of workers.
        waiting: the shards.
    """
    import ray

    workers = [begin() for _ in range(count)]
    # One call to each worker is under way, by its place: `start`, with no shard, until it is there.
    calls: dict[Any, tuple[int, int | None]] = {
        worker.start.remote(): (place, None) for place, worker in enumerate(workers)
    }
    idle: list[int] = []
    deaths: Counter[tuple[str, int]] = Counter()
    try:
        while waiting or any(shard is not None for _, shard in calls.values()):
            while idle and waiting:
                place, shard = idle.pop(), waiting.popleft()
                calls[workers[place].fill.remote(shard)] = place, shard
            if not idle and all(shard is None for _, shard in calls.values()):
                ready, _ = ray.wait(list(calls), num_returns=1, timeout=_START_SECONDS)
                if not ready:
                    logger.warning("No worker is there yet: they load the model, or wait for room on the cluster.")
            (call,), _ = ray.wait(list(calls), num_returns=1)
            place, done = calls.pop(call)
            try:
                is_filled, reason = ray.get(call)
            except ray.exceptions.RayTaskError:
                raise  # our own code's, which would raise it again
            except ray.exceptions.RayError as error:
                what = ("A worker", place) if done is None else (f"The worker of shard {done}", done)
                deaths[what] += 1
                if deaths[what] == _DEATHS:
                    raise LlavaStfError(f"{what[0]} died {_DEATHS} times: {_last_line(error)}") from error
                waiting.extendleft([] if done is None else [done])
                ray.kill(workers[place])
                workers[place] = begin()
                calls[workers[place].start.remote()] = place, None
                continue
            if reason:
                raise LlavaStfError(reason)
            idle.append(place)
            if done is None:
                del deaths["A worker", place]
            elif is_filled:
                yield done
    finally:
        for worker in workers:
            ray.kill(worker)


def _share(nodes: Sequence[Node], workers: int) -> dict[str, float]:
    """What of a machine each worker takes, in Ray's terms; its cores are also the threads that it computes with."""
    gpus = sum(node.gpus for node in nodes)
    if gpus:
        return {"num_gpus": 1 / -(-workers // gpus)}
    cpus, on_each = min(node.cpus for node in nodes), -(-workers // len(nodes))
    return {"num_cpus": cpus // on_each if cpus >= on_each else cpus / on_each}


def _last_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[-1]


def _absolute(job: BatchJob) -> BatchJob:
    """The same job from whatever folder a worker starts in."""

    def place(given: str | Place) -> str | Place:
        return given if is_uri(given) else open_place(given).absolute()

    images = None if job.images is None else place(job.images)
    model = str(Path(job.model).absolute()) if Path(job.model).is_dir() else job.model
    return replace(job, input=place(job.input), output=place(job.output), images=images, model=model)
