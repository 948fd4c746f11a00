"""One node of a simulated cluster: what of it lasts, and its lives, which are real nodes behind a simulated door.

Real: the core, namespaces, membership, pings, directory, leases, replicas, pulls. Simulated: sockets, transports,
mapped memory (clients' control goes as those of another machine's), the disk (there are no lower tiers).
"""

from __future__ import annotations

import asyncio
import itertools
import mmap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import numpy as np

from kvstore import native
from kvstore.config import ClusterConfig, GrpcConfig, LimitsConfig
from kvstore.directory.base import Member
from kvstore.errors import Rejected
from kvstore.node.auth import Peer
from kvstore.node.cluster import Cluster
from kvstore.node.copies import METHODS as COPY_METHODS
from kvstore.node.copies import make_copies
from kvstore.node.crowding import Crowd
from kvstore.node.door import _refusal
from kvstore.node.far import Lender
from kvstore.node.far_lookup import FarLookup
from kvstore.node.handlers import NAMELESS, Handlers
from kvstore.node.leases import MovingHost
from kvstore.node.namespaces import Namespaces
from kvstore.node.peer_desk import METHODS as PEER_METHODS
from kvstore.node.peers import Peers
from kvstore.node.replicas import Replicas
from kvstore.node.visitors import METHODS, NAMING, NODE_METHODS, Visitors
from kvstore.node.wanted import Wanted
from kvstore.security import SecurityConfig
from kvstore.tiers.base import Keys
from kvstore.wire import errors
from tests.model.visitor_parts import Pumped, Ways
from tests.simulation.whole.wires import Session, Wires
from tests.simulation.whole.world import World
from tests.storage import MEMORY
from transfer.offers import Carrier, Home, Offer, Route
from transfer.paths import Connector
from transfer.testing.simulated import SimulatedConfig, SimulatedTransport

__all__ = ["LIMITS", "METHOD_LOOKUP", "Life", "Node", "Transfers"]

MEMORY_BYTES: Final = 512 << 10
SLAB_BYTES: Final = 128 << 10
LIMITS: Final = LimitsConfig(reserve_lapse_ms=1_500, lease_ms_max=1_500, moving_bytes_max=1 << 20, hold_wait_ms_max=500)
SLICES: Final = SimulatedConfig(slice_bytes=8192)
METHOD_LOOKUP: Final = 10_000  # what the native door answers by itself
SECRET: Final = b"s" * 32
TICK_S: Final = 0.05
FAMILY_BLOCKS: Final = 4
LEASES_PER_BLOCK: Final = 2
CERTIFICATES: Final = SimpleNamespace(framed=lambda: None)


def cluster_config(members: str) -> ClusterConfig:
    """Times as short as keeps them apart."""
    return ClusterConfig(
        members=members,
        ping_ms=100,
        dead_after_ms=400,
        settle_ms=300,
        grace_ms=1_000,
        announce_ms=30,
        digest_ms=800,
        claims_max=1 << 12,
        join_ms=1_000,
    )


class Transfers(Ways):
    """As kvstore.transfers.Transfers, of a process with one simulated transport."""

    def __init__(self, transport: SimulatedTransport, home: Home) -> None:
        super().__init__(transport)
        offer = Offer(home, (Route(Carrier.TCP, transport.address),))
        self.connector = Connector({Carrier.TCP: transport}, offer)
        self.carriers = (Carrier.TCP,)

    def incarnation(self, carrier: Carrier) -> bytes:
        return self.own.incarnation

    async def probes(self) -> list[Any]:
        return []

    async def close(self) -> None:
        await self.own.close()


class _Peers(Peers):
    """Over simulated wires."""

    wires: Wires
    source: str

    async def _opened(self, address: str, until: float) -> Any:
        left = max(0.001, until - asyncio.get_running_loop().time())
        return await Session.open(self.wires, self.source, address, left)

    async def close(self) -> None:
        for address in tuple(self._lines):
            self.drop(address)


