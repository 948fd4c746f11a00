"""The reader's side of a local connection: presents grants, maps segments, and has threads copy.

Rules
- Every copy looks at its grant in the owner's shared table before each slice, natively; so a revocation in the owner's
  process stops a batch here within one slice.
- A mapping lives as long as anything that uses it: a handle, a batch in motion, a view.
- The connection stays open while anything is in motion: its end tells the owner that this side is quiet.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from transfer.base import Landed, Presented
from transfer.batch import Batch, dense
from transfer.errors import GrantInvalid, LimitReached, PeerUnreachable, Reason, TransferError
from transfer.grants import Descriptor, Rights, parse_descriptor
from transfer.local.channel import Channel, Frame, FrameInvalid, Kind
from transfer.local.motion import Motion, Resolved, Shown
from transfer.local.served import GRANTED, HELLO, PROTOCOL_VERSION, REGION_GONE, REQUEST
from transfer.local.view import LocalView
from transfer.native import MappedSegment, Peer, RemoteSpan, check_extents
from transfer.outcome import report_of
from transfer.pending import Inline, Pending, Report, answer, check_deadline
from transfer.plan import plan
from transfer.regions import Region

__all__ = ["Host", "LocalEndpoint"]

PRESENTED_MAX = 65_536


class Host(Protocol):
    """What an endpoint needs of its transport."""

    @property
    def slice_bytes(self) -> int: ...

    @property
    def rails(self) -> Sequence[int]: ...

    @property
    def quiesce_max_s(self) -> float: ...

    def find_region(self, region_id: int) -> Region | None: ...

    def submit(self, motion: Motion) -> None:
        """Has the motion's job copied, then calls its `back`. Raises LimitReached."""
        ...

    def stop(self, motion: Motion, reason: Reason) -> None: ...

    def endpoint_closed(self, endpoint: LocalEndpoint) -> None: ...


_ChannelFactory = Callable[[Callable[[Frame, list[int]], None], Callable[[], None]], Channel]


