"""What tests ask of an engine from within: `engine.call("tests.engines.probes:NAME")`.

The engine's venv has no pytest, so what is called lies in a module without it.
"""

from __future__ import annotations

import os
from typing import Any

__all__ = ["caches_prefixes", "groups", "pid"]


def pid(engine: Any) -> int:
    return os.getpid()


def groups(engine: Any) -> int:
    """How many KV cache groups a vLLM engine made of its model."""
    return len(engine.engine_core.engine_core.scheduler.kv_cache_config.kv_cache_groups)


def caches_prefixes(engine: Any) -> bool:
    """Whether a vLLM engine keeps a prefix cache of its own, whatever it was asked for."""
    return bool(engine.vllm_config.cache_config.enable_prefix_caching)
