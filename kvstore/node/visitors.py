"""Connections of the framed door that map no segment: what each has leased, is putting, and how it is reached.

Everything of a visitor ends with its connection: calls first, then grants, then holds and slots.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import numpy as np

from kvstore.errors import Rejected, Unavailable
from kvstore.node.bringing import refuse_draining
from kvstore.node.crowding import OTHERS_MAX, Crowd, names_of
from kvstore.node.far import FarLeases, Lender
from kvstore.node.follows import Follows
from kvstore.node.leases import Allowance, Leases, MovingHost
from kvstore.node.namespaces import NotOpen
from kvstore.node.pulls import LAPSED, Filling, Slots
from kvstore.node.streams import Prefix
from kvstore.node.wanted import COPIES_MAX, Copier, family_of
from kvstore.wire import convert, framed, store
from transfer.errors import LimitReached

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from numpy.typing import NDArray

    from kvstore.node.auth import Peer
    from kvstore.node.handlers import Handlers
    from kvstore.node.namespaces import Opened
    from kvstore.node.replicas import Replicas
    from transfer.offers import Carrier
    from transfer.paths import Connection

__all__ = ["METHODS", "NAMING", "NODE_METHODS", "Visitors"]

WAYS_MAX: Final = 16  # a client has one transport of a kind, and new ones after a failure
FILLINGS_MAX: Final = 1_024  # of one connection; their bytes are limited, too
DEADLINE_S_MAX: Final = 600.0
CROWD_MAX: Final = 64  # as cluster.leases_per_block_max, where nothing is said
M = TypeVar("M", framed.LeaseRequest, framed.PullRequest, framed.ReserveRequest, framed.FollowRequest)


@dataclass(slots=True)
class WaysBack:
    """To the memory of visitors' processes, over connections that they made: one a process, for all its visitors."""

    host: MovingHost
    _open: dict[tuple[Carrier, bytes], Connection] = field(default_factory=dict)
    _users: Counter[tuple[Carrier, bytes]] = field(default_factory=Counter)

    async def to(self, key: tuple[Carrier, bytes], deadline_s: float) -> Connection:
        """Raises PeerUnreachable. The transport is asked each time: a way that nobody came back to, it has closed."""
        endpoint = await self.host.transfers.back(*key, deadline_s=deadline_s)
        known = self._open.get(key)
        if known is None or known.endpoint is not endpoint:
            self._open[key] = made = self.host.transfers.counted(key[0], endpoint)
            if known is not None:
                await known.close()
            return made
        return known

    def used(self, key: tuple[Carrier, bytes]) -> None:
        self._users[key] += 1

    async def left(self, key: tuple[Carrier, bytes]) -> None:
        """By one who had said `used`: the last one closes it."""
        self._users[key] -= 1
        if self._users[key] <= 0:
            del self._users[key]
            known = self._open.pop(key, None)
            if known is not None:
                await known.close()


