"""The owner's side: peers that ask over a connection, and how far their devices may touch our memory.

Rules
- Each connection has protection domains of its own: keys that one peer was told open nothing to another.
- A grant's ranges are registered when it is presented, one memory region a range and device, with exactly its bytes and
  rights. A device checks every byte: there is no rounding to pages, and nothing between ranges is open.
- A grant ends by deregistering: when that has returned, its keys are dead, and no touch by them is under way. So a
  revocation is exact. Expiry does the same by a timer, which runs while this process does.
- A connection's end ends all that it was shown.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from transfer.errors import LimitReached, Reason
from transfer.grants import Grant, Rights
from transfer.moving import turns
from transfer.rdma.control import Control
from transfer.rdma.direct import source_of
from transfer.rdma.frames import LANES_MAX, RAILS_MAX, Ended, Hello, Join, Joined, Present, Shown
from transfer.rdma.lanes import NO_ROOM, connect_pair
from transfer.rdma.registrar import Asked, NotLetGo, Registered
from transfer.rdma.trial import ASKED, Page
from transfer.rdma.verbs import Domain, QueuePair, RdmaUnavailable
from transfer.regions import Region

if TYPE_CHECKING:
    from transfer.rdma.transport import RdmaTransport

__all__ = ["Guest", "Lent", "base_of"]

_HUGE_PAGE = 2 << 20
_SERIALS = 1 << 19
_SERIAL_SHIFT = 44


def base_of(serial: int, address: int) -> int:
    """Where a grant's offsets count from, in the devices' addresses: another place for each grant, so that a key which
    a device uses again opens nothing to who knows it from before; congruent to the memory's address, as devices ask.
    """
    return (1 + serial % (_SERIALS - 1)) << _SERIAL_SHIFT | address % _HUGE_PAGE


@dataclass(slots=True, eq=False)
class _Opened:
    """A grant as one connection's devices know it."""

    guest: Guest
    grant: Grant
    base: int
    registered: list[Registered] = field(default_factory=list)
    ready: asyncio.Future[None] | None = None  # None once it is
    ended: Reason = Reason.NONE
    expiry: asyncio.TimerHandle | None = None


class Lent:
    """Where this transport's grants are open: transfer.lending.Ground."""

    def __init__(self, host: RdmaTransport) -> None:
        self._host = host
        self._regions: dict[int, Region] = {}  # by slot
        self._opened: dict[int, list[_Opened]] = {}  # by slot
        self._closing: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._serials = itertools.count()
        self.pairs = 0  # queue pairs that guests have

    # -- Ground

    def publish(self, grant: Grant, region: Region) -> None:
        self._regions[grant.slot] = region

    def end(self, grant: Grant) -> None:
        self._end(grant, Reason.REVOKED)

    def quiet(self, slot: int) -> bool:
        return not self._opened.get(slot)

    async def wait_quiet(self, slots: Collection[int], wait_s: float) -> bool:
        deadline = asyncio.get_running_loop().time() + wait_s
        while not all(self.quiet(slot) for slot in slots):
            self._changed.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._changed.wait()
            except TimeoutError:
                return False
        return True

    def region_gone(self, region: Region) -> None:
        """Peers were told of its grants one by one."""

    # -- what guests use

    async def open(self, guest: Guest, grant: Grant) -> Shown:
        """Registers the grant for the guest. Raises LimitReached."""
        for one in self._opened.get(grant.slot, ()):
            if one.guest is guest and one.grant == grant:
                return self._shown(one)
        region = self._regions[grant.slot]
        opened = _Opened(guest, grant, self.new_base(region.pinned_at))
        self._opened.setdefault(grant.slot, []).append(opened)
        loop = asyncio.get_running_loop()
        opened.ready = loop.create_future()
        try:
            source = source_of(region, self._host.cuda)
            opened.registered = await self._host.registrar.acquire(self._asked(opened, region), source)
        except BaseException:
            self._drop(opened)
            raise
        finally:
            opened.ready.set_result(None)
            opened.ready = None
        if opened.ended is Reason.NONE:
            left_s = (grant.expiry_ns - time.monotonic_ns()) / 1e9
            opened.expiry = loop.call_later(max(0.0, left_s), self._end, grant, Reason.EXPIRED)
        return self._shown(opened)

    def new_base(self, address: int) -> int:
        return base_of(next(self._serials), address)

    def _asked(self, opened: _Opened, region: Region) -> list[Asked]:
        rights, address = opened.grant.rights, region.pinned_at
        return [
            Asked(
                domain.address,
                address + offset,
                length,
                opened.base + offset,
                peer_reads=bool(rights & Rights.READ),
                peer_writes=bool(rights & Rights.WRITE),
            )
            for offset, length in opened.grant.ranges
            for domain in opened.guest.domains
        ]

    def _shown(self, opened: _Opened) -> Shown:
        if opened.ended is not Reason.NONE:
            return Shown(opened.ended)
        devices = len(opened.guest.domains)
        keys = [one.remote_key for one in opened.registered]
        rows = tuple(tuple(keys[i : i + devices]) for i in range(0, len(keys), devices))
        return Shown(Reason.LANDED, opened.base, rows)

    async def leave(self, guest: Guest) -> None:
        """Closes all that a guest was shown."""
        for opened in [one for kept in self._opened.values() for one in kept if one.guest is guest]:
            self._close(opened, Reason.REVOKED)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._host.config.quiesce_max_s):
                while any(one.guest is guest for kept in self._opened.values() for one in kept):
                    self._changed.clear()
                    await self._changed.wait()

    # -- ends

    def _end(self, grant: Grant, reason: Reason) -> None:
        for opened in list(self._opened.get(grant.slot, ())):
            if opened.grant == grant:
                self._close(opened, reason)

    def _close(self, opened: _Opened, reason: Reason) -> None:
        if opened.ended is not Reason.NONE:
            return
        opened.ended = reason
        if opened.expiry is not None:
            opened.expiry.cancel()
        task = asyncio.get_running_loop().create_task(self._deregister(opened))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        opened.guest.control.tell(Ended(opened.grant.slot, opened.grant.generation, reason))

    async def _deregister(self, opened: _Opened) -> None:
        if opened.ready is not None:
            await opened.ready
        if await self._let_go(opened) or await self._let_go_later(opened):
            self._drop(opened)  # else it never becomes quiet, and whoever waits for that is told

    async def _let_go_later(self, opened: _Opened) -> bool:
        """What a device keeps it may keep for a while only: for as long as anybody waits for it."""
        async for _ in turns(self._host.config.quiesce_max_s):
            if await self._let_go(opened):
                return True
        return False

    async def _let_go(self, opened: _Opened) -> bool:
        try:
            await self._host.registrar.release(opened.registered)
        except NotLetGo as error:
            opened.registered = error.left
            return False
        return True

    def _drop(self, opened: _Opened) -> None:
        kept = self._opened.get(opened.grant.slot, [])
        if opened in kept:
            kept.remove(opened)
        if not kept:
            self._opened.pop(opened.grant.slot, None)
        self._changed.set()


