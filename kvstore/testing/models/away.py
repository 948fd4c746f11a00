"""A client of the simulation that maps nothing: it reads what it leases, and lends what it puts.

What its caller gets back is the caller's again: after a get nothing lands there any more, and after a put other bytes
lie there at once, so that a node that reads too late stores wrong ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from kvstore.testing.link import Link
from kvstore.testing.models import messages as m
from kvstore.testing.models.client import Asking, Call, ClientModel, GaveUp, Lost, Verb
from kvstore.testing.models.keys import part_checksums
from kvstore.testing.models.lifecycle import ReserveStatus
from kvstore.testing.models.transfers import Carrier, Grant, Landed, Lender, Reading
from kvstore.testing.world import Broken, Wait

MARGIN = 100  # by which a grant outlives its call; it is revoked at the call's end anyway


class AwayClientModel(ClientModel):
    """One caller in four waits for only a part of what the call may take."""

    in_place = False

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.lender = Lender(self.world, self.process)
        self.leased = self.numbers = 0

    def _journey(self, call: Call, opened: m.Opened) -> Asking:
        if call.verb == Verb.VIEW:  # which needs a mapping
            call = Call(Verb.LOOKUP, call.name, call.shard, call.tokens, call.think)
        yield from super()._journey(call, opened)

    def _patience(self) -> int | None:
        if self.world.rng.random() < 0.75:
            return None
        soon = self.world.now + self.world.rng.randint(20, 600)
        return soon if self.deadline is None else min(soon, self.deadline)

    def _number(self) -> int:
        """Of a lease or a reservation."""
        self.numbers += 1
        return self.numbers

    def _left(self) -> int:
        return self.limits.call_max if self.deadline is None else max(0, self.deadline - self.world.now)

    # ---- get

    def _get(self, call: Call, opened: m.Opened, keys: tuple[bytes, ...]) -> Asking:
        """The contiguous prefix that arrives and verifies."""
        asked, sizes, patience = self.world.now, opened.space.shards[call.shard], self._patience()
        number = self._number()
        try:
            answer = yield from self._ask(m.Lease(number, opened.ns, call.shard, keys, self.limits.wait), patience)
        except GaveUp:
            self._tell(m.ReleaseLease(number))
            raise
        if not isinstance(answer, m.Leased) or answer.grant is None:
            return
        latest = asked + answer.lasts
        until = min(one for one in (latest, self.deadline, patience) if one is not None)
        into = Place(len(answer.slots), sum(sizes), self.name)
        rows = [(held.offset, sum(sizes)) for held in answer.slots]
        landed = yield from self.read(answer.grant, rows, into.land, until)
        into.given_back = True
        corrupt: tuple[Any, ...] = ()
        for i, row in enumerate(landed.rows):
            if row is None:
                break
            if not self.arrived_right(row, sizes, answer.checksums[i]):
                corrupt = (answer.slots[i].ticket,)
                break
            self.leased += 1
            self._check(opened.space, call, i, into.taken[i])
        self._tell(m.ReleaseLease(number, corrupt))

    def read(
        self, grant: Grant, rows: Sequence[tuple[int, int]], land: Callable[[int, int, bytes], None], until: int
    ) -> Asking:
        """Answers when nothing of it can land any more."""
        wait: Wait[object] = Wait(None)
        reading = Reading(self._way(), self.process, grant, rows, land, until, wait.fulfil)
        self.writing = True
        landed = yield from self.quiet(wait, reading)
        self.writing = False
        return landed

    def quiet(self, wait: Wait[object], reading: Reading) -> Asking:
        landed = yield wait
        assert isinstance(landed, Landed)
        return landed

    def arrived_right(self, row: bytes, sizes: Sequence[int], checksums: Sequence[int]) -> bool:
        """By checksums that were taken as the bytes landed."""
        return part_checksums(row, sizes) == list(checksums)

    def _way(self) -> Any:
        link: Link | None = self.link
        assert link is not None
        return link.way

    # ---- put

    def _put(self, call: Call, opened: m.Opened, keys: tuple[bytes, ...]) -> Asking:
        blocks = [self.truth.block(opened.space, call.tokens[: i + 1], call.shard) for i in range(len(keys))]
        for key, parts in zip(keys, blocks, strict=True):
            self.truth.will_seal(opened.space, call.shard, key, parts)
        if call.verb == Verb.PUT_PARTS:
            yield from self._put_in_parts(call, opened, keys, blocks)
            return
        told = yield from self.lent(
            b"".join(b"".join(parts) for parts in blocks),
            lambda grant: m.Pull(opened.ns, call.shard, keys, grant, self._left()),
        )
        if isinstance(told, m.Pulled):
            self.put += told.sealed

    def _put_in_parts(
        self, call: Call, opened: m.Opened, keys: tuple[bytes, ...], blocks: Sequence[tuple[bytes, ...]]
    ) -> Asking:
        """A part that was not read whole is lent once more, and now and then one that was. Half of all puts let
        followers read what is there.
        """
        number, publishes = self._number(), self.world.rng.random() < 0.5
        try:
            answer = yield from self._ask(m.ReserveSlots(number, opened.ns, call.shard, keys), self._patience())
        except GaveUp:
            self._tell(m.AbortFilled(number))
            raise
        if not isinstance(answer, m.ReservedSlots) or ReserveStatus.GRANTED not in answer.statuses:
            return
        granted = [i for i, status in enumerate(answer.statuses) if status == ReserveStatus.GRANTED]
        for part in range(len(opened.space.shards[call.shard])):
            data = b"".join(blocks[i][part] for i in granted)
            told = yield from self._filled(number, part, data)
            if told != m.Filled("") or self.world.rng.random() < 0.1:
                told = yield from self._filled(number, part, data)
            if told != m.Filled(""):
                self._tell(m.AbortFilled(number))
                return
            if publishes:
                yield from self._ask(m.PublishFilled(number, part))
        told = yield from self._ask(m.SealFilled(number))
        if isinstance(told, m.Pulled):
            self.put += told.sealed

    def _filled(self, number: int, part: int, data: bytes) -> Asking:
        try:
            told = yield from self.lent(data, lambda grant: m.Fill(number, part, grant, self._left()))
        except GaveUp:
            return m.Refused.NOT_READY
        return told

    def lent(self, data: bytes, message: Callable[[Grant], object]) -> Asking:
        """Asks with our memory granted, and takes it back whatever comes of it. Then it is the caller's again."""
        memory = bytearray(data)
        grant = self._lend(memory)
        self.writing = True
        failure: Exception | None = None
        told: object = None
        try:
            told = yield from self._ask(message(grant), self._patience())
        except (Lost, GaveUp) as error:
            failure = error
        yield from self.take_back(grant)
        memory[:] = bytes(byte ^ 0x5A for byte in memory)
        self.writing = False
        if failure is not None:
            raise failure
        return told

    def _lend(self, memory: bytearray) -> Grant:
        way = self._way()
        carrier: Carrier = way.carrier
        source = lambda offset, size: bytes(memory[offset : offset + size])  # noqa: E731
        return self.lender.grant(carrier, source, [(0, len(memory))], self._left() + MARGIN)

    def take_back(self, grant: Grant) -> Asking:
        """Until no peer reads by it."""
        wait: Wait[object] = Wait(None)
        self.lender.revoke(grant, lambda: wait.fulfil(True))
        yield wait


class Place:
    """Where a caller wants its blocks."""

    def __init__(self, blocks: int, size: int, owner: str) -> None:
        self.memory = [bytearray(size) for _ in range(blocks)]
        self.owner = owner
        self.given_back = False

    @property
    def taken(self) -> list[bytes]:
        return [bytes(block) for block in self.memory]

    def land(self, row: int, at: int, data: bytes) -> None:
        if self.given_back:
            raise Broken(f"landed after the answer: in memory that is {self.owner}'s caller's again")
        self.memory[row][at : at + len(data)] = data
