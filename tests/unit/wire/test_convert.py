"""Requests are checked in one place: each wrong field is named, each right one comes out as the node works with it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore import identity
from kvstore.errors import Rejected
from kvstore.identity import NamespaceIdentity, namespace_digest
from kvstore.layout import CacheGroup, GroupKind, KVLayout
from kvstore.wire import convert, errors, store

SEED = bytes(range(32))
PARENT = bytes(reversed(range(32)))
TOKENS = list(range(100, 150))


def test_tokens_and_their_keys_name_the_same_chain() -> None:
    made = convert.keys(store.Chain(tokens=store.Tokens(ids=TOKENS)), SEED, 16, 100)
    assert np.array_equal(made, identity.chain_keys(SEED, TOKENS, 16))
    assert np.array_equal(convert.keys(store.Chain(keys=made.tobytes()), SEED, 16, 100), made)


def test_extras_and_a_parent_are_taken_along() -> None:
    salt = store.Extra(kind=store.Extra.SALT, first=0, end=1, value=b"salt")
    image = store.Extra(kind=store.Extra.MULTIMODAL, first=-3, end=20, value=b"i" * 32)
    chain = store.Chain(tokens=store.Tokens(ids=TOKENS, extras=[salt, image]), parent=PARENT)
    extras = (identity.Salt(b"salt"), identity.Multimodal(b"i" * 32, -3, 23))
    assert np.array_equal(convert.keys(chain, SEED, 16, 100), identity.chain_keys(PARENT, TOKENS, 16, extras))


def test_an_engines_hashes_make_keys() -> None:
    hashes = [b"a", b"b" * 64]
    made = convert.keys(store.Chain(hashes=store.Hashes(values=hashes)), SEED, 16, 100)
    assert np.array_equal(made, identity.chain_keys_from_hashes(SEED, hashes))


@pytest.mark.parametrize(
    ("chain", "named"),
    [
        (store.Chain(), "chain"),
        (store.Chain(keys=b"x" * 33), r"chain\.keys"),
        (store.Chain(keys=b"", parent=b"short"), r"chain\.parent"),
        (store.Chain(tokens=store.Tokens(ids=TOKENS), position=3), r"chain\.position"),
        (store.Chain(hashes=store.Hashes(values=[b""])), r"chain\.hashes"),
        (store.Chain(hashes=store.Hashes(values=[b"x" * 65])), r"chain\.hashes"),
        (
            store.Chain(tokens=store.Tokens(ids=TOKENS, extras=[store.Extra(first=0, end=1, value=b"x")])),
            "chain.tokens",
        ),
        (
            store.Chain(tokens=store.Tokens(ids=TOKENS, extras=[store.Extra(kind=store.Extra.LORA, first=5, end=5)])),
            r"chain\.tokens",
        ),
    ],
)
def test_what_is_wrong_with_a_chain_is_named(chain: store.Chain, named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named}: "):
        convert.keys(chain, SEED, 16, 100)


@pytest.mark.parametrize(
    "chain",
    [
        store.Chain(keys=bytes(32 * 4)),
        store.Chain(tokens=store.Tokens(ids=range(64))),
        store.Chain(hashes=store.Hashes(values=[b"h"] * 4)),
    ],
)
def test_too_many_keys_are_refused_by_the_limits_name(chain: store.Chain) -> None:
    assert len(convert.keys(chain, SEED, 16, 4)) == 4
    with pytest.raises(Rejected) as caught:
        convert.keys(chain, SEED, 16, 3)
    assert caught.value.limit == "keys_per_call_max"


def layouts() -> list[KVLayout]:
    usual = KVLayout.uniform(
        engine="vllm",
        model="llama",
        revision="7",
        dtype="bfloat16",
        block_tokens=16,
        layers=4,
        kv_heads=8,
        head_dim=128,
        tensor_parallel=2,
    )
    mixed = KVLayout(
        engine="e",
        model="m",
        revision="r",
        dtype="float16",
        content_format="e/1",
        block_tokens=16,
        groups=(
            CacheGroup(
                name="w", kind=GroupKind.WINDOW, layer_bytes=(4096, 8192), kv_heads=2, head_dim=4, window_tokens=99
            ),
            CacheGroup(name="s", kind=GroupKind.STATE, layer_bytes=(5000,)),
        ),
    )
    return [usual, mixed]


@pytest.mark.parametrize("layout", layouts())
def test_a_layout_travels_whole(layout: KVLayout) -> None:
    """Client and node must come to the same digest, or nobody ever finds anything."""
    message = store.Layout.FromString(convert.layout_message(layout).SerializeToString())
    arrived = convert.identity_of(message, "acme")
    assert arrived == NamespaceIdentity.of(layout, tenant="acme")
    assert namespace_digest(arrived) == namespace_digest(NamespaceIdentity.of(layout, tenant="acme"))
    assert convert.layout_message(arrived) == message


def _changed(change: Callable[[store.Layout], object]) -> store.Layout:
    message = convert.layout_message(layouts()[0])
    change(message)
    return message


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (store.Layout(), "layout.engine"),
        (_changed(lambda m: setattr(m, "model", "m" * 256)), "layout.model"),
        (_changed(lambda m: setattr(m, "block_tokens", 0)), "layout.block_tokens"),
        (_changed(lambda m: m.ClearField("shards")), "layout.shards"),
        (_changed(lambda m: m.shards.extend([m.shards[0]] * 100)), "layout.shards"),
        (_changed(lambda m: m.shards[1].part_bytes.append(0)), "layout.shards[1].part_bytes[4]"),
        (_changed(lambda m: m.shards[1].part_bytes.extend([1] * 300)), "layout.shards[1].part_bytes"),
        (_changed(lambda m: m.shards[0].part_bytes.append(64 << 20)), "layout.shards[0]"),
        (_changed(lambda m: setattr(m, "fingerprint", b"short")), "layout.fingerprint"),
    ],
)
def test_what_is_wrong_with_a_layout_is_named(message: store.Layout, field: str) -> None:
    with pytest.raises(ValueError, match=r"^layout") as caught:
        convert.identity_of(message, "acme")
    assert errors.detail(str(caught.value)).field == field


def test_a_tenant_has_a_name() -> None:
    with pytest.raises(ValueError, match=r"^tenant"):
        convert.identity_of(convert.layout_message(layouts()[0]), "t" * 256)


def test_needs_are_checked_against_the_namespace() -> None:
    assert convert.needs([store.Need(shard=1, kind=store.Need.LAST, blocks=3)], 2) == [(1, 1, 3)]
    assert convert.needs([], 1) == []
    for wrong, named in (
        ([store.Need(), store.Need(shard=2)], r"needs\[1\]\.shard"),
        ([store.Need.FromString(b"\x10\x09")], r"needs\[0\]\.kind"),
        ([store.Need()] * 65, "needs"),
    ):
        with pytest.raises(ValueError, match=f"^{named}: "):
            convert.needs(wrong, 2)
    with pytest.raises(ValueError, match=r"^shards\[1\]: "):
        convert.check_shards([0, 2], 2)


@given(st.text(max_size=4000), st.text(max_size=40), st.integers(0, 2**63))
def test_any_refusal_can_be_told(text: str, limit_name: str, limit: int) -> None:
    told = errors.detail(text, limit_name=limit_name, limit=limit)
    assert len(told.reason.encode()) <= errors.REASON_BYTES_MAX and told.limit == limit
    store.ErrorDetail.FromString(told.SerializeToString())


@pytest.mark.parametrize(
    ("text", "field", "reason"),
    [
        ("shard: 3, but the namespace has 1", "shard", "3, but the namespace has 1"),
        ("layout.shards[0] is 3 bytes", "layout.shards[0]", "is 3 bytes"),
        ("block_tokens must be 1 to 65536", "block_tokens", "must be 1 to 65536"),
        ("the node failed; its log says how", "", "the node failed; its log says how"),
        ("", "", ""),
    ],
)
def test_a_refusal_begins_with_its_field(text: str, field: str, reason: str) -> None:
    told = errors.detail(text)
    assert (told.field, told.reason) == (field, reason)
