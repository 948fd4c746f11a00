"""The connector in an engine under load, beside others, in other processes, other releases, several ranks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engines.run import vllm
from tests.engines.store_rig import BLOCK, config, engine_on, external, forget, probe, settle, until
from tests.engines.venvs import RECIPES, ready
from tests.engines.wire import Prompt, words
from tests.integration.nodes import NodeProcess

LONG = 217
HIT = LONG // BLOCK * BLOCK


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeProcess]:
    if not ready(RECIPES["vllm"]):
        pytest.skip("build/engines/vllm is not there: make setup-engines")
    with NodeProcess(tmp_path, memory="128MiB") as started:
        yield started


@pytest.mark.parametrize(("writer", "reader"), [("vllm", "vllm"), ("vllm-prev", "vllm"), ("vllm", "vllm-prev")])
def test_another_process_finds_what_one_has_saved(node: NodeProcess, tmp_path: Path, writer: str, reader: str) -> None:
    """Also of another release, where both are known to write the same bytes."""
    if not ready(RECIPES["vllm-prev"]):
        pytest.skip("build/engines/vllm-prev is not there: make setup-engines")
    prompts = [Prompt(words(LONG, 1), max_tokens=12), Prompt(words(700, 2), max_tokens=12)]
    with engine_on(node, "llama", tmp_path, venv=writer, log="writer.log") as engine:
        wanted = [engine.generate(prompt).tokens for prompt in prompts]
        settle(engine)
    with engine_on(node, "llama", tmp_path, venv=reader, log="reader.log") as engine:
        found = [engine.generate(prompt) for prompt in prompts]
    assert [(answer.local, answer.external) for answer in found] == [(0, HIT), (0, 672)]
    assert [answer.tokens for answer in found] == wanted


@pytest.mark.parametrize("load", ["async", "layerwise"])
def test_two_ranks(node: NodeProcess, tmp_path: Path, load: str) -> None:
    """Each rank's heads are a shard of their own; a boundary is one that all of them have."""
    prompt = Prompt(words(LONG, 3), max_tokens=8)
    given: dict[str, Any] = {"tensor_parallel_size": 2, "store": {"load": load}}
    with engine_on(node, "llama", tmp_path, log="writer.log", **given) as engine:
        first, again = engine.generate(prompt), engine.generate(prompt)
        assert (again.local, again.external, again.tokens) == (HIT, 0, first.tokens)
        settle_ranks(engine)
    with engine_on(node, "llama", tmp_path, log="reader.log", **given) as engine:
        found = engine.generate(prompt)
    assert (found.local, found.external, found.tokens) == (0, HIT, first.tokens)


def settle_ranks(engine: Any) -> None:
    """With ranks in processes of their own the scheduler is still in this one."""
    settle(engine)


def test_ranks_do_not_take_one_anothers_blocks(node: NodeProcess, tmp_path: Path) -> None:
    """One rank's blocks have twice the heads of two ranks': another layout, another namespace."""
    prompt = Prompt(words(LONG, 4), max_tokens=8)
    with engine_on(node, "llama", tmp_path, log="one.log") as engine:
        engine.generate(prompt)
        settle(engine)
    with engine_on(node, "llama", tmp_path, log="two.log", tensor_parallel_size=2) as engine:
        assert engine.generate(prompt).external == 0


def test_preempted_requests_save_what_is_theirs(node: NodeProcess, tmp_path: Path) -> None:
    """Far more tokens than the engine has blocks for: requests are thrown out in the middle, their blocks are given to
    others, and all of them are saved. What is found afterwards is what each would compute alone.
    """
    prompts = [Prompt(words(120 + 13 * i, 200 + i), max_tokens=160) for i in range(8)]
    turns = [*prompts]
    # 48 blocks of 32 tokens, of which 8 requests would like 80.
    blocks = 48 * 4 * BLOCK * 2 * 32 * 2 * 4
    with vllm("llama", tmp_path, log="alone.log") as engine:
        wanted = [engine.generate(prompt).tokens for prompt in prompts]
    with engine_on(node, "llama", tmp_path, kv_cache_memory_bytes=blocks, max_model_len=512) as engine:
        probe(engine, "preemptions", begin=True)
        answers = engine.generate_all(prompts, 300)
        assert probe(engine, "preemptions") > 0
        assert [answer.tokens for answer in answers] == wanted
        forget(engine)
        for prompt, answer in zip(turns, answers, strict=True):
            longer = Prompt([*prompt.tokens, *answer.tokens], max_tokens=1)
            found = external(engine, longer)
            assert found.external >= (len(prompt.tokens) - 1) // BLOCK * BLOCK
            assert external(engine, prompt).tokens == answer.tokens