class Node:
    """What lasts: memory, the data directory, the node's id."""

    def __init__(self, world: World, wires: Wires, number: int, members: str, home: Path, *, copies: bool) -> None:
        self.world, self.wires, self.number, self.members = world, wires, number, members
        self.copies = copies  # whether what is got again is copied near
        self.address = address_of(number)
        self.name = f"n{number}"
        self.id = self.name.encode().ljust(16, b".")
        self.directory = home / self.name
        self.directory.mkdir()
        self.life: Life | None = None
        self.wipe()

    def wipe(self) -> None:
        """The machine's memory is gone, and its disk."""
        self._map()
        for path in self.directory.iterdir():
            path.unlink()

    def _map(self) -> None:
        table = self.table()
        self.payload = np.frombuffer(mmap.mmap(-1, MEMORY_BYTES), np.uint8)
        self.meta = mmap.mmap(-1, native.NodeCore.meta_bytes(table))
        self.world.kept += [self.payload, self.meta]

    def _take_over(self) -> None:
        """What the former life left, at another place: Python still tidies up behind that one, which no process that
        was killed could.
        """
        payload, meta = self.payload, bytes(self.meta)
        self._map()
        self.payload[:] = payload
        self.meta[:] = meta

    def table(self) -> native.TableConfig:
        return native.TableConfig(MEMORY_BYTES, SLAB_BYTES, hash_seed=self.world.rng.getrandbits(64))

    def start(self) -> None:
        """Its next life."""
        self.wires.revive(self.address)
        self.world.say(self.name, "starts")
        self._take_over()
        self.life = life = Life(self)
        life.process.post(lambda: asyncio.ensure_future(life.run()))

    def kill(self, *, machine: bool) -> None:
        """By force. machine: with all that it holds; nothing answers there any more."""
        self.world.say(self.name, "is lost, and its memory" if machine else "is killed")
        self.wires.leave(self.address, machine=machine)
        self.life = None
        if machine:
            self.wipe()

    @property
    def runs(self) -> bool:
        return self.life is not None and not self.life.process.stopped


