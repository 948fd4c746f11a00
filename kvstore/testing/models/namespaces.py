"""Namespaces by name, and the generation that a clear bumps. What a node keeps on disk of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from kvstore.testing.models.table import Shards


class Space(NamedTuple):
    """One generation of a namespace. `clears` counts what was asked, and is not what the digest is made of."""

    name: str
    digest: bytes
    shards: Shards
    clears: int


@dataclass(slots=True)
class Namespaces:
    shards: Mapping[str, Shards]
    generations: dict[str, int] = field(default_factory=dict)
    clears: dict[str, int] = field(default_factory=dict)
    by_digest: dict[bytes, Shards] = field(default_factory=dict)

    def now(self, name: str) -> Space:
        generation = self.generations.get(name, 0)
        digest = hashlib.sha256(f"{name}/{generation}".encode()).digest()
        self.by_digest[digest] = self.shards[name]
        return Space(name, digest, self.shards[name], self.clears.get(name, 0))

    def clear(self, name: str) -> None:
        """Old blocks are unreachable at once, on whatever tier: no key of theirs is made any more."""
        self.clears[name] = self.clears.get(name, 0) + 1
        self.generations[name] = self.generations.get(name, 0) + 1
