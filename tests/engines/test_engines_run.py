"""The engines as they are, with no connector: what every other test here builds on.

Each generates the same tokens twice, counts its own prefix hits, and is stopped and killed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.engines.run import Engine, EngineFailed, sglang, vllm
from tests.engines.serve import serve
from tests.engines.venvs import RECIPES, ready
from tests.engines.wire import Answer, Prompt, words

BLOCK = 32  # run.vllm's and run.sglang's
LONG = Prompt(words(200), max_tokens=12)
HIT = 200 // BLOCK * BLOCK
GROUPS = 3  # of "sliding": two of windows and one of all tokens, two layers each


def needs(name: str) -> None:
    if not ready(RECIPES[name]):
        pytest.skip(f"build/engines/{name} is not there, or of other pins: make setup-engines")


def until(done: Callable[[], bool], max_s: float = 60.0) -> None:
    end = time.monotonic() + max_s
    while not done():
        assert time.monotonic() < end, f"not in {max_s:.0f} s"
        time.sleep(0.05)


def has_amx() -> bool:
    return "amx_tile" in Path("/proc/cpuinfo").read_text()


def hicache(layout: str) -> dict[str, Any]:
    return {
        "enable_hierarchical_cache": True,
        "hicache_mem_layout": layout,
        "hicache_io_backend": "direct",
        "hicache_write_policy": "write_through",
        "hicache_storage_backend": "file",
        "hicache_storage_prefetch_policy": "wait_complete",
        "hicache_storage_backend_extra_config": json.dumps({"prefetch_threshold": BLOCK}),
    }


@pytest.fixture(scope="module", params=["vllm", "vllm-prev", "sglang"])
def llama(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """One process for the tests below; each has a prompt of its own."""
    needs(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    with sglang("llama", folder) if request.param == "sglang" else vllm("llama", folder, venv=request.param) as engine:
        yield engine


def is_hit(answer: Answer, first: Answer, tokens: int = HIT) -> bool:
    assert first.cached == 0
    assert (answer.cached, answer.external) == (tokens, 0)
    return answer.tokens == first.tokens


class TestLlama:
    def test_the_same_tokens_again_and_the_prefix_is_a_hit(self, llama: Engine) -> None:
        first, again = llama.generate(LONG), llama.generate(LONG)
        assert (first.finish, len(first.tokens)) == ("length", LONG.max_tokens)
        assert len(set(first.tokens)) > LONG.max_tokens // 2  # not one token for ever, whatever the prompt was
        assert is_hit(again, first)
        assert again.first_token_s is not None
        assert 0 < again.first_token_s <= again.took_s

    def test_other_prompts_give_other_tokens_and_a_batch_the_same(self, llama: Engine) -> None:
        prompts = [Prompt(words(150, seed), max_tokens=8) for seed in (1, 2, 3)]
        alone = [llama.generate(prompt) for prompt in prompts]
        assert len({answer.tokens for answer in alone}) == len(prompts)
        together = llama.generate_all(prompts)
        assert [answer.tokens for answer in together] == [answer.tokens for answer in alone]

    def test_salts_do_not_share(self, llama: Engine) -> None:
        salted = [Prompt(words(200, 4), max_tokens=4, salt=salt) for salt in ("a", "b", "a")]
        one, other, again = [llama.generate(prompt) for prompt in salted]
        assert (one.cached, other.cached) == (0, 0)
        assert is_hit(again, one)
        assert other.tokens == one.tokens

    def test_an_abort_ends_one_request_and_no_other(self, llama: Engine) -> None:
        long, short = llama.submit([Prompt(words(100, 5), max_tokens=2000), Prompt(words(100, 6), max_tokens=64)])
        llama.first_token(long)
        llama.abort([long])
        aborted, whole = llama.answers([long, short])
        assert aborted.finish == "abort"
        assert len(aborted.tokens) < 2000
        assert (whole.finish, len(whole.tokens)) == ("length", 64)

    def test_code_of_a_test_runs_in_the_engine(self, llama: Engine) -> None:
        assert llama.call("tests.engines.probes:pid") == llama.pid
        with pytest.raises(EngineFailed, match="has no attribute 'nowhere'"):
            llama.call("tests.engines.probes:nowhere")


class TestVllm:
    def test_sliding_windows_have_groups_of_their_own(self, tmp_path: Path) -> None:
        needs("vllm")
        with vllm("sliding", tmp_path) as engine:
            first, again = engine.generate(LONG), engine.generate(LONG)
            assert is_hit(again, first)
            assert engine.call("tests.engines.probes:groups") == GROUPS

    def test_latent_attention(self, tmp_path: Path) -> None:
        """Tokens after a hit are compared with those after a hit: a full prefill rounds otherwise."""
        needs("vllm")
        block = {} if has_amx() else {"block_size": 16}  # the only one of the kernels without AMX
        with vllm("mla", tmp_path, keep_prefix_cache=True, **block) as engine:
            full, hit, again = (engine.generate(LONG) for _ in range(3))
            assert full.cached == 0
            assert hit.cached == HIT
            assert is_hit(again, replace(hit, cached=0))

    def test_latent_attention_as_vllm_has_it(self, tmp_path: Path) -> None:
        """Without AMX vLLM turns its prefix cache off for it, and says so in its log."""
        needs("vllm")
        with vllm("mla", tmp_path) as engine:
            engine.generate(Prompt(words(100, 1)))  # the very first one may differ in its last bits
            first, again = engine.generate(LONG), engine.generate(LONG)
            caches = engine.call("tests.engines.probes:caches_prefixes")
            assert (again.cached > 0) == caches == has_amx()
            assert caches or again.tokens == first.tokens

    def test_two_ranks(self, tmp_path: Path) -> None:
        needs("vllm")
        with vllm("llama", tmp_path, tensor_parallel_size=2) as engine:
            first, again = engine.generate(LONG), engine.generate(LONG)
            assert is_hit(again, first)

    def test_no_prefix_cache(self, tmp_path: Path) -> None:
        needs("vllm")
        with vllm("llama", tmp_path, enable_prefix_caching=False) as engine:
            first, again = engine.generate(LONG), engine.generate(LONG)
            assert again.cached == 0
            assert again.tokens == first.tokens

    def test_killed_in_the_middle(self, tmp_path: Path) -> None:
        needs("vllm")
        with vllm("llama", tmp_path) as engine:
            (name,) = engine.submit([Prompt(words(100), max_tokens=2000)])
            engine.first_token(name)
            engine.kill()
            with pytest.raises(EngineFailed, match="ended, code -9"):
                engine.answers([name])

    def test_what_cannot_start_says_why(self, tmp_path: Path) -> None:
        needs("vllm")
        with pytest.raises(EngineFailed, match="no_such_argument"):
            vllm("llama", tmp_path, no_such_argument=1)

    def test_a_server(self, tmp_path: Path) -> None:
        needs("vllm")
        asked = {"model": "llama", "prompt": LONG.tokens, "max_tokens": 12, "temperature": 0, "ignore_eos": True}
        with serve("llama", tmp_path) as server:
            first, again = (server.post("/v1/completions", asked) for _ in range(2))
            assert first["usage"]["completion_tokens"] == 12
            assert again["choices"][0]["text"] == first["choices"][0]["text"]
            assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == HIT
            streamed = list(server.stream("/v1/completions", asked))
            assert "".join(event["choices"][0]["text"] for event in streamed) == first["choices"][0]["text"]
            chat = {"model": "llama", "messages": [{"role": "user", "content": "w1 w2 w3"}], "max_tokens": 4}
            assert server.post("/v1/chat/completions", chat)["usage"]["completion_tokens"] <= 4
            assert server.metric("vllm:prefix_cache_hits_total") >= HIT


FILES = 6 + 2  # whole pages of LONG, and those of the prompt that leaves it after three


class TestSglang:
    @pytest.mark.parametrize("layout", ["layer_first", "page_first_direct"])
    def test_another_process_takes_the_prefix_from_storage(self, layout: str, tmp_path: Path) -> None:
        """The shim's copies, there and back: with HiCache, and SGLang's own storage of files.

        Attention does not see in which order keys lie, so a prompt that shares a part of another's prefix is asked
        for first: tokens that are at home in other pages are wrong for it."""
        needs("sglang")
        files = tmp_path / "files"
        forked = Prompt(words(100) + words(70, 9), max_tokens=12)
        answers = []
        for log, prompts in (("writer.log", (LONG, forked)), ("reader.log", (forked, LONG))):
            storage = {"SGLANG_HICACHE_FILE_BACKEND_STORAGE_DIR": str(files)}
            with sglang("llama", tmp_path, log=log, env=storage, **hicache(layout)) as engine:
                answers += [engine.generate(prompt) for prompt in prompts]
                until(lambda: len(list(files.glob("*.bin"))) == FILES)
        long, fork, fork_again, long_again = answers
        assert (long.cached, fork.external) == (0, 0)
        assert (fork_again.external, long_again.cached) == (160, HIT)
        assert (fork_again.tokens, long_again.tokens) == (fork.tokens, long.tokens)