def test_beside_another_connector(node: NodeProcess, tmp_path: Path) -> None:
    """In a MultiConnector the first that has a prefix loads it, and all save it."""
    other = {
        "kv_connector": "ExampleConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"shared_storage_path": str(tmp_path / "example")},
    }
    for order in (0, 1):
        both = [config(node, revision=f"multi-{order}"), other]
        multi = {
            "kv_connector": "MultiConnector",
            "kv_role": "kv_both",
            "kv_load_failure_policy": "recompute",
            "kv_connector_extra_config": {"connectors": both if order == 0 else both[::-1]},
        }
        prompt = Prompt(words(LONG, 5 + order), max_tokens=8)
        with vllm("llama", tmp_path, log=f"multi{order}.log", kv_transfer_config=multi) as engine:
            probe(engine, "watch")
            wanted = engine.generate(prompt).tokens
            found = external(engine, prompt)
            assert (found.external, found.tokens) == (HIT, wanted)
            settle(engine)
            counted = probe(engine, "counts")
            assert counted["save_bytes"] > 0
            assert counted.get("hit_tokens", 0) == (HIT if order == 0 else 0)


def test_a_reset_clears_the_store_for_everybody(node: NodeProcess, tmp_path: Path) -> None:
    """Weights were changed in place: nothing computed with the old ones may be found again."""
    prompt = Prompt(words(LONG, 8), max_tokens=8)
    with engine_on(node, "llama", tmp_path) as engine:
        engine.generate(prompt)
        assert external(engine, prompt).external == HIT
        settle(engine)
        (running,) = engine.submit([Prompt(words(LONG, 14), max_tokens=400)])
        engine.first_token(running)
        probe(engine, "clear")
        engine.answers([running])
        assert external(engine, Prompt(words(LONG, 14))).external == 0, "computed with the old weights"
        assert engine.generate(prompt).external == 0
        assert external(engine, prompt).external == HIT, "of the new weights"
        settle(engine)
        probe(engine, "inject", verb="clear", how="raise")
        assert not probe(engine, "clear")
        probe(engine, "mend")
        assert engine.generate(prompt).external == 0, "not cleared: not trusted"
        until(lambda: probe(engine, "clear"))


def test_what_the_engine_keeps_through_a_clear_does_not_reach_the_store(node: NodeProcess, tmp_path: Path) -> None:
    """vLLM cannot empty its own cache while a request holds blocks: it goes on serving what the old weights made."""
    old, longer = Prompt(words(LONG, 15), max_tokens=8), Prompt(words(2 * LONG, 15), max_tokens=8)
    with engine_on(node, "llama", tmp_path) as engine:
        engine.generate(old)
        settle(engine)
        (running,) = engine.submit([Prompt(words(LONG, 16), max_tokens=600)])
        engine.first_token(running)
        assert not probe(engine, "clear"), "a request runs"
        assert engine.generate(longer).local == HIT, "of the old weights"
        engine.answers([running])
        found = external(engine, longer)
        assert (found.local, found.external) == (0, 0), "nothing of it may be found"
        assert external(engine, longer).external == 2 * LONG // BLOCK * BLOCK, "and what came after is saved"


def test_a_clear_that_comes_before_the_first_request_is_not_forgotten(node: NodeProcess, tmp_path: Path) -> None:
    prompt = Prompt(words(LONG, 17), max_tokens=8)
    with engine_on(node, "llama", tmp_path, log="old.log") as engine:
        engine.generate(prompt)
        settle(engine)
    with engine_on(node, "llama", tmp_path, log="new.log") as engine:
        assert probe(engine, "clear")
        assert engine.generate(prompt).external == 0
        until(lambda: external(engine, prompt).external == HIT)


