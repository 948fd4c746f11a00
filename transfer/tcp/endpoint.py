"""One peer over TCP: its lanes, the grants shown to it, the batches in motion.

Rules
- A batch's slices are dealt out over the lanes; what a lost lane had not finished goes to another. When the last one is
  gone, what is out fails with PEER_GONE.
- A lost lane is tried again, more and more seldom, for `reconnect_s`. A peer that has started anew is another peer:
  its incarnation differs, and this endpoint stays without lanes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from transfer.base import Landed
from transfer.batch import Batch, Table
from transfer.errors import GrantInvalid, PeerUnreachable, Reason, TransferError
from transfer.grants import Descriptor, parse_descriptor
from transfer.moving import AnotherPeer, MovingEndpoint, Work, turns
from transfer.native import TcpJob
from transfer.outcome import report_of
from transfer.pending import Inline, Report, answer, check_deadline
from transfer.plan import Plan
from transfer.refusals import Reasons
from transfer.tcp.shown import Access, Shown, access_of

if TYPE_CHECKING:
    from transfer.tcp.transport import TcpTransport

__all__ = ["TcpEndpoint"]


class TcpEndpoint(MovingEndpoint[TcpJob, Shown]):
    """Made by TcpTransport.connect, or by its `back`. Its incarnation is known once a lane is open."""

    def __init__(self, host: TcpTransport, at: str | None, incarnation: bytes = b"") -> None:
        """at: the address where lanes are opened; None: the peer opens them."""
        config = host.config
        super().__init__(
            host,
            incarnation,
            slice_bytes=config.slice_bytes,
            quiesce_max_s=config.quiesce_max_s,
            rails=(1,) * config.lanes,
        )
        self._host = host
        self._at = at
        self._lanes: dict[int, None] = {}  # open ones, by connection
        self._repairing: asyncio.Task[None] | None = None

    # -- lanes

    async def open(self) -> None:
        """Opens all lanes. Raises OSError, PeerUnreachable."""
        assert self._at is not None
        first, self.incarnation = await self._host.open_lane(self, self._at, b"")
        self._lanes[first] = None
        more = [self._one_more() for _ in range(self._host.config.lanes - 1)]
        for told in await asyncio.gather(*more, return_exceptions=True):
            if isinstance(told, BaseException):
                raise told

    async def _one_more(self) -> None:
        assert self._at is not None
        connection, _ = await self._host.open_lane(self, self._at, self.incarnation)
        self._lanes[connection] = None

    def lane_came(self, connection: int) -> None:
        self._lanes[connection] = None

    @property
    def lanes(self) -> int:
        """Those that are open."""
        return len(self._lanes)

    def lane_lost(self, connection: int) -> None:
        if connection not in self._lanes:
            return  # whoever opens it is told
        del self._lanes[connection]
        if self._at is not None and not self._closing and (self._repairing is None or self._repairing.done()):
            self._repairing = asyncio.get_running_loop().create_task(self._repair())

    async def _repair(self) -> None:
        while self.lanes < self._host.config.lanes and await self._repaired():
            pass

    async def _repaired(self) -> bool:
        """Whether one more lane is open. False: it was tried for long enough, or the peer is another one."""
        async for _ in turns(self._host.config.reconnect_s):
            try:
                async with asyncio.timeout(self._host.config.greeting_s):
                    await self._one_more()
            except AnotherPeer:
                return False
            except (OSError, TimeoutError, PeerUnreachable):
                continue
            return True
        return False

    # -- grants

    async def _show(self, asked: Mapping[bytes, Descriptor], deadline_s: float, fresh: bool) -> None:
        """Requests show a grant's proof themselves: the peer is asked only so that the answer comes now."""
        accesses = {one: access_of(said, one) for one, said in asked.items()}
        if not fresh:
            _check_live(await self._probe(list(accesses.values()), deadline_s))
        for one, access in accesses.items():
            presented, over = self._presented(asked[one])
            self._keep(one, Shown(presented, access, over))

    async def _probe(self, accesses: list[Access], deadline_s: float) -> Reasons:
        """A Reason each: LANDED for what the peer says is live."""
        if self._closing:
            return np.full(len(accesses), Reason.PEER_GONE, dtype=np.uint8)
        token = self._host.number()
        job = TcpJob.probe(token, accesses)
        probe = _Probe(asyncio.get_running_loop().create_future())
        self._host.submit(token, probe, job, self.peer)
        try:
            async with asyncio.timeout(deadline_s):
                await asyncio.shield(probe.done)
        except TimeoutError:
            self._host.stop(token, Reason.LATE)
            await asyncio.shield(probe.done)
        return job.states()

    # -- bytes

    def read_now(self, batch: Batch, *, deadline_s: float, parts: Sequence[int] | None = None) -> Landed:
        """`read` in the calling thread, without the event loop; the GIL is given back. For few bytes, where waking
        other threads would take longer than moving them.
        """
        check_deadline(deadline_s)
        deadline_ns = time.monotonic_ns() + int(deadline_s * 1e9)
        regions, refused = self._resolve(batch, False)
        moving = Inline()
        for region in regions.values():
            region.enter(moving)
        try:
            if refused is not None:
                told = answer(Report(0, refused))
            else:
                made = self._plan(batch, parts)
                told = self._ran(self._job(self._host.number(), self._work(False, regions, made)), made, deadline_ns)
        finally:
            for region in regions.values():
                region.leave(moving)
        if isinstance(told, TransferError):
            raise told
        return told

    def read_at_once(
        self,
        descriptor: bytes,
        memory: Sequence[tuple[int, int]],
        table: Table,
        *,
        deadline_s: float,
        parts: Sequence[int] | None = None,
    ) -> Landed:
        """`read_now` by a grant that the caller has just been given, into memory that he holds till this returns:
        nothing is registered or presented. Of any thread. memory: (address, bytes), which the local regions of a table
        number from 0; its remote ones are not looked at. Raises GrantInvalid, TransferError.
        """
        check_deadline(deadline_s)
        deadline_ns = time.monotonic_ns() + int(deadline_s * 1e9)
        said = parse_descriptor(descriptor)
        if said.incarnation != self.incarnation:
            raise GrantInvalid("grant: of another peer, or of an earlier life of this one")
        batch = Batch(table)
        if self._closing:
            told = answer(Report(0, np.full(len(batch), Reason.PEER_GONE, dtype=np.uint8)))
        else:
            made = self._plan(batch, parts)
            spans = [(address, length, True) for address, length in memory]
            access = access_of(said, descriptor)
            job = TcpJob(self._host.number(), False, spans, [access], made.rows, made.slices, made.parts)
            told = self._ran(job, made, deadline_ns)
        if isinstance(told, TransferError):
            raise told
        return told

    def _ran(self, job: TcpJob, made: Plan, deadline_ns: int) -> Landed | TransferError:
        """In the calling thread."""
        self._host.engine.run(job, self.peer, deadline_ns)
        return answer(report_of(job, made))

    def _job(self, token: int, work: Work[Shown]) -> TcpJob:
        accesses = [shown.access for shown in work.shown]
        return TcpJob(token, work.writing, work.spans, accesses, work.rows, work.plan.slices, work.plan.parts)

    async def _end(self) -> None:
        try:
            if self._repairing is not None:
                self._repairing.cancel()
                await asyncio.wait([self._repairing])  # a cancellation of whoever waits is his, and goes on
        finally:
            self._host.endpoint_closed(self)


def _check_live(states: Reasons) -> None:
    """Raises PeerUnreachable, GrantInvalid for the first that is not."""
    for state in states.tolist():
        if state in (Reason.PEER_GONE, Reason.LATE):
            gone = "the connection has ended" if state == Reason.PEER_GONE else "the peer did not answer in time"
            raise PeerUnreachable(gone)
        if state != Reason.LANDED:
            raise GrantInvalid(f"grant: {Reason(state).name.lower()}, or never one of this peer's")


class _Probe:
    def __init__(self, done: asyncio.Future[None]) -> None:
        self.done = done

    def finished(self) -> None:
        if not self.done.done():
            self.done.set_result(None)
