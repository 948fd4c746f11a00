"""What every Tier must do, and what each kind of them must (tiers/base.py says which). Subclass SlotTierExam or
PackTierExam, give a `rig` fixture, and run.

A rig is a tier of a few MiB with one namespace open in it, one shard a block, and buffers that its medium takes.
"""

from __future__ import annotations

import hashlib
import mmap
import random
from dataclasses import dataclass

import numpy as np

from kvstore import native
from kvstore.tiers.base import Hold, Keys, Run, Tier

__all__ = ["PackTierExam", "SlotTierExam", "TierRig", "buffers", "keys_of", "payload_of"]


@dataclass(frozen=True, slots=True)
class TierRig:
    """capacity: how many blocks fit at most, of a tier that evicts. group: blocks of a full pack; 0: it has slots."""

    tier: Tier
    ns: int
    part_bytes: tuple[int, ...]
    capacity: int = 0
    group: int = 0

    @property
    def block_bytes(self) -> int:
        return sum(self.part_bytes)

    def run(self, keys: Keys, parent: bytes | None = None, position: int = 0) -> Run:
        sums = [native.part_checksums(payload_of(key, self.block_bytes), list(self.part_bytes)) for key in keys]
        metas = tuple(b"meta of " + key[:4].tobytes() for key in keys)
        return Run(self.ns, 0, keys, parent, np.stack(sums), metas, position)

    async def put(self, keys: Keys, parent: bytes | None = None, position: int = 0) -> int:
        """A reservation for all of them, or one a group."""
        step = self.group or len(keys)
        sealed = 0
        for at in range(0, len(keys), step):
            above = keys[at - 1].tobytes() if at else parent
            some = keys[at : at + step]
            reservation = self.tier.reserve(self.run(some, above, position + at))
            await reservation.write(self.sources(some[list(reservation.granted)]))
            sealed += reservation.seal()
        return sealed

    def sources(self, keys: Keys) -> list[memoryview]:
        """What the blocks of these keys hold."""
        made = buffers(len(keys), self.block_bytes)
        for source, key in zip(made, keys, strict=True):
            source[:] = payload_of(key, self.block_bytes)
        return made

    async def get(self, keys: Keys) -> int:
        """How many blocks a hold brings; every byte of them is right."""
        hold = self.tier.hold(self.ns, 0, keys)
        if hold is None:
            return 0
        try:
            return await self.read(hold, keys[: len(hold.run)])
        finally:
            hold.release()

    async def read(self, hold: Hold, keys: Keys) -> int:
        """How many of these blocks a hold of them brings, from its first on; every byte of them is right."""
        into = buffers(len(keys), self.block_bytes)
        came = await hold.read(into)
        for key, block in zip(keys[:came], into[:came], strict=True):
            assert bytes(block) == payload_of(key, self.block_bytes)
        return came


def keys_of(seed: object, count: int) -> Keys:
    names = (hashlib.sha256(repr((seed, i)).encode()).digest() for i in range(count))
    return np.frombuffer(b"".join(names), np.uint8).reshape(count, 32)


def payload_of(key: Keys, size: int) -> bytes:
    return random.Random(key.tobytes()).randbytes(size)


def buffers(count: int, size: int) -> list[memoryview]:
    """Each on a page of its own, so that direct I/O takes them."""
    return [memoryview(mmap.mmap(-1, size)) for _ in range(count)]


