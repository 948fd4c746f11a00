"""`namespaces.json` in the data directory: what was opened here, and what is known of clears, anywhere.

Version 1 had no nodes in it: a generation read there is one of which only is known that there is one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from kvstore.directory.generations import Clears
from kvstore.errors import Misconfigured
from kvstore.identity import NamespaceIdentity, namespace_digest
from kvstore.layout import Shard
from kvstore.node.home import write_durably

__all__ = ["read", "write"]

VERSION: Final = 2
OLDER: Final = 1
DIGEST_BYTES: Final = 32


def write(path: Path, identities: Iterable[NamespaceIdentity], clears: Mapping[bytes, Clears]) -> None:
    """On disk when it returns. Raises OSError, and then what was there before is there still."""
    told = {
        "version": VERSION,
        "namespaces": [_row(identity) for identity in identities],
        "clears": [
            {"namespace": origin.hex(), "floor": one.floor, "by": {node.hex(): count for node, count in one.by}}
            for origin, one in clears.items()
        ],
    }
    write_durably(path, json.dumps(told, indent=1))


def read(path: Path) -> tuple[list[NamespaceIdentity], dict[bytes, Clears]]:
    """Of generation 0 each, and clears by their digests. Raises Misconfigured: to go on without it could bring back
    what was cleared.
    """
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError:
        return [], {}
    except (OSError, ValueError) as error:
        raise Misconfigured(f"{path}: {error}; remove it only together with all blocks of this node") from error
    version = document.get("version") if isinstance(document, dict) else None
    if version not in {OLDER, VERSION}:
        raise Misconfigured(f"{path}: version {version!r}, this node reads {OLDER} and {VERSION}")
    try:
        if version == OLDER:
            return _older(document["namespaces"])
        return [_identity(row) for row in document["namespaces"]], dict(_clears(row) for row in document["clears"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Misconfigured(f"{path}: not a list of namespaces: {error!r}") from error


def _older(rows: Iterable[Mapping[str, object]]) -> tuple[list[NamespaceIdentity], dict[bytes, Clears]]:
    identities: list[NamespaceIdentity] = []
    clears: dict[bytes, Clears] = {}
    for row in rows:
        identity = _identity(row)
        identities.append(identity)
        if generation := int(str(row["generation"])):
            clears[namespace_digest(replace(identity, generation=0))] = Clears(generation)
    return identities, clears


def _row(identity: NamespaceIdentity) -> dict[str, object]:
    return {
        "engine": identity.engine,
        "model": identity.model,
        "revision": identity.revision,
        "dtype": identity.dtype,
        "block_tokens": identity.block_tokens,
        "shards": [[shard.group, shard.rank, list(shard.part_bytes)] for shard in identity.shards],
        "fingerprint": identity.fingerprint.hex(),
        "tenant": identity.tenant,
    }


def _identity(row: Mapping[str, object]) -> NamespaceIdentity:
    texts = {name: str(row[name]) for name in ("engine", "model", "revision", "dtype", "tenant")}
    shards = row["shards"]
    if not isinstance(shards, list):
        raise TypeError("shards")
    return NamespaceIdentity(
        engine=texts["engine"],
        model=texts["model"],
        revision=texts["revision"],
        dtype=texts["dtype"],
        block_tokens=int(str(row["block_tokens"])),
        shards=tuple(Shard(str(group), int(rank), tuple(int(size) for size in sizes)) for group, rank, sizes in shards),
        fingerprint=bytes.fromhex(str(row["fingerprint"])),
        tenant=texts["tenant"],
    )


def _clears(row: Mapping[str, object]) -> tuple[bytes, Clears]:
    by = row["by"]
    if not isinstance(by, dict):
        raise TypeError("by")
    counts = sorted((bytes.fromhex(node), int(count)) for node, count in by.items())
    origin = bytes.fromhex(str(row["namespace"]))
    if len(origin) != DIGEST_BYTES:
        raise ValueError("namespace")
    return origin, Clears(int(str(row["floor"])), tuple(counts))
