"""A client as any other: a chat, streamed over HTTP, and the time until its first token."""

from __future__ import annotations

import json
import random
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any

from .model import WORDS
from .stage import MODEL

ANSWER_MAX_S = 300.0


@dataclass(frozen=True, slots=True)
class Heard:
    """`prompt`, `cached`: tokens, as the server counts them. `prefill_s`: until the proxy turned to decode."""

    text: str
    prompt: int
    cached: int
    first_s: float
    prefill_s: float


@dataclass(slots=True)
class Talk:
    """Messages so far. A word is a token, and a message has its role's beside its own."""

    messages: list[dict[str, str]] = field(default_factory=list)

    def user(self, words: int, seed: str) -> Talk:
        rng = random.Random(seed)
        said = " ".join(f"w{rng.randrange(WORDS)}" for _ in range(words))
        return Talk([*self.messages, {"role": "user", "content": said}])

    def assistant(self, said: str) -> Talk:
        return Talk([*self.messages, {"role": "assistant", "content": said.strip()}])


def ask(url: str, talk: Talk, new: int, salt: str = "") -> Heard:
    """The next answer, decoded greedily. salt: shares what is cached with the same salt only."""
    body: dict[str, Any] = {
        "model": MODEL,
        "messages": talk.messages,
        "max_completion_tokens": new,
        "temperature": 0,
        "ignore_eos": True,
        "skip_special_tokens": False,
        "stream": True,
        "stream_options": {"include_usage": True},
        **({"cache_salt": salt} if salt else {}),
    }
    data, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
    asked = urllib.request.Request(f"{url}/v1/chat/completions", data, headers)
    text, first_s = "", 0.0
    usage: dict[str, Any] = {}
    began = time.perf_counter()
    try:
        with urllib.request.urlopen(asked, timeout=ANSWER_MAX_S) as answer:
            timing = answer.headers.get("Server-Timing", "")
            for event in filter(None, map(_event, answer)):
                usage = event.get("usage") or usage
                piece = "".join(choice["delta"].get("content") or "" for choice in event["choices"])
                if piece and not text:
                    first_s = time.perf_counter() - began
                text += piece
    except urllib.error.HTTPError as error:
        raise SystemExit(f"{url}: {error.code}: {error.read()[:2000].decode(errors='replace')}") from None
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    prefill_ms = timing.removeprefix("prefill;dur=")
    return Heard(text, usage["prompt_tokens"], cached, first_s, float(prefill_ms or 0) / 1e3)


def _event(line: bytes) -> dict[str, Any] | None:
    said = line.strip().removeprefix(b"data: ")
    if not line.startswith(b"data: ") or said == b"[DONE]":
        return None
    event: dict[str, Any] = json.loads(said)
    return event
