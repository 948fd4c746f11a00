"""What tests ask of an engine from within: `engine.call("tests.engines.probes:NAME")`.

The engine's venv has no pytest, so what is called lies in a module without it.
"""

from __future__ import annotations

import os
from typing import Any

__all__ = ["groups", "pid"]


def pid(engine: Any) -> int:
    return os.getpid()


def groups(engine: Any) -> int:
    """How many KV cache groups a vLLM engine made of its model."""
    return len(engine.engine_core.engine_core.scheduler.kv_cache_config.kv_cache_groups)
