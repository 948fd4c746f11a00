"""Namespaces and chains: what changes a name, what does not, and what is refused by name."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import sys
from array import array
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore import native
from kvstore.identity import (
    Embeds,
    Extra,
    Lora,
    Multimodal,
    NamespaceIdentity,
    Salt,
    chain_keys,
    chain_keys_encoded,
    chain_keys_from_hashes,
    namespace_digest,
    namespace_seed,
)
from kvstore.layout import KVLayout, Shard
from tests.golden import keys_witness

SEED = bytes(range(32))
IDENTITY = NamespaceIdentity(
    engine="e", model="m", revision="r", dtype="bfloat16", block_tokens=16, shards=(Shard("full", 0, (4096, 8192)),)
)


def hexes(keys: np.ndarray[Any, np.dtype[np.uint8]]) -> list[str]:
    return [key.tobytes().hex() for key in keys]


@given(st.lists(st.integers(0, 2**32 - 1), max_size=80), st.integers(1, 20), st.data())
def test_keys_equal_the_witness(tokens: list[int], block_tokens: int, data: st.DataObject) -> None:
    value = st.binary(min_size=1, max_size=8)
    row = st.fixed_dictionaries(
        {"kind": st.sampled_from([3, 4]), "first": st.integers(-30, 80), "length": st.integers(1, 60), "value": value}
    )
    rows = data.draw(st.lists(row, max_size=6))
    typed: list[Extra] = [
        (Multimodal if row["kind"] == 3 else Embeds)(row["value"], row["first"], row["length"]) for row in rows
    ]
    plain = [row | {"end": row["first"] + row["length"], "value": row["value"].hex()} for row in rows]
    if data.draw(st.booleans()):
        typed += [Lora("a", 5), Salt(b"s")]
        plain += [{"kind": 1, "first": 5, "end": 1 << 62, "value": b"a".hex()}]
        plain += [{"kind": 2, "first": 0, "end": 1, "value": b"s".hex()}]
    expected = keys_witness.chain(SEED, tokens, block_tokens, plain)
    assert hexes(chain_keys(SEED, tokens, block_tokens, typed)) == [key.hex() for key in expected]


@given(st.integers(0, 6), st.integers(-40, 100))
def test_a_chain_made_in_two_calls_is_the_same(cut: int, first: int) -> None:
    tokens = np.arange(96)
    whole = chain_keys(SEED, tokens, 16, [Lora("a", first), Multimodal(b"i", first, 50), Salt(b"s")])
    head = chain_keys(SEED, tokens[: 16 * cut], 16, [Lora("a", first), Multimodal(b"i", first, 50), Salt(b"s")])
    parent = head[-1].tobytes() if cut else SEED
    rest = [Lora("a", first - 16 * cut), Multimodal(b"i", first - 16 * cut, 50)]
    tail = chain_keys(parent, tokens[16 * cut :], 16, rest if cut else [*rest, Salt(b"s")])
    assert hexes(head) + hexes(tail) == hexes(whole)


def test_every_form_of_tokens_gives_the_same_keys() -> None:
    tokens = list(range(100, 164))
    wanted = hexes(chain_keys(SEED, tokens, 16))
    assert len(wanted) == 4
    arrays = [np.array(tokens, dtype) for dtype in ("int32", "uint32", "int64", "uint64")]
    strided = np.repeat(np.array(tokens), 2)[::2]
    others = (tuple(tokens), array("i", tokens), array("q", tokens), range(100, 164), memoryview(arrays[0]))
    for form in (*arrays, strided, *others):
        assert hexes(chain_keys(SEED, form, 16)) == wanted  # type: ignore[arg-type]


@pytest.mark.parametrize("tokens", [[1, 2, -3, 4], [1, 2, 2**32, 4], [1, 2, 2**63, 4], [1, 2, 2**70, 4]])
def test_a_wrong_token_is_named(tokens: list[int]) -> None:
    with pytest.raises(ValueError, match=rf"tokens\[2\] is {tokens[2]}; a token id is 0 to 4294967295"):
        chain_keys(SEED, tokens, 2)
    if abs(tokens[2]) < 2**63:
        with pytest.raises(ValueError, match=r"tokens\[2\]"):
            chain_keys(SEED, np.array(tokens, np.int64), 2)


@pytest.mark.parametrize(
    "tokens", [[1.5], [True], ["a"], np.zeros(4), np.zeros((2, 2), np.int64), np.zeros(4, ">i4"), np.zeros(4, bool)]
)
def test_what_is_no_token_is_refused(tokens: Any) -> None:
    with pytest.raises(TypeError, match="tokens"):
        chain_keys(SEED, tokens, 1)


@pytest.mark.parametrize(
    ("extras", "message"),
    [
        ([Lora("")], r"extras\[0\] has an empty value"),
        ([Salt(b"s"), Multimodal(b"i", 3, 0)], r"extras\[1\] applies to no token"),
        ([Multimodal(b"i" * 4097, 0, 1)], r"extras\[0\] .* extras_bytes_max is 4096"),
        ([Multimodal(b"%d" % i + b"i" * 60, 0, 1) for i in range(64)], "extras of block 0 .* extras_bytes_max"),
        ([Salt(b"%d" % i) for i in range(129)], "extras of block 0 .* extras_per_block_max = 128"),
        ([Multimodal(b"i", 2**63, 1)], r"extras\[0\] must be"),
        ([Multimodal(b"i", 2**62, 1)], r"extras\[0\] lies beyond"),
    ],
)
def test_wrong_extras_are_named(extras: list[Extra], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        chain_keys(SEED, range(64), 16, extras)


def test_extras_decide_and_their_order_does_not() -> None:
    tokens = range(64)
    plain = hexes(chain_keys(SEED, tokens, 16))
    image = hexes(chain_keys(SEED, tokens, 16, [Multimodal(b"i", 20, 10)]))
    assert image[0] == plain[0] and not set(image[1:]) & set(plain)
    assert hexes(chain_keys(SEED, tokens, 16, [Multimodal(b"i", 21, 9)]))[1:] != image[1:]
    assert hexes(chain_keys(SEED, tokens, 16, [Embeds(b"i", 20, 10)]))[1:] != image[1:]
    assert not set(hexes(chain_keys(SEED, tokens, 16, [Salt(b"s")]))) & set(plain)
    both: list[Extra] = [Lora("a"), Multimodal(b"i", 20, 10)]
    assert hexes(chain_keys(SEED, tokens, 16, both)) == hexes(chain_keys(SEED, tokens, 16, both[::-1] * 2))
    assert hexes(chain_keys(SEED, tokens, 16, [Multimodal(b"i", 64, 10)])) == plain


def test_encoded_extras_are_the_callers_own() -> None:
    rows = [{"kind": 2, "first": 0, "end": 1, "value": "00"}]
    encoded = keys_witness.extras_of(rows, 0, 16)
    typed = chain_keys(SEED, range(64), 16, [Salt(b"\0")])
    assert hexes(chain_keys_encoded(SEED, range(64), 16, [(0, encoded)])) == hexes(typed)
    for bad in ([(1, b"a"), (1, b"b")], [(1, b"a"), (0, b"b")], [(0, b"a" * 4097)], [(-1, b"a")]):
        with pytest.raises(ValueError, match="extras"):
            chain_keys_encoded(SEED, range(64), 16, bad)


def test_engine_hashes_chain_apart_from_tokens() -> None:
    hashes = [hashlib.sha256(bytes([i])).digest() for i in range(5)]
    keys = chain_keys_from_hashes(SEED, hashes)
    assert hexes(keys) == [key.hex() for key in keys_witness.chain_of_hashes(SEED, hashes)]
    assert chain_keys_from_hashes(SEED, []).shape == (0, 32)
    for bad in (b"", b"h" * 65):
        with pytest.raises(ValueError, match=r"hashes\[1\] must be 1 to 64 bytes"):
            chain_keys_from_hashes(SEED, [b"ok", bad])
    with pytest.raises(TypeError, match=r"hashes\[0\] must be bytes"):
        chain_keys_from_hashes(SEED, ["text"])  # type: ignore[list-item]


@pytest.mark.parametrize("block_tokens", [0, -1, 65_537])
def test_block_tokens_has_limits(block_tokens: int) -> None:
    with pytest.raises(ValueError, match="block_tokens must be 1 to 65536"):
        chain_keys(SEED, [1, 2], block_tokens)
    with pytest.raises(ValueError, match="block_tokens must be 1 to 65536"):
        dataclasses.replace(IDENTITY, block_tokens=block_tokens)


def test_a_seed_is_32_bytes() -> None:
    with pytest.raises(ValueError, match="seed must be 32 bytes, not 31"):
        chain_keys(SEED[1:], [1], 1)


@pytest.mark.parametrize(
    "change",
    [
        {"engine": "f"},
        {"model": "mr", "revision": " "},
        {"revision": "s"},
        {"dtype": "float16"},
        {"block_tokens": 32},
        {"fingerprint": bytes(32)},
        {"tenant": "other"},
        {"generation": 1},
        {"format_version": 2},
        {"shards": (Shard("full", 0, (8192, 4096)),)},
        {"shards": (Shard("full", 1, (4096, 8192)),)},
        {"shards": (Shard("", 0, (4096, 8192)),)},
        {"shards": (Shard("full", 0, (4096,)), Shard("full", 0, (8192,)))},
    ],
)
def test_every_field_changes_the_digest(change: dict[str, Any]) -> None:
    assert namespace_digest(dataclasses.replace(IDENTITY, **change)) != namespace_digest(IDENTITY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": ""}, "model must be 1 to 255 bytes"),
        ({"tenant": "é" * 128}, "tenant must be 1 to 255 bytes of UTF-8, not 256"),
        ({"fingerprint": b"short"}, "fingerprint must be 32 bytes or empty"),
        ({"generation": -1}, "generation must be 0 to"),
        ({"shards": ()}, "shards must be 1 to 64, not 0"),
        ({"shards": (Shard("f", 0, (4096,)),) * 65}, "shards must be 1 to 64, not 65"),
        ({"shards": (Shard("f", 0, ()),)}, r"shards\[0\].part_bytes must have 1 to 256 parts, not 0"),
        ({"shards": (Shard("f", 0, (4096, 0)),)}, r"shards\[0\].part_bytes\[1\] must be 1 to"),
        ({"shards": (Shard("f", 0, (4095,)),)}, r"shards\[0\] is 4095 bytes"),
        ({"shards": (Shard("f", -1, (4096,)),)}, r"shards\[0\].rank must be 0 to"),
    ],
)
def test_a_wrong_namespace_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(IDENTITY, **change)


def test_clearing_is_another_namespace() -> None:
    after = dataclasses.replace(IDENTITY, generation=1)
    assert namespace_digest(after) != namespace_digest(IDENTITY)


def test_seeds_differ_by_secret_tenant_and_namespace() -> None:
    digest = namespace_digest(IDENTITY)
    seeds = {
        namespace_seed(b"s" * 32, "a", digest),
        namespace_seed(b"t" * 32, "a", digest),
        namespace_seed(b"s" * 32, "b", digest),
        namespace_seed(b"s" * 32, "a", bytes(32)),
    }
    assert len(seeds) == 4 and all(len(seed) == 32 for seed in seeds)
    with pytest.raises(ValueError, match="secret must be at least 16 bytes, not 15"):
        namespace_seed(b"s" * 15, "a", digest)
    with pytest.raises(ValueError, match="digest must be 32 bytes"):
        namespace_seed(b"s" * 32, "a", b"short")


@given(st.binary(max_size=300), st.binary(max_size=150))
def test_digests_equal_hashlib(data: bytes, secret: bytes) -> None:
    import hmac

    assert native.sha256(data) == hashlib.sha256(data).digest()
    assert native.hmac_sha256(secret, data) == hmac.new(secret, data, hashlib.sha256).digest()


PROGRAM = """
from kvstore.identity import *
from kvstore.layout import KVLayout
layout = KVLayout.uniform(engine="e", model="m", revision="r", dtype="float16", block_tokens=16, layers=4, kv_heads=8,
                          head_dim=64)
digest = namespace_digest(NamespaceIdentity.of(layout))
seed = namespace_seed(b"secret" * 4, "default", digest)
print(chain_keys(seed, range(160), 16, [Lora("a"), Salt(b"s"), Multimodal(b"i", 5, 50)])[-1].tobytes().hex())
"""


def test_keys_are_equal_in_every_process() -> None:
    found = {
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "4242")
    }
    layout = KVLayout.uniform(
        engine="e", model="m", revision="r", dtype="float16", block_tokens=16, layers=4, kv_heads=8, head_dim=64
    )
    seed = namespace_seed(b"secret" * 4, "default", namespace_digest(NamespaceIdentity.of(layout)))
    keys = chain_keys(seed, range(160), 16, [Lora("a"), Salt(b"s"), Multimodal(b"i", 5, 50)])
    assert found == {keys[-1].tobytes().hex() + "\n"}
