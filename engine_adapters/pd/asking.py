"""A request of OpenAI's interface, as its two servers get it. Pure.

    client's      {"model", "prompt" or "messages", ...}
    prefill gets  the same prompt, one token to make, and kv_transfer_params {"kvstore": {}}: tell what you saved
    decode gets   the client's own, and as kv_transfer_params what prefill told

Whatever decides the prompt (messages, tools, templates, salts) goes to both alike, or they would name other blocks; the
servers look at it closer than this does. kv_transfer_params is what servers say to each other: a client's is dropped.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["HANDOVER_BYTES_MAX", "Asked", "Malformed", "decode_body", "handover_of", "parse", "prefill_body", "skips"]

FIELD: Final = "kv_transfer_params"
ASKS: Final[dict[str, Any]] = {"kvstore": {}}
BYTES_PER_TOKEN: Final = 4  # of text, about; it decides what is worth a prefill elsewhere, nothing else
HANDOVER_BYTES_MAX: Final = 64 << 10

# How much to make and how to tell it: not the prefill's business, and some of it contradicts one token, unstreamed.
_OF_THE_ANSWER: Final = (
    "stream", "stream_options", "max_tokens", "max_completion_tokens", "min_tokens", "n", "best_of", "logprobs",
    "top_logprobs", "prompt_logprobs", "echo", "use_beam_search", "return_token_ids", FIELD,
)  # fmt: skip


class Malformed(ValueError):
    """The text says what is wrong with a request, for its client."""


@dataclass(frozen=True, slots=True)
class Asked:
    """`raw`: as it came."""

    raw: bytes
    body: dict[str, Any]
    chat: bool


def parse(raw: bytes, *, chat: bool) -> Asked:
    """Raises Malformed."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        raise Malformed("the body is not JSON") from None
    if not isinstance(body, dict):
        raise Malformed("the body is not a JSON object")
    if not isinstance(body.get("model"), str) and "model" in body:
        raise Malformed("model: must be a text")
    if chat:
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages or not all(isinstance(one, dict) for one in messages):
            raise Malformed("messages: must be a list of messages, one at least")
    elif not isinstance(body.get("prompt"), str | list) and "prompt_embeds" not in body:
        raise Malformed("prompt: must be a text or a list")
    return Asked(raw, body, chat)


def prefill_body(asked: Asked) -> bytes:
    body = {key: value for key, value in asked.body.items() if key not in _OF_THE_ANSWER}
    body |= {"stream": False, "max_tokens": 1, FIELD: ASKS}
    if asked.chat:
        body["max_completion_tokens"] = 1
    return json.dumps(body).encode()


def decode_body(asked: Asked, handover: dict[str, Any] | None) -> bytes:
    """Byte by byte the client's, where there is nothing to say."""
    if handover is None and FIELD not in asked.body:
        return asked.raw
    body = {key: value for key, value in asked.body.items() if key != FIELD}
    if handover is not None:
        body[FIELD] = handover
    return json.dumps(body).encode()


def handover_of(raw: bytes) -> dict[str, Any] | None:
    """What a prefill's answer tells decode; None if nothing, or nothing that could be meant."""
    try:
        answer = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    told = answer.get(FIELD) if isinstance(answer, dict) else None
    if not isinstance(told, dict) or len(json.dumps(told)) > HANDOVER_BYTES_MAX:
        return None
    return told


def skips(asked: Asked, tokens_min: int) -> bool:
    """Whether a prefill elsewhere would not help: a short prompt, or one whose every token decode must compute."""
    body = asked.body
    if body.get("prompt_logprobs") is not None or (body.get("echo") and body.get("logprobs") is not None):
        return True
    return _tokens(asked) < tokens_min


def _tokens(asked: Asked) -> int:
    """About how many tokens the longest prompt has. What is not text counts as long."""
    if not asked.chat:
        prompt = asked.body.get("prompt")
        several = isinstance(prompt, list) and bool(prompt) and not isinstance(prompt[0], int)
        return max(map(_tokens_of, prompt)) if several and prompt else _tokens_of(prompt)
    texts = 0
    for message in asked.body["messages"]:
        content = message.get("content")
        for piece in content if isinstance(content, list) else [content]:
            text = piece.get("text") if isinstance(piece, dict) else piece
            if not isinstance(text, str | None):
                return 1 << 30
            if text is None and piece is not None:
                return 1 << 30  # an image, a sound
            texts += len((text or "").encode(errors="replace"))
    if asked.body.get("tools"):
        texts += len(json.dumps(asked.body["tools"]))
    return texts // BYTES_PER_TOKEN


def _tokens_of(prompt: object) -> int:
    if isinstance(prompt, str):
        return len(prompt.encode(errors="replace")) // BYTES_PER_TOKEN
    return len(prompt) if isinstance(prompt, list) else 1 << 30
