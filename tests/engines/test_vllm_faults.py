"""Whatever happens to the store, the engine answers as if there were none: the same tokens, computed."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engines.run import Engine
from tests.engines.store_rig import BLOCK, engine_on, external, forget, probe, settle, until
from tests.engines.venvs import RECIPES, ready
from tests.engines.wire import Prompt, words
from tests.integration.nodes import NodeProcess

SHORT_MS = {"lookup_ms": 1_000, "load_ms": 1_500, "save_ms": 2_000}
LONG = 217
HIT = LONG // BLOCK * BLOCK


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeProcess]:
    if not ready(RECIPES["vllm"]):
        pytest.skip("build/engines/vllm is not there: make setup-engines")
    with NodeProcess(tmp_path, memory="128MiB") as started:
        yield started


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    if not ready(RECIPES["vllm"]):
        pytest.skip("build/engines/vllm is not there: make setup-engines")
    with NodeProcess(tmp_path_factory.mktemp("node"), memory="128MiB") as started:
        yield started


@pytest.fixture(scope="module", params=["llama-async", "llama-layerwise", "sliding-async"])
def engine(
    request: pytest.FixtureRequest, shared: NodeProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    model, load = request.param.split("-")
    folder = tmp_path_factory.mktemp(request.param)
    with engine_on(shared, model, folder, store={"load": load, "revision": request.param, **SHORT_MS}) as started:
        probe(started, "watch")
        yield started


FAULTS: dict[str, tuple[str, dict[str, Any]]] = {
    "the search finds nobody": ("lookup", {"how": "raise"}),
    "the search is refused": ("lookup", {"how": "refuse"}),
    "the search is slow": ("lookup", {"how": "slow", "seconds": 2.5}),
    "nothing can be held": ("hold", {"how": "raise"}),
    "less is held than was found": ("hold", {"how": "short"}),
    "the load finds nobody": ("get", {"how": "raise"}),
    "the load is refused": ("get", {"how": "refuse"}),
    "the load is late": ("get", {"how": "slow", "seconds": 2.5}),
    "a block does not arrive": ("get", {"how": "short"}),
    "the second load of a request fails": ("get", {"how": "raise", "after": 1}),
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_a_load_that_fails_is_computed(engine: Engine, fault: str) -> None:
    verb, how = FAULTS[fault]
    prompt = Prompt(words(LONG, 20 + list(FAULTS).index(fault)), max_tokens=10)
    wanted = engine.generate(prompt).tokens
    forget(engine)
    probe(engine, "inject", verb=verb, **how)
    try:
        found = engine.generate(prompt)
    finally:
        probe(engine, "mend")
    assert (found.finish, found.tokens) == ("length", wanted)
    if fault != "the search is slow":  # the first search may have been the second's
        time.sleep(0.5)  # of a store that was away nothing is asked for a moment
    again = external(engine, prompt)
    assert (again.external, again.tokens) == (HIT, wanted), "and the store has what it had"


@pytest.mark.parametrize("how", ["raise", "refuse", "short", "slow"])
def test_a_save_that_fails_costs_the_engine_nothing(engine: Engine, how: str) -> None:
    prompt = Prompt(words(LONG, 50 + len(how)), max_tokens=60)
    probe(engine, "inject", verb="put", how=how, seconds=0.2)
    try:
        wanted = engine.generate(prompt)
        settle(engine)
    finally:
        probe(engine, "mend")
    assert wanted.finish == "length"
    time.sleep(0.5)
    found = external(engine, prompt)
    assert found.tokens == wanted.tokens
    assert found.external == (HIT if how in {"slow", "short"} else 0)  # short: stored, and told as refused
    assert external(engine, prompt).external == HIT, "saved when the store took it again"


def test_an_abort_in_the_middle_of_a_load_ends_it(engine: Engine) -> None:
    prompt, other = Prompt(words(LONG, 60), max_tokens=10), Prompt(words(100, 61), max_tokens=10)
    wanted = engine.generate_all([prompt, other])
    forget(engine)
    probe(engine, "inject", verb="get", how="slow", seconds=0.5)
    try:
        (name,) = engine.submit([prompt])
        time.sleep(0.2)
        engine.abort([name])
        assert engine.answers([name])[0].finish == "abort"
        found = engine.generate(other)
    finally:
        probe(engine, "mend")
    assert found.tokens == wanted[1].tokens
    again = external(engine, prompt)
    assert (again.external, again.tokens) == (HIT, wanted[0].tokens)


def test_the_node_is_killed_and_comes_back(node: NodeProcess, tmp_path: Path) -> None:
    prompts = [Prompt(words(LONG, 70 + i), max_tokens=8) for i in range(3)]
    with engine_on(node, "llama", tmp_path, store=SHORT_MS) as engine:
        wanted = [engine.generate(prompt).tokens for prompt in prompts]
        assert external(engine, prompts[0]).external == HIT
        node.kill()
        for prompt, tokens in zip(prompts, wanted, strict=True):
            until(lambda: probe(engine, "forget"))
            since = time.monotonic()
            found = engine.generate(prompt)
            assert (found.external, found.tokens) == (0, tokens)
            assert time.monotonic() - since < 30, "computed, not waited for"
        node.start()
        end = time.monotonic() + 60
        while (found := external(engine, prompts[0])).external == 0:
            assert found.tokens == wanted[0]
            assert time.monotonic() < end, "never asked again"
            time.sleep(0.2)
        assert found.external == HIT, "what memory had outlived the node's process"
        assert found.tokens == wanted[0]


def test_the_node_stops_answering_in_the_middle(node: NodeProcess, tmp_path: Path) -> None:
    """As a host that hangs: it is there, and says nothing."""
    prompt, fresh = Prompt(words(LONG, 80), max_tokens=8), Prompt(words(LONG, 81), max_tokens=40)
    with engine_on(node, "llama", tmp_path, store=SHORT_MS) as engine:
        wanted = engine.generate(prompt).tokens
        forget(engine)
        node.signal(signal.SIGSTOP)
        try:
            found, other = engine.generate(prompt), engine.generate(fresh)
            settle(engine)
        finally:
            node.signal(signal.SIGCONT)
        assert (found.external, found.tokens, found.finish) == (0, wanted, "length")
        assert other.finish == "length"
        until(lambda: external(engine, prompt).external == HIT, 60)


def test_the_engine_starts_before_the_node(tmp_path: Path) -> None:
    if not ready(RECIPES["vllm"]):
        pytest.skip("build/engines/vllm is not there: make setup-engines")
    node = NodeProcess(tmp_path, memory="64MiB")
    prompt = Prompt(words(LONG, 90), max_tokens=8)
    with engine_on(node, "llama", tmp_path, store=SHORT_MS) as engine:
        wanted = engine.generate(prompt)
        assert wanted.finish == "length"
        with node:
            end = time.monotonic() + 60
            while external(engine, prompt).external == 0:
                assert time.monotonic() < end
            assert external(engine, prompt).tokens == wanted.tokens


def damage(node: NodeProcess, *, every: bool = True) -> None:
    """Turns over a bit of every page of the payload in shared memory, or of the first that holds anything."""
    pages = np.memmap(Path(node.facts["memory_at"]), dtype=np.uint8, mode="r+").reshape(-1, 4096)
    if every:
        pages[:, 7] ^= 0x40
    else:
        pages[int(np.flatnonzero(pages[:, :64].any(axis=1))[0]), 7] ^= 0x40


@pytest.mark.parametrize("load", ["async", "layerwise"])
def test_a_poisoned_block_is_computed_again(node: NodeProcess, tmp_path: Path, load: str) -> None:
    prompt = Prompt(words(LONG, 100), max_tokens=16)
    with engine_on(node, "llama", tmp_path, store={"load": load, **SHORT_MS}) as engine:
        probe(engine, "watch")
        wanted = engine.generate(prompt).tokens
        assert external(engine, prompt).tokens == wanted
        for every in (False, True):
            forget(engine)
            damage(node, every=every)
            probe(engine, "counts")
            found = engine.generate(prompt)
            assert (found.finish, found.tokens) == ("length", wanted)
            assert probe(engine, "counts")["loads_short"] == 1
            again = external(engine, prompt)
            assert again.tokens == wanted
            if not every:
                assert again.external == HIT, "what was computed again was saved again"


def test_without_verification_a_poisoned_block_is_believed(node: NodeProcess, tmp_path: Path) -> None:
    """Why blocks are verified: this is what the test above would look like."""
    prompt = Prompt(words(LONG, 100), max_tokens=16)
    with engine_on(node, "llama", tmp_path, store={"verify": False, **SHORT_MS}) as engine:
        wanted = engine.generate(prompt).tokens
        forget(engine)
        damage(node)
        found = engine.generate(prompt)
        assert found.external == HIT
        assert found.tokens != wanted


def test_with_the_policy_fail_a_request_ends_and_the_log_says_why_at_start(node: NodeProcess, tmp_path: Path) -> None:
    prompt = Prompt(words(LONG, 110), max_tokens=8)
    with engine_on(node, "llama", tmp_path, store={"policy": "fail", **SHORT_MS}) as engine:
        assert "kv_load_failure_policy = fail" in engine.log.read_text()
        wanted = engine.generate(prompt).tokens
        forget(engine)
        probe(engine, "inject", verb="get", how="raise")
        assert engine.generate(prompt).finish == "error"
        probe(engine, "mend")
        time.sleep(0.5)
        assert external(engine, prompt).tokens == wanted
