"""SGLang with the store behind its HiCache: real engines on tiny models, one node between them.

What an engine has read from the store must give the tokens that it computes itself, and every page that could be a hit
is one. `flush` empties an engine's own caches, on the device and in host memory, so that one process can write and
then read; other processes read what it wrote as well.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.engines.run import Engine, sglang
from tests.engines.test_engines_run import needs
from tests.engines.wire import Answer, Prompt, words
from tests.integration.nodes import NodeProcess, eventually

PAGE = 32  # run.sglang's
LONG = Prompt(words(200), max_tokens=12)
HIT = 200 // PAGE * PAGE
TWO_RANKS = {"SGLANG_CPU_OMP_THREADS_BIND": "0|1"}


def engine(node: NodeProcess, folder: Path, model: str = "llama", **more: Any) -> Engine:
    """layout, env, log, extra: of the backend; else ServerArgs."""
    extra = {
        "backend_name": "kvstore",
        "module_path": "engine_adapters.sglang",
        "class_name": "KVStoreBackend",
        "interface_v1": 1,
        "hicache_storage_pass_prefix_keys": True,
        "prefetch_threshold": PAGE,
        "address": node.address,
        "lookup_ms": 3_000,  # a busy machine takes its time, and what is not found in time is computed
        **more.pop("extra", {}),
    }
    return sglang(
        model,
        folder,
        enable_hierarchical_cache=True,
        hicache_size=1,
        hicache_io_backend="direct",
        hicache_mem_layout=more.pop("layout", "layer_first"),
        hicache_write_policy="write_through",
        hicache_storage_prefetch_policy="wait_complete",
        hicache_storage_backend="dynamic",
        sleep_on_idle=True,
        hicache_storage_backend_extra_config=json.dumps(extra),
        **more,
    )


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    needs("sglang")
    with NodeProcess(tmp_path_factory.mktemp("node"), memory="256MiB") as started:
        yield started


@pytest.fixture(scope="class")
def llama(node: NodeProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """One process for the tests below; each has prompts of its own."""
    with engine(node, tmp_path_factory.mktemp("llama")) as started:
        yield started


def flush(asked: Engine) -> None:
    eventually(lambda: asked.call("tests.engines.probes_sglang:flush"), 30.0)


def written(asked: Engine, node: NodeProcess, prompt: Prompt, pages: int, tp: int = 1) -> Answer:
    """Computes the prompt, waits until its pages are in the store, and empties the engine's own caches."""
    before = node.tier()["sealed"]
    answer = asked.generate(prompt)
    assert answer.external == 0
    eventually(lambda: node.tier()["sealed"] >= before + pages * tp, 30.0)
    flush(asked)
    return answer


