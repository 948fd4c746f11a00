"""Steps as calls of the native session: the same arguments for both faces."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeGuard

from kvstore import native
from kvstore.client.held import Grip, Reach
from kvstore.client.steps import (
    Answer,
    Fetch,
    Follow,
    FoundFar,
    Gripped,
    Hold,
    Holder,
    Lent,
    Limits,
    Look,
    Lookup,
    LookupFar,
    Put,
    Replicate,
    Replicated,
    Report,
    Reserve,
    Status,
    Taken,
    WireHint,
    fail,
)
from kvstore.client.views import Lending, LentSlots, lend
from kvstore.wire import framed, store

WAIT_MARGIN_S: Final = 0.25  # of a call's time that a node may not spend waiting, so that its answer is still in time

LABELS_MAX: Final = 1_024  # remembered a line; told again after that


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """One session, for as long as its node lives. maps: whether this process maps the node's memory; else bytes move
    by transfers (moving.py).
    """

    session: native.Session
    limits: Limits
    lending: Lending
    maps: bool
    reach: Reach
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))  # of leases and reservations
    labels: set[str] = field(default_factory=set)  # that the node has been told

    def untold(self, step: Report) -> bytes | None:
        """The LABEL request for the step's family, once a line; None where there is nothing to tell."""
        label = step.hint.label
        if not label or label in self.labels:
            return None
        if len(self.labels) >= LABELS_MAX:
            self.labels.clear()
        self.labels.add(label)
        return store.LabelRequest(family=label).SerializeToString()


class Times(NamedTuple):
    """Of one journey; readings of time.monotonic(). wait_s: the longest that the node may wait for promotions."""

    began: float
    deadline: float
    wait_s: float

    def left(self) -> float:
        return max(0.0, self.deadline - time.monotonic())

    def elapsed(self) -> float:
        return time.monotonic() - self.began

    def wait(self, left: float, limits: Limits) -> float:
        return min(self.wait_s, limits.hold_wait_s_max, max(left - WAIT_MARGIN_S, left / 2))


Asked = Lookup | LookupFar | Replicate | Put | Fetch | Hold | Look | Follow | Reserve


def by_transfers(step: Asked, line: Line) -> TypeGuard[Put | Fetch | Hold | Look | Follow | Reserve]:
    """Whether a step goes the way of kvstore.client.moving: nothing is mapped, not even where the bytes are another
    node's, or native code would have to touch device memory.
    """
    if isinstance(step, Lookup | LookupFar | Replicate):
        return False
    if isinstance(step, Follow) or (isinstance(step, Fetch | Hold) and step.far):
        return True
    return not line.maps or (isinstance(step, Put | Fetch) and step.places.devices)


def as_call(line: Line, handle: int, step: Asked, times: Times) -> tuple[str, tuple[object, ...]]:
    """The session's method (its submitted twin has `submit_` in front) and its arguments."""
    left = times.left()
    if isinstance(step, Fetch):
        at, wait = step.places, times.wait(left, line.limits)
        hint = native_hint(step.hint)
        asked = (handle, step.shard, step.keys, at.addresses, at.lengths, hint, wait, left)
        return "fetch", asked if step.parts is None else (*asked, 0.0, *step.parts)
    if isinstance(step, Put):
        at, hint = step.places, native_hint(step.hint)
        metas = list(step.metas)
        return "put", (handle, step.shard, step.keys, at.addresses, at.lengths, hint, left, step.parent, metas)
    if isinstance(step, Lookup | LookupFar | Replicate):
        return _asking(handle, step, left)
    if isinstance(step, Reserve):
        metas = list(step.metas)
        return "reserve", (handle, step.shard, step.keys, native_hint(step.hint), left, step.parent, metas)
    wait = times.wait(left, line.limits)
    if isinstance(step, Hold):
        return "hold", (handle, step.shard, step.keys, native_hint(step.hint), wait, left)
    assert isinstance(step, Look), "a follow is no native call"
    return "view", (handle, step.shard, step.keys, native_hint(step.hint), wait, left, step.following)


