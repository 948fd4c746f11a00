"""What a proxy counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily

from engine_adapters.pd.pool import Pool

__all__ = ["OUTCOMES", "Metrics"]

# Of a prefill: told decode something; answered without; was not worth it; late; failed or refused; no server up.
OUTCOMES: Final = ("done", "untold", "skipped", "late", "failed", "nobody")
_NAMED: Final = "kvstore_proxy"
_SECONDS: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60)


class Metrics:
    def __init__(self, pools: Iterable[Pool]) -> None:
        self._registry = CollectorRegistry()
        self.requests = self._counter("requests", "Answers, by path and status.", "path", "status")
        self.prefills = self._counter("prefills", "Requests, by what came of their prefill.", "outcome")
        self.broken = self._counter("broken", "Answers broken off: by client, server or deadline.", "by")
        self.prefill_s = self._histogram("prefill_seconds", "Prefills that were answered.")
        self.first_s = self._histogram("first_byte_seconds", "Until the first byte of an answer's body.")
        for outcome in OUTCOMES:
            self.prefills.labels(outcome)
        for who in ("client", "server", "deadline"):
            self.broken.labels(who)
        self._registry.register(_Servers(tuple(pools)))

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"{_NAMED}_{name}", text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(f"{_NAMED}_{name}", text, buckets=_SECONDS, registry=self._registry)

    def exposition(self) -> bytes:
        return generate_latest(self._registry)


class _Servers:
    """Read when asked, so that it cannot differ from what decides."""

    def __init__(self, pools: tuple[Pool, ...]) -> None:
        self._pools = pools

    def collect(self) -> Iterator[GaugeMetricFamily]:
        up = GaugeMetricFamily(f"{_NAMED}_server_up", "1: requests go there.", labels=["role", "server"])
        busy = GaugeMetricFamily(f"{_NAMED}_server_outstanding", "Requests that it has now.", labels=["role", "server"])
        for server in (server for pool in self._pools for server in pool.servers):
            up.add_metric([server.role, server.url], float(server.up))
            busy.add_metric([server.role, server.url], server.outstanding)
        yield up
        yield busy
