"""A get of what the client's node has not: leased by that node at those that have it, read from them one-sidedly.

  LEASE far --> the node, which asks the holders (kvstore/node/far.py) --> sections, one a holder
  each section: its holder reached, read, compared; all at once -- RELEASE (nobody waits for it; the node passes it on)

A holder that cannot be reached, or whose bytes do not come or do not verify, is avoided for a while and the rest asked
for again, of its replicas; what there is no replica of is a miss. What came before it counts.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from google.protobuf.message import DecodeError

from kvstore.client.calls import WAIT_MARGIN_S
from kvstore.client.conducts import STOPPED, Awaited, Called, Conduct, Mover, ended_by, failed
from kvstore.client.hints import hints_of
from kvstore.client.landed import Read
from kvstore.client.steps import Answer, Fetch, Status, Told
from kvstore.client.ways import NotTaken, Reached
from kvstore.errors import Poisoned, Unavailable
from kvstore.wire import framed, store
from transfer.batch import EXTENTS_MAX

if TYPE_CHECKING:
    from kvstore.client.calls import Times
    from kvstore.client.space import Space

__all__ = ["fetching_far"]

TRIES: Final = 4  # holders of a block that lead nowhere, one after the other
REACH_S: Final = 1.0
READ_S: Final = 1.0  # of a section, and what its bytes take at READ_BYTES_PER_S: then it is slow, or gone
READ_BYTES_PER_S: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class _Section:
    """Blocks [first, end) of the run. descriptors: by carrier. lease: as if it were the holder's own answer."""

    first: int
    end: int
    incarnation: int
    offer: bytes
    descriptors: Mapping[int, bytes]
    lease: framed.LeaseResponse


@dataclass(slots=True)
class _Came:
    """Of one section. by: the carrier."""

    read: Read
    by: int = 0


