"""A simulated connection: a program that submits batches, and hardware that moves their slices.

The *wire* is the hardware. It sends a slice again until it is answered, and lands what comes back in local memory by
itself, whenever it comes. To take slices back one must flush it, which takes `flush_s`; until then bytes may land.
An endpoint that answers before that breaks the law of quiet memory, and the exam sees it (transfer.testing.faulty).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt
import xxhash

from transfer.base import LEAF_BYTES, Presented
from transfer.batch import Batch
from transfer.errors import GrantInvalid, LimitReached, PeerUnreachable, Reason
from transfer.grants import parse_descriptor
from transfer.pending import NO_DIGESTS, Pending, Report, check_deadline
from transfer.plan import Plan, plan
from transfer.regions import Region

if TYPE_CHECKING:
    from transfer.testing.simulated import SimulatedTransport

__all__ = ["SimulatedConfig", "SimulatedEndpoint", "Work", "digests_of"]

T = TypeVar("T")
Bytes = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SimulatedConfig:
    slice_bytes: int = 64 << 10
    resend_s: float = 0.006  # a slice not answered by then is sent again
    resends_max: int = 12
    flush_s: float = 0.000_5
    quiesce_max_s: float = 1.0
    transfers_max: int = 4_096


def digests_of(data: npt.NDArray[np.uint8], parts: Sequence[int]) -> tuple[npt.NDArray[np.uint64], ...]:
    """(checksums, leaves) of bytes cut into parts, by an implementation that is not ours."""
    checksums: list[int] = []
    leaves: list[int] = []
    at = 0
    for length in parts:
        of_part = [
            xxhash.xxh3_64_intdigest(data[at + leaf : min(at + leaf + LEAF_BYTES, at + length)].tobytes())
            for leaf in range(0, length, LEAF_BYTES)
        ]
        folded = b"".join(digest.to_bytes(8, "little") for digest in of_part)
        checksums.append(xxhash.xxh3_64_intdigest(folded))
        leaves += of_part
        at += length
    return np.array(checksums, dtype=np.uint64), np.array(leaves, dtype=np.uint64)


@dataclass(frozen=True, slots=True)
class Known:
    """A grant that was presented: what the wire sends along, and which region it opens."""

    presented: Presented
    descriptor: bytes
    region: int


@dataclass(slots=True, eq=False)
class Work:
    """A batch on the wire: a Reason a slice, NONE while it is out. Hardware knows memory, and nothing of regions."""

    pending: Pending
    plan: Plan
    writing: bool
    memory: dict[int, Bytes]
    states: npt.NDArray[np.uint8] = field(init=False)
    out: dict[int, int] = field(default_factory=dict)  # request number -> slice

    def __post_init__(self) -> None:
        self.states = np.zeros(len(self.plan.slices), dtype=np.uint8)

    def rows(self, index: int) -> Rows:
        _, first, end, _ = self.plan.slices[index].tolist()
        return self.plan.rows[first:end]

    def local(self, row: npt.NDArray[np.int64]) -> Bytes:
        return self.memory[int(row[0])][int(row[1]) : int(row[1]) + int(row[4])]


class SimulatedEndpoint:
    """See transfer.base.Endpoint; made by SimulatedTransport.connect."""

    def __init__(self, host: SimulatedTransport, peer: str) -> None:
        self.host = host
        self.peer = peer
        self.incarnation = b""  # of whoever last answered at this address
        self._known: dict[int, Known] = {}
        self._requests = 0
        self._working: dict[Work, None] = {}
        self._idle = asyncio.Event()
        self._closed = False

    # -- control

    async def present(
        self, descriptors: Sequence[bytes], *, deadline_s: float, fresh: bool = False
    ) -> Sequence[Presented]:
        check_deadline(deadline_s)
        for descriptor in descriptors:
            parse_descriptor(descriptor)

        def look(peer: SimulatedTransport) -> tuple[bytes, list[bool]]:
            known = [peer.book.find(descriptor, peer.now_ns()) is not None for descriptor in descriptors]
            return peer.incarnation, known

        if not fresh:
            self.incarnation, found = await self.ask(look, deadline_s)
            if not all(found):
                raise GrantInvalid("grant: not a live grant of this peer")
        return [self._show(descriptor) for descriptor in descriptors]

    def _show(self, descriptor: bytes) -> Presented:
        said = parse_descriptor(descriptor)
        presented = Presented(len(self._known) + 1, said.rights, said.ranges, said.region_bytes)
        self._known[presented.handle] = Known(presented, descriptor, said.region)
        return presented

    async def ask(self, question: Callable[[SimulatedTransport], T], deadline_s: float) -> T:
        """Has the peer's program answer. Raises PeerUnreachable past the deadline."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def settle(value: T) -> None:
            if not answer.done():
                answer.set_result(value)

        def reach() -> None:
            peer = self.host.network.transports.get(self.peer)
            if peer is not None:
                value = question(peer)
                self.host.network.send(self.peer, self.host.address, lambda: settle(value))

        def again() -> None:
            if not answer.done():
                self.host.network.send(self.host.address, self.peer, reach)
                loop.call_later(self.host.config.resend_s, again)

        again()
        try:
            return await asyncio.wait_for(answer, deadline_s)
        except TimeoutError:
            raise PeerUnreachable(f"{self.peer} did not answer within {deadline_s} s") from None

    # -- batches

    def read(self, batch: Batch, *, deadline_s: float, parts: Sequence[int] | None = None) -> Pending:
        return self._begin(batch, False, deadline_s, parts)

    def write(self, batch: Batch, *, deadline_s: float) -> Pending:
        return self._begin(batch, True, deadline_s, None)

    def _begin(self, batch: Batch, writing: bool, deadline_s: float, parts: Sequence[int] | None) -> Pending:
        if len(self._working) >= self.host.config.transfers_max:
            raise LimitReached(f"{self.host.config.transfers_max} batches are in motion", limit="transfers_max")
        regions: dict[int, Region] = {}
        for region_id in dict.fromkeys(batch.table[:, 0].tolist()):
            region = self.host.find_region(region_id)
            if region is None:
                raise ValueError(f"extents name local region {region_id}, which is not registered")
            regions[region_id] = region
        if any(handle not in self._known for handle in batch.table[:, 2].tolist()):
            raise ValueError("extents name a remote handle that was never presented here")
        refused = self.refused(batch, regions, writing)
        cut = plan(batch, slice_bytes=self.host.config.slice_bytes, parts=parts) if refused is None else None
        work: Work | None = None

        def stop(_: Reason) -> None:
            if work is not None:
                self.flush(work)

        pending = Pending(
            list(regions.values()),
            len(batch),
            deadline_s=deadline_s,
            quiesce_max_s=self.host.config.quiesce_max_s,
            stop_bytes=stop,
        )
        if cut is None:
            pending.quiet(Report(0, refused))
            return pending
        work = Work(
            pending, cut, writing, {region_id: self.host.memory_of(region) for region_id, region in regions.items()}
        )
        self._working[work] = None
        for index in range(len(cut.slices)):
            self._requests += 1
            work.out[self._requests] = index
        for number in list(work.out):
            self._post(work, number, self.host.config.resends_max)
        self._settle(work)
        return pending

    def refused(self, batch: Batch, regions: dict[int, Region], writing: bool) -> npt.NDArray[np.uint8] | None:
        """What is wrong with the batch as it stands: a Reason an extent, or None."""
        reasons = np.zeros(len(batch), dtype=np.uint8)
        if self._closed:
            reasons[:] = Reason.PEER_GONE
        for i, (local, offset, handle, remote_offset, length) in enumerate(batch.table.tolist()):
            known = self._known[handle].presented
            granted = any(
                start <= remote_offset and remote_offset + length <= start + size for start, size in known.ranges
            )
            if offset + length > regions[local].bytes or (length and not granted):
                reasons[i] = Reason.OUT_OF_BOUNDS
            elif not known.rights & (2 if writing else 1) or (not writing and not regions[local].writable):
                reasons[i] = Reason.NOT_ALLOWED
        return reasons if reasons.any() else None

    # -- the wire

    def _post(self, work: Work, number: int, resends: int) -> None:
        """Sends a slice, and again while it is out and unanswered."""
        if number not in work.out:
            return
        if resends == 0:
            self.give_up(work, number)
            return
        rows = work.rows(work.out[number])
        payload = np.concatenate([work.local(row) for row in rows]) if work.writing else None
        self.host.network.send(self.host.address, self.peer, lambda: self.serve(work, number, rows, payload))
        asyncio.get_running_loop().call_later(self.host.config.resend_s, self._post, work, number, resends - 1)

    def serve(self, work: Work, number: int, rows: Rows, payload: Bytes | None) -> None:
        """At the peer: its hardware checks the grant and touches its memory, in one step."""
        peer = self.host.network.transports.get(self.peer)
        if peer is None:
            return
        known = self._known[int(rows[0, 2])]
        reason = peer.admits(known.descriptor, rows, work.writing)
        data: Bytes | None = None
        if reason is Reason.NONE and payload is None:
            data = np.concatenate([peer.touch(known.region, row) for row in rows])
        elif reason is Reason.NONE and payload is not None and number in work.out:
            # A duplicate of what was answered or flushed is dropped by its number, as hardware does.
            at = 0
            for row in rows:
                there = peer.touch(known.region, row)
                there[:] = payload[at : at + len(there)]
                at += len(there)
        self.host.network.send(self.peer, self.host.address, lambda: self.land(work, number, reason, rows, data))

    def land(self, work: Work, number: int, reason: Reason, rows: Rows, data: Bytes | None) -> None:
        """Back here: hardware stores what belongs to a slice that is still out; anything else is dropped."""
        if number not in work.out:
            return
        if reason is not Reason.NONE:
            self._fail(work, number, reason)
            return
        if data is not None:
            self.store(work, rows, data)
        work.states[work.out.pop(number)] = Reason.LANDED
        self._settle(work)

    def store(self, work: Work, rows: Rows, data: Bytes) -> None:
        at = 0
        for row in rows:
            here = work.local(row)
            here[:] = data[at : at + len(here)]
            at += len(here)

    def give_up(self, work: Work, number: int) -> None:
        self._fail(work, number, Reason.PEER_GONE)

    def _fail(self, work: Work, number: int, reason: Reason) -> None:
        work.states[work.out.pop(number)] = reason
        self._settle(work)

    def flush(self, work: Work) -> None:
        """Takes back what is out. Only when the wire has come back is the memory quiet."""
        if not self.host.flush_hangs:
            asyncio.get_running_loop().call_later(self.host.config.flush_s, self.flushed, work)

    def flushed(self, work: Work) -> None:
        for number in list(work.out):
            work.states[work.out.pop(number)] = work.pending.stopping
        self._settle(work)

    def _settle(self, work: Work) -> None:
        """Answers when nothing is out any more."""
        if work.out or work not in self._working:
            return
        del self._working[work]
        if not self._working:
            self._idle.set()
        work.pending.quiet(self.report(work))

    def report(self, work: Work) -> Report:
        made = work.plan
        moved = made.batch.bytes
        checksums = leaves = NO_DIGESTS
        if len(made.parts):
            landed = np.concatenate([work.local(row) for row in made.rows]) if len(made.rows) else np.empty(0, np.uint8)
            checksums, leaves = digests_of(landed, made.parts.tolist())
        if (work.states == Reason.LANDED).all():
            return Report(moved, None, checksums, leaves)
        reasons = np.full(len(made.batch), Reason.LANDED, dtype=np.uint8)
        for code in np.unique(work.states).tolist():
            if code != Reason.LANDED:
                reasons[made.extents_of(work.states == code)] = code
        return Report(moved, reasons, self._of_whole_parts(work, checksums), leaves)

    def _of_whole_parts(self, work: Work, checksums: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        """0 for each part of which bytes are missing."""
        ends = np.append(work.plan.slices[1:, 0], work.plan.batch.bytes)
        part_ends = np.cumsum(work.plan.parts)
        for start, end, state in zip(work.plan.slices[:, 0], ends, work.states, strict=True):
            if state != Reason.LANDED:
                checksums[(part_ends > start) & (part_ends - work.plan.parts < end)] = 0
        return checksums

    async def close(self) -> None:
        self._closed = True
        for work in list(self._working):
            work.pending.cancel()
        while self._working:
            self._idle.clear()
            try:
                await asyncio.wait_for(self._idle.wait(), self.host.config.quiesce_max_s)
            except TimeoutError:
                return
        if self in self.host.endpoints:
            self.host.endpoints.remove(self)
