"""What each of the two servers is asked, of one request."""

from __future__ import annotations

import json
from typing import Any

import pytest

from engine_adapters.pd.asking import (
    HANDOVER_BYTES_MAX,
    Asked,
    Malformed,
    decode_body,
    handover_of,
    parse,
    prefill_body,
    skips,
)

TOLD = {"kvstore": {"blocks": 12}}


def asked(chat: bool = False, **body: Any) -> Asked:
    usual = {"messages": [{"role": "user", "content": "w"}]} if chat else {"prompt": "w"}
    return parse(json.dumps({"model": "m", **usual, **body}).encode(), chat=chat)


@pytest.mark.parametrize(
    ("raw", "chat", "why"),
    [
        (b"", False, "not JSON"),
        (b"{", False, "not JSON"),
        (b"\xff\xfe\x00", False, "not JSON"),
        (b"[" * 100_000, False, "not JSON"),
        (b"[1]", False, "not a JSON object"),
        (b"null", True, "not a JSON object"),
        (b'{"model": 3, "prompt": "w"}', False, "model"),
        (b"{}", False, "prompt"),
        (b'{"prompt": 7}', False, "prompt"),
        (b"{}", True, "messages"),
        (b'{"messages": []}', True, "messages"),
        (b'{"messages": ["hello"]}', True, "messages"),
    ],
)
def test_what_no_server_could_answer_is_refused(raw: bytes, chat: bool, why: str) -> None:
    with pytest.raises(Malformed, match=why):
        parse(raw, chat=chat)


def test_prefill_gets_the_same_prompt_and_makes_one_token() -> None:
    answers = {
        "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 100, "max_completion_tokens": 90,
        "min_tokens": 50, "n": 4, "best_of": 5, "logprobs": 3, "top_logprobs": 3, "echo": True,
        "use_beam_search": True, "kv_transfer_params": {"remote_host": "elsewhere"},
    }  # fmt: skip
    prompt = {"cache_salt": "s", "truncate_prompt_tokens": 9, "temperature": 0, "suffix": "x"}
    got = json.loads(prefill_body(asked(**answers, **prompt)))
    asks = {"stream": False, "max_tokens": 1, "kv_transfer_params": {"kvstore": {}}}
    assert got == {"model": "m", "prompt": "w", **prompt, **asks}


def test_prefill_of_a_chat_keeps_what_its_template_reads() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    got = json.loads(prefill_body(asked(chat=True, tools=tools, chat_template_kwargs={"a": 1}, n=2)))
    assert (got["tools"], got["chat_template_kwargs"]) == (tools, {"a": 1})
    assert (got["max_tokens"], got["max_completion_tokens"], "n" in got) == (1, 1, False)


def test_decode_gets_the_clients_own_bytes() -> None:
    raw = b'{ "prompt":"w",   "temperature": 0.10, "model":"m"}'
    assert decode_body(parse(raw, chat=False), None) is raw
    told = json.loads(decode_body(parse(raw, chat=False), TOLD))
    assert told == {**json.loads(raw), "kv_transfer_params": TOLD}


@pytest.mark.parametrize("handover", [None, TOLD])
def test_a_client_does_not_speak_for_servers(handover: dict[str, Any] | None) -> None:
    got = json.loads(decode_body(asked(kv_transfer_params={"remote_host": "elsewhere"}), handover))
    assert got.get("kv_transfer_params") == handover


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"oops",
        b"[]",
        b"{}",
        b'{"kv_transfer_params": null}',
        b'{"kv_transfer_params": [1]}',
        b'{"kv_transfer_params": {"x": "' + b"y" * HANDOVER_BYTES_MAX + b'"}}',
        b"[" * 100_000,
    ],
)
def test_a_prefill_that_tells_nothing_of_use(raw: bytes) -> None:
    assert handover_of(raw) is None


def test_a_prefill_that_tells() -> None:
    assert handover_of(json.dumps({"choices": [], "kv_transfer_params": TOLD}).encode()) == TOLD


IMAGE = [{"type": "text", "text": "w"}, {"type": "image_url", "image_url": {"url": "data:"}}]


@pytest.mark.parametrize(
    ("body", "chat", "alone"),
    [
        ({"prompt": [5] * 99}, False, True),
        ({"prompt": [5] * 100}, False, False),
        ({"prompt": "w" * 399}, False, True),
        ({"prompt": "w" * 400}, False, False),
        ({"prompt": ["w", "w" * 400]}, False, False),
        ({"prompt": [[5] * 100, [5]]}, False, False),
        ({"prompt": ["w", "w"]}, False, True),
        ({"prompt": []}, False, True),
        ({"prompt": [{}]}, False, False),
        ({"messages": [{"content": "w" * 200}, {"content": "w" * 200}]}, True, False),
        ({"messages": [{"content": "w" * 200}]}, True, True),
        ({"messages": [{"content": "\ud800"}, {"content": None}, {}]}, True, True),
        ({"messages": [{"content": [{"type": "text", "text": "w" * 400}]}]}, True, False),
        ({"messages": [{"content": IMAGE}]}, True, False),
        ({"messages": [{"content": 5}]}, True, False),
        ({"messages": [{"content": "w"}], "tools": [{"x": "w" * 400}]}, True, False),
        ({"prompt": [5] * 100, "prompt_logprobs": 0}, False, True),
        ({"prompt": [5] * 100, "echo": True, "logprobs": 0}, False, True),
    ],
)
def test_what_is_worth_a_prefill_elsewhere(body: dict[str, Any], chat: bool, alone: bool) -> None:
    assert skips(asked(chat, **body), 100) is alone
