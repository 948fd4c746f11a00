"""What the backend counts: for the engine's storage metrics, and a line of its log now and then. Thread-safe."""

from __future__ import annotations

import threading
from typing import Any, Final

__all__ = ["COUNTERS", "Stats"]

COUNTERS: Final = {
    "lookups": "Questions of what the store has.",
    "promised_pages": "Pages that were held before the engine was told of them.",
    "promises_refused": "Questions answered with nothing: other promises held promise_bytes_max.",
    "loads": "Loads that brought every page.",
    "loads_short": "Loads of which a page did not arrive; the engine computes it.",
    "load_pages": "Pages loaded, verified.",
    "load_bytes": "Their bytes.",
    "load_seconds": "Time that loads took, summed.",
    "saves": "Saves after which every page is in the store.",
    "saves_short": "Saves of which a page is not: the store was away or full.",
    "save_pages": "Pages handed to the store; what it held already is not counted.",
    "save_bytes": "Their bytes.",
    "save_seconds": "Time that saves took, summed.",
    "errors": "Calls that failed in a way that nobody foresaw; see the log.",
}
SAMPLES_MAX: Final = 10_000  # between two questions of the engine


class Stats:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(COUNTERS, 0.0)
        self._samples: dict[str, list[tuple[int, float]]] = {"load": [], "save": []}

    def add(self, name: str, value: float = 1) -> None:
        assert name in COUNTERS, name
        with self._lock:
            self._counts[name] += value

    def moved(self, verb: str, pages: int, size: int, seconds: float, *, whole: bool) -> None:
        """verb: "load" or "save"."""
        with self._lock:
            self._counts[f"{verb}s" if whole else f"{verb}s_short"] += 1
            self._counts[f"{verb}_pages"] += pages
            self._counts[f"{verb}_bytes"] += size
            self._counts[f"{verb}_seconds"] += seconds
            if pages and len(self._samples[verb]) < SAMPLES_MAX:
                self._samples[verb].append((pages, size / max(seconds, 1e-9) / (1 << 30)))

    def counts(self) -> dict[str, float]:
        """Since the beginning."""
        with self._lock:
            return dict(self._counts)

    def take(self) -> Any:
        """As the engine's get_stats: pages and GiB/s of each load and save since the last call. None where this release
        has no such thing.
        """
        try:
            from sglang.srt.observability.metrics_collector import StorageMetrics
        except ImportError:
            return None
        with self._lock:
            samples, self._samples = self._samples, {"load": [], "save": []}
        said = StorageMetrics()
        for verb, pages, bandwidth in (("load", "prefetch_pgs", "prefetch_bandwidth"),
                                       ("save", "backup_pgs", "backup_bandwidth")):  # fmt: skip
            getattr(said, pages).extend(count for count, _ in samples[verb])
            getattr(said, bandwidth).extend(speed for _, speed in samples[verb])
        return said