def test_another_process_reads_what_one_wrote_and_another_layout_misses(node: NodeProcess, tmp_path: Path) -> None:
    prompt = replace(LONG, tokens=words(200, 1))
    with engine(node, tmp_path, log="plain.log", layout="layer_first") as first:
        reference = written(first, node, prompt, HIT // PAGE)
    with engine(node, tmp_path, log="reader.log", layout="layer_first") as reader:
        read = reader.generate(prompt)
        assert (read.external, read.local) == (HIT, 0)
        assert read.tokens == reference.tokens
        again = reader.generate(prompt)
        assert (again.external, again.local) == (0, HIT)
        assert again.tokens == reference.tokens
    with engine(node, tmp_path, log="other.log", layout="page_first_direct") as other:
        computed = written(other, node, prompt, HIT // PAGE)
        assert computed.cached == 0  # the same tokens, another format
        read = other.generate(prompt)
        assert (read.external, read.local) == (HIT, 0)
        assert read.tokens == computed.tokens == reference.tokens


class TestLlama:
    def test_salts_do_not_share(self, llama: Engine, node: NodeProcess) -> None:
        prompt = replace(LONG, tokens=words(200, 2), salt="a")
        one = written(llama, node, prompt, HIT // PAGE)
        other = llama.generate(replace(prompt, salt="b"))
        plain = llama.generate(replace(prompt, salt=None))
        assert (other.cached, plain.cached) == (0, 0)
        again = llama.generate(prompt)
        assert again.external == HIT
        assert again.tokens == one.tokens

    def test_the_second_turn_finds_what_the_first_one_decoded(self, llama: Engine, node: NodeProcess) -> None:
        first = Prompt(words(100, 3), max_tokens=65)
        said = written(llama, node, first, (100 + 64) // PAGE)
        turn = Prompt([*first.tokens, *said.tokens, *words(40, 4)], max_tokens=8)
        before = node.tier()["sealed"]
        reference = llama.generate(turn)
        assert reference.external == (100 + 64) // PAGE * PAGE
        eventually(lambda: node.tier()["sealed"] > before, 30.0)
        flush(llama)
        again = llama.generate(turn)
        assert again.external == len(turn.tokens) // PAGE * PAGE
        assert again.tokens == reference.tokens

    def test_a_prompt_that_begins_alike_finds_the_common_pages(self, llama: Engine, node: NodeProcess) -> None:
        tokens = words(200, 5)
        written(llama, node, Prompt(tokens), HIT // PAGE)
        found = llama.generate(Prompt([*tokens[:100], *words(100, 6)]))
        assert found.external == 100 // PAGE * PAGE

    def test_pages_in_the_middle_are_found_behind_the_engines_own(self, llama: Engine, node: NodeProcess) -> None:
        tokens = words(200, 7)
        reference = written(llama, node, Prompt(tokens), HIT // PAGE)
        part = llama.generate(Prompt(tokens[:90]))  # in the engine's own caches from here on
        assert part.external == 64
        whole = llama.generate(Prompt(tokens))
        assert whole.external == HIT - whole.local > 0
        assert whole.tokens == reference.tokens

    def test_a_store_that_dies_costs_hits_and_is_found_again(self, llama: Engine, node: NodeProcess) -> None:
        prompt, other = replace(LONG, tokens=words(200, 8)), replace(LONG, tokens=words(200, 9))
        reference = written(llama, node, prompt, HIT // PAGE)
        node.kill()
        gone = llama.generate(prompt)
        assert (gone.cached, gone.finish) == (0, "length")
        assert gone.tokens == reference.tokens
        assert llama.generate(other).finish == "length"
        flush(llama)
        node.start()

        def back() -> bool:
            found = llama.generate(prompt)
            assert found.tokens == reference.tokens
            flush(llama)
            return found.external == HIT

        eventually(back, 60.0)
        eventually(lambda: written(llama, node, replace(LONG, tokens=words(200, 10)), HIT // PAGE) is not None, 30.0)

    def test_a_store_that_hangs_costs_its_deadlines_and_no_more(self, llama: Engine, node: NodeProcess) -> None:
        prompt = replace(LONG, tokens=words(200, 14))
        reference = written(llama, node, prompt, HIT // PAGE)
        node.signal(signal.SIGSTOP)
        try:
            hung = llama.generate(prompt)
            assert (hung.external, hung.tokens) == (0, reference.tokens)
            assert hung.took_s < 15
            flush(llama)  # waits for the threads that ask the store, and would end the engine if they were late
        finally:
            node.signal(signal.SIGCONT)

        def back() -> bool:
            found = llama.generate(prompt)
            flush(llama)
            return found.external == HIT

        eventually(back, 60.0)

    def test_poisoned_blocks_are_computed_again(self, llama: Engine, node: NodeProcess) -> None:
        prompt = replace(LONG, tokens=words(200, 11))
        reference = written(llama, node, prompt, HIT // PAGE)
        poison(node)
        found = llama.generate(prompt)
        assert found.external == 0
        assert found.tokens == reference.tokens
        flush(llama)

    def test_a_cleared_namespace_has_nothing(self, llama: Engine, node: NodeProcess) -> None:
        prompt = replace(LONG, tokens=words(200, 12))
        reference = written(llama, node, prompt, HIT // PAGE)
        assert llama.call("tests.engines.probes_sglang:clear_storage")
        found = llama.generate(prompt)
        assert (found.external, found.tokens) == (0, reference.tokens)
        flush(llama)


def poison(node: NodeProcess) -> None:
    """Every byte of every block in the node's memory is another one, behind its back."""
    payload = Path(node.facts["memory_at"]).with_suffix(".payload")
    with payload.open("r+b") as file:
        while chunk := file.read(1 << 20):
            if chunk.strip(b"\0"):
                file.seek(-len(chunk), 1)
                file.write(bytes(byte ^ 0x15 for byte in chunk))


def test_without_verification_the_tokens_would_have_changed(node: NodeProcess, tmp_path: Path) -> None:
    prompt = replace(LONG, tokens=words(200, 13))
    with engine(node, tmp_path, extra={"verify": False}) as careless:
        reference = written(careless, node, prompt, HIT // PAGE)
        poison(node)
        read = careless.generate(prompt)
        assert read.external == HIT
        assert read.tokens != reference.tokens


def test_failures_at_every_stage_cost_hits_only(node: NodeProcess, tmp_path: Path) -> None:
    """SGLang's own injector, before every call of the backend."""
    failing = {"SGLANG_TEST_HICACHE_BACKEND_RANDOM_FAILURE": "0.4", "SGLANG_TEST_HICACHE_BACKEND_RANDOM_DELAY": "0.05"}
    prompts = [replace(LONG, tokens=words(200, seed)) for seed in range(20, 26)]
    external = []
    with engine(node, tmp_path, env=failing) as asked:
        reference = asked.generate_all(prompts)
        for _ in range(3):
            time.sleep(0.5)
            flush(asked)
            read = asked.generate_all(prompts)
            assert [answer.tokens for answer in read] == [answer.tokens for answer in reference]
            external += [answer.external for answer in read]
    assert max(filter(None, external), default=0) > 0
    assert min(number or 0 for number in external) < HIT


def test_two_ranks(node: NodeProcess, tmp_path: Path) -> None:
    prompt = replace(LONG, tokens=words(200, 30))
    with engine(node, tmp_path, tp_size=2, env=TWO_RANKS) as both:
        reference = written(both, node, prompt, HIT // PAGE, tp=2)
        read = both.generate(prompt)
        assert (read.external, read.tokens) == (HIT, reference.tokens)


def test_latent_attention_is_stored_once_and_read_by_every_rank(node: NodeProcess, tmp_path: Path) -> None:
    prompt = replace(LONG, tokens=words(200, 31))
    with engine(node, tmp_path, "mla-dense", layout="page_first_direct", tp_size=2, env=TWO_RANKS) as both:
        before = node.tier()["sealed"]
        reference = written(both, node, prompt, HIT // PAGE)
        assert node.tier()["sealed"] == before + HIT // PAGE  # not twice
        read = both.generate(prompt)
        assert (read.external, read.tokens) == (HIT, reference.tokens)
    with engine(
        node, tmp_path, "mla-dense", log="again.log", layout="page_first_direct", tp_size=2, env=TWO_RANKS
    ) as other:
        read = other.generate(prompt)
        assert (read.external, read.tokens) == (HIT, reference.tokens)


WINDOW = 64 // PAGE  # pages of it


@pytest.fixture(scope="class")
def hybrid(node: NodeProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with engine(node, tmp_path_factory.mktemp("windows"), "windows", layout="page_first_direct") as started:
        yield started


class TestWindows:
    """A hybrid model: KV pages of two layers, and a pool of windows beside them, by the v2 interface."""

    def test_only_what_a_window_needs_is_stored_and_found(self, hybrid: Engine, node: NodeProcess) -> None:
        prompt = replace(LONG, tokens=words(200, 40))
        before = node.tier()["sealed"]
        reference = written(hybrid, node, prompt, HIT // PAGE + WINDOW)
        assert node.tier()["sealed"] == before + HIT // PAGE + WINDOW
        read = hybrid.generate(prompt)
        assert (read.external, read.tokens) == (HIT, reference.tokens)
        flush(hybrid)

    def test_a_boundary_without_its_window_is_no_hit(self, hybrid: Engine, node: NodeProcess) -> None:
        tokens = words(200, 41)
        written(hybrid, node, Prompt(tokens), HIT // PAGE + WINDOW)
        other = Prompt([*tokens[:100], *words(100, 42)], max_tokens=12)
        read = hybrid.generate(other)
        assert read.external == 0  # the pages are there, the window that ends with them is not
        eventually(lambda: flush(hybrid) is None)
        again = hybrid.generate(other)
        assert (again.external, again.tokens) == (HIT, read.tokens)
        flush(hybrid)

    def test_a_window_that_is_gone_takes_the_hit_with_it(self, hybrid: Engine, node: NodeProcess) -> None:
        prompt = replace(LONG, tokens=words(200, 43))
        reference = written(hybrid, node, prompt, HIT // PAGE + WINDOW)
        poison(node)
        read = hybrid.generate(prompt)
        assert (read.external, read.tokens) == (0, reference.tokens)
