"""What tests ask of an SGLang engine: `engine.call("tests.engines.probes_sglang:NAME")`, in a thread beside it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

__all__ = ["clear_storage", "flush"]

ASKED_MAX_S = 60.0


def flush(engine: Any) -> bool:
    """Empties the engine's own caches, on the device and in host memory; what it has stored stays there. Whether it
    did: not while anything is under way.
    """
    return bool(_asked(engine, engine.tokenizer_manager.flush_cache()).success)


def clear_storage(engine: Any) -> bool:
    """What is stored, as an operator clears it over HTTP."""
    return bool(_asked(engine, engine.tokenizer_manager.clear_hicache_storage()).success)


def _asked(engine: Any, question: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run_coroutine_threadsafe(question, engine.loop).result(ASKED_MAX_S)
