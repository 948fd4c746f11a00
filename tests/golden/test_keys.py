"""Stored vectors: the witness still makes them, and the native code still meets them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from kvstore.identity import (
    Embeds,
    Extra,
    Lora,
    Multimodal,
    NamespaceIdentity,
    Salt,
    chain_keys,
    chain_keys_from_hashes,
    namespace_digest,
    namespace_seed,
)
from kvstore.layout import Shard
from tests.golden import keys_witness

STORED: dict[str, Any] = json.loads(keys_witness.VECTORS.read_text())


def test_the_witness_makes_the_stored_vectors() -> None:
    assert keys_witness.vectors() == STORED


@pytest.mark.parametrize("case", STORED["namespaces"], ids=lambda case: f"{case['tenant']}-{case['generation']}")
def test_namespaces(case: dict[str, Any]) -> None:
    shards = tuple(Shard(each["group"], each["rank"], tuple(each["part_bytes"])) for each in case["shards"])
    fields = {
        field: case[field] for field in ("engine", "model", "revision", "dtype", "block_tokens", "tenant", "generation")
    }
    identity = NamespaceIdentity(shards=shards, fingerprint=bytes.fromhex(case["fingerprint"]), **fields)
    digest = namespace_digest(identity)
    assert digest.hex() == case["digest"]
    assert namespace_seed(bytes.fromhex(case["secret"]), case["tenant"], digest).hex() == case["seed"]


def extra_of(row: dict[str, Any]) -> Extra:
    value = bytes.fromhex(row["value"])
    match row["kind"]:
        case 1:
            return Lora(value.decode(), row["first"])
        case 2:
            return Salt(value)
        case 3:
            return Multimodal(value, row["first"], row["end"] - row["first"])
        case _:
            return Embeds(value, row["first"], row["end"] - row["first"])


@pytest.mark.parametrize("number", range(len(STORED["chains"])))
@pytest.mark.parametrize("form", ["list", "uint32", "int64"])
def test_chains(number: int, form: str) -> None:
    case = STORED["chains"][number]
    listed = keys_witness.tokens_of(case)
    tokens = listed if form == "list" else np.array(listed, form)
    keys = chain_keys(
        bytes.fromhex(case["seed"]), tokens, case["block_tokens"], [extra_of(row) for row in case["extras"]]
    )
    assert [key.tobytes().hex() for key in keys] == case["keys"]


@pytest.mark.parametrize("number", range(len(STORED["engine_chains"])))
def test_engine_chains(number: int) -> None:
    case = STORED["engine_chains"][number]
    keys = chain_keys_from_hashes(bytes.fromhex(case["seed"]), [bytes.fromhex(each) for each in case["hashes"]])
    assert [key.tobytes().hex() for key in keys] == case["keys"]
