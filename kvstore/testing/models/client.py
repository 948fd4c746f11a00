"""A client of the simulation: publishes and fetches blocks, and says what it read to a witness.

It trusts no byte that it has not verified after the copy, gives up at its deadline whatever happens, and takes a lost
connection for an answer. It maps the memory, so copies take time and may be stopped half way; those that map nothing
are in away.py.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from kvstore.testing.link import Link
from kvstore.testing.models import messages as m
from kvstore.testing.models.keys import part_checksums
from kvstore.testing.models.leases import HoldKind
from kvstore.testing.models.lifecycle import Outcome, ReserveStatus
from kvstore.testing.models.memory import Memory
from kvstore.testing.models.namespaces import Space
from kvstore.testing.models.truth import Truth
from kvstore.testing.world import Broken, Process, Steps, Wait, World

Asking = Generator["int | Wait[object]", object, Any]


class Verb(Enum):
    PUT = "put"
    PUT_PARTS = "put in parts"
    GET = "get"
    FOLLOW = "follow"
    VIEW = "view"
    LOOKUP = "lookup"
    PREFETCH = "prefetch"
    CLEAR = "clear"


@dataclass(frozen=True, slots=True)
class Call:
    verb: Verb
    name: str
    shard: int
    tokens: tuple[int, ...]
    think: int  # before it


@dataclass(frozen=True, slots=True)
class ClientLimits:
    call_max: int = 6_000
    reserve_lapse: int = 1_500  # as the node told
    lease: int = 800
    wait: int = 1_000
    copy_time: int = 60  # of one part
    view_looks: int = 4
    view_pause: int = 700


class Lost(Exception):
    """No answer: the deadline, or the connection."""


class GaveUp(Exception):
    """The caller would wait no longer; the connection goes on."""


class ClientModel:
    """`connect` gives a connection, or None while the node is down. `got` counts blocks that arrived."""

    in_place = True  # maps the node's memory

    def __init__(
        self,
        world: World,
        name: str,
        memory: Memory,
        truth: Truth,
        connect: Callable[[ClientModel], Link | None],
        calls: Sequence[Call],
        *,
        limits: ClientLimits,
    ) -> None:
        self.world = world
        self.name = name
        self.memory = memory
        self.truth = truth
        self.connect = connect
        self.calls = calls
        self.limits = limits
        self.process = Process(world, name, self.life())
        self.link: Link | None = None
        self.spaces: dict[str, m.Opened] = {}
        self.former: list[int] = []
        self.deadline: int | None = 0
        self.got = self.put = 0
        self.writing = self.viewing = False  # where the bytes lie

    def life(self) -> Steps:
        for call in self.calls:
            yield call.think
            yield from self._call(call)
        self._drop()

    def _call(self, call: Call) -> Asking:
        """One call, from which nothing is thrown and which ends by its deadline."""
        began = self.world.now
        self.deadline = self.latest(began)
        excused = self.process.stopped_ns + self.world.jumped_ns
        try:
            opened = yield from self._opened(call.name)
            yield from self._journey(call, opened)
        except Lost:
            self._drop()
        except GaveUp:
            pass
        taken = self.world.now - began - (self.process.stopped_ns + self.world.jumped_ns - excused)
        most = self.limits.call_max + 2 * self.limits.copy_time
        if call.verb == Verb.VIEW:
            most += (self.limits.view_looks + 1) * self.limits.view_pause
        if taken > most:
            raise Broken(f"hang: {self.name}'s {call.verb.value} took {taken}, its limit is {most}")

    def latest(self, began: int) -> int | None:
        """When a call that began then ends at the latest."""
        return began + self.limits.call_max

    def _journey(self, call: Call, opened: m.Opened) -> Asking:
        keys = self.truth.keys(opened.space, call.tokens)
        self.world.note(self.name, f"{call.verb.value} {call.name}/{call.shard} {call.tokens}")
        match call.verb:
            case Verb.PUT | Verb.PUT_PARTS:
                yield from self._put(call, opened, keys)
            case Verb.GET | Verb.FOLLOW:
                yield from self._get(call, opened, keys)
            case Verb.VIEW if self.in_place:
                yield from self._view(call, opened, keys)
            case Verb.CLEAR:
                yield from self._ask(m.Clear(opened.ns))
                self.spaces.pop(call.name, None)
            case Verb.PREFETCH:
                yield from self._ask(m.Prefetch(opened.ns, call.shard, keys))
            case _:
                found = yield from self._ask(m.Look(opened.ns, call.shard, keys))
                if not 0 <= found <= len(keys):
                    raise Broken(f"lookup found {found} of {len(keys)} blocks")

    # ---- connection

    def _opened(self, name: str) -> Asking:
        if self.link is None:
            self.link = self.connect(self)
            if self.link is None:
                raise Lost
            self.spaces.clear()
            for owner in self.former:
                self.link.tell(m.Quiet(owner))
            self.former.clear()
        if name not in self.spaces:
            self.spaces[name] = yield from self._ask(m.Open(name))
        return self.spaces[name]

    def _drop(self) -> None:
        """Nothing of this client is in motion when it closes."""
        if self.link is not None:
            self.link.close()
            if self.in_place:
                self.former.append(self.link.owner)
        self.link = None
        self.spaces.clear()

    def _ask(self, message: object, patience: int | None = None) -> Asking:
        """patience: until when the caller waits, where that is before the call's deadline."""
        assert self.link is not None
        answer = yield self.link.ask(message, self.deadline if patience is None else patience)
        if answer is None and patience is not None and self.world.now >= patience:
            raise GaveUp
        if answer is None:
            raise Lost
        if answer is m.Refused.STALE_NAMESPACE:
            self.spaces.clear()
        return answer

    def _tell(self, message: object) -> None:
        if self.link is not None:
            self.link.tell(message)

    @property
    def _late(self) -> bool:
        return self.deadline is not None and self.world.now >= self.deadline

    # ---- put

    def _put(self, call: Call, opened: m.Opened, keys: tuple[bytes, ...]) -> Asking:
        asked = self.world.now
        answer = yield from self._ask(m.Reserve(opened.ns, call.shard, keys))
        if not isinstance(answer, m.Grants):
            return
        granted = [(i, one) for i, one in enumerate(answer.blocks) if one.status == ReserveStatus.GRANTED]
        tickets = tuple(one.ticket for _, one in granted if one.ticket is not None)
        checksums = []
        for i, one in granted:
            assert one.ticket is not None
            parts = self.truth.block(opened.space, call.tokens[: i + 1], call.shard)
            at = one.offset
            sums = self.truth.will_seal(opened.space, call.shard, keys[i], parts)
            for number, part in enumerate(parts):
                if self._late or self.world.now - asked >= self.limits.reserve_lapse:
                    self._tell(m.Abort(tickets))
                    return
                self.writing = True
                yield self.limits.copy_time
                self.memory.write(one.ticket, at, part)
                self.writing = False
                at += len(part)
                if call.verb == Verb.PUT_PARTS:
                    yield from self._ask(m.Publish(one.ticket, number, sums[number]))
            checksums.append(() if call.verb == Verb.PUT_PARTS else sums)
        if tickets:
            yield from self._seal(tickets, tuple(checksums))

    def _seal(self, tickets: tuple[Any, ...], checksums: tuple[tuple[int, ...], ...]) -> Asking:
        outcomes = yield from self._ask(m.Seal(tickets, checksums))
        stale = tuple(t for t, outcome in zip(tickets, outcomes, strict=True) if outcome != Outcome.OK)
        self.put += len(tickets) - len(stale)
        if stale:
            self._tell(m.Abort(stale))

    # ---- get

    def _get(self, call: Call, opened: m.Opened, keys: tuple[bytes, ...]) -> Asking:
        """The contiguous prefix that arrives and verifies; of a follower's last block, the parts that were ready."""
        following, limits = call.verb == Verb.FOLLOW, self.limits
        answer = yield from self._ask(
            m.Fetch(opened.ns, call.shard, keys, HoldKind.LEASE, following, limits.wait, limits.lease)
        )
        if not isinstance(answer, m.Fetched):
            return
        sizes = opened.space.shards[call.shard]
        for i, held in enumerate(answer.slots):
            ready = sizes[: held.parts_ready]
            data = yield from self._copy(held.offset, ready)
            if not self.verified(data, ready, answer.checksums[i]):
                self._tell(m.Corrupt(held.ticket))
                break
            self._check(opened.space, call, i, data)
            if held.parts_ready < len(sizes) or self._late:
                break
        if answer.hold:
            self._tell(m.Release(answer.hold))

    def _copy(self, offset: int, sizes: Sequence[int]) -> Asking:
        data = b""
        for size in sizes:
            yield self.limits.copy_time
            data += self.memory.read(offset + len(data), size)
        return data

    def verified(self, data: bytes, sizes: Sequence[int], checksums: Sequence[int]) -> bool:
        """After the copy has landed, never before: a lease may have lapsed under it."""
        return part_checksums(data, sizes) == list(checksums[: len(sizes)])

    def _check(self, space: Space, call: Call, block: int, data: bytes) -> None:
        """The witness: what is given to the caller must be what the prefix says."""
        self.got += 1
        truth = b"".join(self.truth.block(space, call.tokens[: block + 1], call.shard))
        if data != truth[: len(data)]:
            raise Broken(f"wrong bytes: {self.name}'s {call.verb.value} of {call.tokens[: block + 1]}")

    def _view(self, call: Call, opened: m.Opened, keys: tuple[bytes, ...]) -> Asking:
        """Verified once, then looked at where it lies for as long as the caller likes."""
        answer = yield from self._ask(m.Fetch(opened.ns, call.shard, keys, HoldKind.VIEW, False, self.limits.wait, 0))
        if not isinstance(answer, m.Fetched) or not answer.hold:
            return
        sizes = opened.space.shards[call.shard]
        blocks = []
        for i, held in enumerate(answer.slots):
            if not self.verified(self.memory.read(held.offset, sum(sizes)), sizes, answer.checksums[i]):
                self._tell(m.Corrupt(held.ticket))
                break
            blocks.append(held)
        for _ in range(self.limits.view_looks):
            self.viewing = True
            yield self.limits.view_pause
            self.viewing = False
            for i, held in enumerate(blocks):
                self._check(opened.space, call, i, self.memory.read(held.offset, sum(sizes)))
        self._tell(m.Release(answer.hold))
