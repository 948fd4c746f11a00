"""The client's journeys as plain decisions: what to ask next, when to stop, what to report. No I/O, clock or thread.

A journey is a generator: it yields steps (kvstore.client.steps), is sent the answer to each, and returns what the
caller gets. The sync face and the async face drive the same generators.

Rules
- A miss is a shorter number. What had arrived when something failed is still the answer; only a journey of which
  nothing came at all raises.
- A stale namespace or a lost connection is reopened once. If the namespace is the same, the journey goes on where it
  stood; if it was cleared meanwhile, the chain names nothing any more and the journey ends.
- Blocks are asked for in windows: nothing waits for a slot while holding one.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

from kvstore.client.buffers import Places
from kvstore.client.held import ENDLESS, Held
from kvstore.client.steps import (
    Answer,
    Fetch,
    FoundFar,
    Gripped,
    Hold,
    Holder,
    Keys,
    Lent,
    Limits,
    Look,
    Lookup,
    LookupFar,
    Put,
    PutOutcome,
    Reopen,
    Reopened,
    Replicate,
    Replicated,
    Report,
    Reserve,
    Status,
    Step,
    Taken,
    Told,
    WireHint,
    fail,
)
from kvstore.errors import Rejected
from kvstore.layout import Need

Tiers = npt.NDArray[np.uint8]
Outcomes = npt.NDArray[np.uint8]
_RETRIED: Final = frozenset({Status.STALE_NAMESPACE, Status.UNAVAILABLE})


class Ended(Enum):
    """Why a get or a put went no further."""

    COMPLETE = "complete"  # all that was asked
    MISS = "miss"  # the next block is not in the store, or did not come up in time
    CORRUPT = "corrupt"  # the next block did not verify; it is dropped
    FULL = "full"  # no room: only pins and holds are left
    CLEARED = "cleared"  # the namespace was cleared: make the chain anew
    LATE = "late"  # the deadline
    ABANDONED = "abandoned"  # who published the next block gave it up, or is gone
    UNAVAILABLE = "unavailable"  # the node went away


@dataclass(frozen=True, slots=True)
class Found:
    """tiers: one a block before the boundary, the slowest that a need must read there; 9 and 10: memory and files of
    another node. fetch_s: the node's estimate. holders: which other nodes say that they hold what is far.
    """

    blocks: int
    tokens: int
    tiers: Tiers
    fetch_s: float
    holders: tuple[Holder, ...] = ()


@dataclass(frozen=True, slots=True)
class Stored:
    """held: was there already. pending: another is writing it. rejected: the rest. outcomes: a PutOutcome a block.
    hosts: where replicas were asked for, on how many hosts each block is sealed now.
    """

    stored: int
    held: int
    pending: int
    rejected: int
    outcomes: Outcomes
    ended: Ended
    hosts: Outcomes | None = None

    @property
    def replicas(self) -> int:
        """On how many hosts every block is sealed, for all that is known; 0 where replicas were not asked for."""
        return 0 if self.hosts is None else int(self.hosts.min(initial=255)) if len(self.hosts) else 0


@dataclass(frozen=True, slots=True)
class Got:
    """The contiguous prefix that arrived and verified. tiers: where each of its blocks was found; 9 and 10: in memory
    and in files of another node.
    """

    blocks: int
    tokens: int
    tiers: Tiers
    ended: Ended


@dataclass(frozen=True, slots=True)
class Shape:
    """What a journey must know of its namespace and node."""

    block_tokens: int
    shard_bytes: tuple[int, ...]
    limits: Limits


_Result = TypeVar("_Result")
Journey = Generator[Step, Answer, _Result]


def check_count(keys: Keys, limits: Limits) -> None:
    """Refuses what no node of this configuration would take, before anything is sent."""
    if keys.shape[0] > limits.keys_per_call_max:
        raise Rejected(
            f"chain: {keys.shape[0]} keys, at most {limits.keys_per_call_max} a call", limit="keys_per_call_max"
        )


def looking_up(
    shape: Shape, keys: Keys, needs: tuple[Need, ...], far: Callable[[], bytes] | None = None
) -> Journey[Found]:
    """The longest boundary at which every need holds. far: of a node among others, the request by which it asks them
    for what it does not hold itself. Whatever comes of that, what it holds is an answer.
    """
    check_count(keys, shape.limits)
    answer = yield from _once(Lookup(keys, needs))
    fetch_s = answer.fetch_s
    holders: tuple[Holder, ...] = ()
    if far is not None and answer.blocks < keys.shape[0]:
        more = yield LookupFar(far())
        if isinstance(more, FoundFar) and more.blocks > answer.blocks:
            answer, fetch_s, holders = more, fetch_s + more.fetch_s, more.holders
    tiers = np.frombuffer(answer.tiers, dtype=np.uint8)[: answer.blocks]
    return Found(answer.blocks, answer.blocks * shape.block_tokens, tiers, fetch_s, holders)


def getting(
    shape: Shape,
    shard: int,
    keys: Keys,
    places: Places,
    hint: WireHint,
    parts: tuple[int, int] | None = None,
    *,
    clustered: bool = False,
) -> Journey[Got]:
    """Window after window until the chain ends, a block is missing, or something fails. Of blocks that are got by parts
    the first part is the one that counts them: once, however many calls bring the rest. clustered: what the node has
    not is sought at others, hole after hole; what it has by the time that it looks there, at itself once more.
    """
    check_count(keys, shape.limits)
    walk = _Walk(keys.shape[0])
    tiers: list[bytes] = []
    moved = corrupt = 0
    far = was_far = False
    came_here = -1  # a block that the node had not when it was asked, and then had
    while walk.ended is None:
        at = walk.at
        rest = keys[at:] if at else keys
        parent = keys[at - 1].tobytes() if far and at else b""
        answer = yield Fetch(shard, rest, places.of(at, walk.end), hint.at(at), parts, far, parent)
        walk.at += answer.blocks
        was_far |= far and answer.blocks > 0
        moved += 0 if far else answer.bytes
        corrupt += answer.blocks_corrupt
        tiers.append(answer.tiers[: answer.blocks])
        if answer.status == Status.OK:
            walk.ended = _ended_fetch(answer, walk)
            turned = far and answer.window_full and not answer.blocks and came_here != at
            came_here = at if turned else came_here
            far = clustered and not far and walk.ended is Ended.MISS
            walk.ended = None if far or turned else walk.ended
        else:
            far = False
            yield from walk.recover(answer)
    found = tiers[0] if len(tiers) == 1 else b"".join(tiers)
    if walk.ended is not Ended.UNAVAILABLE:
        first = parts is None or parts[0] == 0
        if first and not was_far:
            yield Report(hint, walk.end, count_tiers(found), corrupt, moved)
        else:
            # The node's estimates rest on what moved by its own tiers in the time that it took: so not in one report.
            if first:
                yield Report(hint, walk.end, count_tiers(found), corrupt)
            if not first or moved:
                yield Report(hint, moved=moved)
    return Got(walk.at, walk.at * shape.block_tokens, np.frombuffer(found, dtype=np.uint8), walk.ended)


def _ended_fetch(answer: Answer, walk: _Walk) -> Ended | None:
    if walk.at >= walk.end:
        return Ended.COMPLETE
    if answer.blocks_corrupt:
        return Ended.CORRUPT
    # A window that is full and brought nothing would be asked for ever.
    return None if answer.window_full and answer.blocks else Ended.MISS


@dataclass(frozen=True, slots=True)
class Load:
    """What is to be put: blocks by key, where they lie, the key before the first (b"": none), metas (none or all)."""

    keys: Keys
    places: Places
    parent: bytes = b""
    metas: tuple[bytes, ...] = ()


def putting(
    shape: Shape,
    shard: int,
    load: Load,
    hint: WireHint,
    replicate: Callable[[], bytes] | None = None,
) -> Journey[Stored]:
    """Window after window; the first block that finds no room ends it, since those behind it would be of no use.
    replicate: the request by which the node has other hosts copy them. Whatever comes of that, they are put.
    """
    keys, places, metas = load.keys, load.places, load.metas
    check_count(keys, shape.limits)
    step = max(1, shape.limits.window_bytes // shape.shard_bytes[shard])
    walk = _Walk(keys.shape[0])
    outcomes = bytearray((PutOutcome.FULL,)) * walk.end
    while walk.ended is None:
        at, end = walk.at, min(walk.at + step, walk.end)
        before = load.parent if at == 0 else keys[at - 1].tobytes()
        answer = yield Put(shard, keys[at:end], places.of(at, end), hint.at(at), before, metas[at:end])
        told = answer.outcomes
        outcomes[at : at + len(told)] = told
        if PutOutcome.TOO_LARGE in told:
            size = shape.shard_bytes[shard]
            raise Rejected(
                f"shard {shard}: a block of {size} bytes does not fit a slab of this node", limit="slab_bytes"
            )
        if answer.status == Status.OK:
            walk.at = end
            walk.ended = Ended.FULL if PutOutcome.FULL in told else Ended.COMPLETE if end == walk.end else None
        else:
            yield from walk.recover(answer)
    stored = stored_of(outcomes, walk.ended)
    if replicate is None or not walk.end:
        return stored
    here = np.isin(stored.outcomes, (PutOutcome.STORED, PutOutcome.HELD)).astype(np.uint8)
    answer = yield Replicate(replicate())
    if isinstance(answer, Replicated) and len(answer.hosts) == walk.end:
        return replace(stored, hosts=np.frombuffer(answer.hosts, dtype=np.uint8))
    return replace(stored, hosts=here)


def stored_of(outcomes: bytes | bytearray, ended: Ended) -> Stored:
    """Counted as bytes: after a copy of many megabytes the first use of a numpy routine costs tens of microseconds."""
    stored, held, pending = (outcomes.count(o) for o in (PutOutcome.STORED, PutOutcome.HELD, PutOutcome.PENDING))
    rejected = len(outcomes) - stored - held - pending
    return Stored(stored, held, pending, rejected, np.frombuffer(outcomes, dtype=np.uint8), ended)


def viewing(shape: Shape, look: Look, *, clustered: bool = False) -> Journey[Lent]:
    """One window, held without a copy. clustered: what only other nodes have becomes a replica at the node first, for
    which what is held already waits, as in `holding`.
    """
    check_count(look.keys, shape.limits)
    answer = yield from _once(look)
    if not isinstance(answer, Lent):
        return Lent()
    at = answer.blocks
    if clustered and at < look.keys.shape[0] and not answer.window_full and not answer.blocks_corrupt:
        brought = yield _hold(look.shard, look.keys, look.hint, at, far=True)
        if isinstance(brought, Gripped) and brought.blocks:
            again = yield look
            answer = again if isinstance(again, Lent) and again.blocks > at else answer
            if brought.grip is not None:
                brought.grip.release()
    by_tier = count_tiers(answer.tiers)
    moved = answer.blocks * shape.shard_bytes[look.shard]
    yield Report(look.hint, look.keys.shape[0], by_tier, answer.blocks_corrupt, moved)
    return answer


def holding(shape: Shape, shard: int, keys: Keys, hint: WireHint, *, clustered: bool = False) -> Journey[Held]:
    """Window after window, all of them held at the end. The one journey that waits while it holds: each wait has its
    end, and what one connection may hold has its limit (`held_bytes_max`), which is told as a shorter run. clustered:
    the node makes replicas of what only others have.
    """
    check_count(keys, shape.limits)
    walk = _Walk(keys.shape[0])
    runs: list[Gripped] = []
    far = False
    while walk.ended is None:
        answer = yield _hold(shard, keys, hint, walk.at, far=far)
        if isinstance(answer, Gripped) and answer.status == Status.OK:
            walk.at += answer.blocks
            runs.append(answer)
            walk.ended = _ended_fetch(answer, walk)
            # A replica is held like any block, but only so much as the node brought at once.
            far = clustered and walk.ended is Ended.MISS and (not far or answer.blocks > 0)
            walk.ended = None if far else walk.ended
            continue
        far = False
        if answer.status in _RETRIED:  # nothing is held there any more
            runs.clear()
            walk.at = 0
        yield from walk.recover(answer)
    tiers = np.frombuffer(b"".join(run.tiers for run in runs), dtype=np.uint8)
    expires_s = min((run.expires_s for run in runs), default=ENDLESS)
    return Held([run.grip for run in runs if run.grip], tiers, shape.block_tokens, expires_s)


def _hold(shard: int, keys: Keys, hint: WireHint, at: int, *, far: bool) -> Hold:
    """From block `at` on."""
    return Hold(shard, keys[at:], hint.at(at), far, keys[at - 1].tobytes()) if at else Hold(shard, keys, hint, far)


def reserving(shape: Shape, step: Reserve) -> Journey[Taken]:
    """Slots for one window. The answer has its reservation."""
    check_count(step.keys, shape.limits)
    size = shape.shard_bytes[step.shard]
    most = max(1, shape.limits.window_bytes // size)
    if step.keys.shape[0] > most:
        raise Rejected(
            f"chain: {step.keys.shape[0]} blocks of {size} bytes, at most {most} a reservation", limit="window_bytes"
        )
    answer = yield from _once(step)
    if not isinstance(answer, Taken) or answer.held is None:
        raise fail(Told(Status.STALE_NAMESPACE))
    return answer


def _once(step: Step) -> Generator[Step, Answer, Answer]:
    """A step that is asked again after a reopening. Answered with Reopened where the namespace was cleared."""
    answer = yield step
    if answer.status in _RETRIED:
        answer = yield Reopen()
        if isinstance(answer, Reopened) and answer.same:
            answer = yield step
    if answer.status != Status.OK:
        raise fail(answer)
    return answer


def count_tiers(tiers: bytes) -> tuple[int, int, int, int]:
    """Of another node's by its tier there: a hit of this node's callers, whoever has the block."""
    return (0, tiers.count(1) + tiers.count(9), tiers.count(2) + tiers.count(10), tiers.count(3))


@dataclass(slots=True)
class _Walk:
    """How far a journey of many windows has come."""

    end: int
    at: int = 0
    ended: Ended | None = None
    reopened: bool = False

    def __post_init__(self) -> None:
        if self.end == 0:
            self.ended = Ended.COMPLETE

    def recover(self, answer: Answer) -> Generator[Step, Answer, None]:
        """After an answer that is not OK: reopens once and goes on, or says how the journey ended, or raises."""
        if answer.status in _RETRIED and not self.reopened:
            self.reopened = True
            answer = yield Reopen()
            if isinstance(answer, Reopened):
                if not answer.same:
                    self.ended = Ended.CLEARED
                elif self.at >= self.end:
                    self.ended = Ended.COMPLETE
                return
        if answer.status in {Status.BAD_INPUT, Status.DENIED} or (self.at == 0 and answer.status != Status.LATE):
            raise fail(answer)
        self.ended = _ENDED_BY.get(Status(answer.status), Ended.UNAVAILABLE)


_ENDED_BY: Final = {
    Status.STALE_NAMESPACE: Ended.CLEARED,
    Status.REJECTED: Ended.FULL,
    Status.LATE: Ended.LATE,
}
