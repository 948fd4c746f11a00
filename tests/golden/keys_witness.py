"""docs/format/keys.md in plain Python: the independent witness of the native keys, and the maker of keys.json.

`python -m tests.golden.keys_witness` writes the vectors anew; that is done only when the format's version changes.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
from pathlib import Path
from typing import Any

VECTORS = Path(__file__).with_name("keys.json")


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def data(value: bytes) -> bytes:
    return u32(len(value)) + value


def text(value: str) -> bytes:
    return data(value.encode())


def digest_of(case: dict[str, Any]) -> bytes:
    message = b"kvn1" + b"".join(text(case[field]) for field in ("engine", "model", "revision", "dtype"))
    message += u32(case["block_tokens"]) + data(bytes.fromhex(case["fingerprint"])) + u32(len(case["shards"]))
    for shard in case["shards"]:
        message += text(shard["group"]) + u32(shard["rank"]) + u32(len(shard["part_bytes"]))
        message += b"".join(u32(size) for size in shard["part_bytes"])
    message += u32(1) + text(case["tenant"]) + struct.pack("<Q", case["generation"])
    return hashlib.sha256(message).digest()


def seed_of(secret: bytes, tenant: str, digest: bytes) -> bytes:
    return hmac.new(secret, b"kvs1" + text(tenant) + data(digest), hashlib.sha256).digest()


def extras_of(extras: list[dict[str, Any]], start: int, block_tokens: int) -> bytes:
    records = set()
    for extra in extras:
        first, end = max(extra["first"], start), min(extra["end"], start + block_tokens)
        if first >= end:
            continue
        before = max(0, start - extra["first"]) if extra["kind"] in (3, 4) else 0
        record = struct.pack("<BIIQ", extra["kind"], first - start, end - start, before)
        records.add(record + data(bytes.fromhex(extra["value"])))
    return b"".join(sorted(records))


def chain(parent: bytes, tokens: list[int], block_tokens: int, extras: list[dict[str, Any]]) -> list[bytes]:
    keys = []
    for start in range(0, len(tokens) // block_tokens * block_tokens, block_tokens):
        message = b"kvk1" + parent + u32(block_tokens)
        message += b"".join(u32(token) for token in tokens[start : start + block_tokens])
        parent = hashlib.sha256(message + data(extras_of(extras, start, block_tokens))).digest()
        keys.append(parent)
    return keys


def chain_of_hashes(parent: bytes, hashes: list[bytes]) -> list[bytes]:
    keys = []
    for each in hashes:
        parent = hashlib.sha256(b"kvh1" + parent + data(each)).digest()
        keys.append(parent)
    return keys


def tokens_of(case: dict[str, Any]) -> list[int]:
    """Tokens are listed, or made: token i is (first + i * step) modulo 2^32."""
    if "tokens" in case:
        return list(case["tokens"])
    return [(case["first"] + i * case["step"]) % (1 << 32) for i in range(case["count"])]


NAMESPACE = {
    "engine": "transformers",
    "model": "llama-3-8b",
    "revision": "0",
    "dtype": "bfloat16",
    "block_tokens": 16,
    "fingerprint": "",
    "shards": [{"group": "full", "rank": 0, "part_bytes": [65536] * 32}],
    "tenant": "default",
    "generation": 0,
}
FAR = 1 << 62
EXTRAS: list[dict[str, Any]] = [
    {"kind": 1, "first": -FAR, "end": FAR, "value": b"my-lora".hex()},
    {"kind": 2, "first": 0, "end": 1, "value": "00ff"},
    {"kind": 3, "first": 10, "end": 40, "value": "ab" * 32},
    {"kind": 3, "first": -5, "end": 3, "value": "cd" * 32},
    {"kind": 4, "first": 30, "end": 31, "value": "01"},
    {"kind": 4, "first": 30, "end": 31, "value": "01"},
]


def namespaces() -> list[dict[str, Any]]:
    two = [
        {"group": "full", "rank": 0, "part_bytes": [8192, 4096]},
        {"group": "window", "rank": 1, "part_bytes": [4096]},
    ]
    cases = [
        NAMESPACE,
        NAMESPACE | {"generation": (1 << 32) - 1},
        NAMESPACE | {"tenant": "zürich-東京", "model": "m" * 255, "fingerprint": "5a" * 32, "block_tokens": 65536},
        NAMESPACE | {"shards": two},
    ]
    made = []
    for case in cases:
        secret = hashlib.sha256(case["tenant"].encode()).digest()
        digest = digest_of(case)
        seed = seed_of(secret, case["tenant"], digest)
        made.append(case | {"secret": secret.hex(), "digest": digest.hex(), "seed": seed.hex()})
    return made


def chains() -> list[dict[str, Any]]:
    seed = bytes(range(32)).hex()
    cases: list[dict[str, Any]] = [
        {"block_tokens": 16, "tokens": [], "extras": []},
        {"block_tokens": 16, "tokens": list(range(15)), "extras": []},
        {"block_tokens": 16, "tokens": list(range(37)), "extras": []},
        {"block_tokens": 1, "tokens": [0, 4294967295, 1], "extras": []},
        {"block_tokens": 16, "first": 4294967000, "step": 12345, "count": 160, "extras": []},
        {"block_tokens": 4096, "first": 7, "step": 1, "count": 8192, "extras": []},
        {"block_tokens": 16, "first": 1, "step": 3, "count": 64, "extras": EXTRAS},
        {"block_tokens": 16, "first": 1, "step": 3, "count": 64, "extras": EXTRAS[1:2]},
        {"block_tokens": 3, "first": 1, "step": 3, "count": 64, "extras": EXTRAS[2:]},
    ]
    made = []
    for case in cases:
        keys = chain(bytes.fromhex(seed), tokens_of(case), case["block_tokens"], case["extras"])
        made.append({"seed": seed} | case | {"keys": [key.hex() for key in keys]})
    return made


def engine_chains() -> list[dict[str, Any]]:
    seed = bytes(range(32)).hex()
    hashes = [b"\x00", bytes(range(32)), b"\xff" * 64, b"\x00"]
    keys = chain_of_hashes(bytes.fromhex(seed), hashes)
    return [{"seed": seed, "hashes": [each.hex() for each in hashes], "keys": [key.hex() for key in keys]}]


def vectors() -> dict[str, Any]:
    return {"version": 1, "namespaces": namespaces(), "chains": chains(), "engine_chains": engine_chains()}


if __name__ == "__main__":
    VECTORS.write_text(json.dumps(vectors(), indent=1, ensure_ascii=True) + "\n")