class Visitor:
    """Of one connection."""

    def __init__(self, host: MovingHost, ways: WaysBack, lender: Lender, crowd: Crowd) -> None:
        self._host = host
        self._ways = ways
        self.allowance = Allowance(host.limits.moving_bytes_max)
        self._owner = host.bridge.core.new_owner()
        self.leases = Leases(host, self._owner, self.allowance, crowd)
        self.far = FarLeases(lender)
        self.follows = Follows(host, self._owner, self.allowance, lender)
        self.copies: dict[int, Callable[[float], Awaitable[int]]] = {}  # to be begun when these leases are released
        self.fillings: dict[int, Filling] = {}
        self.tasks: set[asyncio.Task[object]] = set()
        self._uses: set[tuple[Carrier, bytes]] = set()

    async def way(self, carrier: Carrier, incarnation: bytes, deadline_s: float) -> Connection:
        """To this visitor's own memory. Raises PeerUnreachable, LimitReached."""
        key = carrier, incarnation
        if key not in self._uses:
            if len(self._uses) >= WAYS_MAX:
                raise LimitReached(f"{WAYS_MAX} transports were named on one connection", limit="ways_max")
            self._uses.add(key)
            self._ways.used(key)
        return await self._ways.to(key, deadline_s)

    def filling(self, number: int) -> Filling:
        """Raises ValueError for one that has ended, or never was."""
        found = self.fillings.get(number)
        if found is None:
            raise ValueError(f"reservation: {number} has lapsed, or is none of this connection's")
        return found

    def end(self, number: int) -> None:
        filling = self.fillings.pop(number, None)
        if filling is not None:
            filling.lapse.cancel()
            filling.closed = True
            if not filling.busy.locked():  # else whoever reads closes it
                filling.slots.close()

    async def close(self) -> None:
        for task in tuple(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for number in list(self.fillings):
            self.end(number)
        self.far.close()
        if await self.leases.close() & await self.follows.close():
            self._host.bridge.core.owner_gone(self._owner)
        for key in self._uses:
            await self._ways.left(key)


@dataclass(slots=True)
class Visitors:
    """Of a node. `call` answers what METHODS name; `gone` when a connection has ended."""

    host: MovingHost
    handlers: Handlers
    lender: Lender
    replicas: Replicas
    crowd: Crowd = field(default_factory=lambda: Crowd(CROWD_MAX))
    draining: bool = False  # puts are refused; all else goes on
    copier: Copier = field(init=False)
    _ways: WaysBack = field(init=False)
    _visitors: dict[int, Visitor] = field(default_factory=dict)
    _leaving: set[asyncio.Task[None]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._ways = WaysBack(self.host)
        self.copier = Copier(self.lender.counts)

    def came(self, connection: int) -> None:
        """It has asked for something of these: said before its `call`, and before it is told `gone`."""
        if connection not in self._visitors:
            self._visitors[connection] = Visitor(self.host, self._ways, self.lender, self.crowd)

    async def call(self, connection: int, peer: Peer, method: int, body: bytes, node: bytes = b"") -> bytes:
        """node: which other one asks. Raises what kvstore.node.handlers.Handlers.call does."""
        visitor = self._visitors.get(connection)
        if visitor is None:
            raise Unavailable("the connection has ended")
        task = asyncio.current_task()
        assert task is not None
        visitor.tasks.add(task)
        try:
            answer = await self._answer(visitor, peer, method, body, node)
        except convert.DecodeError as error:
            raise ValueError("body: not a message of this method") from error
        finally:
            visitor.tasks.discard(task)
        return answer.SerializeToString()

    async def _answer(self, visitor: Visitor, peer: Peer, method: int, body: bytes, node: bytes) -> Message:  # noqa: PLR0911 - a method a line
        if self.draining and method in PUTS:
            raise refuse_draining()
        match method:
            case store.METHOD_LEASE:
                lease, opened, prefix = self._named(peer, framed.LeaseRequest, body)
                if lease.far:
                    return await self._far(visitor, opened, prefix, lease)
                return await visitor.leases.lease(opened, prefix, lease)
            case store.METHOD_PEER_LEASE:
                return await self._for_node(visitor, peer, body, node)
            case store.METHOD_FOLLOW | store.METHOD_PEER_FOLLOW:
                return await self._follow(visitor, peer, method == store.METHOD_PEER_FOLLOW, body)
            case store.METHOD_RELEASE | store.METHOD_PEER_RELEASE:
                return self._released(visitor, framed.ReleaseRequest.FromString(body))
            case store.METHOD_PULL:
                pull, opened, prefix = self._named(peer, framed.PullRequest, body)
                return await self._pull(visitor, opened, prefix, pull)
            case store.METHOD_RESERVE:
                reserve, opened, prefix = self._named(peer, framed.ReserveRequest, body)
                return self._reserve(visitor, opened, prefix, reserve)
            case store.METHOD_FILL:
                return await self._fill(visitor, framed.FillRequest.FromString(body))
            case store.METHOD_PUBLISH:
                return self._publish(visitor, framed.PublishRequest.FromString(body))
            case store.METHOD_SEAL:
                return self._seal(visitor, framed.SealRequest.FromString(body).reservation)
            case _:
                visitor.end(framed.AbortRequest.FromString(body).reservation)
                return framed.AbortResponse()

    async def _for_node(self, visitor: Visitor, peer: Peer, body: bytes, node: bytes) -> framed.LeaseResponse:
        if not self.lender.cluster.serves():
            raise Unavailable("this node stood still and is not sure yet who else lives")
        try:
            lease, opened, prefix = self._named(peer, framed.LeaseRequest, body)
            if lease.clears != self.handlers.host.namespaces.clears_word(opened):
                return framed.LeaseResponse()  # of as many clears, but not the same: their blocks are not these
            answer = await visitor.leases.lease(opened, prefix, lease, node)
            if answer.busy:
                answer.others.extend(self._others(opened, lease.shard, prefix.keys[:1], node))
            return answer
        except NotOpen:  # cleared since this node said that it had blocks of it: nothing is wrong with the node
            return framed.LeaseResponse()

    async def _follow(self, visitor: Visitor, peer: Peer, for_node: bool, body: bytes) -> framed.FollowResponse:
        if for_node and not self.lender.cluster.serves():
            raise Unavailable("this node stood still and is not sure yet who else lives")
        request = framed.FollowRequest.FromString(body)
        if for_node and request.namespace:
            opened = self.handlers.opened(peer, request.namespace)
            if request.clears != self.handlers.host.namespaces.clears_word(opened):  # as with a lease
                return framed.FollowResponse(abandoned=True, why="this node knows of other clears")
        return await visitor.follows.ask(
            request, lambda: self._named(peer, framed.FollowRequest, body)[1:], for_node=for_node
        )

    def _others(self, opened: Opened, shard: int, key: NDArray[np.uint8], asker: bytes) -> list[bytes]:
        """Who else may have a block: that has copied it from here, or that claims it here."""
        copies = self.crowd.copies(names_of(opened.handle, shard, key)[0])
        locator = self.lender.cluster.locator
        claimed = locator.claimed_here(opened.digest, key) if locator is not None else ()
        known = dict.fromkeys([*reversed(copies), *claimed])
        return [one for one in known if one != asker and self.lender.cluster.living(one) is not None][:OTHERS_MAX]

    def _released(self, visitor: Visitor, release: framed.ReleaseRequest) -> framed.ReleaseResponse:
        if not visitor.far.release(release) and not visitor.follows.release(release):
            visitor.leases.release(release)
            return framed.ReleaseResponse()
        copy = visitor.copies.pop(release.lease, None)
        if copy is not None and not self.draining:
            self.copier.begin(copy)
        return framed.ReleaseResponse()

    async def _far(
        self, visitor: Visitor, opened: Opened, prefix: Prefix, lease: framed.LeaseRequest
    ) -> framed.LeaseResponse:
        if lease.hold_only:
            return await self._held_far(visitor, opened, prefix, lease)
        lent = await visitor.far.lease(opened, prefix, lease)
        if self.handlers.host.namespaces.find(opened.digest) is not opened:  # cleared meanwhile
            visitor.far.release(framed.ReleaseRequest(lease=lease.lease))
            raise NotOpen
        position, now = lease.chain.position, asyncio.get_running_loop().time()
        if lent.offsets and self.lender.wanted.asked(opened.handle, lease.shard, family_of(prefix), position, now):
            wanted = framed.LeaseRequest(shard=lease.shard, chain=store.Chain(position=position), hints=lease.hints)
            visitor.copies[lease.lease] = partial(self.replicas.bring, opened, prefix, wanted)
            while len(visitor.copies) > COPIES_MAX:  # of leases that lapsed
                del visitor.copies[next(iter(visitor.copies))]
        return lent

    async def _held_far(
        self, visitor: Visitor, opened: Opened, prefix: Prefix, lease: framed.LeaseRequest
    ) -> framed.LeaseResponse:
        """What is to stay is held here: of what others have, a replica."""
        loop = asyncio.get_running_loop()
        until = loop.time() + min(lease.wait_ms, self.host.limits.hold_wait_ms_max) / 1e3
        with visitor.far.asking(lease.lease):
            keys = self._window(opened, lease.shard, prefix)
            await self.replicas.bring(opened, keys, lease, until - loop.time())
        lease.wait_ms = max(0, round((until - loop.time()) * 1e3))
        return await visitor.leases.lease(opened, prefix, lease)

    def _window(self, opened: Opened, shard: int, prefix: Prefix) -> Prefix:
        """So much that it can be held at once."""
        most = max(1, self.host.limits.window_bytes // sum(opened.shards[shard].part_bytes))
        return Prefix(prefix.keys[:most], prefix.parent, prefix.hint)

    def _named(self, peer: Peer, kind: type[M], body: bytes) -> tuple[M, Opened, Prefix]:
        """The request, and the namespace and chain that it names."""
        request = kind.FromString(body)
        opened = self.handlers.opened(peer, request.namespace)
        convert.check_shard("shard", request.shard, len(opened.shards))
        return request, opened, self.handlers.prefix(opened, request.chain, request.hints)

    async def _pull(
        self, visitor: Visitor, opened: Opened, prefix: Prefix, request: framed.PullRequest
    ) -> framed.PullResponse:
        slots = Slots(self.host, opened, request.shard, visitor.allowance)
        try:
            slots.reserve(prefix, request.meta)
            outcomes, failure = slots.statuses.copy(), ""
            if len(slots.granted):
                arrived, sums, failure = await slots.read(visitor, request.source, None, _seconds(request.deadline_ms))
                outcomes[slots.granted] = slots.seal(arrived, sums)
            return framed.PullResponse(outcomes=outcomes.tobytes(), failure=failure)
        finally:
            slots.close()

    # ---- part by part -------------------------------------------------------------------------------------------

    def _reserve(
        self, visitor: Visitor, opened: Opened, prefix: Prefix, request: framed.ReserveRequest
    ) -> framed.ReserveResponse:
        if request.reservation in visitor.fillings:
            raise ValueError(f"reservation: {request.reservation} is the number of another one")
        if len(visitor.fillings) >= FILLINGS_MAX:
            raise Rejected(f"fillings_max: {FILLINGS_MAX} reservations are open", limit="fillings_max")
        slots = Slots(self.host, opened, request.shard, visitor.allowance)
        try:
            slots.reserve(prefix, request.meta)
        except BaseException:
            slots.close()
            raise
        outcomes = slots.statuses.tobytes()
        if not len(slots.granted):
            slots.close()
            return framed.ReserveResponse(outcomes=outcomes)
        number = request.reservation
        lapse = asyncio.get_running_loop().call_later(slots.left_s, visitor.end, number)
        visitor.fillings[number] = Filling(slots, lapse)
        return framed.ReserveResponse(outcomes=outcomes)

    async def _fill(self, visitor: Visitor, request: framed.FillRequest) -> framed.FillResponse:
        filling = visitor.filling(request.reservation)
        if request.part >= len(filling.slots.part_bytes):
            raise ValueError(f"part: {request.part}, but the shard has {len(filling.slots.part_bytes)}")
        async with filling.busy:
            if filling.closed:
                raise ValueError(f"reservation: {request.reservation} has lapsed")
            if request.part < filling.published:
                raise ValueError(f"part: {request.part} is published, and stays as it is")
            filling.sums.pop(request.part, None)  # of what lay there: a read that fails leaves neither
            try:
                arrived, sums, failure = await filling.slots.read(
                    visitor, request.source, request.part, _seconds(request.deadline_ms)
                )
            finally:
                if filling.closed:  # ended meanwhile
                    filling.slots.close()
        if not failure and arrived.all() and not filling.closed:
            filling.sums[request.part] = sums[:, 0]
        return framed.FillResponse(failure=failure)

    def _publish(self, visitor: Visitor, request: framed.PublishRequest) -> framed.PublishResponse:
        filling = visitor.filling(request.reservation)
        if request.part != filling.published:
            raise ValueError(f"part: {request.part}, parts are published in order and the next is {filling.published}")
        filling.slots.publish(request.part, self._filled(filling, request.part))
        filling.published += 1
        return framed.PublishResponse()

    def _seal(self, visitor: Visitor, number: int) -> framed.SealResponse:
        filling = visitor.filling(number)
        rest = range(filling.published, len(filling.slots.part_bytes))
        sums = [self._filled(filling, part) for part in rest]
        blocks = len(filling.slots.granted)
        if filling.busy.locked():
            raise ValueError(f"reservation: {number} is being filled")
        left = np.stack(sums, axis=1) if sums else np.empty((blocks, 0), np.uint64)
        outcomes = filling.slots.seal(np.ones(blocks, np.bool_), left)
        visitor.end(number)
        return framed.SealResponse(outcomes=np.where(outcomes == LAPSED, 1, outcomes).astype(np.uint8).tobytes())

    @staticmethod
    def _filled(filling: Filling, part: int) -> NDArray[np.uint64]:
        if part not in filling.sums:
            raise ValueError(f"part: {part} was not filled")
        return filling.sums[part]

    # ---- ends ---------------------------------------------------------------------------------------------------

    def gone(self, connection: int) -> None:
        visitor = self._visitors.pop(connection, None)
        if visitor is not None:
            task = asyncio.get_running_loop().create_task(visitor.close())
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    async def close(self) -> None:
        """After the door has stopped."""
        for connection in list(self._visitors):
            self.gone(connection)
        await asyncio.gather(*self._leaving)
        await self.copier.close()
        await self.replicas.close()
        await self.lender.close()


def _seconds(deadline_ms: int) -> float:
    return min(deadline_ms / 1e3, DEADLINE_S_MAX)


NAMING: Final = frozenset(
    {store.METHOD_LEASE, store.METHOD_FOLLOW, store.METHOD_PULL, store.METHOD_RESERVE}
)  # a namespace
PUTS: Final = frozenset({store.METHOD_PULL, store.METHOD_RESERVE})
NODE_METHODS: Final = frozenset({store.METHOD_PEER_LEASE, store.METHOD_PEER_RELEASE, store.METHOD_PEER_FOLLOW})
METHODS: Final = NODE_METHODS | frozenset(
    {
        store.METHOD_LEASE,
        store.METHOD_RELEASE,
        store.METHOD_FOLLOW,
        store.METHOD_PULL,
        store.METHOD_RESERVE,
        store.METHOD_FILL,
        store.METHOD_PUBLISH,
        store.METHOD_SEAL,
        store.METHOD_ABORT,
    }
)
