"""P writes and D reads, over HTTP: two vLLM servers, the store between them, the proxy in front.

What is answered is what a server without the store answers; and what prefill computed, decode does not compute again.
"""

from __future__ import annotations

import concurrent.futures
import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.engines.pd_rig import Pair, said
from tests.engines.run import EngineFailed
from tests.engines.serve import Server, serve
from tests.engines.store_rig import BLOCK, until
from tests.engines.venvs import RECIPES, ready
from tests.engines.wire import words

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
LONG = 217
HIT = LONG // BLOCK * BLOCK
MODEL = "llama"
GREEDY = {"model": MODEL, "temperature": 0, "ignore_eos": True, "skip_special_tokens": False}
HEAL_S_MAX = 60.0


def prompt(seed: int, length: int = LONG, **more: Any) -> dict[str, Any]:
    return {**GREEDY, "prompt": words(length, seed), "max_tokens": 12, **more}


def chat(*turns: str) -> dict[str, Any]:
    """Users' and the assistant's, in turns."""
    roles = ("user", "assistant")
    messages = [{"role": roles[number % 2], "content": turn} for number, turn in enumerate(turns)]
    return {**GREEDY, "messages": messages, "max_tokens": 70}


def tokens_of(body: dict[str, Any]) -> int:
    """Every message has a word for its role, and so has the answer that is to come."""
    return sum(1 + len(message["content"].split()) for message in body["messages"]) + 1


def full(tokens: int) -> int:
    """Of a prompt so long, what can be cached: whole blocks, and one token at least is computed."""
    return (tokens - 1) // BLOCK * BLOCK


def spoken(seed: int, count: int) -> str:
    return " ".join(f"w{token % 400}" for token in words(count, seed))


# What this file asks, and of which server without a store the answers are known beforehand.
ASKED: dict[str, dict[str, Any]] = {f"plain{seed}": prompt(seed) for seed in range(1, 9)}
FIRST_TURN = chat(spoken(50, 200))


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The answers of a server that knows nothing of the store."""
    if not ready(RECIPES["vllm"]):
        pytest.skip("build/engines/vllm is not there: make setup-engines")
    with serve(MODEL, tmp_path_factory.mktemp("alone")) as server:
        answers = {name: said(server, COMPLETIONS, body)[0] for name, body in ASKED.items()}
        answers["turn1"] = said(server, CHAT, FIRST_TURN)[0]
        answers["turn2"] = said(server, CHAT, second_turn(answers["turn1"]))[0]
    return answers


def second_turn(answer: str) -> dict[str, Any]:
    return chat(FIRST_TURN["messages"][0]["content"], answer.strip(), spoken(51, 40))


@pytest.fixture(scope="module")
def started(wanted: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with Pair(MODEL, tmp_path_factory.mktemp("pd")) as pair:
        yield pair


@pytest.fixture
def pair(started: Pair) -> Pair:
    started.heal()
    until(lambda: health(started)["status"] == "ok", HEAL_S_MAX)
    return started


def health(pair: Pair) -> dict[str, Any]:
    try:
        return dict(json.loads(pair.proxy.get("/health")))
    except EngineFailed as error:
        return dict(json.loads(str(error).partition("503: ")[2]))


def counted(server: Server, name: str) -> Callable[[], float]:
    """How much a counter of it has grown since now."""
    before = server.metric(name)
    return lambda: server.metric(name) - before


HITS = "vllm:external_prefix_cache_hits_total"
COMPUTED = "vllm:prompt_tokens_total"


@pytest.mark.parametrize(("name", "stream"), [("plain1", False), ("plain2", True)])
def test_what_prefill_computed_decode_reads(pair: Pair, wanted: dict[str, str], name: str, stream: bool) -> None:
    prefilled, read = counted(pair.prefill, COMPUTED), counted(pair.decode, HITS)
    told = counted(pair.proxy, "kvstore_proxy_prefills_total")
    assert said(pair.proxy, COMPLETIONS, {**ASKED[name], "stream": stream}) == (wanted[name], HIT)
    assert (prefilled(), read(), told()) == (LONG, HIT, 1), "every full block of it came from the store"


def test_many_at_once(pair: Pair, wanted: dict[str, str]) -> None:
    names = ["plain3", "plain4", "plain5"]
    with concurrent.futures.ThreadPoolExecutor() as threads:
        answers = list(threads.map(lambda name: said(pair.proxy, COMPLETIONS, ASKED[name]), names))
    assert answers == [(wanted[name], HIT) for name in names]


def test_the_second_turn_of_a_chat_is_prefilled_from_what_decode_wrote(pair: Pair, wanted: dict[str, str]) -> None:
    first, had = said(pair.proxy, CHAT, {**FIRST_TURN, "stream": True})
    prompt_tokens = tokens_of(FIRST_TURN)
    assert (first, had) == (wanted["turn1"], full(prompt_tokens))
    saved = -1
    while (now := pair.node.tier()["sealed"]) != saved:  # what decode's last step saves comes a moment after its answer
        saved = now
        time.sleep(1.0)
    from_decode, from_prefill = counted(pair.prefill, HITS), counted(pair.decode, HITS)
    turn = second_turn(first)
    second, had = said(pair.proxy, CHAT, turn)
    assert (second, had) == (wanted["turn2"], full(tokens_of(turn)))
    written = full(prompt_tokens + FIRST_TURN["max_tokens"])  # by decode, whose last token has no KV yet
    assert from_decode() == written - full(prompt_tokens), "the rest of it prefill had computed"
    assert from_prefill() == full(tokens_of(turn)) - written


def test_a_client_that_goes_is_nobodys_work(pair: Pair) -> None:
    body = json.dumps(prompt(60, max_tokens=3000, stream=True)).encode()
    asked = urllib.request.Request(pair.proxy.url + COMPLETIONS, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=60) as answer:
        assert answer.readline().startswith(b"data: ")
        assert pair.decode.metric("vllm:num_requests_running") == 1
    until(lambda: pair.decode.metric("vllm:num_requests_running") == 0)
    until(lambda: pair.proxy.metric("kvstore_proxy_server_outstanding") == 0)


def test_decode_killed_is_an_error_until_it_is_back_and_then_a_hit(pair: Pair, wanted: dict[str, str]) -> None:
    assert said(pair.proxy, COMPLETIONS, ASKED["plain6"]) == (wanted["plain6"], HIT)
    pair.decode.kill()
    with pytest.raises(EngineFailed, match=": 503:"):
        pair.proxy.post(COMPLETIONS, ASKED["plain6"])
    assert health(pair) == {"status": "down", "down": {"prefill": [], "decode": [pair.decode.url]}}
    pair.heal()
    until(lambda: health(pair)["status"] == "ok", HEAL_S_MAX)
    read = counted(pair.decode, HITS)
    assert said(pair.proxy, COMPLETIONS, ASKED["plain6"]) == (wanted["plain6"], HIT)
    assert read() == HIT, "it had forgotten all of it"


def test_the_store_killed_costs_the_hit_and_nothing_else(pair: Pair, wanted: dict[str, str]) -> None:
    pair.node.kill()
    assert said(pair.proxy, COMPLETIONS, ASKED["plain7"]) == (wanted["plain7"], 0)


def test_prefill_killed_costs_the_hit_and_nothing_else(pair: Pair, wanted: dict[str, str]) -> None:
    pair.prefill.kill()
    assert said(pair.proxy, COMPLETIONS, ASKED["plain8"]) == (wanted["plain8"], 0)
    assert health(pair)["down"]["prefill"] == [pair.prefill.url]
