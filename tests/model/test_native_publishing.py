"""The core and its model through every way in which a block that is being published may end: who watches is woken, the
directory is told, and what a follower holds is neither reused nor any other than it was.
"""

from __future__ import annotations

import hashlib

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kvstore import native
from kvstore.lifecycle import SlotState
from kvstore.testing.models.publishing import Block, Place, PublishingModel
from tests.model.table_pair import aligned, words

MEMORY, LAPSE = 1, 1_000
SHARDS = [[4096], [4096, 1000, 5000]]
KEYS = [hashlib.sha256(f"{n}".encode()).digest() for n in range(6)]
OWNERS, SPACES = st.integers(0, 2), st.integers(0, 1)
SHARD, RUNS = st.integers(0, 1), st.tuples(st.integers(0, 5), st.integers(1, 4))
WHICH = st.integers(0, 1_000)


class Publishing(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        memory = native.TableConfig(8 << 20, 1 << 20)
        self.meta = aligned(native.NodeCore.meta_bytes(memory))
        self.core = native.NodeCore(
            memory, None, meta=self.meta.ctypes.data, meta_bytes=self.meta.size, incarnation=1, reserve_lapse_ns=LAPSE
        )
        self.model = PublishingModel()
        self.now, self.generation, self.sums = 10, 0, 0
        self.owners = [self.core.new_owner() for _ in range(3)]
        self.follower = self.core.new_owner()
        self.spaces = [self.open(i) for i in range(2)]
        self.holds: dict[int, list[tuple[int, int]]] = {}  # tickets and offsets
        self.begun = 0

    def open(self, i: int) -> int:
        self.generation += 1
        digest = hashlib.sha256(f"{i} {self.generation}".encode()).digest()
        return self.core.open_namespace(digest, 0, 16, SHARDS)

    def keys(self, run: tuple[int, int]) -> list[bytes]:
        return KEYS[run[0] : run[0] + run[1]]

    def reserved(self, which: int) -> tuple[Place, Block] | None:
        open_ = [(place, block) for place, block in self.model.blocks.items() if not block.sealed]
        return open_[which % len(open_)] if open_ else None

    def sum(self) -> int:
        self.sums += 1
        return self.sums

    # ---- publishing

    @rule(owner=OWNERS, space=SPACES, shard=SHARD, run=RUNS, in_place=st.booleans())
    def reserve(self, owner: int, space: int, shard: int, run: tuple[int, int], in_place: bool) -> None:
        keys, ns = self.keys(run), self.spaces[space]
        status, statuses, tickets, offsets = self.core.reserve(
            MEMORY, self.owners[owner], ns, shard, words(keys), b"", [], native.Hint(), in_place, self.now
        )
        assert status == 0
        held = {offset for slots in self.holds.values() for _, offset in slots}
        for key, outcome, ticket, offset in zip(keys, statuses, tickets.tolist(), offsets.tolist(), strict=True):
            place = (ns, shard, key)
            assert (outcome == 0) == (place not in self.model.blocks)
            if outcome == 0:
                assert offset not in held, "a slot that a follower holds is given to another block"
                self.model.reserve(owner, place, ticket, self.now + LAPSE, len(SHARDS[shard]))

    @rule(which=WHICH, parts=st.integers(1, 3))
    def publish(self, which: int, parts: int) -> None:
        found = self.reserved(which)
        for _ in range(parts):
            if found is not None and len(found[1].sums) < found[1].parts:
                place, block = found
                checksum, part = self.sum(), len(block.sums)
                assert self.core.publish_part(self.owners[block.owner], block.ticket, part, checksum) == 0
                self.model.publish(place, checksum)

    @rule(which=WHICH)
    def seal(self, which: int) -> None:
        found = self.reserved(which)
        if found is not None:
            place, block = found
            rest = [self.sum() for _ in range(block.parts - len(block.sums))]
            tickets, sums = np.array([block.ticket], np.uint64), np.array(rest, np.uint64)
            if rest:  # none of it: the call takes a multiple of tickets
                assert not self.core.seal(MEMORY, self.owners[block.owner], tickets, sums, self.now).any()
            else:
                all_of = np.array(block.sums, np.uint64)
                assert not self.core.seal(MEMORY, self.owners[block.owner], tickets, all_of, self.now).any()
            self.model.seal(place, rest)

    @rule(which=WHICH)
    def abort(self, which: int) -> None:
        found = self.reserved(which)
        if found is not None:
            place, block = found
            self.core.abort(MEMORY, self.owners[block.owner], np.array([block.ticket], np.uint64))
            self.model.give_up(place)

    @rule(passed=st.sampled_from([1, 400, 1_000]))
    def time_passes(self, passed: int) -> None:
        self.now += passed
        self.core.tick(self.now)
        self.model.lapse(self.now)

    @rule(owner=OWNERS)
    def owner_goes(self, owner: int) -> None:
        self.core.owner_gone(self.owners[owner])
        self.model.owner_gone(owner)

    @rule(space=SPACES)
    def clear(self, space: int) -> None:
        assert self.core.drop_namespace(self.spaces[space])
        self.model.drop_namespace(self.spaces[space])
        self.spaces[space] = self.open(space)

    # ---- following

    @rule(space=SPACES, shard=SHARD, run=RUNS)
    def watch(self, space: int, shard: int, run: tuple[int, int]) -> None:
        keys = self.keys(run)
        number = self.core.watch(self.spaces[space], shard, words([*keys, keys[0]]))
        assert number
        self.model.watch(number, {(self.spaces[space], shard, key) for key in keys})

    @rule(which=WHICH)
    def unwatch(self, which: int) -> None:
        if self.model.watches:
            number = sorted(self.model.watches)[which % len(self.model.watches)]
            self.core.unwatch(number)
            self.model.unwatch(number)

    @rule()
    def take(self) -> None:
        assert sorted(self.core.take_woken()) == sorted(self.model.take())

    @rule(space=SPACES, shard=SHARD, run=RUNS)
    def follow(self, space: int, shard: int, run: tuple[int, int]) -> None:
        keys, ns = self.keys(run), self.spaces[space]
        kind = native.HoldKind.VIEW
        self.core.fetch(
            1, self.follower, ns, shard, words(keys), kind, True, native.Hint(), self.now, self.now, 0, False
        )
        (done,) = self.core.take_completions()
        expected = self.model.followable(ns, shard, keys)
        assert done.tickets.tolist() == [block.ticket for block in expected]
        assert done.parts_ready.tolist() == [len(block.sums) for block in expected]
        assert done.checksums.tolist() == [one for block in expected for one in block.sums]
        if done.hold:
            self.holds[done.hold] = list(zip(done.tickets.tolist(), done.offsets.tolist(), strict=True))

    @rule(which=WHICH)
    def release(self, which: int) -> None:
        if self.holds:
            hold = sorted(self.holds)[which % len(self.holds)]
            assert self.core.release(MEMORY, self.follower, hold) == 0
            del self.holds[hold]

    # ---- what there is

    @invariant()
    def what_is_held_is_what_it_was(self) -> None:
        if not hasattr(self, "core"):
            return
        known = {block.ticket: block for block in self.model.blocks.values()}
        for slots in self.holds.values():
            tickets = [ticket for ticket, _ in slots]
            rows = self.core.info(MEMORY, np.array(tickets, np.uint64))
            assert rows.tickets.tolist() == tickets and rows.offsets.tolist() == [offset for _, offset in slots]
            for ticket, state in zip(tickets, rows.states.tolist(), strict=True):
                block = known.get(ticket)
                assert state == (
                    SlotState.RETIRED if block is None else SlotState.SEALED if block.sealed else SlotState.RESERVED
                )

    @invariant()
    def the_directory_is_told_what_there_is(self) -> None:
        if not hasattr(self, "core"):
            return
        self.begun, keys, spaces = self.core.begun_since(self.begun, 1_000)
        told = sorted(zip(spaces.tolist(), [key.tobytes() for key in keys], strict=True))
        assert told == sorted(self.model.begun)
        self.model.begun.clear()
        for ns in self.spaces:
            shards, tiers = self.core.held(ns, words(KEYS))
            states = list(zip(shards.tolist(), tiers.tolist(), strict=True))
            assert states == [self.model.state(ns, key) for key in KEYS]
            _, keys, _, shards, tiers = self.core.scan_held(0, 100_000, ns)
            found = {key.tobytes(): state for key, *state in zip(keys, shards.tolist(), tiers.tolist(), strict=True)}
            assert len(found) == len(keys), "a key twice"
            assert found == {key: list(state) for key, state in zip(KEYS, states, strict=True) if state[0]}


TestPublishing = Publishing.TestCase
