"""The sections of one window of another node's blocks, read from all their holders at once.

A holder that cannot be reached, or whose bytes do not come or do not verify, is avoided for a while.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from google.protobuf.message import DecodeError

from kvstore.client.conducts import Mover
from kvstore.client.landed import Read
from kvstore.client.steps import Fetch
from kvstore.client.ways import Reached
from kvstore.errors import Poisoned, Unavailable
from kvstore.wire import framed

if TYPE_CHECKING:
    from kvstore.client.space import Space

__all__ = ["Came", "Job", "Section", "read_all", "sections_of"]

REACH_S: Final = 1.0
READ_S: Final = 1.0  # of a section, and what its bytes take at READ_BYTES_PER_S: then it is slow, or gone
READ_BYTES_PER_S: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class Section:
    """Blocks [first, end) of the run. descriptors: by carrier. lease: as if it were the holder's own answer."""

    first: int
    end: int
    incarnation: int
    offer: bytes
    descriptors: Mapping[int, bytes]
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
    holders, left_s = job.mover.ways.holders, max(0.001, job.until - time.monotonic())
    try:
        way = await holders.reach(section.incarnation, section.offer, min(left_s, REACH_S))
    except Unavailable as error:
        holders.avoid(section.incarnation)
        return Came(Read(0, failure=str(error)))
    carrier = int(way.chosen.path.carrier)
    descriptor = section.descriptors.get(carrier)
    if descriptor is None:
        holders.avoid(section.incarnation)
        return Came(Read(0, failure=f"the holder grants nothing by carrier {carrier}"))
    section.lease.descriptor = descriptor
    blocks = section.end - section.first
    deadline_s = min(job.until - time.monotonic(), READ_S + blocks * job.wanted_bytes / READ_BYTES_PER_S)
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
            deadline_s=max(0.001, deadline_s),
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
        descriptors = {grant.carrier: grant.descriptor for grant in one.grants}
        sections.append(Section(first, end, one.incarnation, one.offer, descriptors, cut))
        first = end
    return lease, sections
