"""The transformers adapter against a real node: what it fetches is what a prefill would have made, and a store that is
away costs nothing but the prefill."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="no torch (make demo installs it)")
transformers = pytest.importorskip("transformers", reason="no transformers (make demo installs it)")

from engine_adapters.transformers import StoreConnector, layout_of  # noqa: E402 - after it is known that torch is there
from kvstore import Client  # noqa: E402
from tests.integration.event_router import EventRouter  # noqa: E402
from tests.integration.nodes import NodeProcess  # noqa: E402
from tests.integration.test_kv_events import SETS, endpoints  # noqa: E402

BLOCK = 8
TOKENS = 5 * BLOCK + 3  # five whole blocks and a tail


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    with NodeProcess(tmp_path_factory.mktemp("node")) as started:
        yield started


def build(seed: int = 1, **changed: Any) -> Any:
    torch.manual_seed(seed)
    shape: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 97}
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**(shape | heads | changed))).eval()


def prompt(seed: int, tokens: int = TOKENS) -> Any:
    return torch.randint(97, (1, tokens), generator=torch.Generator().manual_seed(seed))


def forward(model: Any, ids: Any, cache: Any = None) -> Any:
    with torch.inference_mode():
        return model(ids, past_key_values=cache, use_cache=True)


def connect(client: Client, model: Any, revision: str = "1") -> StoreConnector:
    return StoreConnector(client, model, revision=revision, block_tokens=BLOCK)


def test_another_process_continues_where_the_prefill_ended(node: NodeProcess) -> None:
    model, ids = build(), prompt(1)
    whole = forward(model, ids)
    with Client(node.address) as prefill, Client(node.address) as decode:
        assert connect(prefill, model).publish(ids, whole.past_key_values) == TOKENS // BLOCK
        assert connect(prefill, model).publish(ids, whole.past_key_values) == 0  # it is there
        fetched = connect(decode, model).fetch(ids)
        assert (fetched.blocks, fetched.tokens, fetched.tiers.tolist()) == (5, 5 * BLOCK, [1] * 5)
        for mine, theirs in zip(whole.past_key_values.layers, fetched.cache.layers, strict=True):
            assert torch.equal(mine.keys[:, :, : fetched.tokens], theirs.keys)
            assert torch.equal(mine.values[:, :, : fetched.tokens], theirs.values)
        rest = forward(model, ids[:, fetched.tokens :], fetched.cache)
    assert torch.allclose(rest.logits[0, -1], whole.logits[0, -1], atol=1e-4)


def test_at_least_one_token_is_left_to_compute(node: NodeProcess) -> None:
    model, ids = build(), prompt(2, 4 * BLOCK)
    with Client(node.address) as client:
        connector = connect(client, model)
        assert connector.publish(ids, forward(model, ids).past_key_values) == 4
        assert connector.fetch(ids).tokens == 3 * BLOCK


@pytest.mark.parametrize("other", ["revision", "rope"])
def test_other_weights_and_other_positions_find_nothing(node: NodeProcess, other: str) -> None:
    model, ids = build(), prompt(3)
    with Client(node.address) as client:
        connect(client, model).publish(ids, forward(model, ids).past_key_values)
        if other == "revision":
            stranger = connect(client, model, "2")
        else:
            stranger = connect(client, build(rope_parameters={"rope_type": "default", "rope_theta": 500.0}))
        assert stranger.fetch(ids).tokens == 0


def test_a_store_that_is_away_is_a_prompt_nobody_has_seen(tmp_path: Path) -> None:
    model, ids = build(), prompt(4)
    with NodeProcess(tmp_path) as node, Client(node.address) as client:
        connector = connect(client, model)
        out = forward(model, ids)
        assert connector.publish(ids, out.past_key_values) == 5
        node.kill()
        fetched = connector.fetch(ids)
        assert (fetched.tokens, fetched.blocks, fetched.cache.get_seq_length()) == (0, 0, 0)
        assert connector.publish(ids, out.past_key_values) == 0


def test_what_it_cannot_do_is_refused_by_name(node: NodeProcess) -> None:
    with Client(node.address) as client:
        connector = connect(client, build())
        with pytest.raises(ValueError, match=r"input_ids: shape \(2, 8\)"):
            connector.fetch(torch.zeros((2, 8), dtype=torch.int64))
    windowed = transformers.MistralConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        vocab_size=97,
        sliding_window=16,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    with pytest.raises(ValueError, match="only full attention"):
        layout_of(transformers.MistralForCausalLM(windowed), revision="1", block_tokens=BLOCK)
    with pytest.raises(ValueError, match="model: on meta"):
        layout_of(build().to("meta"), revision="1", block_tokens=BLOCK)


def test_a_router_hears_of_what_is_published(tmp_path: Path) -> None:
    model, ids = build(), prompt(9)
    with NodeProcess(tmp_path, *SETS) as node, Client(node.address) as client:
        router = EventRouter(*endpoints(node), block_tokens=BLOCK)
        try:
            connect(client, model).publish(ids, forward(model, ids).past_key_values)
            router.until(5, ids[0].tolist())
        finally:
            router.close()