class Life:
    """One process of a node, from its start until it is killed."""

    def __init__(self, node: Node) -> None:
        self.node, self.world, wires = node, node.world, node.wires
        self.process = node.world.process(node.name)
        self.joined = False
        self.opened: set[tuple[int, int]] = set()  # (owner, handle)
        self._owners = itertools.count(1)
        self._tasks: set[asyncio.Task[Any]] = set()
        meta = np.frombuffer(node.meta, np.uint8)
        self.core = native.NodeCore(
            node.table(),
            None,
            meta=meta.ctypes.data,
            meta_bytes=len(node.meta),
            incarnation=self.world.rng.getrandbits(62) + 1,
            reserve_lapse_ns=LIMITS.reserve_lapse_ms * 10**6,
            lease_max_ns=LIMITS.lease_ms_max * 10**6,
        )
        self.clock = SimpleNamespace(now_ns=lambda: round(self.world.now * 1e9))
        self.namespaces = Namespaces(
            self.core, SECRET, node.directory / "namespaces.json", LIMITS.namespaces_max, node.id
        )
        self.namespaces.load()
        wires.machines[node.address] = self.process

    async def run(self) -> None:
        """Composes it as kvstore/node/node.py does."""
        node = self.node
        self.bridge = Pumped(self.core, self.clock)
        self.bridge.open()
        self.transport = SimulatedTransport(node.wires, node.address, SLICES)
        self.transfers = Transfers(self.transport, Home(boot=node.id))
        region = await self.transport.register(node.payload, name="payload")
        config = cluster_config(node.members)
        certificates: Any = CERTIFICATES
        self.cluster = Cluster(config, SecurityConfig(), certificates, self.clock, SECRET, None)
        self._replace_peers()
        wanted = Wanted(config.replica_window_s if node.copies else 0)
        self.lender = Lender(self.cluster, self.core, LIMITS, has_files=False, wanted=wanted)
        host = self._host(config)
        self.handlers = Handlers(host)
        transfers: Any = self.transfers
        moving = MovingHost(self.bridge, self.clock, LIMITS, transfers, {Carrier.TCP: region})
        self.replicas = self.handlers.replicas = Replicas(moving, self.lender, has_files=False)
        crowd = Crowd(LEASES_PER_BLOCK)
        self.visitors = Visitors(moving, self.handlers, self.lender, self.replicas, crowd)
        mark = node.directory / "draining"
        self.copies = make_copies(host, self.handlers, self.replicas, self.visitors, None, mark, lambda _: None)
        node.wires.doors[node.address] = self
        ticking = asyncio.ensure_future(self._tick())
        self._tasks.add(ticking)
        me = Member(node.address, node.id, self.core.incarnation, node.name, "", node.name)
        self.cluster.introduce(me, self.core, self.namespaces)
        self.namespaces.on_cleared = lambda opened: self._cleared(opened.handle)
        self.cluster.doubt.raised = lambda: [self._cleared(one.handle) for one in self.namespaces.all()]
        await self.cluster.join()
        self.namespaces.admit()
        self.cluster.open()
        self.joined = True

    def _replace_peers(self) -> None:
        made = self.cluster.peers
        ours = _Peers(made.introduction, made.me, made.tls, made.mutual, made.insecure, made.token, made.secret_id)
        ours.wires, ours.source = self.node.wires, self.node.address
        self.cluster.peers = ours

    def _host(self, config: ClusterConfig) -> Any:
        return SimpleNamespace(
            name=self.node.name,
            bridge=self.bridge,
            clock=self.clock,
            namespaces=self.namespaces,
            limits=LIMITS,
            grpc=GrpcConfig(),
            family_blocks=FAMILY_BLOCKS,
            several_tenants=lambda: False,
            on_clear=self._cleared,
            transfers=self.transfers,
            cluster=self.cluster,
            far=FarLookup(self.core, self.cluster, self.lender.speeds, has_files=False, in_packs=None),
            lender=self.lender,
            find_packs=None,
            in_packs=None,
        )

    def _cleared(self, handle: int) -> None:
        self.opened = {one for one in self.opened if one[1] != handle}

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            now, due = self.clock.now_ns(), self.core.next_deadline()
            if due is not None and due <= now:
                self.core.tick(now)

    # ---- its door ---------------------------------------------------------------------------------------------------

    def came(self) -> int:
        return next(self._owners)

    def gone(self, owner: int) -> None:
        self.visitors.gone(owner)
        self.cluster.desk.gone(owner)

    async def answer(self, owner: int, method: int, body: bytes) -> SimpleNamespace:
        """As kvstore.node.door answers a call."""
        try:
            told = await self._answered(owner, method, body)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            if isinstance(error, AssertionError):
                raise
            status, text, limit = _refusal(error)
            detail = errors.detail(text, limit_name=limit)
            return SimpleNamespace(
                status=int(status), field=detail.field, reason=detail.reason, limit=detail.limit, body=b""
            )
        return SimpleNamespace(status=0, field="", reason="", limit=0, body=told)

    async def _answered(self, owner: int, method: int, body: bytes) -> bytes:
        peer = Peer("test", None)
        if method in PEER_METHODS:
            return self.cluster.desk.call(owner, method, body)
        if method in METHODS:
            node = b""
            if method in NODE_METHODS:
                member = self.cluster.desk.peer(owner)
                peer, node = Peer(member.name, None), member.id
            elif method in NAMING:
                await self.cluster.surely()
            self.visitors.came(owner)
            return await self.visitors.call(owner, peer, method, body, node)
        if method in COPY_METHODS:
            return await self.copies.call(self.cluster.desk.peer(owner), method, body)
        if method == METHOD_LOOKUP:
            return self._looked_up(owner, body)
        if method not in NAMELESS:
            await self.cluster.surely()
        return await self.handlers.call(peer, method, body, lambda handle: self.opened.add((owner, handle)))

    def _looked_up(self, owner: int, body: bytes) -> bytes:
        handle, keys = int.from_bytes(body[:4], "little"), np.frombuffer(body[4:], np.uint8).reshape(-1, 32)
        if (owner, handle) not in self.opened:
            raise Rejected("namespace: not open on this connection")
        _, blocks, tiers, *_ = self.core.lookup(handle, keys, [(0, native.NeedKind.ALL, 0)])
        return bytes([len(tiers)]) + tiers + blocks.to_bytes(4, "little")

    # ---- what a judge may see -------------------------------------------------------------------------------------

    def holds(self, digest: bytes, keys: Keys) -> np.ndarray:
        """Which of them are in its memory."""
        opened = self.namespaces.find(digest)
        if opened is None:
            return np.zeros(len(keys), np.bool_)
        return self.core.find(MEMORY, opened.handle, 0, keys)


def address_of(number: int) -> str:
    return f"10.0.0.{number + 1}:7000"


Said = Callable[[str], None]