class _TierExam:
    """Of any tier. Groups, where there are any, are of 8 blocks."""

    async def test_what_was_put_is_read(self, rig: TierRig) -> None:
        keys = keys_of("a", 5)
        assert not rig.tier.lookup(rig.ns, 0, keys).any()
        assert rig.tier.hold(rig.ns, 0, keys) is None
        assert await rig.put(keys) == 5
        assert rig.tier.lookup(rig.ns, 0, keys).all()
        assert await rig.get(keys) == 5

    async def test_what_lies_beside_the_bytes_comes_with_them(self, rig: TierRig) -> None:
        keys, parent = keys_of("a", 3), bytes(range(32))
        asked = rig.run(keys, parent, 8)
        await rig.put(keys, parent, 8)
        hold = rig.tier.hold(rig.ns, 0, keys)
        assert hold is not None
        told = hold.run
        hold.release()
        assert (told.ns, told.shard, told.parent, told.metas, told.position) == (rig.ns, 0, parent, asked.metas, 8)
        assert np.array_equal(told.keys, keys)
        assert np.array_equal(told.checksums, asked.checksums)

    async def test_what_is_reserved_is_invisible_until_sealed(self, rig: TierRig) -> None:
        keys = keys_of("a", 3)
        reservation = rig.tier.reserve(rig.run(keys))
        assert list(reservation.granted) == [0, 1, 2]
        await reservation.write(rig.sources(keys))
        assert not rig.tier.lookup(rig.ns, 0, keys).any()
        assert rig.tier.hold(rig.ns, 0, keys) is None
        assert reservation.seal() == 3
        assert reservation.seal() == 0
        reservation.abort()
        assert await rig.get(keys) == 3

    async def test_what_is_aborted_never_was(self, rig: TierRig) -> None:
        keys = keys_of("a", 3)
        reservation = rig.tier.reserve(rig.run(keys))
        await reservation.write(rig.sources(keys))
        reservation.abort()
        reservation.abort()
        assert reservation.seal() == 0
        assert not rig.tier.lookup(rig.ns, 0, keys).any()
        assert await rig.put(keys) == 3

    async def test_a_part_of_a_hold_may_be_read(self, rig: TierRig) -> None:
        keys = keys_of("a", 4)
        await rig.put(keys)
        hold = rig.tier.hold(rig.ns, 0, keys)
        assert hold is not None
        assert await rig.read(hold, keys[:2]) == 2
        hold.release()

    async def test_another_namespace_is_another_block(self, rig: TierRig) -> None:
        keys = keys_of("a", 2)
        await rig.put(keys)
        stranger = rig.ns + 1000
        assert not rig.tier.lookup(stranger, 0, keys).any()
        assert rig.tier.hold(stranger, 0, keys) is None
        assert rig.tier.retire(stranger, keys) == 0
        assert await rig.get(keys) == 2

    async def test_a_hold_is_the_longest_run_from_the_start(self, rig: TierRig) -> None:
        keys = keys_of("a", 20)
        await rig.put(keys[:16])
        hold = rig.tier.hold(rig.ns, 0, keys[3:])
        assert hold is not None
        assert np.array_equal(hold.run.keys, keys[3:16])
        assert (hold.run.position, hold.run.parent) == (3, keys[2].tobytes())
        hold.release()
        assert await rig.get(keys[3:]) == 13
        assert await rig.get(keys[16:]) == 0

    async def test_what_is_retired_is_unlisted_at_once(self, rig: TierRig) -> None:
        keys, others = keys_of("a", 4), keys_of("b", 4)
        await rig.put(keys)
        await rig.put(others)
        assert rig.tier.retire(rig.ns, keys[2:]) == 2
        assert not rig.tier.lookup(rig.ns, 0, keys[2:]).any()
        assert await rig.get(keys) <= 2
        assert rig.tier.retire(rig.ns, keys[2:]) == 0
        assert await rig.get(others) == 4

    async def test_what_is_retired_under_a_hold_never_becomes_something_else(self, rig: TierRig) -> None:
        keys = keys_of("a", 8)
        await rig.put(keys)
        hold = rig.tier.hold(rig.ns, 0, keys)
        assert hold is not None
        rig.tier.retire(rig.ns, keys)
        for i in range(4):
            await rig.put(keys_of(i, 8))
        await rig.read(hold, keys)  # all of them, or fewer, and none that is something else
        hold.release()
        hold.release()

    async def test_what_was_retired_can_be_put_again(self, rig: TierRig) -> None:
        keys = keys_of("a", 8)
        await rig.put(keys)
        rig.tier.retire(rig.ns, keys)
        assert await rig.put(keys) == 8
        assert await rig.get(keys) == 8


