"""The owner's side of local connections: it shows peers its segments, and knows who still touches them.

Rules
- Only peers of a trusted user get a descriptor: whoever maps a segment could read all of it, grant or not.
- A peer gets the grant table read-only, and a segment writable only for a grant that may write.
- A touch counts in its connection's activity page. When the connection has ended, so have its process's mappings, or
  the peer has said by closing that it is quiet: its page is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import time
from collections.abc import Callable, Collection

from transfer.grants import Grant, GrantBook, Rights
from transfer.local.channel import Channel, Frame, FrameInvalid, Kind
from transfer.native import GrantTable, MappedSegment, touches
from transfer.regions import Region
from transfer.unix_listener import MODE, MODE_FOR_OTHERS, Listener

__all__ = ["HELLO", "Owner", "for_others"]

HELLO = struct.Struct("<I16sI")  # version, incarnation, slots of the grant table
PROTOCOL_VERSION = 1
REQUEST = struct.Struct("<I")
GRANTED = struct.Struct("<IQQ")  # request, region, bytes
REGION_GONE = struct.Struct("<Q")


def for_others(trusted_uids: Collection[int]) -> bool:
    """Whether anybody is trusted whom a socket's mode of our own would keep out. Root gets everywhere."""
    return not frozenset(trusted_uids) <= {os.getuid(), 0}


class Owner:
    """Listens, answers PRESENT, keeps the shared grant table in step with the book."""

    def __init__(
        self,
        path: str,
        *,
        book: GrantBook,
        find_region: Callable[[int], Region | None],
        trusted_uids: Collection[int],
        slots: int,
        connections_max: int,
    ) -> None:
        self._book = book
        self._find_region = find_region
        self._trusted = frozenset(trusted_uids)
        self._slots = slots
        self._connections_max = connections_max
        self._connections: dict[Connection, None] = {}
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._listener = Listener(path, MODE_FOR_OTHERS if for_others(trusted_uids) else MODE)
        self._table_segment = MappedSegment.create(GrantTable.bytes(slots), name="grants")
        self.table = GrantTable(self._table_segment.address, self._table_segment.size, slots)
        self._quiet_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._loop.add_reader(self._quiet_fd, self._some_quiet)
        self._loop.add_reader(self._listener.socket.fileno(), self._accept)

    def publish(self, grant: Grant, region: Region) -> None:
        del region  # peers find it by the grant
        self.table.issue(grant.slot, grant.generation, grant.expiry_ns)

    def end(self, grant: Grant) -> None:
        self.table.end(grant.slot)

    def quiet(self, slot: int) -> bool:
        return not any(connection.touches(slot) for connection in self._connections)

    async def wait_quiet(self, slots: Collection[int], wait_s: float) -> bool:
        """Whether nobody touches by any of these slots any more, waiting up to `wait_s` for that."""
        deadline = self._loop.time() + wait_s
        left = [slot for slot in slots if not self.quiet(slot)]
        while left:
            self._changed.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._changed.wait()
            except TimeoutError:
                return False
            left = [slot for slot in left if not self.quiet(slot)]
        return True

    def region_gone(self, region: Region) -> None:
        for connection in list(self._connections):
            connection.region_gone(region)

    def close(self) -> None:
        """Call when all grants have ended and are quiet."""
        self._loop.remove_reader(self._listener.socket.fileno())
        self._listener.close()
        for connection in list(self._connections):
            connection.close()
        self._loop.remove_reader(self._quiet_fd)
        os.close(self._quiet_fd)
        self._table_segment.close()

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            sock, _ = self._listener.socket.accept()
            if len(self._connections) >= self._connections_max:
                sock.close()
                return
            connection = Connection(sock, self)
            if connection.uid not in self._trusted:
                connection.close()
                return
            self._connections[connection] = None
            connection.greet(self._table_segment, self._quiet_fd, self._book.incarnation, self._slots)

    def _some_quiet(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._quiet_fd)
        self._changed.set()

    def dropped(self, connection: Connection) -> None:
        self._connections.pop(connection, None)
        self._changed.set()

    def open_grant(self, descriptor: bytes) -> tuple[Grant, Region] | str:
        """The grant and region that a descriptor opens, or why it opens none."""
        grant = self._book.find(descriptor, time.monotonic_ns())
        if grant is None:
            return "not a live grant of this peer"
        region = self._find_region(grant.region)
        if region is None or region.segment is None:
            return "its region is gone"
        return grant, region


class Connection:
    """One peer, as the owner sees it."""

    def __init__(self, sock: socket.socket, owner: Owner) -> None:
        self._owner = owner
        self._activity: MappedSegment | None = None
        self._sent: dict[tuple[int, bool], None] = {}
        self._channel = Channel(sock, takes_fds=False, on_frame=self._frame, on_end=self._ended)
        self.uid = self._channel.peer_uid()

    def greet(self, table: MappedSegment, quiet_fd: int, incarnation: bytes, slots: int) -> None:
        self._activity = MappedSegment.create(GrantTable.activity_bytes(slots), name="activity")
        table_fd = table.read_only_fd()
        try:
            hello = HELLO.pack(PROTOCOL_VERSION, incarnation, slots)
            self._channel.send(Kind.HELLO, hello, (table_fd, self._activity.fileno(), quiet_fd))
        finally:
            os.close(table_fd)

    def touches(self, slot: int) -> int:
        activity = self._activity
        return touches(activity.address, activity.size, slot) if activity is not None else 0

    def region_gone(self, region: Region) -> None:
        sent = [key for key in self._sent if key[0] == region.id]
        for key in sent:
            del self._sent[key]
        if sent:
            self._channel.send(Kind.REGION_GONE, REGION_GONE.pack(region.id))

    def close(self) -> None:
        self._channel.close()

    def _frame(self, frame: Frame, fds: list[int]) -> None:
        if frame.kind is not Kind.PRESENT or len(frame.body) < REQUEST.size or fds:
            raise FrameInvalid("only PRESENT is expected here")
        (request,) = REQUEST.unpack_from(frame.body)
        opened = self._owner.open_grant(frame.body[REQUEST.size :])
        if isinstance(opened, str):
            self._channel.send(Kind.REFUSED, REQUEST.pack(request) + opened.encode())
            return
        grant, region = opened
        assert region.segment is not None
        writable = bool(grant.rights & Rights.WRITE)
        body = GRANTED.pack(request, region.id, region.bytes)
        if (region.id, writable) in self._sent:
            self._channel.send(Kind.GRANTED, body)
            return
        fd = os.dup(region.segment.fileno()) if writable else region.segment.read_only_fd()
        try:
            self._channel.send(Kind.GRANTED, body, (fd,))
        finally:
            os.close(fd)
        self._sent[region.id, writable] = None

    def _ended(self) -> None:
        if self._activity is not None:
            self._activity.close()
            self._activity = None
        self._owner.dropped(self)