@dataclass(frozen=True, slots=True)
class _Job:
    """What reading needs. parts: those wanted of each block. until: time.monotonic()."""

    mover: Mover
    space: Space
    step: Fetch
    until: float

    @property
    def part_bytes(self) -> list[int]:
        return self.space.part_bytes[self.step.shard]

    @property
    def parts(self) -> range:
        return range(*(self.step.parts or (0, len(self.part_bytes))))

    @property
    def most(self) -> int:
        """Blocks of one transfer."""
        return max(1, EXTENTS_MAX // self.step.places.pieces)

    @property
    def wanted_bytes(self) -> int:
        return sum(self.part_bytes[self.parts.start : self.parts.stop])


def fetching_far(mover: Mover, space: Space, step: Fetch, times: Times) -> Conduct[Answer]:
    """One window, of several holders."""
    answer: Answer = Told()
    corrupt = 0
    for _ in range(TRIES):
        answer, again = yield from _window(mover, space, step, times)
        if not again or answer.blocks:
            break
        corrupt = corrupt or answer.blocks_corrupt
    if answer.status == Status.OK and not answer.blocks and corrupt:
        return Told(blocks_corrupt=corrupt)
    if answer.blocks_corrupt and answer.blocks:  # a replica may have it: that is asked for next
        return Told(blocks=answer.blocks, window_full=True, bytes=answer.bytes, tiers=answer.tiers)
    return answer


def _window(mover: Mover, space: Space, step: Fetch, times: Times) -> Conduct[tuple[Answer, bool]]:
    """What came, and whether another holder may have more."""
    left = times.left()
    if left <= 0:
        return Told(Status.LATE, reason="the deadline passed"), False
    keys = step.keys[: max(1, EXTENTS_MAX // step.places.pieces)]
    request = framed.LeaseRequest(
        namespace=space.known.digest,
        shard=step.shard,
        chain=store.Chain(keys=keys.tobytes(), position=step.hint.position),
        hints=hints_of(step.hint),
        wait_ms=max(0, round(times.wait(left, mover.line.limits) * 1e3)),
        lease=next(mover.line.numbers),
        far=True,
        deadline_ms=round(max(left - WAIT_MARGIN_S, left / 2) * 1e3),
        avoid=mover.ways.holders.avoided(keys[0].tobytes()),
    )
    release = framed.ReleaseRequest(lease=request.lease)
    asked_at = time.monotonic()
    try:
        request.carriers.extend(map(int, (yield Awaited(mover.ways.carriers))))
        told = yield Called(store.METHOD_LEASE, request.SerializeToString())
        if told.status != Status.OK:
            # A node that has no more of these to give, or knows none of it, has not got the block.
            return (Told() if told.status in {Status.REJECTED, Status.BAD_INPUT} else failed(told)), False
        lease, sections = _sections_of(told.body, len(keys), len(space.part_bytes[step.shard]))
        if not sections:
            return Told(), False
        until = min(times.left() + time.monotonic(), asked_at + lease.lease_ms / 1e3)
        job = _Job(mover, space, step, until)
        came: list[_Came] = yield Awaited(partial(_read_all, job, sections))
        return _told(job, lease, sections, came, release)
    except NotTaken as error:
        return ended_by(error, "into"), False
    except STOPPED as error:
        return Told(reason=str(error)), False
    finally:
        mover.line.session.tell_call(store.METHOD_RELEASE, release.SerializeToString())


def _told(
    job: _Job,
    lease: framed.LeaseResponse,
    sections: list[_Section],
    came: list[_Came],
    release: framed.ReleaseRequest,
) -> tuple[Answer, bool]:
    """What the sections' reads come to: the run up to the first block that did not come. Fills the release."""
    counts = job.parts.start == 0
    blocks, whole, corrupt = 0, True, 0
    for section, one in zip(sections, came, strict=True):
        read = one.read
        good = read.blocks if whole else 0
        told = release.reads.add(blocks=good if counts else 0, bytes=good * job.wanted_bytes)
        told.carrier = one.by
        if read.corrupt is not None:
            release.corrupt.append(section.first + read.corrupt)
            corrupt = corrupt or int(whole)
        blocks += good
        whole = whole and read.blocks == section.end - section.first
    answer = Told(
        blocks=blocks,
        blocks_corrupt=corrupt,
        window_full=lease.window_full or not whole or blocks == job.most < len(job.step.keys),
        bytes=blocks * job.wanted_bytes,
        tiers=lease.tiers[:blocks],
    )
    return answer, not whole


# ---- reading --------------------------------------------------------------------------------------------------------


async def _read_all(job: _Job, sections: list[_Section]) -> list[_Came]:
    """All at once. Returns, or goes through as cancelled, when nothing touches the memory any more. Raises NotTaken,
    Poisoned.
    """
    tasks = [asyncio.ensure_future(_read(job, section)) for section in sections]
    try:
        await asyncio.wait(tasks)
    except asyncio.CancelledError:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        poisoned = next((error for error in ended if isinstance(error, Poisoned)), None)
        if poisoned is not None:
            raise poisoned from None
        raise
    for kind in (Poisoned, BaseException):
        for task in tasks:
            if isinstance(error := task.exception(), kind):
                raise error
    return [task.result() for task in tasks]


async def _read(job: _Job, section: _Section) -> _Came:
    holders, left_s = job.mover.ways.holders, max(0.001, job.until - time.monotonic())
    try:
        way = await holders.reach(section.incarnation, section.offer, min(left_s, REACH_S))
    except Unavailable as error:
        holders.avoid(section.incarnation)
        return _Came(Read(0, failure=str(error)))
    carrier = int(way.chosen.path.carrier)
    descriptor = section.descriptors.get(carrier)
    if descriptor is None:
        holders.avoid(section.incarnation)
        return _Came(Read(0, failure=f"the holder grants nothing by carrier {carrier}"))
    section.lease.descriptor = descriptor
    blocks = section.end - section.first
    deadline_s = min(job.until - time.monotonic(), READ_S + blocks * job.wanted_bytes / READ_BYTES_PER_S)
    with holders.reading(section.incarnation):
        read = await job.mover.ways.read(
            Reached(way, way),
            section.lease,
            job.step.places.of(section.first, section.end),
            job.part_bytes,
            job.parts,
            job.space.registry.kept,
            verify=job.mover.verify,
            deadline_s=max(0.001, deadline_s),
        )
    if read.corrupt is not None:
        holders.avoid(section.incarnation, job.step.keys[section.first + read.corrupt].tobytes())
    elif read.failure:
        holders.avoid(section.incarnation)
    return _Came(read, carrier)


def _sections_of(body: bytes, keys: int, parts: int) -> tuple[framed.LeaseResponse, list[_Section]]:
    """None of an answer that does not fit what was asked."""
    try:
        lease = framed.LeaseResponse.FromString(body)
    except DecodeError:
        return framed.LeaseResponse(), []
    blocks = len(lease.offsets)
    sizes = (len(lease.tiers), len(lease.tickets), len(lease.checksums), sum(one.blocks for one in lease.sections))
    good = sizes == (blocks, blocks, blocks * parts * 8, blocks) and all(at < 2**62 for at in lease.offsets)
    if not good or blocks > keys or not all(one.blocks for one in lease.sections):
        return lease, []
    sections: list[_Section] = []
    first = 0
    for one in lease.sections:
        end = first + one.blocks
        cut = framed.LeaseResponse(
            offsets=lease.offsets[first:end], checksums=lease.checksums[first * parts * 8 : end * parts * 8]
        )
        descriptors = {grant.carrier: grant.descriptor for grant in one.grants}
        sections.append(_Section(first, end, one.incarnation, one.offer, descriptors, cut))
        first = end
    return lease, sections
