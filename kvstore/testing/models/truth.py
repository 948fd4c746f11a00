"""What every byte must be: a pure function of the namespace, how often it was cleared, the prefix, and the shard."""

from __future__ import annotations

import hashlib

from kvstore.testing.models.keys import chain_keys, part_checksum
from kvstore.testing.models.lifecycle import Name
from kvstore.testing.models.namespaces import Space


class Truth:
    """Remembers which checksums anybody has taken for a name: a restart may bring back no others."""

    def __init__(self) -> None:
        self._keys: dict[tuple[bytes, tuple[int, ...]], tuple[bytes, ...]] = {}
        self._blocks: dict[tuple[str, int, tuple[int, ...], int], tuple[bytes, ...]] = {}
        self.taken: dict[Name, set[tuple[int, ...]]] = {}

    def keys(self, space: Space, tokens: tuple[int, ...]) -> tuple[bytes, ...]:
        known = self._keys.get((space.digest, tokens))
        if known is None:
            known = self._keys[space.digest, tokens] = tuple(chain_keys(space.digest, tokens, 1))
        return known

    def block(self, space: Space, prefix: tuple[int, ...], shard: int) -> tuple[bytes, ...]:
        """Its parts."""
        name = (space.name, space.clears, prefix, shard)
        parts = self._blocks.get(name)
        if parts is None:
            text = repr(name).encode()
            parts = self._blocks[name] = tuple(
                hashlib.blake2b(text, digest_size=size, salt=number.to_bytes(2, "little")).digest()
                for number, size in enumerate(space.shards[shard])
            )
        return parts

    def will_seal(self, space: Space, shard: int, key: bytes, parts: tuple[bytes, ...]) -> tuple[int, ...]:
        sums = tuple(part_checksum(part) for part in parts)
        self.taken.setdefault(Name(space.digest, shard, key), set()).add(sums)
        return sums
