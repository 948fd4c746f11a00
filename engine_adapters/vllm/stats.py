"""What the connector counts, for the engine's log and its Prometheus endpoint. Sums only, so that ranks add up."""

from __future__ import annotations

from collections import deque
from typing import Any, Final

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import (
    KVConnectorPromMetrics,
    KVConnectorStats,
)

__all__ = ["COUNTERS", "Stats", "StoreStats", "prometheus"]

COUNTERS: Final = {
    "lookups": "Searches begun in the store.",
    "lookups_late": "Searches given up at lookup_ms; the prompt was computed.",
    "hit_tokens": "Prompt tokens that the store held and the engine took.",
    "loads": "Loads that brought every block.",
    "loads_short": "Loads of which a block did not arrive; it was computed.",
    "load_bytes": "Bytes loaded, verified.",
    "load_seconds": "Time from asking for blocks to their arrival, summed.",
    "saves": "Saves that ended, well or not.",
    "saves_deferred": "Saves put off because too many blocks were pinned.",
    "saves_dropped": "Saves given up: the store was away or full.",
    "save_bytes": "Bytes handed to the store; what it held already is not counted.",
    "save_seconds": "Time that saves took, summed.",
}


class Stats:
    """Counts since the last `take`. Thread-safe."""

    def __init__(self) -> None:
        self.added: deque[tuple[str, float]] = deque()  # each end of it is thread-safe

    def add(self, name: str, value: float) -> None:
        assert name in COUNTERS, name
        self.added.append((name, value))

    def take(self) -> StoreStats:
        counts: dict[str, float] = {}
        for _ in range(len(self.added)):
            name, value = self.added.popleft()
            counts[name] = counts.get(name, 0) + value
        return StoreStats(data=counts)


class StoreStats(KVConnectorStats):  # type: ignore[misc]
    data: dict[str, float]

    def reset(self) -> None:
        self.data = {}

    def aggregate(self, other: KVConnectorStats) -> KVConnectorStats:
        for name, value in other.data.items():
            self.data[name] = self.data.get(name, 0) + value
        return self

    def reduce(self) -> dict[str, int | float]:
        """For a line of the engine's log."""
        said: dict[str, int | float] = {name: value for name, value in self.data.items() if "_seconds" not in name}
        for verb in ("load", "save"):
            seconds = self.data.get(f"{verb}_seconds", 0)
            if seconds:
                said[f"{verb} GiB/s"] = round(self.data.get(f"{verb}_bytes", 0) / seconds / (1 << 30), 2)
        return said

    def is_empty(self) -> bool:
        return not self.data


class _Metrics(KVConnectorPromMetrics):  # type: ignore[misc]
    """One counter each, `vllm:kvstore_NAME`."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._counters = {
            name: self.make_per_engine(
                self._counter_cls(name=f"vllm:kvstore_{name}", documentation=text, labelnames=self._labelnames)
            )
            for name, text in COUNTERS.items()
        }

    def make_per_engine(self, metric: Any) -> dict[int, Any]:
        """Of each engine by its number; upstream has it by another name in some releases."""
        return {number: metric.labels(*values) for number, values in self.per_engine_labelvalues.items()}

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        for name, value in transfer_stats_data.items():
            if name in self._counters and value:
                self._counters[name][engine_idx].inc(value)


prometheus = _Metrics