def _asking(handle: int, step: Lookup | LookupFar | Replicate, left: float) -> tuple[str, tuple[object, ...]]:
    if isinstance(step, LookupFar | Replicate):
        method = store.METHOD_LOOKUP_FAR if isinstance(step, LookupFar) else store.METHOD_REPLICATE
        return "call", (method, step.request, left)
    return "lookup", (handle, step.keys, [(n.shard, int(n.kind), n.blocks) for n in step.needs], left)


def told(line: Line, step: Asked, answer: native.Result | native.Reservation, shard_bytes: Sequence[int]) -> Answer:
    """A native answer, with what it brought where that is more than numbers. shard_bytes: of each shard."""
    if isinstance(answer, native.Reservation):
        result = answer.result
        status, field, reason, limit = result.status, result.field, result.reason, result.limit
        return Taken(status, field, reason, limit, outcomes=result.outcomes, held=LentSlots(answer, line.lending))
    if isinstance(step, LookupFar) and answer.status == Status.OK:
        found = store.LookupResponse.FromString(answer.body)
        holders = tuple(Holder(at.node, at.address, at.shard, at.first, at.count) for at in found.holders)
        return FoundFar(blocks=found.blocks, tiers=found.tiers, fetch_s=found.fetch_s, holders=holders)
    if isinstance(step, Replicate) and answer.status == Status.OK:
        return Replicated(hosts=framed.ReplicateResponse.FromString(answer.body).hosts)
    if isinstance(step, Hold) and answer.status == Status.OK:
        hold = answer.hold
        grip = Grip(line.reach, lambda session: session.release([hold])) if hold else None
        return Gripped(blocks=answer.blocks, window_full=answer.window_full, tiers=answer.tiers, grip=grip)
    if isinstance(step, Look) and answer.status == Status.OK:
        return Lent(
            blocks=answer.blocks,
            blocks_corrupt=answer.blocks_corrupt,
            window_full=answer.window_full,
            tiers=answer.tiers,
            arrays=lend(line.lending, answer.hold, answer.offsets, shard_bytes[step.shard]),
            parts=answer.parts_ready,
        )
    return answer


def body_of(answer: native.Result) -> bytes:
    """Of a rare verb's answer; raises what it says."""
    if answer.status != Status.OK:
        raise fail(answer)
    return answer.body


def report(line: Line, handle: int, step: Report, elapsed_s: float) -> None:
    line.session.fetched(
        handle, native_hint(step.hint), step.asked, step.by_tier, step.failed, step.moved, int(elapsed_s * 1e9)
    )


def native_hint(hint: WireHint) -> native.Hint:
    return native.Hint(
        family=hint.family,
        session=hint.session,
        turn=hint.turn,
        expected_return_ms=hint.expected_return_ms,
        priority=hint.priority,
        end=hint.end,
        position=hint.position,
    )


def check_usable(made_in: int, closed: bool) -> None:
    """RuntimeError where a call could not work: closed, or another process's client."""
    if made_in != os.getpid():
        raise RuntimeError("this client was made before a fork; make one in each process")
    if closed:
        raise RuntimeError("this client is closed")


def own_loop(former: asyncio.AbstractEventLoop | None) -> asyncio.AbstractEventLoop:
    """The running loop; RuntimeError where the client belongs to another one already."""
    loop = asyncio.get_running_loop()
    if former is not None and former is not loop:
        raise RuntimeError("this client belongs to another event loop; make one for each")
    return loop


def positive(name: str, seconds: float) -> float:
    if not seconds > 0:
        raise ValueError(f"{name}: {seconds}, must be more than 0 seconds")
    return seconds


def times_of(deadline_s: float, wait_s: float | None) -> Times:
    if wait_s is not None and not wait_s >= 0:
        raise ValueError(f"wait_s: {wait_s}, must be 0 seconds or more")
    now = time.monotonic()
    return Times(now, now + deadline_s, float("inf") if wait_s is None else wait_s)
