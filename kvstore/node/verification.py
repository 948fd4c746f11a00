"""Reads every block and checks it with a second implementation of the checksum: the Python package xxhash, not our own.

Runs of slots are held while they are read, so nothing checked here can be a slot that has just got another block.
Hashing goes on in a thread; what does not hold is retired at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Final

import xxhash

from kvstore.wire import admin, store

if TYPE_CHECKING:
    from kvstore import native
    from kvstore.node.handlers import NodeHost
    from kvstore.node.namespaces import Opened

LEAF_BYTES: Final = 4096
SLOTS_A_TURN: Final = 64


def part_checksum(part: memoryview) -> int:
    """XXH3-64 over the little-endian XXH3-64s of the part's 4 KiB leaves."""
    leaves = (xxhash.xxh3_64_intdigest(part[at : at + LEAF_BYTES]) for at in range(0, len(part), LEAF_BYTES))
    return xxhash.xxh3_64_intdigest(b"".join(leaf.to_bytes(8, "little") for leaf in leaves))


def holds_true(block: memoryview, part_bytes: Sequence[int], checksums: Sequence[int]) -> bool:
    at = 0
    for size, checksum in zip(part_bytes, checksums, strict=True):
        if part_checksum(block[at : at + size]) != checksum:
            return False
        at += size
    return at == len(block)


async def verify(
    host: NodeHost, only: Opened | None, keys: frozenset[bytes] | None
) -> AsyncIterator[admin.VerifyProgress]:
    """Progress about every SLOTS_A_TURN slots; the last has done = True. `only`, `keys`: None for all."""
    core, owner = host.bridge.core, host.bridge.core.new_owner()
    told = admin.VerifyProgress(blocks_total=sum(core.stats(tier)["slots_sealed"] for tier in host.readers))
    try:
        for tier in host.readers:
            after = 0
            while True:
                rows, after = core.scan(tier, after, SLOTS_A_TURN)
                wanted = [i for i in range(len(rows.tickets)) if _asked(rows, i, only, keys)]
                hold, held = core.hold_slots(tier, owner, rows.tickets[wanted])
                try:
                    await _check(host, tier, held, told)
                finally:
                    core.release(tier, owner, hold)
                if after < 0:
                    break
                yield told
                del told.corrupt[:]
        told.done = True
        yield told
    finally:
        core.owner_gone(owner)


def _asked(rows: native.SlotRows, i: int, only: Opened | None, keys: frozenset[bytes] | None) -> bool:
    return (only is None or rows.ns[i] == only.handle) and (keys is None or rows.keys[i].tobytes() in keys)


async def _check(host: NodeHost, tier: int, held: native.SlotRows, told: admin.VerifyProgress) -> None:
    first = 0
    for i in range(len(held.tickets)):
        count = int(held.checksum_counts[i])
        sums = held.checksums[first : first + count].tolist()
        first += count
        opened = host.namespaces.by_handle(int(held.ns[i]))
        if opened is None:
            continue
        part_bytes = opened.shards[int(held.shards[i])].part_bytes
        size = int(held.bytes[i])
        block = await host.readers[tier](int(held.offsets[i]), size)
        told.blocks_checked += 1
        told.bytes_checked += size
        if block is None or not await asyncio.to_thread(holds_true, block, part_bytes, sums):
            host.bridge.core.retire(tier, held.tickets[i : i + 1])
            told.corrupt.append(
                admin.CorruptBlock(
                    namespace=opened.digest,
                    key=held.keys[i].tobytes(),
                    shard=int(held.shards[i]),
                    tier=store.Tier.ValueType(tier),
                )
            )