class Guest:
    """A peer that may ask for our memory, over one connection. Has nothing of the devices before its first question."""

    def __init__(self, host: RdmaTransport, control: Control) -> None:
        self._host = host
        self.control = control
        self.domains: list[Domain] = []
        self._pairs: dict[int, QueuePair] = {}
        self._page = Page(host)

    async def answer(self, question: Join | Present, theirs: Hello) -> Joined | Shown:
        """Raises RdmaUnavailable, OSError."""
        if not self.domains:
            self.domains = await self._host.in_thread(lambda: [Domain(one) for one in self._host.devices])
        match question:
            case Join():
                return await self._joined(question, theirs)
            case Present() if question == ASKED:
                return await self._page.shown(self.domains, self._host.lent.new_base(self._page.address))
            case Present(descriptor):
                return await self._shown(descriptor)

    async def _shown(self, descriptor: bytes) -> Shown:
        grant = self._host.book.find(descriptor, time.monotonic_ns())
        if grant is None:
            return Shown(Reason.REVOKED)
        try:
            return await self._host.lent.open(self, grant)
        except (LimitReached, ValueError):
            return Shown(Reason.LATE)

    async def _joined(self, asked: Join, theirs: Hello) -> Joined:
        config, devices = self._host.config, self._host.devices
        if asked.peer_rail >= len(devices) or asked.rail >= len(theirs.rails) or asked.lane >= RAILS_MAX * LANES_MAX:
            return Joined(why="no such rail")
        before = self._pairs.pop(asked.lane, None)
        if before is not None:
            self._host.lent.pairs -= 1
            await self._host.in_thread(before.close)
        if self._host.lent.pairs >= config.queue_pairs_max:
            return Joined(why=f"{NO_ROOM}: {config.queue_pairs_max} are in use")
        device, domain = devices[asked.peer_rail], self.domains[asked.peer_rail]
        psn = self._host.random_psn()
        try:
            mine, pair = await self._host.in_thread(lambda: (device.offer(), domain.queue_pair(1)))
            self._pairs[asked.lane] = pair
            self._host.lent.pairs += 1
            mtu, reads = min(mine.mtu, asked.mtu), min(mine.reads, asked.reads)
            await self._host.in_thread(
                lambda: connect_pair(
                    pair,
                    mine,
                    device.gid_index,
                    (asked.gid, asked.lid),
                    (asked.qpn, asked.psn),
                    psn,
                    mtu,
                    reads,
                    timers=(config.timeout, config.retries),
                    serving=True,
                )
            )
        except (OSError, RdmaUnavailable) as error:
            return Joined(why=f"{device.name}: {error}")
        return Joined(pair.number, psn, mtu, reads)

    async def end(self) -> None:
        """Returns when the peer's devices can touch nothing here any more."""
        pairs, self._pairs = list(self._pairs.values()), {}
        self._host.lent.pairs -= len(pairs)

        await self._host.in_thread(lambda: _close_all(pairs))
        await self._host.lent.leave(self)
        await self._page.close()
        await self._host.in_thread(lambda: _close_all(self.domains))


def _close_all(parts: Sequence[QueuePair | Domain]) -> None:
    """What a device does not let go stands in no other's way; it goes with the process."""
    for part in parts:
        with contextlib.suppress(OSError):
            part.close()
