"""What Prometheus is told: requests by outcome, the queue, batches, latency."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_1_0_0 as CONTENT_TYPE

WENT_AWAY = 499
"""What proxies call a request whose client did not wait; no standard has a status for what nobody hears."""

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
FILMS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """One server's figures, in a registry of their own.

    Args:
        queue_length: films under way at the moment.

    Attributes:
        images: films answered; their rate is images a second.
        batches: films a batch of the network.
    """

    content_type = CONTENT_TYPE

    def __init__(self, queue_length: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "cxr_requests", "Requests for a prediction by their HTTP status.", ["status"], registry=self.registry
        )
        self.seconds = Histogram(
            "cxr_request_seconds",
            "Seconds from a request's headers to its answer, by its HTTP status.",
            ["status"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.images = Counter("cxr_images", "Films answered; rate() of it is images a second.", registry=self.registry)
        self.batches = Histogram(
            "cxr_batch_images", "Films that the network saw together.", buckets=FILMS, registry=self.registry
        )
        waiting = Gauge("cxr_queue_images", "Films under way, from upload to answer.", registry=self.registry)
        waiting.set_function(queue_length)

    def answered(self, status: int, seconds: float) -> None:
        """Count one request for a prediction; without a status (0) nobody was there to hear one."""
        label = str(status or WENT_AWAY)
        self.requests.labels(label).inc()
        self.seconds.labels(label).observe(seconds)

    def exposition(self) -> bytes:
        """The figures as Prometheus reads them."""
        return generate_latest(self.registry)
