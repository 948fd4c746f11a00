"""A get of what the client's node has not: leased by that node at those that have it, read from them one-sidedly.

  LEASE far --> the node, which asks the holders (kvstore/node/far.py) --> sections, one a holder
  each section: its holder reached, read, compared; all at once -- RELEASE (nobody waits for it; the node passes it on)
                meanwhile LEASE of the next window

A holder that cannot be reached, or whose bytes do not come or do not verify, is avoided for a while and the rest asked
for again, of its replicas; what there is no replica of is a miss. What came before it counts.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kvstore.client.calls import WAIT_MARGIN_S
from kvstore.client.conducts import STOPPED, Awaited, Called, Conduct, Mover, ended_by, failed
from kvstore.client.far_read import Came, Job, Section, read_all, sections_of
from kvstore.client.hints import hints_of
from kvstore.client.steps import Answer, Fetch, Status, Told
from kvstore.client.ways import NotTaken
from kvstore.errors import Poisoned
from kvstore.wire import framed, store
from transfer.batch import EXTENTS_MAX

if TYPE_CHECKING:
    from kvstore.client.calls import Times
    from kvstore.client.space import Space
    from transfer.offers import Carrier

__all__ = ["fetching_far"]

TRIES: Final = 4  # holders of a block that lead nowhere, one after the other


def fetching_far(mover: Mover, space: Space, step: Fetch, times: Times) -> Conduct[Answer]:
    """Window after window until the node has the next block itself, or nobody has, or one does not come. Nothing, and
    `window_full`: the node has the first one itself by now.
    """
    corrupt = 0
    for _ in range(TRIES):
        answer, again = yield from _windows(mover, space, step, times)
        if not again or answer.blocks:
            break
        corrupt = corrupt or answer.blocks_corrupt
    if answer.status == Status.OK and not answer.blocks and corrupt:
        return Told(blocks_corrupt=corrupt)
    if answer.blocks_corrupt and answer.blocks:  # a replica may have it: that is asked for next
        return Told(blocks=answer.blocks, window_full=True, bytes=answer.bytes, tiers=answer.tiers)
    return answer


def _windows(mover: Mover, space: Space, step: Fetch, times: Times) -> Conduct[tuple[Answer, bool]]:
    """What came, and whether another holder may have more. While one window is read the next is asked for, so that its
    holders bring up what lies in files meanwhile. Each is released as soon as it is read: whoever waits for its bytes'
    room waits for no other window.
    """
    run = _Run()
    window: _Window | None = None
    reading: _Reading | None = None
    try:
        carriers = mover.ways.carriers or (yield Awaited(mover.ways.start))
        window = _Window(mover, space, step, 0)
        yield from window.asking(times, carriers)
        while window.sections:
            now, window = window, None
            reading = _Reading(now, times)
            if now.more:
                yield Awaited(reading.begin)
                window = _Window(mover, space, step, now.end)
                yield from window.asking(times, carriers)
            ended: _Ended = yield Awaited(reading.over)
            reading = None
            whole = run.add(now, ended)
            if not whole or window is None:
                return run.told(more=now.more or not whole), not whole
        if run.blocks:  # nothing more of others just now: the node may have it, or a while later another
            return run.told(more=True), False
        return window.failed or Told(window_full=window.lease.window_full), False
    except NotTaken as error:
        return ended_by(error, "into"), False
    except STOPPED as error:
        return Told(reason=str(error)), False
    finally:
        if window is not None:
            window.release(framed.ReleaseRequest())
        if reading is not None:
            yield Awaited(reading.give_up, whole=True)


class _Window:
    """Of the run's blocks from `first` on: asked for, then some sections, then released, once."""

    def __init__(self, mover: Mover, space: Space, step: Fetch, first: int) -> None:
        self.mover, self.space, self.first = mover, space, first
        keys = step.keys[first : first + max(1, EXTENTS_MAX // step.places.pieces)]
        parent = step.keys[first - 1].tobytes() if first else step.parent
        places = step.places.of(first, first + len(keys))
        self.step = step._replace(keys=keys, places=places, hint=step.hint.at(first), parent=parent)
        self._behind = len(step.keys) - first  # blocks of the run from here on
        self._number = next(mover.line.numbers)
        self._released = False
        self.failed: Told | None = None
        self.sections: list[Section] = []
        self.lease = framed.LeaseResponse()
        self.until = 0.0  # time.monotonic()

    @property
    def end(self) -> int:
        return self.first + len(self.lease.offsets)

    @property
    def more(self) -> bool:
        """Whether it is worth asking again from its end."""
        blocks = len(self.lease.offsets)
        return blocks < self._behind and (self.lease.window_full or blocks == len(self.step.keys))

    def asking(self, times: Times, carriers: Sequence[Carrier]) -> Conduct[None]:
        left, mover, step = times.left(), self.mover, self.step
        if left <= 0:
            self.failed = Told(Status.LATE, reason="the deadline passed")
            return
        request = framed.LeaseRequest(
            namespace=self.space.known.digest,
            shard=step.shard,
            chain=store.Chain(keys=step.keys.tobytes(), parent=step.parent, position=step.hint.position),
            hints=hints_of(step.hint),
            wait_ms=max(0, round(times.wait(left, mover.line.limits) * 1e3)),
            lease=self._number,
            carriers=map(int, carriers),
            far=True,
            deadline_ms=round(max(left - WAIT_MARGIN_S, left / 2) * 1e3),
            avoid=mover.ways.holders.avoided(step.keys[0].tobytes()),
        )
        asked_at = time.monotonic()
        told = yield Called(store.METHOD_LEASE, request.SerializeToString())
        if told.status == Status.OK:
            parts = len(self.space.part_bytes[step.shard])
            self.lease, self.sections = sections_of(told.body, len(step.keys), parts)
            self.until = min(times.deadline, asked_at + self.lease.lease_ms / 1e3)
        elif told.status not in {Status.REJECTED, Status.BAD_INPUT}:
            # A node that has no more of these to give, or knows none of it, has not got the block.
            self.failed = failed(told)

    def release(self, release: framed.ReleaseRequest) -> None:
        """Of any thread. Whatever the node answers yet is given up."""
        if not self._released:
            self._released = True
            release.lease = self._number
            self.mover.line.session.tell_call(store.METHOD_RELEASE, release.SerializeToString())


@dataclass(slots=True)
class _Run:
    """What has come of the step so far, from its first block on."""

    blocks: int = 0
    moved: int = 0
    corrupt: int = 0
    tiers: bytes = b""

    def add(self, window: _Window, ended: _Ended) -> bool:
        """Whether all of the window came."""
        self.blocks += ended.blocks
        self.moved += ended.moved
        self.corrupt = ended.corrupt
        self.tiers += window.lease.tiers[: ended.blocks]
        return ended.blocks == len(window.lease.offsets)

    def told(self, *, more: bool) -> Told:
        return Told(
            blocks=self.blocks,
            blocks_corrupt=self.corrupt,
            window_full=more,
            bytes=self.moved,
            tiers=self.tiers,
        )


@dataclass(frozen=True, slots=True)
class _Ended:
    """Of a window's read: the blocks from its first on that came, and whether the next one did not verify (0 or 1)."""

    blocks: int
    moved: int  # bytes
    corrupt: int


# ---- reading --------------------------------------------------------------------------------------------------------


class _Reading:
    """Of one window, on the event loop of the transports. The window is released at its end, whatever that is."""

    def __init__(self, window: _Window, times: Times) -> None:
        self._window, self._deadline = window, times.deadline
        self._task: asyncio.Task[_Ended] | None = None

    async def begin(self) -> None:
        self._task = asyncio.ensure_future(self._read())

    async def _read(self) -> _Ended:
        """Raises NotTaken, Poisoned."""
        window, release = self._window, framed.ReleaseRequest()
        try:
            job = Job(window.mover, window.space, window.step, min(window.until, self._deadline))
            return _ended(job, window.sections, await read_all(job, window.sections), release)
        finally:
            window.release(release)

    async def over(self) -> _Ended:
        """Raises what the read does. Given up, it goes through when nothing touches the memory any more."""
        if self._task is None:
            await self.begin()
        assert self._task is not None
        try:
            await asyncio.wait([self._task])
        except asyncio.CancelledError:
            await self.give_up()
            raise
        return self._task.result()

    async def give_up(self) -> None:
        """Returns when nothing touches the memory any more. Raises Poisoned."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._window.release(framed.ReleaseRequest())  # of a read that had not begun
        if self._task is not None and not self._task.cancelled() and isinstance(self._task.exception(), Poisoned):
            self._task.result()


def _ended(job: Job, sections: list[Section], came: list[Came], release: framed.ReleaseRequest) -> _Ended:
    """What the sections' reads come to: the run up to the first block that did not come. Fills the release."""
    counts = job.parts.start == 0
    blocks, whole, corrupt = 0, True, 0
    for section, one in zip(sections, came, strict=True):
        read = one.read
        good = read.blocks if whole else 0
        told = release.reads.add(blocks=good if counts else 0, bytes=good * job.wanted_bytes)
        told.carrier, told.elapsed_us = one.by, min(round(one.elapsed_s * 1e6), 2**32 - 1)
        if read.corrupt is not None:
            release.corrupt.append(section.first + read.corrupt)
            corrupt = corrupt or int(whole)
        blocks += good
        whole = whole and read.blocks == section.end - section.first
    return _Ended(blocks, blocks * job.wanted_bytes, corrupt)