class SlotTierExam(_TierExam):
    """Of a tier in which each block is by itself."""

    async def test_what_is_held_is_not_granted_again(self, rig: TierRig) -> None:
        keys = keys_of("a", 4)
        await rig.put(keys[:2])
        reservation = rig.tier.reserve(rig.run(keys))
        assert list(reservation.granted) == [2, 3]
        others = rig.tier.reserve(rig.run(keys))
        assert list(others.granted) == [], "somebody is writing them"
        reservation.abort()
        assert await rig.put(keys) == 2
        assert await rig.get(keys) == 4

    async def test_a_block_that_is_retired_is_the_only_one_to_go(self, rig: TierRig) -> None:
        keys = keys_of("a", 6)
        await rig.put(keys)
        assert rig.tier.retire(rig.ns, keys[4:5]) == 1
        assert await rig.get(keys) == 4
        assert await rig.get(keys[5:]) == 1
        assert await rig.get(keys[4:]) == 0
        assert rig.tier.lookup(rig.ns, 0, keys).tolist() == [True] * 4 + [False, True]

    async def test_what_is_held_outlives_its_listing(self, rig: TierRig) -> None:
        keys = keys_of("a", 3)
        await rig.put(keys)
        hold = rig.tier.hold(rig.ns, 0, keys)
        assert hold is not None
        assert rig.tier.retire(rig.ns, keys) == 3
        assert not rig.tier.lookup(rig.ns, 0, keys).any()
        for i in range(2 * rig.capacity // 8):
            await rig.put(keys_of(i, 8))
        assert await rig.read(hold, keys) == 3
        hold.release()
        hold.release()

    async def test_a_full_tier_makes_room_and_never_lies(self, rig: TierRig) -> None:
        rounds = 3 * rig.capacity // 8
        for i in range(rounds):
            assert await rig.put(keys_of(i, 8)) == 8, "a cache that is full evicts"
        there = [await rig.get(keys_of(i, 8)) for i in range(rounds)]
        assert sum(there) <= rig.capacity
        assert there[-1] == 8, "the last are the last to go"


class PackTierExam(_TierExam):
    """Of a tier of aligned groups of 8 blocks."""

    async def test_granted_is_the_first_group_and_only_from_its_start(self, rig: TierRig) -> None:
        keys = keys_of("a", 20)
        assert list(rig.tier.reserve(rig.run(keys, None, 0)).granted) == list(range(rig.group))
        assert list(rig.tier.reserve(rig.run(keys[8:12], keys[7].tobytes(), 8)).granted) == [0, 1, 2, 3]
        assert list(rig.tier.reserve(rig.run(keys[3:], keys[2].tobytes(), 3)).granted) == []

    async def test_of_two_writers_of_one_group_both_seal(self, rig: TierRig) -> None:
        keys = keys_of("a", 8)
        both = [rig.tier.reserve(rig.run(keys)) for _ in range(2)]
        assert [list(one.granted) for one in both] == [list(range(8))] * 2
        for one in both:
            await one.write(rig.sources(keys))
        assert [one.seal() for one in both] == [8, 8]
        assert await rig.get(keys) == 8

    async def test_a_tail_that_grew_is_read_as_one_run(self, rig: TierRig) -> None:
        keys = keys_of("a", 13)
        assert await rig.put(keys[:11]) == 11
        assert await rig.put(keys) == 13
        assert await rig.get(keys) == 13

    async def test_with_a_block_its_pack_goes_and_no_other(self, rig: TierRig) -> None:
        keys = keys_of("a", 24)
        await rig.put(keys)
        assert rig.tier.retire(rig.ns, keys[10:11]) == 1
        assert rig.tier.lookup(rig.ns, 0, keys).tolist() == [True] * 8 + [False] * 8 + [True] * 8
        assert await rig.get(keys) == 8
        assert await rig.get(keys[16:]) == 8

    async def test_a_hold_that_lost_a_pack_brings_what_comes_before(self, rig: TierRig) -> None:
        keys = keys_of("a", 16)
        await rig.put(keys)
        hold = rig.tier.hold(rig.ns, 0, keys)
        assert hold is not None and len(hold.run) == 16
        assert rig.tier.retire(rig.ns, keys[9:10]) == 1
        assert await rig.read(hold, keys) in (8, 16), "it is deleted in the background"
        hold.release()
