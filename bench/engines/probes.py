"""What benchmarks do inside an engine's process: `engine.call("bench.engines.probes:NAME")`."""

from __future__ import annotations

import time
from typing import Any

__all__ = ["clock", "forget", "pending", "spent", "step"]

# All that the engine's scheduler calls of a connector, from its own thread.
SCHEDULER_CALLS = (
    "on_new_request",
    "get_num_new_matched_tokens",
    "update_state_after_alloc",
    "get_loaded_kv_cache_group_ids",
    "get_external_cache_hit_sources",
    "build_connector_meta",
    "update_connector_output",
    "request_finished",
    "request_finished_all_groups",
    "has_pending_push_work",
    "has_pending_block_frees",
    "take_events",
    "get_kv_connector_stats",
)
_SPENT: dict[str, list[int]] = {}
_PLAIN: dict[str, Any] = {}


def forget(engine: Any, connector: bool = False) -> bool:
    """Empties the engine's prefix cache; `connector`: what its connector keeps for itself, too."""
    return bool(engine.reset_prefix_cache(reset_connector=connector))


def step(engine: Any, seconds: float) -> None:
    """Lets a connector that does things with the engine's steps do them, though nobody asks anything."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        engine.step()
        time.sleep(0.002)


def clock(engine: Any) -> None:
    """From here on, counts the CPU time of the scheduler's thread within its connector. Calls within calls are counted
    once.
    """
    connector = engine.engine_core.engine_core.scheduler.connector
    depth = [0]
    for name in SCHEDULER_CALLS:
        plain = _PLAIN[name] = getattr(connector, name)
        setattr(connector, name, _clocked(plain, _SPENT.setdefault(name, [0, 0, 0]), depth))


def _clocked(call: Any, spent: list[int], depth: list[int]) -> Any:
    now = time.thread_time_ns

    def clocked(*given: Any, **named: Any) -> Any:
        depth[0] += 1
        before = now()
        begun = now()
        try:
            return call(*given, **named)
        finally:
            took = now() - begun
            depth[0] -= 1
            if depth[0] == 0:
                spent[0] += 1
                spent[1] += took
                spent[2] += begun - before

    return clocked


def spent(_engine: Any) -> dict[str, list[int]]:
    """Calls, nanoseconds in them, and how many of those one reading of the clock took each time, by method, since the
    last time this was asked.
    """
    told = {name: list(counted) for name, counted in _SPENT.items() if counted[0]}
    for counted in _SPENT.values():
        counted[:] = (0, 0, 0)
    return told


def pending(_engine: Any) -> bool:
    """Whether saves are under way; this question is nobody's cost."""
    return bool(_PLAIN["has_pending_push_work"]())
