"""One peer over RDMA: a connection, its lanes, the grants shown over it, the batches in motion.

Rules
- A batch's slices are taken by whichever lane has room; what a broken lane had not finished goes to another at once.
- When the connection ends, what is in motion fails with PEER_GONE, and so does what begins before there is another. It
  is sought for `reconnect_s`, more and more seldom; what was shown is shown again over it, under the same handles.
- A peer that has started anew is another peer: its incarnation differs, and this endpoint stays without a connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from transfer.base import Presented
from transfer.errors import GrantInvalid, LimitReached, PeerUnreachable, Reason
from transfer.grants import Descriptor, parse_descriptor
from transfer.moving import AnotherPeer, MovingEndpoint, Work, turns
from transfer.native import RdmaJob
from transfer.rails import RailState
from transfer.rdma.frames import Ended, FrameInvalid, Present, Shown
from transfer.rdma.lanes import Lanes
from transfer.rdma.link import Link
from transfer.rdma.shown import ShownGrant, windows_of

if TYPE_CHECKING:
    from transfer.rdma.transport import RdmaTransport

__all__ = ["RdmaEndpoint"]


class RdmaEndpoint(MovingEndpoint[RdmaJob, ShownGrant]):
    """Made by RdmaTransport.connect, or by its `back`. next_link: makes a connection to the peer, or waits for one; it
    is the endpoint's to close where it `closes_links`. The incarnation is known once there is one.
    """

    def __init__(
        self,
        host: RdmaTransport,
        next_link: Callable[[], Awaitable[Link]],
        incarnation: bytes = b"",
        *,
        closes_links: bool,
    ) -> None:
        config = host.config
        super().__init__(host, incarnation, slice_bytes=config.slice_bytes, quiesce_max_s=config.quiesce_max_s)
        self._host = host
        self._next_link = next_link
        self._closes_links = closes_links
        self._link: Link | None = None
        self._linked = asyncio.Event()
        self._lanes: Lanes | None = None
        self._reachable = False
        self._seeking: asyncio.Task[None] | None = None
        self._grants: dict[tuple[int, int], tuple[int, bytes]] = {}  # (access, descriptor), by slot and generation
        self._accesses: dict[int, tuple[int, int]] = {}

    # -- connections

    @property
    def lanes(self) -> Lanes | None:
        """Those of the connection in use, or of the last one."""
        return self._lanes

    @property
    def rails(self) -> list[RailState]:
        """In the order of the devices."""
        return self._lanes.states() if self._lanes is not None else []

    async def open(self) -> None:
        """Takes the next connection. Raises OSError, FrameInvalid, PeerUnreachable, LimitReached."""
        await self._leave_lanes()
        link = await self._next_link()
        try:
            if self.incarnation not in (b"", link.theirs.incarnation):
                raise AnotherPeer("the peer has started anew")
            await self._join(link)
        except BaseException:
            if self._closes_links:
                await link.close()
            raise

    async def _join(self, link: Link) -> None:
        lanes = link.lanes = Lanes(self._host, link.control, link.theirs)
        link.asker = self
        try:
            self._host.check_completions(self, lanes)
            await lanes.open()
            again = await self._shown_again(link)
            if not link.open:
                raise PeerUnreachable("the connection has ended")
        except BaseException:
            link.lanes = link.asker = None
            self._host.parted(await lanes.close(self._quiesce_max_s), lanes)
            raise
        self.incarnation = link.theirs.incarnation
        self.peer, self._link, self._lanes, self._reachable = lanes.peer, link, lanes, True
        for descriptor, shown in again.items():
            if descriptor in self._handles:  # it may have ended meanwhile
                self._keep_access(descriptor, shown)
        self._linked.set()

    async def reachable(self) -> None:
        """Waits for a connection."""
        await self._linked.wait()

    def link_lost(self, link: Link) -> None:
        if link is not self._link:
            return  # whoever joins over it is told
        self._link, self._reachable = None, False
        self._linked.clear()
        self.look_again()

    def look_again(self) -> None:
        """Seeks a connection, if there is none and nobody does."""
        if self._link is None and not self._closing and (self._seeking is None or self._seeking.done()):
            self._seeking = asyncio.get_running_loop().create_task(self._seek())

    async def _seek(self) -> None:
        async for _ in turns(self._host.config.reconnect_s):
            try:
                async with asyncio.timeout(self._host.config.greeting_s):
                    await self.open()
            except AnotherPeer:
                return
            except (OSError, TimeoutError, FrameInvalid, PeerUnreachable, LimitReached):
                continue
            return

    async def _leave_lanes(self) -> None:
        """Of a connection that has ended."""
        lanes = self._lanes
        if lanes is not None:
            whole = await lanes.close(self._quiesce_max_s)
            self._lanes = None
            self._host.parted(whole, lanes)

    # -- grants

    async def _show(
        self,
        asked: Mapping[bytes, Descriptor],
        deadline_s: float,
        fresh: bool,  # noqa: ARG002 - the peer's devices must know of a grant before anything moves by it
    ) -> None:
        link = self._link
        if link is None:
            raise PeerUnreachable("the connection has ended")
        answers = await self._presented_to(link, asked, deadline_s)
        if link is not self._link:
            raise PeerUnreachable("the connection has ended")  # and with it what these keys open
        for (one, said), answer in zip(asked.items(), answers, strict=True):
            if isinstance(answer, Exception):
                raise answer
            if answer.reason is Reason.LATE:
                raise LimitReached("the peer registers no more memory for us", limit="mrs_max")
            if answer.reason is not Reason.LANDED or len(answer.keys) != len(said.ranges):
                raise GrantInvalid(f"grant: {answer.reason.name.lower()}, or never one of this peer's")
            presented, over = self._presented(said)
            self._keep_access(one, self._grant(presented, over, answer))

    async def _presented_to(
        self, link: Link, descriptors: Iterable[bytes], deadline_s: float
    ) -> list[Shown | PeerUnreachable]:
        async def ask(descriptor: bytes) -> Shown | PeerUnreachable:
            try:
                told = await link.control.ask(Present(descriptor), deadline_s)
            except PeerUnreachable as error:
                return error
            return told if isinstance(told, Shown) else PeerUnreachable("the peer broke the protocol")

        return await asyncio.gather(*map(ask, descriptors))

    def _grant(self, presented: Presented, over: float, told: Shown) -> ShownGrant:
        starts = np.array([start for start, _ in presented.ranges], dtype=np.int64)
        return ShownGrant(presented, over, self._host.number(), told.base, starts, told.keys)

    async def _shown_again(self, link: Link) -> dict[bytes, ShownGrant]:
        """What is kept, as the connection's peer now knows it. What the peer does not show any more has ended."""
        now = asyncio.get_running_loop().time()
        kept = {one: shown for one, handle in self._handles.items() if now < (shown := self._shown[handle]).over}
        again: dict[bytes, ShownGrant] = {}
        answers = await self._presented_to(link, kept, self._host.config.greeting_s)
        for (one, shown), told in zip(kept.items(), answers, strict=True):
            if isinstance(told, Exception):
                raise told
            if told.reason is Reason.LANDED and len(told.keys) == len(shown.starts):
                again[one] = self._grant(shown.presented, shown.over, told)
        for one in set(self._handles) - set(again):
            del self._shown[self._handles.pop(one)]
        return again

    def _keep_access(self, descriptor: bytes, shown: ShownGrant) -> None:
        self._keep(descriptor, shown)
        said = parse_descriptor(descriptor)
        self._grants[said.slot, said.generation] = shown.access, descriptor
        self._accesses[shown.access] = said.slot, said.generation

    def grant_ended(self, told: Ended) -> None:
        access, _ = self._grants.get((told.slot, told.generation), (0, b""))
        if access:
            self._host.engine.end_access(self.peer, access, told.reason)
            self.access_ended(access)

    def access_ended(self, access: int) -> bool:
        """False: not one of this endpoint's."""
        known = self._accesses.pop(access, None)
        if known is None:
            return False
        _, descriptor = self._grants.pop(known)
        self._shown.pop(self._handles.pop(descriptor, 0), None)
        return True

    # -- bytes

    def _job(self, token: int, work: Work[ShownGrant]) -> RdmaJob:
        if len(work.plan.parts) and any(region.device is not None for region in work.regions):
            raise ValueError("parts: bytes that land on a device are not hashed here; see transfer.devices.staged")
        windows, of_rows = windows_of(work.rows, work.shown)
        locals_ = [self._host.local_of(region.id) for region in work.regions]
        keys = [[one.local_key for one in local.registered] for local in locals_]
        near = [self._host.near_mask(local) for local in locals_]
        return RdmaJob(
            token, work.writing, work.spans, keys, near, windows, of_rows, work.rows, work.plan.slices, work.plan.parts
        )

    async def _end(self) -> None:
        if self._seeking is not None:
            self._seeking.cancel()
            await asyncio.wait([self._seeking])
        link, self._link = self._link, None
        await self._leave_lanes()
        if link is not None:
            link.lanes = link.asker = None
            if self._closes_links:
                await link.close()
        self._host.endpoint_closed(self)
