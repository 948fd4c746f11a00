"""What the ZeroMQ publisher of KV events tells Prometheus of itself; all zero where it is off."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, Metric

__all__ = ["KvEventSample", "kv_event_metrics"]


class KvEventSample(Protocol):
    """As kvstore.node.kv_publisher.KvEventCounts."""

    @property
    def batches(self) -> int: ...
    @property
    def stored(self) -> int: ...
    @property
    def removed(self) -> int: ...
    @property
    def anew(self) -> int: ...
    @property
    def replays(self) -> int: ...
    @property
    def left_out(self) -> int: ...


def kv_event_metrics(sample: KvEventSample) -> Iterator[Metric]:
    for name, text, value in (
        ("batches", "Batches of KV events published over ZeroMQ.", sample.batches),
        ("stored", "Blocks told as stored.", sample.stored),
        ("removed", "Blocks told as removed.", sample.removed),
        ("anew", "How often all that is held was told again: at the start, after a clear or a gap.", sample.anew),
        ("replays", "Replays that subscribers asked for.", sample.replays),
        ("left_out", "Events of blocks that were put without a meta that can be told.", sample.left_out),
    ):
        yield CounterMetricFamily(f"kvstore_kv_events_{name}", text, value=value)
