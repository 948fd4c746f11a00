"""An object tier over a store in memory that hangs or fails when told to, under a real core with memory alone above."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import obstore
import pytest
from obstore.exceptions import GenericError
from obstore.store import MemoryStore

from kvstore.node.pack_writer import PackWriter
from kvstore.testing.clock import VirtualClock
from kvstore.tiers.base import Keys, TierKind
from kvstore.tiers.object import ObjectTier
from kvstore.tiers.object_tier import PackTier
from kvstore.tiers.pack_index import PackIndex
from kvstore.tiers.packs import pack_name
from tests.storage import Storage, chain_of, content, name_of

PER_PACK = 4
DIGEST = name_of("namespace", "a")
OBJECT = int(TierKind.OBJECT)


class Requests:
    """Stands between the tier and the library. `gated`: verbs that wait until it is `open`; `fails`: those refused."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.now = 0
        self.most = 0
        self.open = asyncio.Event()
        self.open.set()
        self.gated: set[str] = set()
        self.fails: Callable[[str, str], bool] = lambda _verb, _name: False

    def __getattr__(self, verb: str) -> Any:
        real = getattr(obstore, verb)
        if not verb.endswith("_async"):
            return real

        async def request(store: MemoryStore, *args: Any, **named: Any) -> Any:
            self.seen[verb] += 1
            self.now += 1
            self.most = max(self.most, self.now)
            try:
                if verb in self.gated:
                    await self.open.wait()
                if self.fails(verb, str(args[0]) if args else ""):
                    raise GenericError("refused by the test")
                return await real(store, *args, **named)
            finally:
                self.now -= 1

        return request

    def hold_back(self, *verbs: str) -> None:
        self.open.clear()
        self.gated = set(verbs)


@pytest.fixture
async def requests(monkeypatch: pytest.MonkeyPatch) -> Requests:
    made = Requests()
    monkeypatch.setattr("kvstore.tiers.object.obstore", made)
    monkeypatch.setattr("kvstore.tiers.packs.PACK_BLOCKS_MAX", PER_PACK)
    return made


class PacksRig:
    """One node's, over `bucket`, which several may share."""

    def __init__(self, bucket: MemoryStore, *, write_bytes_max: int = 1 << 30, memory_bytes: int = 4 << 20) -> None:
        self.bucket = bucket
        self.clock = VirtualClock()
        self.storage = Storage(None, memory_bytes=memory_bytes)
        self.ns = self.storage.open_namespace()
        self.core = self.storage.core
        self.core.set_object_tier(10_000)
        self.store = ObjectTier(bucket, clock=self.clock)
        self.index = PackIndex(self.core, 10_000)
        self.store.on_gone = self.index.gone
        self.tier = PackTier(self.store, self.index, self.storage.shapes)
        self.admitted = True
        self.writer = PackWriter(
            self.core,
            TierKind.MEMORY,
            [self.storage.memory],
            self.tier,
            write_bytes_max,
            lambda _bytes: self.admitted,
        )

    async def put(self, keys: Keys, parent: bytes | None = None, position: int = 0) -> None:
        """Into memory, as a client does."""
        reservation = self.storage.memory.reserve(self.storage.run(keys, parent, position))
        for place, at in zip(reservation.places, reservation.granted, strict=True):
            place[:] = content(keys[at].tobytes(), self.storage.block_bytes)
        reservation.seal()

    async def stored(self) -> set[str]:
        return {entry["path"] async for batch in obstore.list(self.bucket) for entry in batch}

    async def read(self, keys: Keys) -> int:
        """How many come through the tier; every byte of them is right."""
        hold = self.tier.hold(self.ns, 0, keys)
        if hold is None:
            return 0
        into = [memoryview(bytearray(self.storage.block_bytes)) for _ in range(len(hold.run))]
        came = await hold.read(into)
        for key, block in zip(keys[:came], into[:came], strict=True):
            assert bytes(block) == content(key.tobytes(), self.storage.block_bytes)
        return came

    def known(self, keys: Keys) -> list[bool]:
        """As the index and, for lookups, the core have it: they must say the same."""
        there: list[bool] = self.index.knows(self.ns, 0, keys).tolist()
        return there

    def dirty(self) -> int:
        return len(self.core.dirty_victims(int(TierKind.MEMORY), 1 << 40))


def name(keys: Keys, last: int) -> str:
    """Of the pack whose last block is keys[last]."""
    return pack_name(DIGEST, 0, keys[last].tobytes())


async def eventually(holds: Callable[[], bool], turns: int = 5_000) -> None:
    for _ in range(turns):
        if holds():
            return
        await asyncio.sleep(0)
        await asyncio.sleep(0.0002 if _ > 100 else 0)
    raise AssertionError("did not come to hold")


def joined(*chains: Keys) -> Keys:
    return np.concatenate(chains)


__all__ = [
    "DIGEST",
    "OBJECT",
    "PER_PACK",
    "PacksRig",
    "Requests",
    "chain_of",
    "eventually",
    "joined",
    "name",
    "requests",
]