class LocalEndpoint:
    """See transfer.base.Endpoint; made by LocalTransport.connect."""

    def __init__(self, channel_of: _ChannelFactory, host: Host) -> None:
        self._host = host
        self._shown: dict[int, Shown] = {}
        self._handles: dict[bytes, int] = {}
        self._next_handle = 1
        self._segments: dict[tuple[int, bool], MappedSegment] = {}
        self._requests: dict[int, tuple[asyncio.Future[Presented], Descriptor, bytes]] = {}
        self._next_request = 1
        self._moving: dict[Motion, None] = {}
        self._views: dict[LocalView, None] = {}
        self._idle = asyncio.Event()
        self._hello: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._peer: Peer | None = None
        self._pages: tuple[MappedSegment, ...] = ()
        self._quiet_fd = -1
        self.incarnation = b""  # until the peer has greeted
        self._closing = False
        self._channel = channel_of(self._frame, self._ended)

    # -- control: frames to and from the owner

    async def greeted(self, deadline_s: float) -> None:
        """Waits for the owner's first frame. Raises PeerUnreachable."""
        try:
            async with asyncio.timeout(deadline_s):
                await asyncio.shield(self._hello)
        except TimeoutError:
            raise PeerUnreachable(f"the peer did not greet within {deadline_s} s") from None

    def peer_uid(self) -> int:
        return self._channel.peer_uid()

    async def present(
        self,
        descriptors: Sequence[bytes],
        *,
        deadline_s: float,
        fresh: bool = False,  # noqa: ARG002 - a grant's segment comes with the answer: every one is asked about
    ) -> Sequence[Presented]:
        check_deadline(deadline_s)
        waiting = [self._ask(bytes(descriptor)) for descriptor in descriptors]
        try:
            async with asyncio.timeout(deadline_s):
                return await asyncio.gather(*waiting)
        except TimeoutError:
            raise PeerUnreachable(f"the peer did not answer within {deadline_s} s") from None

    def _ask(self, descriptor: bytes) -> asyncio.Future[Presented]:
        future: asyncio.Future[Presented] = asyncio.get_running_loop().create_future()
        shown = self._shown.get(self._handles.get(descriptor, 0))
        if shown is not None:
            future.set_result(shown.presented)
            return future
        parsed = parse_descriptor(descriptor)
        if parsed.incarnation != self.incarnation:
            raise GrantInvalid("grant: of another peer, or of an earlier life of this one")
        if self._closing or not self._channel.is_open:
            raise PeerUnreachable("the connection has ended")
        self._make_room()
        request = self._next_request
        self._next_request = request % 0xFFFF_FFFF + 1
        self._requests[request] = (future, parsed, descriptor)
        future.add_done_callback(lambda _: self._requests.pop(request, None))
        self._channel.send(Kind.PRESENT, REQUEST.pack(request) + descriptor)
        return future

    def _make_room(self) -> None:
        """Drops grants that have ended once there are many. Raises LimitReached when that does not help."""
        if len(self._shown) + len(self._requests) < PRESENTED_MAX:
            return
        for handle, shown in list(self._shown.items()):
            if shown.span.enter() == Reason.NONE:
                shown.span.leave()
            else:
                del self._shown[handle]
        self._handles = {kept: handle for kept, handle in self._handles.items() if handle in self._shown}
        if len(self._shown) + len(self._requests) >= PRESENTED_MAX:
            raise LimitReached(f"{PRESENTED_MAX} grants are presented on one connection", limit="presented_max")

    def _frame(self, frame: Frame, fds: list[int]) -> None:
        try:
            if frame.kind is Kind.HELLO:
                self._greeting(frame.body, fds)
            elif frame.kind is Kind.GRANTED and len(frame.body) == GRANTED.size:
                self._granted(frame.body, fds)
            elif frame.kind is Kind.REFUSED and len(frame.body) >= REQUEST.size:
                (request,) = REQUEST.unpack_from(frame.body)
                waiting = self._requests.get(request)
                if waiting is not None and not waiting[0].done():
                    words = frame.body[REQUEST.size :].decode(errors="replace")
                    waiting[0].set_exception(GrantInvalid(f"grant: {words}"))
            elif frame.kind is Kind.REGION_GONE and len(frame.body) == REGION_GONE.size:
                self._region_gone(int(REGION_GONE.unpack(frame.body)[0]))
            else:
                raise FrameInvalid(f"{frame.kind.name} of {len(frame.body)} bytes")
        except (ValueError, OSError) as error:
            raise FrameInvalid(str(error)) from error
        finally:
            for fd in fds:
                os.close(fd)

    def _greeting(self, body: bytes, fds: list[int]) -> None:
        if len(body) != HELLO.size or len(fds) != 3 or self._peer is not None:
            raise FrameInvalid("greeting")
        version, self.incarnation, _slots = HELLO.unpack(body)
        if version != PROTOCOL_VERSION:
            self._hello.set_exception(
                PeerUnreachable(f"the peer speaks version {version}, this side {PROTOCOL_VERSION}")
            )
            raise FrameInvalid("version")
        table = MappedSegment(fds[0], os.fstat(fds[0]).st_size, writable=False)
        activity = MappedSegment(fds[1], os.fstat(fds[1]).st_size, writable=True)
        self._pages = (table, activity)
        self._quiet_fd = os.dup(fds[2])
        self._peer = Peer(table.address, table.size, activity.address, activity.size, self._quiet_fd)
        self._hello.set_result(None)

    def _granted(self, body: bytes, fds: list[int]) -> None:
        request, region, size = GRANTED.unpack(body)
        future, parsed, descriptor = self._requests.get(request, (None, None, b""))
        assert self._peer is not None
        key_of = self._segments_key(region, parsed, fds)
        if fds:
            self._segments[key_of] = MappedSegment(fds[0], size, writable=key_of[1])
        if future is None or parsed is None or future.done():
            return  # whoever asked has given up
        segment = self._segments.get(key_of)
        if segment is None or segment.size != size or size != parsed.region_bytes or region != parsed.region:
            raise FrameInvalid("a grant without its segment")
        span = RemoteSpan(
            self._peer,
            parsed.slot,
            parsed.generation,
            segment.address,
            segment.size,
            bool(parsed.rights & Rights.READ),
            bool(parsed.rights & Rights.WRITE),
            np.array(parsed.ranges, dtype=np.int64).reshape(-1, 2),
        )
        presented = Presented(self._next_handle, parsed.rights, parsed.ranges, size)
        self._next_handle += 1
        self._shown[presented.handle] = Shown(presented, span, segment, region)
        self._handles[descriptor] = presented.handle
        future.set_result(presented)

    def _segments_key(self, region: int, parsed: Descriptor | None, fds: list[int]) -> tuple[int, bool]:
        """Which mapping a grant uses. A request that was given up no longer says, but its descriptor does."""
        if parsed is not None:
            return region, bool(parsed.rights & Rights.WRITE)
        return region, bool(fds) and fcntl.fcntl(fds[0], fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR

    def _region_gone(self, region: int) -> None:
        gone = [handle for handle, shown in self._shown.items() if shown.region == region]
        for handle in gone:
            del self._shown[handle]
        self._handles = {kept: handle for kept, handle in self._handles.items() if handle in self._shown}
        for key in [key for key in self._segments if key[0] == region]:
            del self._segments[key]  # unmapped with the last user

    def _ended(self) -> None:
        if self._peer is not None:
            self._peer.set_gone()
        gone = PeerUnreachable("the connection has ended")
        if not self._hello.done():
            self._hello.set_exception(gone)
            self._hello.exception()
        for future, _, _ in list(self._requests.values()):
            if not future.done():
                future.set_exception(gone)

    # -- bytes

    def read(self, batch: Batch, *, deadline_s: float, parts: Sequence[int] | None = None) -> Pending:
        return self._begin(batch, False, deadline_s, parts)

    def write(self, batch: Batch, *, deadline_s: float) -> Pending:
        return self._begin(batch, True, deadline_s, None)

    def copy_now(
        self, batch: Batch, *, deadline_s: float, parts: Sequence[int] | None = None, writing: bool = False
    ) -> Landed:
        """`read` or `write` in the calling thread, without the event loop; the GIL is given back while bytes move."""
        check_deadline(deadline_s)
        deadline_ns = time.monotonic_ns() + int(deadline_s * 1e9)
        regions, made = self._resolve(batch, writing)
        moving = Inline()
        for region in regions:
            region.enter(moving)
        try:
            if isinstance(made, Report):
                told = answer(made)
            else:
                cut = plan(made.batch, slice_bytes=self._host.slice_bytes, parts=parts)
                job = made.job(cut, deadline_ns)
                job.run()
                told = answer(report_of(job, cut))
        finally:
            for region in regions:
                region.leave(moving)
        if isinstance(told, TransferError):
            raise told
        return told

    def view(self, handle: int, offset: int, length: int) -> LocalView:
        """Zero-copy, read-only. Raises GrantInvalid where the grant does not cover it or has ended."""
        shown = self._shown.get(handle)
        if shown is None:
            raise GrantInvalid("grant: revoked, or never presented here")
        reason = Reason(shown.span.covers(offset, length, False))
        if reason is not Reason.NONE:
            raise GrantInvalid(f"grant: {reason.name.lower()}")
        view = LocalView(shown, offset, length, lambda closed: self._views.pop(closed, None))
        self._views[view] = None
        return view

    def _begin(self, batch: Batch, writing: bool, deadline_s: float, parts: Sequence[int] | None) -> Pending:
        check_deadline(deadline_s)
        deadline_ns = time.monotonic_ns() + int(deadline_s * 1e9)
        regions, made = self._resolve(batch, writing)
        cut = None
        if not isinstance(made, Report):
            cut = plan(made.batch, slice_bytes=self._host.slice_bytes, rails=self._host.rails, parts=parts)
        motion: Motion | None = None

        def stop(reason: Reason) -> None:
            if motion is not None:
                self._host.stop(motion, reason)

        pending = Pending(
            regions, len(batch), deadline_s=deadline_s, quiesce_max_s=self._host.quiesce_max_s, stop_bytes=stop
        )
        if cut is None or isinstance(made, Report):
            assert isinstance(made, Report)
            pending.quiet(made)
            return pending
        try:
            motion = Motion(self, pending, made.job(cut, deadline_ns), cut, made.kept)
            self._host.submit(motion)
        except BaseException:
            pending.quiet(Report(0, np.zeros(len(batch), dtype=np.uint8)))
            raise
        self._moving[motion] = None
        return pending

    def _resolve(self, batch: Batch, writing: bool) -> tuple[list[Region], Report | Resolved]:
        """The local regions of a batch, and its spans; or a report where extents are refused at once.
        Raises ValueError for a local region that is not registered.
        """
        table = batch.table
        local_ids, locals_at = dense(table[:, 0])
        remote_ids, remotes_at = dense(table[:, 2])
        regions: list[Region] = []
        for region_id in local_ids:
            region = self._host.find_region(region_id)
            if region is None:
                raise ValueError(f"extents name local region {region_id}, which is not registered")
            regions.append(region)
        shown = [self._shown.get(handle) for handle in remote_ids]
        if remote_ids and remote_ids[-1] >= self._next_handle:
            raise ValueError("extents name a remote handle that was never presented here")
        if not self._channel.is_open or self._closing:
            return regions, Report(0, np.full(len(batch), Reason.PEER_GONE, dtype=np.uint8))
        if None in shown:
            codes = np.array([Reason.REVOKED if entry is None else Reason.NONE for entry in shown], dtype=np.uint8)
            return regions, Report(0, np.broadcast_to(codes[remotes_at], len(batch)))
        mapped = batch.renamed(locals_at, remotes_at)
        kept = tuple(entry for entry in shown if entry is not None)
        spans = [(region.address, region.bytes, region.writable) for region in regions]
        remotes = [entry.span for entry in kept]
        refused = check_extents(writing, spans, remotes, mapped.table)
        if refused is not None:
            return regions, Report(0, refused)
        return regions, Resolved(mapped, writing, spans, remotes, kept)

    def settled(self, motion: Motion) -> None:
        self._moving.pop(motion, None)
        if not self._moving:
            self._idle.set()

    async def close(self) -> None:
        """Cancels what is in motion and waits. Where it does not come back within quiesce_max_s the connection stays,
        since its end would tell the owner that this side is quiet. Raises BufferError, changing nothing, with open
        views.
        """
        if self._views:
            raise BufferError(f"{len(self._views)} views are open")
        self._closing = True
        for motion in list(self._moving):
            motion.pending.cancel()
        while self._moving:
            self._idle.clear()
            try:
                async with asyncio.timeout(self._host.quiesce_max_s):
                    await self._idle.wait()
            except TimeoutError:
                return
        self._shown.clear()
        self._handles.clear()
        self._segments.clear()
        self._channel.close()
        self._host.endpoint_closed(self)
        self._peer = None
        if self._quiet_fd >= 0:
            os.close(self._quiet_fd)
            self._quiet_fd = -1
        for page in self._pages:
            with contextlib.suppress(BufferError):
                page.close()
        self._pages = ()
