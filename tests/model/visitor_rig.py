"""A node's visitors over a real core, in virtual time: leases, pulls and fillings by the simulated transport.

What a block is follows from its key. Clients are framed by hand, and their callers write other bytes over all that they
have lent as soon as they are answered.
"""

from __future__ import annotations

import asyncio
import itertools
import mmap
from collections.abc import Coroutine, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from kvstore import native
from kvstore.config import LimitsConfig
from kvstore.layout import Shard
from kvstore.node.auth import Peer
from kvstore.node.far import Lender
from kvstore.node.handlers import Handlers
from kvstore.node.leases import MovingHost
from kvstore.node.replicas import Replicas
from kvstore.node.visitors import Visitor, Visitors
from kvstore.tiers.base import Keys
from kvstore.wire import framed, store
from tests.model.visitor_parts import DEADLINE_S, REFUSALS, Client, Filling, Ground, Lease, NodeTransport, Pumped, Ways
from tests.storage import MEMORY, chain_of, content, name_of
from transfer.batch import Batch
from transfer.errors import TransferFault
from transfer.offers import Carrier
from transfer.testing.network import Weather
from transfer.testing.simulated import SimulatedConfig, SimulatedNetwork, SimulatedTransport

PARTS = (8192, 12_000, 5_000)
BLOCK = sum(PARTS)
CHAINS = [chain_of(seed, 5) for seed in ("a", "b", "c")]
LIMITS = LimitsConfig(reserve_lapse_ms=1_500, lease_ms_max=700, moving_bytes_max=12 * BLOCK)
SLICES = SimulatedConfig(slice_bytes=8192)
HOLDS_MAX = 6
SLOW = ("client1", 0.03)  # the first of the clients: what reads its memory takes so long


def block_of(key: bytes) -> np.ndarray:
    return np.frombuffer(content(key, BLOCK), np.uint8)


