"""The sections of one window of another node's blocks, read from all their holders at once.

A holder that cannot be reached, or whose bytes do not come or do not verify, is avoided for a while.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from kvstore.client.conducts import Mover
from kvstore.client.holders import read_within
from kvstore.client.landed import Read
from kvstore.client.steps import Fetch
from kvstore.client.ways import Reached
from kvstore.errors import Poisoned, Unavailable
from kvstore.wire import framed

if TYPE_CHECKING:
    from kvstore.client.space import Space

__all__ = ["Came", "Job", "Section", "read_all", "sections_of"]


@dataclass(frozen=True, slots=True)
class Section:
    """Blocks [first, end) of the run. lease: as if it were the holder's own answer."""

    first: int
    end: int
    incarnation: int
    offer: bytes
    grants: Sequence[framed.LeaseGrant]
    lease: framed.LeaseResponse


@dataclass(slots=True)
class Came:
    """Of one section. by: the carrier. elapsed_s: that reading took."""

    read: Read
    by: int = 0
    elapsed_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Job:
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
    def wanted_bytes(self) -> int:
        return sum(self.part_bytes[self.parts.start : self.parts.stop])


async def read_all(job: Job, sections: list[Section]) -> list[Came]:
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


async def _read(job: Job, section: Section) -> Came:
    holders, left_s = job.mover.ways.holders, job.until - time.monotonic()
    try:
        way, carrier, descriptor = await holders.granted(section.incarnation, section.offer, section.grants, left_s)
    except Unavailable as error:
        holders.avoid(section.incarnation)
        return Came(Read(0, failure=str(error)))
    section.lease.descriptor = descriptor
    moved = (section.end - section.first) * job.wanted_bytes
    began = time.monotonic()
    with holders.reading(section.incarnation):
        read = await job.mover.ways.read(
            Reached(way, way),
            section.lease,
            job.step.places.of(section.first, section.end),
            job.part_bytes,
            job.parts,
            job.space.registry.kept,
            verify=job.mover.verify,
            deadline_s=read_within(moved, job.until - time.monotonic()),
        )
    if read.corrupt is not None:
        holders.avoid(section.incarnation, job.step.keys[section.first + read.corrupt].tobytes())
    elif read.failure:
        holders.avoid(section.incarnation)
    return Came(read, carrier, time.monotonic() - began)


def sections_of(body: bytes, keys: int, parts: int) -> tuple[framed.LeaseResponse, list[Section]]:
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
    sections: list[Section] = []
    first = 0
    for one in lease.sections:
        end = first + one.blocks
        cut = framed.LeaseResponse(
            offsets=lease.offsets[first:end], checksums=lease.checksums[first * parts * 8 : end * parts * 8]
        )
        sections.append(Section(first, end, one.incarnation, one.offer, one.grants, cut))
        first = end
    return lease, sections
