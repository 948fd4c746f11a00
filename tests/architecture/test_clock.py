"""Durations are counted on the monotonic clock, so that the wall clock may jump. What reads the wall clock, and why."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WALL = re.compile(
    r"\btime\.(time|time_ns|localtime|gmtime)\(|\bdatetime\.(now|utcnow|today)\(|CLOCK_REALTIME|system_clock"
    r"|\bgettimeofday\b|\bstd::time\("
)
# Text for people may tell the hour. Nothing that waits, lapses or orders may ask for it.
READERS = {"kvstore/node/kv_publisher.py": "batches of vLLM's KV events begin with the hour; nobody reads it here"}


def test_nothing_that_waits_or_lapses_reads_the_wall_clock() -> None:
    sources = [
        path
        for package in ("kvstore", "transfer", "native")
        for suffix in ("py", "cpp", "hpp")
        for path in (ROOT / package).rglob(f"*.{suffix}")
    ]
    assert len(sources) > 100
    found = {str(path.relative_to(ROOT)) for path in sources if WALL.search(path.read_text())}
    assert found == set(READERS)