class Rig:
    """Made on a virtual loop. `may`: keys that somebody may have put whole; a cache may forget any of them."""

    def __init__(self, seed: int) -> None:
        loop = asyncio.get_running_loop()
        self.network = SimulatedNetwork(seed, Weather(latency_s=(50e-6, 4e-3), loss=0.02, twice=0.05, slow=(SLOW,)))
        self.node = NodeTransport(self.network, "node", SLICES)
        self.ground = self.node.ground = Ground()
        size = 384 << 10
        table = native.TableConfig(size, 128 << 10)
        self.payload = np.frombuffer(mmap.mmap(-1, size), np.uint8)
        self.meta = mmap.mmap(-1, native.NodeCore.meta_bytes(table))
        self.core = native.NodeCore(
            table,
            None,
            meta=np.frombuffer(self.meta, np.uint8).ctypes.data,
            meta_bytes=len(self.meta),
            incarnation=1,
            reserve_lapse_ns=LIMITS.reserve_lapse_ms * 10**6,
            lease_max_ns=LIMITS.lease_ms_max * 10**6,
            holds_per_owner_max=HOLDS_MAX,
        )
        self.jumped_ns = 0
        self.clock = SimpleNamespace(now_ns=lambda: int(loop.time() * 1e9) + self.jumped_ns)
        self.bridge = Pumped(self.core, self.clock)
        self.bridge.open()
        self.peer = Peer("test", None)
        self.ways = Ways(self.node)
        self.opened: Any = None
        self.generation = 0
        self.open()
        self.connections = itertools.count(1)
        self.lives = itertools.count(1)
        self.visitor_of: list[Visitor] = []
        self.clients: list[Client] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.may: set[bytes] = set()
        self.others: dict[bytes, Keys] = {}  # chains that were put besides
        self.read = self.stored = self.refused = 0
        self.faults = 0  # of the network and of connections, so far
        self.silent: set[str] = set()  # addresses that are cut off or stopped
        self.stuck_bytes = 0  # of leases that never become quiet
        self.owner = self.core.new_owner()

    async def start(self, clients: int) -> None:
        region = await self.node.register(self.payload, name="payload")
        host = SimpleNamespace(
            bridge=self.bridge,
            namespaces=SimpleNamespace(find=lambda digest: self.opened if digest == self.opened.digest else None),
            limits=LIMITS,
            family_blocks=4,
            several_tenants=lambda: False,
            cluster=None,
        )
        moving = MovingHost(self.bridge, self.clock, LIMITS, self.ways, {Carrier.TCP: region})  # type: ignore[arg-type]
        lender = Lender(SimpleNamespace(locator=None), self.core, LIMITS, has_files=False)  # type: ignore[arg-type]
        replicas = Replicas(moving, lender, has_files=False)
        self.visitors = Visitors(moving, Handlers(host), lender, replicas)  # type: ignore[arg-type]
        for _ in range(clients):
            self.clients.append(self.client())

    def open(self) -> None:
        """A new generation, of which nothing is there."""
        if self.opened is not None:
            self.core.drop_namespace(self.opened.handle)
        self.generation += 1
        digest = name_of("namespace", self.generation)
        handle = self.core.open_namespace(digest, 0, 16, [list(PARTS)])
        shard = Shard(group="full", rank=0, part_bytes=PARTS)
        self.opened = SimpleNamespace(
            digest=digest, seed=digest, handle=handle, tenant="", shards=(shard,), block_tokens=16
        )
        self.may = set()
        self.others = {}

    def client(self) -> Client:
        address = f"client{next(self.lives)}"
        connection, visitor = self._visit()
        return Client(self, address, SimulatedTransport(self.network, address, SLICES), connection, visitor)

    def _visit(self) -> tuple[int, Visitor]:
        connection = next(self.connections)
        self.visitors.came(connection)
        visitor = self.visitors._visitors[connection]
        self.visitor_of.append(visitor)
        return connection, visitor

    def silence(self, address: str, *, goes_on: bool, stops: bool) -> None:
        """A cut, or SIGSTOP past any deadline."""
        network = self.network
        self.faults += 1
        if goes_on:
            network.heal("node", address)
            network.resume(address)
            self.silent.discard(address)
        else:
            self.silent.add(address)
            if stops:
                network.stop(address)
            else:
                network.cut("node", address)

    def hang_up(self, client: Client) -> None:
        """Its connection ends; what it has in motion goes on until it learns of it."""
        self.faults += 1
        self.visitors.gone(client.connection)
        client.connection, client.visitor = self._visit()
        client.leases.clear()
        client.fillings.clear()
        client.follows.clear()

    # ---- things that take time

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Goes on beside what follows. What it finds wrong is told by `check`."""
        self.tasks.append(asyncio.ensure_future(work))

    async def elapse(self, seconds: float) -> None:
        end = asyncio.get_running_loop().time() + seconds
        while (left := end - asyncio.get_running_loop().time()) > 1e-9:
            await asyncio.sleep(min(left, 0.02))
            self.core.tick(self.clock.now_ns())

    def jump(self, seconds: float) -> None:
        """The machine slept: what was to lapse lapses, whatever is in motion."""
        self.faults += 1
        self.jumped_ns += int(seconds * 1e9)
        self.core.tick(self.clock.now_ns())

    def named(self, keys: Keys) -> dict[str, Any]:
        return {"namespace": self.opened.digest, "chain": store.Chain(keys=keys.tobytes())}

    async def lease(self, client: Client, keys: Keys, wait_s: float = 0.0, *, only_hold: bool = False) -> None:
        number, may = next(client.numbers), self.may
        asked = asyncio.get_running_loop().time()
        request = framed.LeaseRequest(
            carrier=int(Carrier.TCP),
            lease=number,
            wait_ms=round(wait_s * 1e3),
            hold_only=only_hold,
            **self.named(keys),
        )
        connection = client.connection
        try:
            told = framed.LeaseResponse.FromString(await client.ask(store.METHOD_LEASE, request))
        except REFUSALS:
            self.refused += 1
            return
        blocks = len(told.tiers)
        assert blocks <= len(keys) and len(told.offsets) == (0 if only_hold else blocks)
        assert not (only_hold and told.descriptor), "what is only held was granted"
        assert all(key.tobytes() in may for key in keys[:blocks]), "leased what nobody put"
        if blocks and client.connection == connection:
            client.leases[number] = Lease(number, keys, told, asked + told.lease_ms / 1e3)

    async def read_lease(self, client: Client, lease: Lease) -> None:
        """Where it is read whole, every byte is right; and while the lease lasts it can be."""
        if not lease.told.descriptor:  # only a hold
            return
        into = np.zeros((len(lease.told.offsets), BLOCK), np.uint8)
        region = await client.transport.register(into)
        parts = list(PARTS) * len(into)
        arrived, sums = np.ones(len(into), np.bool_), None
        try:
            way = await client.connected()
            (shown,) = await way.present([lease.told.descriptor], deadline_s=1.0, fresh=True)
            table = [(region.id, i * BLOCK, shown.handle, at, BLOCK) for i, at in enumerate(lease.told.offsets)]
            sums = (await way.read(Batch(np.array(table, np.int64)), deadline_s=1.0, parts=parts)).checksums
        except TransferFault as error:
            arrived = getattr(error, "arrived", np.zeros(0, np.bool_))
        expected = np.frombuffer(lease.told.checksums, "<u8")
        for i in np.flatnonzero(arrived).tolist():
            assert np.array_equal(into[i], block_of(lease.keys[i].tobytes())), "wrong bytes"
            self.read += 1
        assert sums is None or np.array_equal(sums, expected), "checksums that are not those of the bytes"
        into[:] = 0xA5
        await asyncio.sleep(0.02)
        assert (into == 0xA5).all(), "landed after the answer"
        await client.transport.deregister(region)

    async def release(self, client: Client, lease: Lease, corrupt: Sequence[int] = ()) -> None:
        client.leases.pop(lease.number, None)
        request = framed.ReleaseRequest(
            lease=lease.number, corrupt=[one for i in corrupt for one in lease.told.tickets[i : i + 1]], bytes=1
        )
        await client.ask(store.METHOD_RELEASE, request)
        assert lease.number not in client.visitor.leases._leases, "released, and leased"

    async def lease_given_up(self, client: Client, keys: Keys) -> None:
        """Released before it is answered: nobody holds anything then."""
        number = next(client.numbers)
        request = framed.LeaseRequest(carrier=int(Carrier.TCP), lease=number, **self.named(keys))
        asked = asyncio.ensure_future(client.ask(store.METHOD_LEASE, request))
        await asyncio.sleep(0)
        await client.ask(store.METHOD_RELEASE, framed.ReleaseRequest(lease=number))
        await asyncio.wait([asked])
        assert not asked.exception() or isinstance(asked.exception(), REFUSALS)
        await asyncio.sleep(0.02)
        assert number not in client.visitor.leases._leases, "given up, and leased"

    def stick(self, client: Client, lease: Lease) -> None:
        """A peer in the middle of a touch never comes back: what it may touch is kept for good."""
        own = client.visitor.leases._leases.get(lease.number)
        if own is not None and own.grants and own.grants[Carrier.TCP].slot not in self.ground.stuck:
            self.ground.stuck.add(own.grants[Carrier.TCP].slot)
            self.stuck_bytes += own.bytes

    # ---- puts. failing: "" or how the source fails

    async def lent(self, client: Client, data: np.ndarray, failing: str, patience_s: float, ask: Any) -> Any:
        """What `ask` of the source answers. Then the memory is the caller's again. None: refused, or given up."""
        own = data.copy()
        region = await client.transport.register(own, writable=False)
        length = own.nbytes - (own.shape[1] // 2 if failing == "short" else 0)
        grant = await client.transport.grant(region, [(0, length)], lifetime_s=0.005 if failing == "brief" else 60.0)
        descriptor = grant.descriptor[:-1] + b"\0" if failing == "forged" else grant.descriptor
        rows = [(0, i * own.shape[1], own.shape[1]) for i in range(len(own))]
        source = framed.Source(
            carrier=int(Carrier.TCP),
            incarnation=bytes(16) if failing == "unknown" else client.transport.incarnation,
            descriptors=[descriptor],
            pieces=np.array(rows, "<i8").tobytes(),
        )
        asked = asyncio.ensure_future(ask(source))
        await asyncio.wait([asked], timeout=patience_s)
        await client.transport.revoke([grant])
        await client.transport.deregister(region)
        own ^= 0x5A
        if failing == "gone":
            asked.cancel()
        try:
            return await asked
        except (*REFUSALS, asyncio.CancelledError):
            self.refused += 1
            return None

    async def pull(self, client: Client, keys: Keys, failing: str, patience_s: float, deadline_s: float) -> None:
        if not any(keys[0].tobytes() == chain[0].tobytes() for chain in CHAINS):
            self.others[keys[0].tobytes()] = keys
        data = np.stack([block_of(key.tobytes()) for key in keys])
        request = framed.PullRequest(deadline_ms=round(deadline_s * 1e3), **self.named(keys))
        whole = len(keys) - (failing == "short") if failing not in ("forged", "unknown") else 0
        before, may = (self.generation, self.faults), self.may
        fair = not failing and patience_s >= DEADLINE_S and client.address not in self.silent
        may.update(key.tobytes() for key in keys[:whole])

        async def ask(source: framed.Source) -> bytes:
            request.source.CopyFrom(source)
            return await client.ask(store.METHOD_PULL, request)

        told = await self.lent(client, data, failing, patience_s, ask)
        if told is None:
            return
        response = framed.PullResponse.FromString(told)
        stored = [i for i, outcome in enumerate(response.outcomes) if outcome == 0]
        assert len(response.outcomes) == len(keys) and all(i < whole for i in stored), "stored what was not there"
        if fair and before == (self.generation, self.faults):
            assert not response.failure and 5 not in response.outcomes, response.failure
        self.stored += len(stored)

    async def reserve(self, client: Client, keys: Keys) -> None:
        number, connection = next(client.numbers), client.connection
        request = framed.ReserveRequest(reservation=number, **self.named(keys))
        try:
            told = framed.ReserveResponse.FromString(await client.ask(store.METHOD_RESERVE, request))
        except REFUSALS:
            self.refused += 1
            return
        granted = keys[[outcome == 0 for outcome in told.outcomes]]
        if len(granted) and client.connection == connection:
            client.fillings[number] = Filling(number, granted)

    async def fill(self, client: Client, filling: Filling, part: int, failing: str, patience_s: float) -> None:
        if part >= filling.published:
            filling.done &= ~(1 << part)
        at = sum(PARTS[:part])
        data = np.stack([block_of(key.tobytes())[at : at + PARTS[part]] for key in filling.keys])
        request = framed.FillRequest(reservation=filling.number, part=part, deadline_ms=1_000)

        async def ask(source: framed.Source) -> bytes:
            request.source.CopyFrom(source)
            return await client.ask(store.METHOD_FILL, request)

        if not failing:
            self.may.update(key.tobytes() for key in filling.keys)
        told = await self.lent(client, data, failing, patience_s, ask)
        if told is not None and not framed.FillResponse.FromString(told).failure:
            assert failing not in ("short", "forged", "unknown"), "filled with what was not there"
            filling.done |= 1 << part

    async def garbled(self, client: Client, filling: Filling, part: int) -> bool:
        """Whether the node takes other bytes for a part that followers may have read already."""
        data = np.zeros((len(filling.keys), PARTS[part]), np.uint8)
        request = framed.FillRequest(reservation=filling.number, part=part, deadline_ms=1_000)

        async def ask(source: framed.Source) -> bytes:
            request.source.CopyFrom(source)
            return await client.ask(store.METHOD_FILL, request)

        return await self.lent(client, data, "", DEADLINE_S, ask) is not None

    async def end_filling(self, client: Client, filling: Filling, method: int, part: int = 0) -> None:
        """Publish, seal or abort."""
        kinds = {store.METHOD_PUBLISH: framed.PublishRequest(reservation=filling.number, part=part)}
        kinds[store.METHOD_SEAL] = framed.SealRequest(reservation=filling.number)
        kinds[store.METHOD_ABORT] = framed.AbortRequest(reservation=filling.number)
        try:
            told = await client.ask(method, kinds[method])
        except REFUSALS:
            self.refused += 1
            return
        if method == store.METHOD_PUBLISH:
            assert filling.muddled or filling.done >> part & 1, "published what was never filled"
            filling.published = part + 1
            return
        client.fillings.pop(filling.number, None)
        if method == store.METHOD_SEAL:
            assert filling.muddled or filling.done == (1 << len(PARTS)) - 1, "sealed what was never filled"
            self.stored += framed.SealResponse.FromString(told).outcomes.count(0)

    # ---- what must hold

    async def check(self) -> None:
        """Whatever is sealed or published is right, and what is held is what leases hold."""
        for task in [task for task in self.tasks if task.done()]:
            self.tasks.remove(task)
            task.result()
        for keys in [*CHAINS, *self.others.values()]:
            for first in range(len(keys)):
                await self._check_run(keys[first:])
        now = asyncio.get_running_loop().time()
        for client in self.clients:
            for lease in [lease for lease in client.leases.values() if lease.until + 0.05 < now]:
                assert lease.number not in client.visitor.leases._leases, "a lease that its time did not end"
                del client.leases[lease.number]
        leases = [visitor.leases for visitor in self.visitor_of]
        ending = sum(not task.done() for one in leases for task in one._ending)
        held = sum(len(one._leases) for one in leases) + ending + self.node.kept
        being_made = sum(len(one._leasing) for one in leases)
        room = [
            visitor.allowance.taken - sum(one.bytes for one in visitor.leases._leases.values())
            for visitor in self.visitor_of
        ]
        assert min(room, default=0) >= 0, "leased, and not counted"
        follows = [visitor.follows for visitor in self.visitor_of]
        held += sum(len(one.source.here._holds) for each in follows for one in each._open.values())  # type: ignore[attr-defined]
        being_made += sum(one.asking is not None for each in follows for one in each._open.values())
        being_made += HOLDS_MAX * sum(len(each._ending) for each in follows)
        assert held <= self.core.stats(MEMORY)["holds"] <= held + being_made, "a hold without a lease, or one too few"

    async def _check_run(self, keys: Keys) -> None:
        done = await self.bridge.fetch(
            self.owner,
            self.opened.handle,
            0,
            keys,
            kind=native.HoldKind.LEASE,
            hint=native.Hint(),
            wait_s=0,
            lease_s=0.5,
            following=True,
        )
        sums = done.checksums.tolist()
        for key, offset, ready in zip(keys, done.offsets.tolist(), done.parts_ready.tolist(), strict=False):
            size = sum(PARTS[:ready])
            right = block_of(key.tobytes())[:size]
            assert key.tobytes() in self.may, "there, although nobody put it"
            assert np.array_equal(self.payload[offset : offset + size], right), "wrong bytes"
            own, sums = sums[:ready], sums[ready:]
            assert own == native.part_checksums(right.tobytes(), list(PARTS[:ready])).tolist()
        if done.hold:
            self.core.release(MEMORY, self.owner, done.hold)

    async def end(self) -> None:
        """Everything goes; nothing is left."""
        for client in self.clients:
            self.silence(client.address, goes_on=True, stops=False)
            self.visitors.gone(client.connection)
        if self.tasks:
            await asyncio.wait(self.tasks)
        await self.check()
        await self.visitors.close()
        await self.elapse(LIMITS.reserve_lapse_ms / 1e3 + 0.1)
        stats = self.core.stats(MEMORY)
        left = {what: stats[what] for what in ("slots_reserved", "holds")}
        assert left == {"slots_reserved": 0, "holds": self.node.kept}, left
        assert self.node.kept or stats["slots_retired"] == 0, "a retired slot that nobody holds"
        assert sum(visitor.allowance.taken for visitor in self.visitor_of) == self.stuck_bytes
        assert not self.bridge.watches._watches, "a watch that nobody ended"
        assert self.ways.counts.endpoints == 0, "a way back that nobody closed"
        assert not [grant for grant in self.node.book.all() if grant.slot not in self.ground.stuck]
