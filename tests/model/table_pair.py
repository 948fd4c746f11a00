"""A native table and its model, given the same verbs. Every difference is an AssertionError."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Sequence
from typing import ClassVar, Final

import numpy as np
import numpy.typing as npt

from kvstore import native
from kvstore.testing.models.entries import Entries
from kvstore.testing.models.integrity import check
from kvstore.testing.models.leaf_lru import AnyLeaf, LeafLruModel
from kvstore.testing.models.leases import HoldKind
from kvstore.testing.models.lifecycle import Outcome, ReserveStatus, SlotState, Ticket
from kvstore.testing.models.policy import AnyOrder, Hint, Order
from kvstore.testing.models.restart import former_clients_gone, quarantine_left, recover
from kvstore.testing.models.slabs import Geometry
from kvstore.testing.models.table import Held, Shards, TableModel, Told

NO_SLOT: Final = 2**32 - 1
SHARDS: Final[dict[int, Shards]] = {0: ((4096,), (5000, 3000)), 1: ((8192, 100, 4000), (4096,)), 2: ((40_000,),)}
COMPARED: Final = (
    "evicted_clean",
    "evicted_dirty",
    "slabs_moved",
    "lapsed_reservations",
    "lapsed_leases",
    "quarantined",
    "aborted",
)


def key_of(chain: int, block: int) -> bytes:
    """Chains 0 and 1 share their first two blocks."""
    chain = 0 if chain == 1 and block < 2 else chain
    return hashlib.sha256(f"{chain}/{block}".encode()).digest()


def digest_of(ns: int, generation: int) -> bytes:
    return hashlib.sha256(f"namespace {ns}/{generation}".encode()).digest()


def words(keys: Sequence[bytes]) -> npt.NDArray[np.uint8]:
    return np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 32)


def word_of(ticket: Ticket) -> int:
    return ticket.slot | ticket.tenancy << 32


def ticket_of(word: int) -> Ticket:
    return Ticket(word & 0xFFFFFFFF, word >> 32)


def aligned(size: int) -> npt.NDArray[np.uint8]:
    raw = np.zeros(size + 4096, np.uint8)
    start = -raw.ctypes.data % 4096
    return raw[start : start + size]


class TablePair:
    """`policy`: the native table's. judged: it is leaf_lru, and each victim must be the model's. Else any may go.

    always_in_place: whatever a reserve says of it.
    """

    always_in_place: ClassVar[bool] = False

    def __init__(self, slabs: int, slab_bytes: int, header_bytes: int, policy: str, *, judged: bool) -> None:
        self.geometry = Geometry(slabs * slab_bytes, slab_bytes, header_bytes)
        self.policy = policy
        self.judged = judged
        size = native.SlotTable.meta_bytes(self.geometry.bytes, slab_bytes, header_bytes)
        self.meta = aligned(size)
        self.entries = Entries()
        self.native = self._open()
        self.model = TableModel(self.geometry, self._order(), self.entries)
        self.holds: dict[int, int] = {}  # native number to model's
        self.former_counted = 0
        self.last_handle = 0

    def _open(self) -> native.SlotTable:
        shape = self.geometry
        return native.SlotTable(
            shape.bytes, shape.slab_bytes, shape.header_bytes, self.policy, hash_seed=7, meta=self.meta
        )

    def _order(self) -> Order:
        if self.policy != "leaf_lru":
            return AnyOrder()
        return LeafLruModel() if self.judged else AnyLeaf()

    def open_namespace(self, digest: bytes, shards: Shards) -> int:
        self.last_handle += 1
        self.native.add_namespace(self.last_handle, digest, [list(parts) for parts in shards])
        self.model.add_namespace(self.last_handle, digest, shards)
        return self.last_handle

    def drop_namespace(self, ns: int) -> None:
        assert self.native.drop_namespace(ns) == self.model.drop_namespace(ns)

    def reserve(
        self,
        owner: int,
        ns: int,
        shard: int,
        keys: Sequence[bytes],
        *,
        parent: bytes,
        metas: Sequence[bytes],
        hint: Hint,
        in_place: bool,
        now: int,
        lapse_after: int,
    ) -> list[Ticket]:
        """The tickets granted. What the native table evicted and granted is told to the model, which judges it."""
        in_place = in_place or self.always_in_place
        statuses, tickets, offsets = self.native.reserve(
            owner,
            ns,
            shard,
            words(keys),
            parent or None,
            metas,
            in_place=in_place,
            now=now,
            lapse_after=lapse_after,
            priority=hint.priority,
            end=hint.end,
            position=hint.position,
            from_below=hint.from_below,
        )
        granted = [ticket_of(t) for s, t in zip(statuses.tolist(), tickets.tolist(), strict=True) if s == 0]
        evicted = [ticket_of(word).slot for word in self.native.take_evicted().tolist()]
        told = Told(deque(evicted), deque(granted))
        out = self.model.reserve(
            owner,
            ns,
            shard,
            keys,
            parent=parent,
            metas=metas,
            hint=hint,
            in_place=in_place,
            now=now,
            lapse_after=lapse_after,
            told=told,
        )
        assert [int(one.status) for one in out] == statuses.tolist()
        for one, word, offset in zip(out, tickets.tolist(), offsets.tolist(), strict=True):
            if one.status in (ReserveStatus.GRANTED, ReserveStatus.HELD):
                assert one.ticket == ticket_of(word)
                assert one.offset == offset
        assert not told.evicted, f"evicted {list(told.evicted)} for nothing"
        return granted

    def publish_part(self, owner: int, ticket: Ticket, part: int, checksum: int) -> Outcome:
        outcome = Outcome(self.native.publish_part(owner, word_of(ticket), part, checksum))
        assert outcome == self.model.publish_part(owner, ticket, part, checksum)
        return outcome

    def seal(self, owner: int, ticket: Ticket, checksums: Sequence[int]) -> Outcome:
        rows = np.array(checksums, np.uint64).reshape(1, -1)
        (outcome,) = self.native.seal(owner, np.array([word_of(ticket)], np.uint64), rows).tolist()
        assert outcome == self.model.seal(owner, ticket, checksums)
        return Outcome(outcome)

    def abort(self, owner: int, ticket: Ticket) -> None:
        assert self.native.abort(owner, word_of(ticket)) == self.model.abort(owner, ticket)

    def hold(
        self,
        owner: int,
        ns: int,
        shard: int,
        keys: Sequence[bytes],
        kind: HoldKind,
        *,
        following: bool,
        hint: Hint,
        now: int,
        lapse_after: int,
        open_max: int = 0,
    ) -> None:
        number, tickets, offsets, ready = self.native.hold(
            owner,
            ns,
            shard,
            words(keys),
            int(kind),
            following,
            now=now,
            lapse_after=lapse_after,
            priority=hint.priority,
            end=hint.end,
            open_max=open_max,
        )
        mine, run = self.model.hold(
            owner, ns, shard, keys, kind, following=following, hint=hint, now=now, lapse_after=lapse_after,
            open_max=open_max,
        )  # fmt: skip
        self._compare_hold(number, tickets, offsets, ready, mine, run)

    def hold_slots(self, owner: int, tickets: Sequence[Ticket]) -> None:
        number, found, offsets, ready = self.native.hold_slots(
            owner, np.array([word_of(t) for t in tickets], np.uint64)
        )
        mine, run = self.model.hold_slots(owner, tickets)
        self._compare_hold(number, found, offsets, ready, mine, run)

    def _compare_hold(
        self,
        number: int,
        tickets: npt.NDArray[np.uint64],
        offsets: npt.NDArray[np.uint64],
        ready: npt.NDArray[np.uint32],
        mine: int,
        run: Sequence[Held],
    ) -> None:
        found = [
            Held(ticket_of(t), o, r) for t, o, r in zip(tickets.tolist(), offsets.tolist(), ready.tolist(), strict=True)
        ]
        assert found == list(run)
        assert (number == 0) == (mine == 0)
        if number:
            assert number not in self.holds, "a hold's number came twice"
            self.holds[number] = mine

    def release(self, owner: int, number: int) -> None:
        assert self.native.release(owner, number) == self.model.release(owner, self.holds[number])

    def owner_gone(self, owner: int) -> None:
        self.native.owner_gone(owner)
        self.model.owner_gone(owner)

    def expire(self, now: int) -> None:
        assert self.native.next_expiry() == self.model.next_expiry()
        self.native.expire(now)
        self.model.expire(now)

    def retire(self, slot: int) -> None:
        assert self.native.retire(slot) == self.model.retire(slot)

    def retire_keys(self, ns: int, keys: Sequence[bytes]) -> None:
        assert self.native.retire_keys(ns, words(keys)) == self.model.retire_keys(ns, keys)

    def mark(self, ticket: Ticket, *, clean: bool) -> None:
        (self.native.mark_clean if clean else self.native.mark_dirty)(word_of(ticket))
        self.model.mark(ticket, clean=clean)

    def dirty_victims(self, nbytes: int) -> None:
        """All of them agree as a set; a part of them is a part, within its bytes, coldest stamps first."""
        found = [ticket_of(word) for word in self.native.dirty_victims(nbytes).tolist()]
        allowed = self.model.dirty_victims(2**40)
        assert set(found) <= set(allowed)
        size = sum(self.model.slots[ticket.slot].payload_bytes for ticket in found)
        assert size <= nbytes
        if size + 64 * 2**20 <= nbytes and self.judged:
            assert sorted(found) == sorted(allowed)

    def questions(self, ns: int, shard: int, keys: Sequence[bytes]) -> None:
        found = [None if slot == NO_SLOT else slot for slot in self.native.find(ns, shard, words(keys)).tolist()]
        assert found == self.model.find(ns, shard, keys)
        assert self.native.longest(ns, shard, words(keys)) == self.model.longest(ns, shard, keys)
        for key in keys:
            assert self.native.shards_of(ns, key) == self.model.shards_of(ns, key)

    def restart(self) -> None:
        """The process is killed between two verbs; another begins on what it left in the meta memory."""
        kept = self.native  # a killed process runs no destructor before its successor starts
        self.meta = _copy(self.meta)
        self.native = self._open()
        del kept
        self.model = recover(self.geometry, self._order(), self.entries)
        sealed = sum(slot.state == SlotState.SEALED for slot in self.model.slots.values())
        assert self.native.recover() == sealed
        self.holds.clear()
        self.former_counted = sum(slot.former for slot in self.model.slots.values())
        assert self.native.quarantine_left() == quarantine_left(self.model)

    def former_clients_gone(self) -> None:
        self.native.former_clients_gone()
        former_clients_gone(self.model)

    # ---- between verbs

    def compare(self) -> None:
        self.native.check_integrity()
        check(self.model)
        self._compare_stats()
        for at in range(self.native.slots_end()):
            self._compare_slot(at)
        assert self.native.next_expiry() == self.model.next_expiry()

    def _compare_stats(self) -> None:
        stats, slots = self.native.stats(), list(self.model.slots.values())
        for state in (SlotState.RESERVED, SlotState.SEALED, SlotState.RETIRED):
            assert stats[f"slots_{state.name.lower()}"] == sum(slot.state == state for slot in slots), state.name
        sealed = [slot.payload_bytes for slot in slots if slot.state == SlotState.SEALED]
        assert stats["payload_bytes_sealed"] == sum(sealed)
        assert stats["bytes_free"] == self.model.slabs.bytes_free()
        assert stats["holds"] == len(self.model.holds.by_id)
        pins = [hold for hold in self.model.holds.by_id.values() if hold.kind == HoldKind.PIN]
        assert stats["pinned_bytes"] == sum(slot.payload_bytes for hold in pins for slot in hold.slots)
        for name in COMPARED:
            mine = getattr(self.model.counts, name) + (self.former_counted if name == "quarantined" else 0)
            assert stats[name] == mine, f"{name}: {stats[name]} native, {mine} in the model"

    def _compare_slot(self, at: int) -> None:
        info, slot = self.native.info(at), self.model.slots.get(at)
        assert (info is None) == (slot is None), f"slot {at}: {info} native, {slot} in the model"
        if info is None or slot is None:
            return
        assert info["state"] == slot.state
        assert info["ticket"] == word_of(slot.ticket)
        assert info["offset"] == slot.offset
        if slot.former and slot.state == SlotState.RETIRED:
            return  # only its place matters now
        assert info["bytes"] == slot.payload_bytes
        assert (info["key"], info["shard"]) == (slot.name.key, slot.name.shard)
        assert info["parent"] == (slot.parent or bytes(32))
        assert info["meta"] == slot.meta
        assert info["position"] == slot.position
        if not slot.former:
            assert info["holds"] == slot.holds
        if slot.state == SlotState.SEALED:
            assert info["clean"] == slot.clean
        if slot.listed:
            assert info["parts_ready"] == len(slot.checksums)
            assert info["checksums"] == slot.checksums


def _copy(meta: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    out = aligned(meta.size)
    out[:] = meta
    return out
