"""A hit from the store is as a hit of the engine's own cache: the same tokens, and as many of them cached.

Each engine computes a prompt, finds it in its own cache (the reference: a whole prefill may differ in its last bits),
forgets it, and finds it in the store.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.engines.run import Engine
from tests.engines.store_rig import BLOCK, engine_on, external, forget, probe, settle
from tests.engines.venvs import RECIPES, ready
from tests.engines.wire import Prompt, words
from tests.integration.nodes import NodeProcess

LONG = 217

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-layerwise": ("llama", {"store": {"load": "layerwise"}}),
    "llama-uncached": ("llama", {"enable_prefix_caching": False}),
    "llama-chunked": ("llama", {"max_num_batched_tokens": 64, "max_num_seqs": 4, "enable_chunked_prefill": True}),
    "llama-tcp": ("llama", {"tcp": True}),
    "mla": ("mla", {"keep_prefix_cache": True, "block_size": 16}),
    "mla-layerwise": ("mla", {"keep_prefix_cache": True, "block_size": 16, "store": {"load": "layerwise"}}),
    "sliding": ("sliding", {}),
    "sliding-chunked": ("sliding", {"max_num_batched_tokens": 64, "max_num_seqs": 4}),
    "prev-llama": ("llama", {"venv": "vllm-prev"}),
    "prev-sliding": ("sliding", {"venv": "vllm-prev"}),
}


class Case:
    def __init__(self, name: str, engine: Engine, node: NodeProcess) -> None:
        self.name, self.engine, self.node = name, engine, node
        self.cached = "uncached" not in name
        self.block = int(CASES[name][1].get("block_size", BLOCK))

    def hit(self, tokens: int) -> int:
        """Every token that could be found, of a prompt of so many: at least one is computed."""
        return (tokens - 1) // self.block * self.block

    def reference(self, prompt: Prompt) -> tuple[int, ...]:
        """What the engine says when its own cache has the prefix; without a cache, when it computed it."""
        first = self.engine.generate(prompt)
        assert first.external == 0
        if not self.cached:
            return first.tokens
        again = self.engine.generate(prompt)
        assert (again.local, again.external) == (self.hit(len(prompt.tokens)), 0)
        return again.tokens


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    with NodeProcess(tmp_path_factory.mktemp("node"), memory="256MiB", address="127.0.0.1:0") as started:
        yield started


@pytest.fixture(scope="module", params=list(CASES))
def case(request: pytest.FixtureRequest, node: NodeProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    model, given = CASES[request.param]
    venv = given.get("venv", "vllm")
    if not ready(RECIPES[venv]):
        pytest.skip(f"build/engines/{venv} is not there: make setup-engines")
    arguments = dict(given)
    store = {"tenant": "default", "revision": request.param, **arguments.pop("store", {})}
    if arguments.pop("tcp", False):
        store["address"] = node.facts["address"]
    with engine_on(node, model, tmp_path_factory.mktemp(request.param), store=store, **arguments) as engine:
        for _ in range(2):  # of MLA the very first one, and the first hit, may differ in their last bits
            engine.generate(Prompt(words(100, 99)))
        probe(engine, "watch")
        yield Case(request.param, engine, node)


@pytest.mark.parametrize("length", [LONG, 33, 64, 65, 1000])
def test_a_hit_from_the_store_is_as_one_of_the_engines_own(case: Case, length: int) -> None:
    prompt = Prompt(words(length, length), max_tokens=12)
    wanted = case.reference(prompt)
    found = external(case.engine, prompt)
    assert (found.local, found.external) == (0, case.hit(length)), "every hit that there could be"
    assert found.tokens == wanted
    assert found.finish == "length"


def test_a_prompt_shorter_than_a_block_is_nobodys(case: Case) -> None:
    prompt = Prompt(words(case.block - 1, 31))
    wanted = case.engine.generate(prompt).tokens
    found = external(case.engine, prompt)
    assert (found.external, found.tokens) == (0, wanted)


def test_many_at_once(case: Case) -> None:
    prompts = [Prompt(words(100 + 40 * i, 500 + i), max_tokens=6) for i in range(6)]
    wanted = [case.reference(prompt) for prompt in prompts]
    forget(case.engine)
    found = case.engine.generate_all(prompts)
    assert [answer.external for answer in found] == [case.hit(len(p.tokens)) for p in prompts]
    if "mla" in case.name:  # whose products of a batch are not those of one prompt, to the last bit
        found = [external(case.engine, prompt) for prompt in prompts]
    assert [answer.tokens for answer in found] == wanted


def test_a_shared_beginning_is_found_and_the_rest_computed(case: Case) -> None:
    case.engine.generate(Prompt(words(160, 7)))
    forked = Prompt([*words(160, 7)[:128], *words(90, 8)], max_tokens=8)
    wanted = case.engine.generate(forked)
    found = external(case.engine, Prompt([*words(160, 7)[:128], *words(90, 9)], max_tokens=8))
    assert found.external == 128
    assert external(case.engine, forked).tokens == wanted.tokens


def test_the_next_turn_finds_what_this_one_decoded(case: Case) -> None:
    first = case.engine.generate(Prompt(words(150, 11), max_tokens=80))
    turn = Prompt([*words(150, 11), *first.tokens, *words(20, 12)], max_tokens=8)
    found = external(case.engine, turn)
    # The last token decoded has no KV yet.
    assert found.external == case.hit(150 + 80)
    wanted, again = case.engine.generate(turn), external(case.engine, turn)
    assert again.external == case.hit(len(turn.tokens))
    assert again.tokens == wanted.tokens


def test_salts_do_not_share(case: Case) -> None:
    one, other = (Prompt(words(200, 13), max_tokens=4, salt=salt) for salt in ("a", "b"))
    case.engine.generate(one)
    assert external(case.engine, other).external == 0
    assert external(case.engine, one).external == 192
    assert external(case.engine, Prompt(words(200, 13), max_tokens=4)).external == 0


def test_what_is_held_is_not_saved_again(case: Case) -> None:
    prompt = Prompt(words(300, 14), max_tokens=1)
    case.engine.generate(prompt)
    settle(case.engine)
    probe(case.engine, "counts")
    assert external(case.engine, prompt).external == 288
    settle(case.engine)
    counted = probe(case.engine, "counts")
    assert counted.get("save_bytes", 0) == 0
    assert counted["hit_tokens"] == 288
    assert counted["loads"] == 1
    assert counted["load_bytes"] > 0
    if "prev" not in case.name:  # that release does not ask
        assert counted["from_host"] == 288


def test_a_window_loads_only_what_it_looks_at(case: Case) -> None:
    """Of 1,000 tokens a layer that looks back 64 needs two blocks; one that looks back at all of them, 31."""
    prompt = Prompt(words(1000, 15), max_tokens=1)
    case.engine.generate(prompt)
    settle(case.engine)
    probe(case.engine, "counts")
    assert external(case.engine, prompt).external == 992
    loaded = probe(case.engine, "counts")["load_bytes"]
    block = BLOCK * 2 * 32 * 2 * 4  # tokens, kv heads, head dim, K and V, float32
    whole = {"llama": 4 * block * 31, "sliding": (2 * 31 + 4 * 2) * block}
    model = CASES[case.name][0]
    if model in whole:
        assert loaded == whole[model]
