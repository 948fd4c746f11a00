"""What a visitor rig is made of: a node's transport and ways, as they are and as they fail, in virtual time."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from kvstore import native
from kvstore.client.followed import Followed
from kvstore.errors import Rejected, Unavailable
from kvstore.node.bridge import CoreBridge
from kvstore.node.namespaces import NotOpen
from kvstore.node.visitors import Visitor
from kvstore.node.watches import Watch, Watches
from kvstore.tiers.base import Keys
from kvstore.wire import framed
from transfer.errors import LimitReached, PeerUnreachable, StillTouched
from transfer.offers import Carrier
from transfer.paths import Chosen, Connection, Path, PathCounts
from transfer.testing.simulated import SimulatedTransport

DEADLINE_S = 5.0
REFUSALS = (ValueError, NotOpen, Rejected, Unavailable)


class PumpedWatch(Watch):
    pump: Any = None

    async def wait(self, longest_s: float) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + longest_s
        while not self._told.is_set() and (left := until - loop.time()) > 0:
            await asyncio.sleep(min(max(left, 1e-6), 0.002))
            self.pump()


class PumpedWatches(Watches):
    def begin(self, *args: Any) -> Watch:
        made = super().begin(*args)
        self._watches[made.number] = watch = PumpedWatch(made.number)
        watch.pump = self._take
        return watch


class Pumped(CoreBridge):
    """Descriptors are never ready in virtual time: asks the core itself."""

    def __init__(self, core: native.NodeCore, clock: Any) -> None:
        super().__init__(core, clock)
        self.watches = PumpedWatches(core)

    async def fetch(self, *args: Any, **named: Any) -> native.FetchDone:
        asyncio.get_running_loop().call_soon(self._complete)
        return await super().fetch(*args, **named)


class Ground:
    """Memory is quiet a while after a revoke; by the slots in `stuck` never."""

    def __init__(self) -> None:
        self.stuck: set[int] = set()

    def publish(self, grant: object, region: object) -> None: ...

    def end(self, grant: object) -> None: ...

    def region_gone(self, region: object) -> None: ...

    def quiet(self, slot: int) -> bool:
        return slot not in self.stuck

    async def wait_quiet(self, slots: Collection[int], wait_s: float) -> bool:
        await asyncio.sleep(0.004)
        return not self.stuck & set(slots)


class NodeTransport(SimulatedTransport):
    """Granting takes a moment, and may be refused. kept: grants that never became quiet."""

    refuses = False
    kept = 0

    async def grant(self, *args: Any, **named: Any) -> Any:
        await asyncio.sleep(0.001)
        if self.refuses:
            raise LimitReached("grants_max: reached", limit="grants_max")
        return await super().grant(*args, **named)

    async def revoke(self, grants: Sequence[Any]) -> None:
        try:
            await super().revoke(grants)
        except StillTouched:
            self.kept += 1
            raise


class Ways:
    """As kvstore.transfers.Transfers, of a node with one transport."""

    def __init__(self, transport: SimulatedTransport) -> None:
        self.own = transport
        self.connector = SimpleNamespace(offer=SimpleNamespace(encode=lambda: b"how this node is reached"))
        self.counts = PathCounts()
        self.backs: dict[bytes, Any] = {}

    def transport(self, carrier: Carrier) -> SimulatedTransport:
        return self.own

    async def back(self, carrier: Carrier, incarnation: bytes, *, deadline_s: float) -> Any:
        """One endpoint a peer until it is closed, as transfer.tcp has it."""
        for address, one in self.own.network.transports.items():
            if one.incarnation != incarnation:
                continue
            known = self.backs.get(incarnation)
            if known is not None and not known._closed:
                return known
            made = await self.own.connect(address, deadline_s=deadline_s)
            known = self.backs.get(incarnation)
            if known is None or known._closed:
                self.backs[incarnation] = known = made
            return known
        await asyncio.sleep(deadline_s)
        raise PeerUnreachable("no lane of that peer")

    def counted(self, carrier: Carrier, endpoint: Any) -> Connection:
        return Connection(endpoint, self.own, Chosen(Path.TCP, "", ()), self.counts)

    def served(self, carrier: Carrier, moved: int) -> None:
        self.counts.bytes_served += moved


@dataclass
class Lease:
    number: int
    keys: Keys
    told: framed.LeaseResponse
    until: float  # the client may count on it till then
    released: bool = False


@dataclass
class Filling:
    number: int
    keys: Keys  # the granted ones
    done: int = 0  # a bit a part that was filled, and not begun anew since
    published: int = 0
    muddled: bool = False  # several things at a time were asked of it


@dataclass
class Follow:
    """granted: by the last answer; read: parts that were found right."""

    number: int
    keys: Keys
    followed: Followed
    granted: bytes = b""
    read: int = 0


@dataclass
class Client:
    """One process, and the connection that it has just now."""

    rig: Any
    address: str
    transport: SimulatedTransport
    connection: int
    visitor: Visitor
    way: Any = None
    leases: dict[int, Lease] = field(default_factory=dict)
    fillings: dict[int, Filling] = field(default_factory=dict)
    follows: dict[int, Follow] = field(default_factory=dict)
    numbers: Any = field(default_factory=lambda: itertools.count(1))

    async def ask(self, method: int, message: Any) -> bytes:
        """In a task of its own, as the door has it. Raises REFUSALS."""
        body = message.SerializeToString()
        call = asyncio.ensure_future(self.rig.visitors.call(self.connection, self.rig.peer, method, body))
        try:
            await asyncio.wait([call])
        except asyncio.CancelledError:
            call.cancel()
            await asyncio.wait([call])
            raise
        if call.cancelled():
            raise Unavailable("given up, or the connection has ended")
        return call.result()

    async def connected(self) -> Any:
        if self.way is None:
            self.way = await self.transport.connect("node", deadline_s=DEADLINE_S)
        return self.way
