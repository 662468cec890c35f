"""What a server says of itself under load: requests that run and wait, and vLLM's KV cache, read from `/metrics`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from llava_stf.errors import MissingDependencyError
from llava_stf_eval.serving.client import headers

SECONDS = 0.2  # between two readings
# Names of the same thing at vLLM and at llava-stf serve.
RUNNING = ("vllm:num_requests_running", "llava_stf_running")
WAITING = ("vllm:num_requests_waiting", "llava_stf_queue_depth")
USAGE, PREEMPTIONS, CACHE = "vllm:kv_cache_usage_perc", "vllm:num_preemptions_total", "vllm:cache_config_info"
HITS, QUERIES = "vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total"


@dataclass
class Seen:
    """The most of each that was read under a load; `None` where the server does not tell.

    Attributes:
        running: requests that are being answered.
        waiting: requests that are not yet.
        kv_blocks: blocks of the KV cache, of `kv_block_size` tokens each.
        kv_blocks_used: most of them in use at once.
        preemptions: requests that had to give their blocks back and begin again.
        cached: share of the prompts' tokens that was in the prefix cache.
    """

    running: int | None = None
    waiting: int | None = None
    kv_blocks: int | None = None
    kv_block_size: int | None = None
    kv_blocks_used: int | None = None
    preemptions: int | None = None
    cached: float | None = None


@contextmanager
def watching(url: str) -> Iterator[Seen]:
    """Reads `/metrics` again and again in a thread; the result is complete behind the `with` block."""
    seen, stop = Seen(), threading.Event()
    with httpx.Client(base_url=url, headers=headers(), timeout=30, trust_env=False) as client:
        before = _read(client)

        def watch() -> None:
            while not stop.wait(SECONDS):
                _note(seen, _read(client))

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield seen
        finally:
            stop.set()
            thread.join()
        _finish(seen, before, _read(client))


def _read(client: httpx.Client) -> dict[str, Any]:
    """The sum of every metric's samples by name, and the labels of vLLM's cache; empty where there are none."""
    try:
        from prometheus_client.parser import text_string_to_metric_families
    except ImportError as error:
        raise MissingDependencyError(
            "prometheus-client is not installed here; pip install 'llava-stf[serve]'."
        ) from error
    try:
        response = client.get("/metrics")
    except httpx.HTTPError:  # a server that is busy or gone; the requests say what is wrong
        return {}
    found: dict[str, Any] = {}
    if response.status_code != httpx.codes.OK:
        return found
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
            if sample.name == CACHE:
                found["labels"] = sample.labels
    return found


def _note(seen: Seen, read: dict[str, Any]) -> None:
    seen.running = _most(seen.running, next((read[name] for name in RUNNING if name in read), None))
    seen.waiting = _most(seen.waiting, next((read[name] for name in WAITING if name in read), None))
    if "labels" in read and USAGE in read:
        labels = read["labels"]
        seen.kv_blocks, seen.kv_block_size = int(labels["num_gpu_blocks"]), int(labels["block_size"])
        # One block is kept back by vLLM, and the share is of the others.
        seen.kv_blocks_used = _most(seen.kv_blocks_used, round(read[USAGE] * (seen.kv_blocks - 1)))


def _finish(seen: Seen, before: dict[str, Any], after: dict[str, Any]) -> None:
    """What is counted up, as the difference over the load."""
    if PREEMPTIONS in before and PREEMPTIONS in after:
        seen.preemptions = int(after[PREEMPTIONS] - before[PREEMPTIONS])
    if QUERIES in before and QUERIES in after and after[QUERIES] > before[QUERIES]:
        seen.cached = (after[HITS] - before[HITS]) / (after[QUERIES] - before[QUERIES])


def _most(known: int | None, value: float | None) -> int | None:
    return known if value is None else max(known or 0, int(value))