def test_the_engines_event_stream_tells_what_is_stored(node: NodeProcess, tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/events"  # which vLLM binds; to an address of one host it would connect
    events = {"enable_kv_cache_events": True, "publisher": "zmq", "endpoint": endpoint}
    prompt = Prompt(words(LONG, 9), max_tokens=1)
    with engine_on(node, "llama", tmp_path, kv_events_config=events) as engine:
        probe(engine, "listen", endpoint=endpoint)
        engine.generate(prompt)
        settle(engine)
        engine.generate(Prompt(words(40, 10), max_tokens=1))
        told: list[dict[str, Any]] = []

        def heard() -> bool:
            told.extend(event for event in probe(engine, "events") if event.get("medium") == "STORAGE")
            return sum(len(event["block_hashes"]) for event in told) >= 6

        until(heard)
    (first,) = [event for event in told if event["parent_block_hash"] is None and len(event["block_hashes"]) == 6]
    assert first["type"] == "BlockStored"
    assert first["token_ids"] == words(LONG, 9)[:HIT]
    assert first["block_size"] == BLOCK


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"prefix_caching_hash_algo": "xxhash"}, "prefix_caching_hash_algo = xxhash"),
        ({"store": {"revision": ""}, "load_format": "dummy"}, ""),
    ],
)
def test_what_the_store_cannot_serve_is_computed_and_said(
    node: NodeProcess, tmp_path: Path, arguments: dict[str, Any], why: str
) -> None:
    prompt = Prompt(words(LONG, 11), max_tokens=4)
    with engine_on(node, "llama", tmp_path, **arguments) as engine:
        first = engine.generate(prompt)
        assert external(engine, prompt).tokens == first.tokens
        assert why in engine.log.read_text()


def test_a_setting_that_nobody_reads_is_refused_at_start(node: NodeProcess, tmp_path: Path) -> None:
    from tests.engines.run import EngineFailed

    with pytest.raises(EngineFailed, match="adress = 'x': no such setting"):
        engine_on(node, "llama", tmp_path, store={"adress": "x"})


def test_other_weights_under_the_same_name_are_not_found(node: NodeProcess, tmp_path: Path) -> None:
    """A model trained further, in a folder of the same name: only its weights differ."""
    import shutil

    from tests.engines.models import model

    prompt = Prompt(words(LONG, 12), max_tokens=8)
    with engine_on(node, "llama", tmp_path, log="one.log") as engine:
        engine.generate(prompt)
        settle(engine)
    there = model("llama")
    copy, other = tmp_path / "a" / there.name, tmp_path / "b" / there.name
    shutil.copytree(there, copy)
    shutil.copytree(there, other)
    weights = other / "model.safetensors"
    data = bytearray(weights.read_bytes())
    header = 8 + int.from_bytes(data[:8], "little")
    for at in range(header, len(data), 4):
        data[at] ^= 1  # the last bit of every number
    weights.write_bytes(data)
    with engine_on(node, "llama", tmp_path, log="copy.log", model=str(copy)) as engine:
        assert engine.generate(prompt).external == HIT, "the same weights, elsewhere"
    with engine_on(node, "llama", tmp_path, log="other.log", model=str(other)) as engine:
        assert engine.generate(prompt).external == 0


def test_numbers_for_people_and_for_prometheus(node: NodeProcess, tmp_path: Path) -> None:
    from tests.engines.serve import serve

    given = json.dumps(config(node))
    asked = {"model": "llama", "prompt": words(LONG, 13), "max_tokens": 4, "temperature": 0, "ignore_eos": True}
    with serve("llama", tmp_path, "--kv-transfer-config", given, log="first.log") as server:
        first = server.post("/v1/completions", asked)
        until(lambda: server.metric("vllm:kvstore_save_bytes_total") > 0)
    with serve("llama", tmp_path, "--kv-transfer-config", given, log="second.log") as server:
        second = server.post("/v1/completions", asked)
        assert second["choices"][0]["text"] == first["choices"][0]["text"]
        assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == HIT
        until(lambda: server.metric("vllm:kvstore_loads_total") == 1)
        assert server.metric("vllm:kvstore_hit_tokens_total") == HIT
        assert server.metric("vllm:external_prefix_cache_hits_total") == HIT
