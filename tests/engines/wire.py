"""What a test and the engine process beside it say to each other: JSON, a line each, over the process's own pipes.

    to the engine    start {arguments} | submit {prompts} | abort {ids} | call {id, what, given} | stop
    from it          started {took_s} | first {id} | answer {...} | called {id, result | error} | failed {why}

Both sides import this; so it takes nothing but the standard library.
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import sys
import threading
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Answer", "Line", "Prompt", "called", "words"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """Decoded greedily, and never ended by a token. `salt`: cache_salt. `extra`: what goes to a connector
    (kv_transfer_params)."""

    tokens: Sequence[int]
    max_tokens: int = 8
    salt: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    id: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """`local` and `external`: tokens of the prompt that were not computed, by the engine's own cache and from the
    connector or storage (None where the engine does not tell them apart); `cached`: both.
    `finish`: length | abort | error. `first_token_s`: from the submission to the first token, seen by the engine's
    process."""

    id: str
    tokens: tuple[int, ...]
    finish: str
    cached: int
    local: int | None
    external: int | None
    first_token_s: float | None
    took_s: float


def words(count: int, seed: int = 0) -> list[int]:
    """A prompt of `count` tokens, another for another seed from its first token on; none of them special."""
    state, tokens = seed * 7919 + 1, []
    for _ in range(count):
        state = (state * 1103515245 + 12345) % (1 << 31)
        tokens.append(8 + (state >> 12) % 500)
    return tokens


def called(what: str, engine: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Runs `module:function(engine, **given)` in the engine's process; its result must be JSON."""
    try:
        module, _, name = what.partition(":")
        return {"result": getattr(importlib.import_module(module), name)(engine, **given)}
    except Exception:
        return {"error": traceback.format_exc()}


class Line:
    """The engine's end. Made before the engine is imported: what engines print goes to stderr from then on."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self._wanted: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in sys.stdin:
            self._wanted.put(json.loads(line))
        self._wanted.put({"do": "stop"})  # whoever started this is gone

    def take(self, wait: bool) -> dict[str, Any] | None:
        """The next thing to do; None where there is none and `wait` is false."""
        try:
            return self._wanted.get(wait)
        except queue.Empty:
            return None

    def say(self, event: str, **more: Any) -> None:
        self._out.write(json.dumps({"event": event, **more}) + "\n")

    def answer(self, answer: Answer) -> None:
        self.say("answer", **asdict(answer))
