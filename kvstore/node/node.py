"""A node: puts its parts together, starts them in order, and stops them the other way round.

Order: data directory (no lock, no start), segments, core, namespaces, mover, transports, doors. What serves starts
last and stops first, so that nobody is ever answered by half a node.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from kvstore import config as settings
from kvstore import native
from kvstore.clock import Clock, SystemClock
from kvstore.config import Config, LimitsConfig
from kvstore.directory.base import Member
from kvstore.errors import Misconfigured, Unavailable
from kvstore.node import settings_told
from kvstore.node.auth import Guard
from kvstore.node.bridge import CoreBridge
from kvstore.node.cluster import Cluster
from kvstore.node.copies import Copies, make_copies
from kvstore.node.crowding import Crowd
from kvstore.node.door import FramedDoor
from kvstore.node.far import Lender
from kvstore.node.far_lookup import FarLookup
from kvstore.node.file_store import FileStore
from kvstore.node.handlers import DoorsReport, Handlers, NodeHost, TierReport
from kvstore.node.home import Home
from kvstore.node.kv_publisher import KvPublisher
from kvstore.node.leases import MovingHost
from kvstore.node.mover import Demote, Mover
from kvstore.node.namespaces import Namespaces, Opened
from kvstore.node.object_store import ObjectStore, url_of
from kvstore.node.replicas import Replicas
from kvstore.node.segments import Segments
from kvstore.node.service import GrpcServer
from kvstore.node.speeds import Speeds
from kvstore.node.telemetry import Telemetry
from kvstore.node.tls import Certificates
from kvstore.node.visitors import Visitors
from kvstore.node.wanted import Wanted
from kvstore.security import check_addresses, check_events
from kvstore.tiers.base import Keys, Shape, Tier, TierKind
from kvstore.tiers.ladder import Ladder
from kvstore.tiers.medium import CLOSE_MAX_S
from kvstore.tiers.memory import MemoryTier
from kvstore.transfers import Transfers
from transfer.offers import Carrier

log = logging.getLogger(__name__)

TICK_S: Final = 0.05  # how late a lease, a pin or a parked fetch of a gRPC call may end; the framed door keeps its own
NANOS: Final = 1_000_000_000
MILLIS: Final = 1_000_000


@dataclass(slots=True)
class Node:
    """From `start` to `stop`, on one event loop. `start` raises Misconfigured and leaves nothing behind it."""

    config: Config
    clock: Clock = field(default_factory=SystemClock)
    home: Home = field(init=False)
    name: str = field(init=False)
    socket: Path = field(init=False)
    segments: Segments = field(init=False)
    core: native.NodeCore = field(init=False)
    memory: MemoryTier = field(init=False)
    files: FileStore | None = None
    objects: ObjectStore | None = None
    grpc: GrpcServer = field(init=False)
    telemetry: Telemetry = field(init=False)
    kv_events: KvPublisher = field(init=False)
    transfers: Transfers = field(init=False)
    cluster: Cluster = field(init=False)
    said_aloud: tuple[str, ...] = ()
    _guard: Guard = field(init=False)
    _certificates: Certificates = field(init=False)
    _door: FramedDoor = field(init=False)
    _mover: Mover = field(init=False)
    _copies: Copies = field(init=False)
    _namespaces: Namespaces = field(init=False)
    _told: Mapping[str, str] = field(init=False)
    _exits: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)

    async def start(self) -> None:
        async with contextlib.AsyncExitStack() as undo:
            await self._start(undo)
            self._exits = undo.pop_all()

    async def stop(self) -> None:
        """Idempotent. Blocks in memory stay for the next start, unless memory.keep says otherwise. A device that hangs
        makes it wait, since memory must be quiet first: the log says so, and the process's deadline ends it (cli.py).
        """
        telling = asyncio.ensure_future(self._tell_of_silence())
        try:
            await self._exits.aclose()
        finally:
            await _cancelled(telling)

    async def _tell_of_silence(self) -> None:
        await asyncio.sleep(CLOSE_MAX_S)
        if self.files is not None:
            self.files.tell_of_silence(CLOSE_MAX_S)

    async def _start(self, exits: contextlib.AsyncExitStack) -> None:
        config = self.config
        self.said_aloud = check_addresses(config.security, settings.tcp_addresses(config))
        self.said_aloud += check_events(config.security, config.events.addresses)
        for said in self.said_aloud:
            log.warning(said)
        self.socket = settings.socket_path(config)
        self._guard = Guard(config.security)
        self._certificates = Certificates(config.security, framed=config.node.address != "none")
        self.home = Home(settings.data_dir(config))
        self.home.acquire()
        exits.callback(self.home.release)
        self.name = config.node.name or self.home.default_name()
        secret = self.home.secret(config.cluster.secret_file)
        self._told = settings_told.told(config, secret)
        self.segments = Segments(config.memory, self.name)
        await asyncio.to_thread(self.segments.open)
        exits.callback(self.segments.close, keep=config.memory.keep)
        file_table = None
        if config.file.enabled:
            self.files = FileStore(config.file, config.file.directory or self.home.path / "files", self.clock)
            file_table = await asyncio.to_thread(self.files.prepare)
            exits.push_async_callback(self.files.stop)
        url = url_of(config.object, self.home.path)
        if url is not None:
            self.objects = ObjectStore(config.object, url)
            await asyncio.to_thread(self.objects.open)
        self.cluster = Cluster(config.cluster, config.security, self._certificates, self.clock, secret, url)
        exits.push_async_callback(self.cluster.peers.close)
        self.core = make_core(self.segments, config, file_table)
        namespaces = self._namespaces = Namespaces(
            self.core, secret, self.home.namespaces, config.limits.namespaces_max, self.home.node_id()
        )
        namespaces.load()
        bridge = CoreBridge(self.core, self.clock)
        bridge.open()
        exits.callback(bridge.close)
        await self._start_mover(namespaces, exits)
        await self._start_transfers(exits)
        await self._start_doors(bridge, namespaces, exits)
        ticking = asyncio.ensure_future(self._tick())
        exits.push_async_callback(_cancelled, ticking)
        exits.push_async_callback(self.cluster.stop)
        await self._join()

    async def _join(self) -> None:
        """Last of all: others come in by the doors as soon as they can find this node."""
        offer = self.transfers.connector.offer
        self.cluster.introduce(
            Member(
                address=self._door.address,
                id=self.home.node_id(),
                incarnation=self.core.incarnation,
                name=self.name,
                grpc=next((at for at in self.grpc.addresses if not at.startswith("unix:")), ""),
                host=offer.home.boot.hex(),
                fabrics=offer.fabrics if any(route.carrier is Carrier.RDMA for route in offer.routes) else (),
            ),
            self.core,
            self._namespaces,
        )
        await self.cluster.join()
        over = self._namespaces.admit()
        # What memory wrote to files in an earlier life may not have been found, or there are no files now; what files
        # wrote to packs is below only if these packs are.
        self.core.recheck_clean(self.home.has_packs_at(self.objects.url if self.objects is not None else None))
        if self.objects is not None:
            self.objects.over(over)
        self.cluster.open()
        self.kv_events.open()
        self._copies.drain.resume()
        await self.grpc.open()

    async def _start_mover(self, namespaces: Namespaces, exits: contextlib.AsyncExitStack) -> None:
        def part_bytes(ns: int, shard: int) -> tuple[int, ...]:
            opened = namespaces.by_handle(ns)
            return tuple(opened.shards[shard].part_bytes) if opened is not None else ()

        self.memory = MemoryTier(self.core, memoryview(self.segments.payload.memory), part_bytes, self.clock)
        tiers: list[Tier] = []
        demote: Demote | None = None
        probe = None
        shapes = _Shapes(namespaces)
        if self.files is not None:
            await self.files.start(self.core, shapes, memoryview(self.segments.payload.memory))
            tiers.append(self.files.tier)
            demote = self.files.demotion(self.memory)
        if self.objects is not None:
            self.objects.start(
                self.core, namespaces, shapes, [*tiers, self.memory], self._bring_up, self._cleared_elsewhere
            )
            exits.push_async_callback(self.objects.stop)
            tiers.append(self.objects.tier)
            demote = demote or self.objects.writer.kick
            probe = self.objects.prober.ask
        find = self.objects.find if self.objects is not None else None
        mover = self._mover = Mover(self.core, self.memory, Ladder(tiers), self.clock, demote, probe, find)
        mover.start()
        exits.push_async_callback(mover.stop)

    async def _start_transfers(self, exits: contextlib.AsyncExitStack) -> None:
        path, lanes = (self.socket.with_name(self.socket.name + end) for end in (".peer", ".lanes"))
        trusted = {os.getuid(), *self.config.security.trusted_uids}
        config = settings.transfer_of(self.config)
        self.transfers = Transfers(
            config, trusted_uids=trusted, now_ns=self.clock.now_ns, path=str(path), lanes_path=str(lanes)
        )
        exits.push_async_callback(self.transfers.close)
        await self.transfers.start()

    async def _start_doors(self, bridge: CoreBridge, namespaces: Namespaces, exits: contextlib.AsyncExitStack) -> None:
        config, guard = self.config, self._guard
        self._door = FramedDoor(
            config.security,
            guard,
            self._certificates,
            config.limits,
            self.core,
            self.socket,
            config.node.address,
            self.cluster.desk,
            self.cluster.door_token,
        )
        host = self._host(bridge, namespaces)
        handlers = Handlers(host)
        exits.push_async_callback(handlers.close)
        self.grpc = GrpcServer(self._certificates, guard, host, handlers, str(self.admin_socket))
        self.admin_socket.unlink(missing_ok=True)
        exits.push_async_callback(self.grpc.stop)
        await self.grpc.start()
        self.kv_events = KvPublisher(config.events, self.core, namespaces, self.home.path / "kv-events")
        exits.push_async_callback(asyncio.to_thread, self.kv_events.stop)
        self.kv_events.start()
        self.telemetry = Telemetry(config, guard, self._certificates, host, handlers, self.kv_events)
        exits.push_async_callback(asyncio.to_thread, self.telemetry.stop)
        self.telemetry.start()
        payload = self.segments.payload
        regions = await self.transfers.lend(payload.memory, payload.fd, "payload")
        moving = MovingHost(bridge, self.clock, config.limits, self.transfers, regions)
        replicas = Replicas(moving, host.lender, has_files=self.files is not None)
        handlers.replicas = replicas
        visitors = Visitors(moving, handlers, host.lender, replicas, Crowd(config.cluster.leases_per_block_max))
        exits.push_async_callback(visitors.close)
        copies = self._copies = make_copies(
            host, handlers, replicas, visitors, self.objects, self.home.path / "draining", self._door.set_draining
        )
        self._door.start(handlers, visitors, copies, payload.fd, self.segments.size.bytes)
        exits.push_async_callback(self._door.stop)
        namespaces.on_cleared = self._cleared
        self.cluster.doubt.raised = self._ask_again
        self.cluster.looked = self._door.trust_until
        exits.push_async_callback(copies.drain.close)

    def _host(self, bridge: CoreBridge, namespaces: Namespaces) -> NodeHost:
        config, guard = self.config, self._guard
        speeds = Speeds(config.cluster.far_bytes_per_s)
        return NodeHost(
            name=self.name,
            bridge=bridge,
            payload=memoryview(self.segments.payload.memory),
            slab_bytes=self.segments.size.slab_bytes,
            clock=self.clock,
            namespaces=namespaces,
            limits=config.limits,
            grpc=config.grpc,
            family_blocks=config.cluster.family_blocks,
            several_tenants=lambda: guard.several_tenants,
            started_ns=self.clock.now_ns(),
            transfers=self.transfers,
            tiers=self.tiers,
            doors=self.doors,
            cluster=self.cluster,
            far=FarLookup(
                core=self.core,
                cluster=self.cluster,
                speeds=speeds,
                has_files=self.files is not None,
                in_packs=self.objects.tier.lookup if self.objects is not None else None,
            ),
            lender=Lender(
                self.cluster,
                self.core,
                config.limits,
                has_files=self.files is not None,
                wanted=Wanted(config.cluster.replica_window_s),
                speeds=speeds,
            ),
            settings=self._told,
            readers=self._readers(),
            find_packs=self.objects.find if self.objects is not None else None,
            in_packs=self.objects.tier.lookup if self.objects is not None else None,
        )

    @property
    def address(self) -> str | None:
        """HOST:PORT of the framed door, as it is bound; None: clients of other machines cannot come."""
        return self._door.address if self._door.address != "none" else None

    @property
    def admin_socket(self) -> Path:
        """gRPC for operators of this machine, beside the framed door."""
        return self.socket.with_name(self.socket.name + ".grpc")

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            due = self.core.next_deadline()
            now = self.clock.now_ns()
            if due is not None and due <= now:
                self.core.tick(now)

    async def reload(self) -> None:
        """Reads the access file, the certificates and the key again. What does not read well is refused in the log,
        and what was read before stays in force: each for itself, so that a bad certificate keeps no bad token alive.
        """
        security = self.config.security
        done, left = [], []
        for path, what, read in (
            (security.access_file, "access file", self._guard.reload),
            (security.certificate, "certificates", self._certificates.reload),
        ):
            if path is None:
                continue
            try:
                await asyncio.to_thread(read)
            except Misconfigured as error:
                log.error("reload: NOT taken, what was read before stays in force: %s", error)
                left.append(what)
            else:
                done.append(what)
        self._door.renew()
        ended = self.grpc.judge_again()
        log.warning(
            "reload: read again: %s; refused: %s; gRPC calls ended: %d; every other setting is read at start only",
            ", ".join(done) or "nothing",
            ", ".join(left) or "nothing",
            ended,
        )

    # ---- what is told of it ---------------------------------------------------------------------------------------

    def tiers(self) -> list[TierReport]:
        memory = int(TierKind.MEMORY)
        size = self.segments.size
        told = [TierReport(memory, "shared memory", size.bytes, size.asked_bytes, self.core.stats(memory))]
        if self.files is not None:
            file = int(TierKind.FILE)
            files = self.files
            told.append(TierReport(file, files.medium.name, files.medium.size, files.asked_bytes, files.stats()))
        if self.objects is not None:
            kind = int(TierKind.OBJECT)
            most = self.objects.bytes_max
            told.append(TierReport(kind, self.objects.url, most, most, self.objects.stats()))
        return told

    def listening(self) -> tuple[tuple[str, str], ...]:
        """Who may come, and where."""
        operators = f"unix:{self.admin_socket}"
        told = (
            ("clients here", f"unix:{self.socket}"),
            ("clients by TCP", self.address),
            *(("store-admin" if each == operators else "gRPC", each) for each in self.grpc.addresses),
            *(("transfers", route.address) for route in self.transfers.connector.offer.routes),
            ("metrics", self.telemetry.address),
            *(("KV events", each) for each in self.kv_events.addresses),
        )
        return tuple((who, address) for who, address in told if address)

    def doors(self) -> DoorsReport:
        framed = self._door.stats()
        return DoorsReport(
            addresses=tuple(address for _, address in self.listening()),
            connections=framed["connections"],
            refused=framed["refused_token"],
            located=framed["located"],
            tls=self.config.security.tls,
            insecure=bool(self.said_aloud),
        )

    def _readers(self) -> dict[int, Callable[[int, int], Awaitable[memoryview | None]]]:
        readers: dict[int, Callable[[int, int], Awaitable[memoryview | None]]] = {
            int(TierKind.MEMORY): self._read_memory
        }
        if self.files is not None:
            readers[int(TierKind.FILE)] = self.files.read
        return readers

    def _bring_up(self, ns: int, shard: int, keys: Keys) -> None:
        """As much of it as memory has without losing everything else."""
        block_bytes = sum(self.memory.part_bytes(ns, shard)) or 1
        self._mover.bring_up(ns, shard, keys[: max(1, self.segments.size.bytes // 2 // block_bytes)])

    def _cleared_elsewhere(self, opened: Opened) -> None:
        try:
            self._namespaces.cleared_elsewhere(opened)
        except Unavailable as error:
            log.warning("%s", error)

    def _cleared(self, opened: Opened) -> None:
        self._door.disallow(opened.handle)
        if self.objects is not None:
            self.objects.cleared(opened)

    def _ask_again(self) -> None:
        """Clients open their namespaces anew, which waits until this node knows what was cleared while it stood."""
        for opened in self._namespaces.all():
            self._door.disallow(opened.handle)

    async def _read_memory(self, offset: int, length: int) -> memoryview | None:
        return self.memory.place(offset, length).toreadonly()


@dataclass(frozen=True, slots=True)
class _Shapes:
    """What the tiers below memory ask of the namespaces."""

    namespaces: Namespaces

    def shape(self, ns: int, shard: int) -> Shape | None:
        opened = self.namespaces.by_handle(ns)
        if opened is None or shard >= len(opened.shards) or self.namespaces.find(opened.digest) is not opened:
            return None
        return Shape(opened.digest, tuple(opened.shards[shard].part_bytes))


def make_core(segments: Segments, config: Config, file: native.TableConfig | None = None) -> native.NodeCore:
    """The core over the segments, with the limits of the configuration."""
    limits: LimitsConfig = config.limits
    return native.NodeCore(
        segments.table(),
        file,
        meta=segments.meta.address,
        meta_bytes=len(segments.meta.memory),
        incarnation=secrets.randbits(63) + 1,
        window_bytes=limits.window_bytes,
        reserve_lapse_ns=limits.reserve_lapse_ms * MILLIS,
        lease_max_ns=limits.lease_ms_max * MILLIS,
        keys_per_call_max=limits.keys_per_call_max,
        holds_per_owner_max=limits.holds_per_connection_max,
        namespaces_max=limits.namespaces_max,
        parked_max=limits.parked_max,
        families_max=limits.families_max,
        events_max=limits.events_max,
        pinned_bytes_max=limits.pinned_bytes_max or 0,
        held_bytes_max=limits.held_bytes_max or 0,
    )


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def serve(
    config: Config, started: Callable[[Node], None], until: Callable[[], Awaitable[object]], reload: asyncio.Event
) -> None:
    """Runs a node until `until` returns; whenever `reload` is set, it reads again what it can."""
    node = Node(config)
    await node.start()
    reloading = asyncio.ensure_future(_reloads(node, reload))
    try:
        started(node)
        await until()
    finally:
        await _cancelled(reloading)
        await node.stop()


async def _reloads(node: Node, asked: asyncio.Event) -> None:
    while True:
        await asked.wait()
        asked.clear()
        try:
            await node.reload()
        except Exception:  # an operator's slip must not end the node
            log.exception("reload: failed")
