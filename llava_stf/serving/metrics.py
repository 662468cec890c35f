"""What a server counts, in Prometheus' form."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The counters of one server; several servers of a process do not share them."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "llava_stf_requests", "Requests by route and HTTP status.", ["route", "status"], registry=registry
        )
        self.queue_depth = Gauge("llava_stf_queue_depth", "Requests that wait for their turn.", registry=registry)
        self.decoding = Gauge("llava_stf_decoding", "Requests whose images are being decoded.", registry=registry)
        self.running = Gauge("llava_stf_running", "Requests in the running batch.", registry=registry)
        self.batch_size = Histogram(
            "llava_stf_batch_size",
            "Requests of a batch, whenever some begin.",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=registry,
        )
        self.prompt_tokens = Counter("llava_stf_prompt_tokens", "Tokens of prompts, with images.", registry=registry)
        self.image_tokens = Counter("llava_stf_image_tokens", "Tokens of images in prompts.", registry=registry)
        self.cached_tokens = Counter(
            "llava_stf_cached_tokens", "Tokens of prompts that had been read before.", registry=registry
        )
        self.completion_tokens = Counter("llava_stf_completion_tokens", "Tokens of answers.", registry=registry)
        self.first_token = Histogram(
            "llava_stf_time_to_first_token_seconds",
            "From the decoding of a request's images to its first token, waiting included.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.request = Histogram(
            "llava_stf_request_seconds",
            "From the decoding of a request's images to its last token, waiting included.",
            buckets=_SECONDS,
            registry=registry,
        )

    def watch(self, *, queue: Callable[[], int], decoding: Callable[[], int], running: Callable[[], int]) -> None:
        """Asks these whenever the gauges of the same names are read."""
        self.queue_depth.set_function(queue)
        self.decoding.set_function(decoding)
        self.running.set_function(running)

    def text(self) -> bytes:
        """All of them as Prometheus reads them."""
        return generate_latest(self.registry)
