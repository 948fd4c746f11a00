"""The native slot table against its model, verb by verb, in any order that hypothesis can think of."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kvstore.testing.models.leases import HoldKind
from kvstore.testing.models.lifecycle import SlotState, Ticket
from kvstore.testing.models.policy import Hint
from tests.model.table_pair import SHARDS, TablePair, digest_of, key_of

OWNERS = st.integers(1, 3)
MOVER = 9
HINTS = st.builds(Hint, priority=st.sampled_from([0, 0, 1, -2]), end=st.sampled_from([False, False, True]))
CHAINS = st.integers(0, 3)
FIRSTS = st.sampled_from([0, 0, 0, 1, 3])
COUNTS = st.integers(1, 6)


def checksum(key: bytes, part: int) -> int:
    return int.from_bytes(key[part : part + 8], "little")


class TableMachine(RuleBasedStateMachine):
    policy = "leaf_lru"
    hinted = False  # the policy's own machine judges hints: here a span does not count who is set aside

    @initialize(slabs=st.integers(1, 4), slab=st.sampled_from([16_384, 32_768]), header=st.sampled_from([0, 4096]))
    def begin(self, slabs: int, slab: int, header: int) -> None:
        self.pair = self.make(slabs, slab, header)
        self.now = 1_000
        self.generations = dict.fromkeys(SHARDS, 0)
        self.handles: dict[int, int] = {}
        self.written: list[tuple[int, Ticket, int]] = []  # owner, ticket, parts
        for ns in SHARDS:
            self.open(ns)

    def make(self, slabs: int, slab: int, header: int) -> TablePair:
        return TablePair(slabs, slab, header, self.policy, judged=self.policy == "leaf_lru" and not self.hinted)

    def open(self, ns: int) -> None:
        self.handles[ns] = self.pair.open_namespace(digest_of(ns, self.generations[ns]), SHARDS[ns])

    def keys(self, chain: int, first: int, count: int) -> list[bytes]:
        return [key_of(chain, block) for block in range(first, first + count)]

    # ---- publishing

    @rule(
        owner=OWNERS,
        space=st.sampled_from([(0, 0), (0, 0), (0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]),
        chain=CHAINS,
        first=FIRSTS,
        count=COUNTS,
        in_place=st.booleans(),
        lapse=st.sampled_from([10, 1_000]),
        hint=HINTS,
        meta=st.sampled_from([b"", b"m", b"meta of a block"]),
        from_below=st.booleans(),
    )
    def reserve(
        self,
        owner: int,
        space: tuple[int, int],
        chain: int,
        first: int,
        count: int,
        in_place: bool,
        lapse: int,
        hint: Hint,
        meta: bytes,
        from_below: bool,
    ) -> None:
        told = hint if self.hinted else Hint()
        blocks = Hint(priority=told.priority, end=told.end, position=first, from_below=from_below)
        metas = [meta] * count if meta else []
        self.reserve_plain(owner, space, chain, first, count, in_place=in_place, lapse=lapse, hint=blocks, metas=metas)

    def reserve_plain(
        self,
        owner: int,
        space: tuple[int, int],
        chain: int,
        first: int,
        count: int,
        *,
        in_place: bool,
        lapse: int = 1_000,
        hint: Hint | None = None,
        metas: Sequence[bytes] = (),
    ) -> list[Ticket]:
        ns, shard = space
        granted = self.pair.reserve(
            owner,
            self.handles[ns],
            shard,
            self.keys(chain, first, count),
            parent=key_of(chain, first - 1) if first else b"",
            metas=metas,
            hint=hint or Hint(position=first),
            in_place=in_place,
            now=self.now,
            lapse_after=lapse,
        )
        self.written += [(owner, ticket, len(SHARDS[ns][shard])) for ticket in granted]
        return granted

    @rule(
        owner=OWNERS,
        space=st.sampled_from([(0, 0), (0, 0), (0, 1), (1, 0)]),
        chain=CHAINS,
        count=COUNTS,
        then=st.sampled_from(["", "", "clean", "view tail", "view tail and retire", "mover holds tail", "grow"]),
    )
    def put(self, owner: int, space: tuple[int, int], chain: int, count: int, then: str) -> None:
        """A whole put, since most of what can go wrong begins with something sealed."""
        ns, shard = space
        granted = self.reserve_plain(owner, space, chain, 0, count, in_place=True)
        parts = len(SHARDS[ns][shard])
        for ticket in granted:
            self.seal_one(owner, ticket, parts)
        if then == "clean":
            for ticket in granted:
                self.pair.mark(ticket, clean=True)
        elif then.startswith("view tail"):
            keys = self.keys(chain, count - 1, 1)
            self.pair.hold(
                owner,
                self.handles[ns],
                shard,
                keys,
                HoldKind.VIEW,
                following=False,
                hint=Hint(),
                now=self.now,
                lapse_after=0,
            )
            if then.endswith("retire"):
                self.pair.retire_keys(self.handles[ns], keys)
        elif then == "mover holds tail":
            self.pair.hold_slots(MOVER, granted[-1:])
        elif then == "grow":
            self.reserve_plain(owner, space, chain, count, 2, in_place=False)

    @precondition(lambda self: self.written)
    @rule(data=st.data(), wrong=st.sampled_from([0, 0, 0, 1]), other=st.sampled_from([False, False, True]))
    def publish_part(self, data: st.DataObject, wrong: int, other: bool) -> None:
        owner, ticket, _ = data.draw(st.sampled_from(self.written))
        slot = self.pair.model.slots.get(ticket.slot)
        part = len(slot.checksums) + wrong if slot is not None else 0
        self.pair.publish_part(owner + other, ticket, part, checksum(bytes(40), part) + part)

    @precondition(lambda self: self.written)
    @rule(most=st.integers(1, 6))
    def seal_all(self, most: int) -> None:
        """What a put does when all has landed."""
        for owner, ticket, parts in self.written[-most:]:
            self.seal_one(owner, ticket, parts)

    @precondition(lambda self: self.written)
    @rule(data=st.data(), how=st.sampled_from(["rest", "all", "short", "long", "another's"]))
    def seal(self, data: st.DataObject, how: str) -> None:
        owner, ticket, parts = data.draw(st.sampled_from(self.written))
        self.seal_one(owner, ticket, parts, how)

    def seal_one(self, owner: int, ticket: Ticket, parts: int, how: str = "rest") -> None:
        slot = self.pair.model.slots.get(ticket.slot)
        ready = len(slot.checksums) if slot is not None and slot.ticket == ticket else 0
        sums = [100 + part for part in range(parts)][ready:]
        if how == "all" and slot is not None:
            sums = slot.checksums[:ready] + sums
        elif how == "short":
            sums = sums[:-1]
        elif how == "long":
            sums = [*sums, 1, 2, 3, 4]
        self.pair.seal(owner + (how == "another's"), ticket, sums)

    @precondition(lambda self: self.written)
    @rule(data=st.data(), other=st.sampled_from([False, False, True]))
    def abort(self, data: st.DataObject, other: bool) -> None:
        owner, ticket, _ = data.draw(st.sampled_from(self.written))
        self.pair.abort(owner + other, ticket)

    # ---- holding

    @rule(
        owner=OWNERS,
        space=st.sampled_from([(0, 0), (0, 0), (0, 1), (1, 0), (1, 1)]),
        chain=CHAINS,
        first=FIRSTS,
        count=COUNTS,
        kind=st.sampled_from(list(HoldKind)),
        following=st.booleans(),
        lease=st.sampled_from([0, 10, 1_000]),
        hint=HINTS,
        open_max=st.sampled_from([0, 0, 4 << 10, 8 << 10, 40 << 10]),
    )
    def hold(
        self,
        owner: int,
        space: tuple[int, int],
        chain: int,
        first: int,
        count: int,
        kind: HoldKind,
        following: bool,
        lease: int,
        hint: Hint,
        open_max: int,
    ) -> None:
        ns, shard = space
        keys = self.keys(chain, first, count)
        self.pair.hold(
            owner,
            self.handles[ns],
            shard,
            keys,
            kind,
            following=following,
            hint=hint if self.hinted else Hint(),
            now=self.now,
            lapse_after=lease,
            open_max=open_max,
        )

    @precondition(lambda self: self.written)
    @rule(data=st.data(), count=st.integers(1, 4))
    def hold_slots(self, data: st.DataObject, count: int) -> None:
        tickets = [data.draw(st.sampled_from(self.written))[1] for _ in range(count)]
        self.pair.hold_slots(MOVER, tickets)

    @precondition(lambda self: self.pair.holds)
    @rule(data=st.data(), other=st.sampled_from([False, False, False, True]))
    def release(self, data: st.DataObject, other: bool) -> None:
        number = data.draw(st.sampled_from(sorted(self.pair.holds)))
        hold = self.pair.model.holds.by_id.get(self.pair.holds[number])
        self.pair.release((hold.owner if hold else 1) + other, number)

    @rule(owner=st.sampled_from([1, 2, 3, MOVER]))
    def owner_gone(self, owner: int) -> None:
        self.pair.owner_gone(owner)

    @rule(by=st.sampled_from([0, 1, 10, 100, 5_000]))
    def time_passes(self, by: int) -> None:
        self.now += by
        self.pair.expire(self.now)

    # ---- leaving

    @rule(data=st.data())
    def retire(self, data: st.DataObject) -> None:
        slots = sorted(self.pair.model.slots) or [0]
        self.pair.retire(data.draw(st.sampled_from(slots)))

    @rule(ns=st.integers(0, 1), chain=CHAINS, count=COUNTS)
    def retire_keys(self, ns: int, chain: int, count: int) -> None:
        self.pair.retire_keys(self.handles[ns], self.keys(chain, 0, count))

    @precondition(lambda self: self.written)
    @rule(data=st.data(), clean=st.booleans())
    def mark(self, data: st.DataObject, clean: bool) -> None:
        self.pair.mark(data.draw(st.sampled_from(self.written))[1], clean=clean)

    @rule(nbytes=st.sampled_from([0, 5_000, 30_000, 2**40]))
    def dirty_victims(self, nbytes: int) -> None:
        self.pair.dirty_victims(nbytes)

    @rule(ns=st.integers(0, 2), reopen=st.sampled_from([True, True, False]))
    def clear(self, ns: int, reopen: bool) -> None:
        """By generation, as a clear; or the same digest again, as a namespace that was closed and is opened anew."""
        self.pair.drop_namespace(self.handles[ns])
        self.generations[ns] += reopen
        self.open(ns)

    # ---- questions, and a new process

    @rule(ns=st.integers(0, 1), shard=st.integers(0, 1), chain=CHAINS, first=FIRSTS, count=COUNTS)
    def look(self, ns: int, shard: int, chain: int, first: int, count: int) -> None:
        self.pair.questions(self.handles[ns], shard, self.keys(chain, first, count))

    @rule(gone=st.booleans(), before_open=st.booleans())
    def restart(self, gone: bool, before_open: bool) -> None:
        self.pair.restart()
        self.written.clear()
        if gone and before_open:
            self.pair.former_clients_gone()
        for ns in SHARDS:
            self.open(ns)
        if gone and not before_open:
            self.pair.former_clients_gone()

    @rule()
    def former_clients_gone(self) -> None:
        self.pair.former_clients_gone()

    @invariant()
    def agree(self) -> None:
        if hasattr(self, "pair"):
            self.pair.compare()

    def teardown(self) -> None:
        """When everybody is gone, nothing is left that nobody can use."""
        if not hasattr(self, "pair"):
            return
        for owner in (1, 2, 3, 4, MOVER):
            self.pair.owner_gone(owner)
        self.pair.former_clients_gone()
        self.pair.compare()
        assert all(slot.state == SlotState.SEALED for slot in self.pair.model.slots.values())


class HintedMachine(TableMachine):
    """What callers say moves the order, and nothing else."""

    hinted = True


class AnyPolicyMachine(HintedMachine):
    policy = "s3_fifo"


def test_what_an_owner_may_hold_open_is_counted_once_and_in_pages() -> None:
    pair = TablePair(2, 32_768, 0, "leaf_lru", judged=True)
    ns = pair.open_namespace(digest_of(0, 0), SHARDS[0])
    keys = [key_of(2, i) for i in range(4)]
    granted = pair.reserve(
        1, ns, 1, keys, parent=b"", metas=[], hint=Hint(), in_place=False, now=0, lapse_after=100
    )  # fmt: skip
    for ticket in granted:
        pair.seal(1, ticket, [7, 7])

    def hold(owner: int, first: int, open_max: int) -> int:
        named = {"following": False, "hint": Hint(), "now": 0, "lapse_after": 0, "open_max": open_max}
        before = set(pair.holds)
        pair.hold(owner, ns, 1, keys[first:], HoldKind.VIEW, **named)  # type: ignore[arg-type]
        (new,) = set(pair.holds) - before or {0}
        return len(pair.model.holds.by_id[pair.holds[new]].slots) if new else 0

    assert hold(2, 0, 3 * 8192) == 3
    assert hold(2, 1, 3 * 8192) == 2, "these it has already"
    assert hold(2, 3, 4 * 8192 - 1) == 0
    assert hold(3, 3, 8192) == 1
    pair.owner_gone(2)
    assert hold(2, 3, 3 * 8192) == 1
    pair.compare()


AT_LEAST = 200  # examples: what is rare here takes several verbs in a row
TestTable = TableMachine.TestCase
TestTableWithHints = HintedMachine.TestCase
TestTableOfAnotherPolicy = AnyPolicyMachine.TestCase
for case in (TestTable, TestTableWithHints, TestTableOfAnotherPolicy):
    case.settings = settings(max_examples=max(AT_LEAST, settings().max_examples))
del case
