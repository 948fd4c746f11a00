"""The RDMA transport of one process: its regions and grants, its devices, its listener, its engine."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
import ssl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar

from transfer.devices.memory import DeviceMemory
from transfer.devices.process import Devices
from transfer.devices.ways import Reached, Way
from transfer.errors import LimitReached, NotReached, PeerUnreachable, Reason, RegionPoisoned
from transfer.lending import Lender
from transfer.native import RdmaEngine, RdmaJob, keep_forever, rdma_deregister, rdma_register
from transfer.pending import check_deadline
from transfer.rdma.config import SCHEME, RdmaConfig, parse_address
from transfer.rdma.control import Control
from transfer.rdma.direct import Card, bus_address, reached
from transfer.rdma.endpoint import RdmaEndpoint
from transfer.rdma.frames import FrameInvalid, Hello
from transfer.rdma.guests import Guests
from transfer.rdma.kept import Local, LocalCache
from transfer.rdma.lanes import Lanes
from transfer.rdma.link import Link
from transfer.rdma.nearness import Nearby, Nearness
from transfer.rdma.registrar import Asked, Registered, Registrar
from transfer.rdma.sealing import sealing
from transfer.rdma.serving import Lent
from transfer.rdma.trial import Landing
from transfer.rdma.verbs import forks_safely, open_devices
from transfer.regions import Region, RegionState
from transfer.sockets import connected, listening

__all__ = ["RdmaTransport"]

_FINISHED, _LANE_DOWN, _REFUSED, _LANE_UP = 1, 2, 3, 4
_CLOSE_S = 5.0
_THREADS = 4
_T = TypeVar("_T")


class _Motion(Protocol):
    def finished(self) -> None: ...


class RdmaTransport(Lender):
    """See transfer.base.Transport. Of one event loop, on which it is made and used. Raises RdmaUnavailable, OSError.

    Regions are registered with every device when they are: that pins their memory. CUDA memory where it lies, too, if
    the devices reach it: `cuda` says how that may be tried. `sysfs`: says which devices are near which memory.
    """

    def __init__(
        self, config: RdmaConfig | None = None, cuda: Devices | None = None, *, sysfs: Path = Path("/sys")
    ) -> None:
        self.config = config or RdmaConfig()
        self.cuda = cuda or Devices()
        self._loop = asyncio.get_running_loop()
        super().__init__(
            key=secrets.token_bytes(32),
            incarnation=secrets.token_bytes(16),
            regions_max=self.config.regions_max,
            grants_max=self.config.grants_max,
            quiesce_max_s=self.config.quiesce_max_s,
        )
        self._sealing = sealing(self.config.tls) if self.config.tls is not None else None
        self.devices = open_devices(self.config.devices, self.config.rails, self.config.cq_entries)
        self._threads = ThreadPoolExecutor(_THREADS, "rdma-control")
        self.registrar = Registrar(
            self.config.mrs_max, register=_register, deregister=rdma_deregister, run=self.in_thread
        )
        kept_bytes = self.config.cached_bytes_max if forks_safely() else 0
        self.kept = LocalCache(
            self.registrar, bytes_max=kept_bytes, entries_max=self.config.cached_max, idle_s=self.config.cached_s
        )
        self._nearby = Nearby([one.name for one in self.devices], sysfs, every=self.config.all_rails)
        self._local: dict[int, Local] = {}  # by region, in the order of the devices
        self.ground = self.lent = Lent(self)
        self.landing = Landing(self)
        self.engine = RdmaEngine(self.config.window, self.config.tries_max, self.config.linger_s, self.config.spin_s)
        for device in self.devices:
            self.engine.add_device(device.cq_address)
        self._loop.add_reader(self.engine.fd, self._some_events)
        self._listener, self._address = None, ""
        if self.config.listens:
            self._listener, self._address = listening(SCHEME, self.config.host, self.config.port)
        self._accepting = self._loop.create_task(self._accept()) if self._listener is not None else None
        self._links: dict[Link, None] = {}
        self._guests = Guests(self)
        self._numbers = itertools.count(1)  # of peers, lanes, grants shown to us, and jobs
        self._motions: dict[int, _Motion] = {}
        self._lanes: dict[int, tuple[Lanes, int]] = {}
        self._endpoints: dict[RdmaEndpoint, None] = {}
        self._whole = True
        self._closed = False

    @property
    def address(self) -> str:
        return self._address

    # -- what endpoints and guests use

    @property
    def accepting_tls(self) -> ssl.SSLContext | None:
        return self._sealing.accepting if self._sealing is not None else None

    def number(self) -> int:
        return next(self._numbers)

    def random_psn(self) -> int:
        return secrets.randbits(24)

    async def in_thread(self, work: Callable[[], _T]) -> _T:
        """What pyverbs or a device may wait in. A cancellation goes on only when the work has ended: nobody closes
        what a thread still uses.
        """
        working = self._loop.run_in_executor(self._threads, work)
        interrupted: asyncio.CancelledError | None = None
        while not working.done():
            try:
                await asyncio.wait([working])
            except asyncio.CancelledError as error:
                interrupted = error
        if interrupted is not None:
            raise interrupted
        return working.result()

    async def hello(self) -> Hello:
        return Hello(self.incarnation, await self.in_thread(lambda: tuple(one.offer() for one in self.devices)))

    def local_of(self, region_id: int) -> Local:
        """Raises ValueError for a region that is not registered, or not yet."""
        local = self._local.get(region_id)
        if local is None or local.near is None:
            raise ValueError(f"extents name local region {region_id}, which is not registered")
        return local

    def near_mask(self, local: Local) -> int:
        assert local.near is not None
        return self._nearby.mask(local.near)

    def nearness(self, region: Region) -> Nearness:
        """Which devices are near the region. Raises ValueError where it is not registered here."""
        local = self._local.get(region.id)
        if local is None or local.near is None:
            raise ValueError(f"{region.name} is not registered here")
        return local.near

    def submit(self, token: int, motion: _Motion, job: RdmaJob, peer: int) -> None:
        """Has the job moved; its motion's `finished` follows. Raises LimitReached(transfers_max)."""
        if len(self._motions) >= self.config.transfers_max:
            raise LimitReached(f"{self.config.transfers_max} batches are in motion", limit="transfers_max")
        self._motions[token] = motion
        self.engine.submit(job, peer)

    def stop(self, token: int, reason: Reason) -> None:
        self.engine.stop(token, int(reason))

    def lane_opened(self, number: int, lanes: Lanes, index: int) -> None:
        self._lanes[number] = lanes, index

    def check_completions(self, endpoint: RdmaEndpoint, lanes: Lanes) -> None:
        """Whether the endpoint may have these lanes. Raises LimitReached(cq_entries)."""
        others = [one.lanes for one in self._endpoints if one is not endpoint]
        requests = sum(one.a_device for one in (lanes, *others) if one is not None) * self.config.window
        if requests > self.config.cq_entries:
            limit = f"{requests} requests could be out on one device; a completion would find no room"
            raise LimitReached(limit, limit="cq_entries")

    def linked(self, control: Control, theirs: Hello) -> Link:
        link = Link(self, control, theirs)
        self._links[link] = None
        link.when_over(lambda: self._links.pop(link, None))
        return link

    def link_ended(self, link: Link) -> None:
        self._guests.gone(link)

    def parted(self, whole: bool, lanes: Lanes) -> None:
        """The lanes are over. whole: nothing of them is still out."""
        self._whole &= whole
        self.engine.forget(lanes.peer)

    def endpoint_closed(self, endpoint: RdmaEndpoint) -> None:
        self._endpoints.pop(endpoint, None)
        self._guests.left(endpoint)

    # -- events

    def _some_events(self) -> None:
        for kind, number, status in self.engine.events():
            if kind == _FINISHED:
                self._motions.pop(number).finished()
            elif kind == _LANE_DOWN:
                lanes, index = self._lanes.pop(number)
                lanes.lane_down(index, status)
            elif kind == _LANE_UP:
                lanes, index = self._lanes[number]
                lanes.lane_up(index)
            elif kind == _REFUSED:
                any(endpoint.access_ended(number) for endpoint in self._endpoints)

    async def _accept(self) -> None:
        assert self._listener is not None
        while True:
            try:
                sock, _ = await self._loop.sock_accept(self._listener)
            except OSError:
                await asyncio.sleep(0.1)  # no descriptors left, or a connection that was gone again
                continue
            if len(self._guests) >= self.config.connections_max:
                sock.close()
                continue
            self._guests.came(sock)

    # -- memory

    async def register(
        self,
        memory: object,
        *,
        name: str = "",
        writable: bool = True,
        on_poison: Callable[[Region], None] | None = None,
    ) -> Region:
        """Raises LimitReached (mrs_max, memlock) and ValueError, too, where a device will not take it."""
        region = await super().register(memory, name=name, writable=writable, on_poison=on_poison)
        if region.device is not None:
            return region  # register_device has seen to it
        wanted = [
            Asked(one.domain.address, region.pinned_at, region.bytes, region.address, write_here=region.writable)
            for one in self.devices
        ]
        try:
            local = self._local[region.id] = await self.kept.acquire(region.memory, wanted, writable=region.writable)
            if local.near is None:  # its pages are there and stay where they are, since they are registered
                near = self._nearby.alike
                local.near = near or await self.in_thread(lambda: self._nearby.of_host(region.pinned_at, region.bytes))
        except BaseException:
            await self.deregister(region)
            raise
        return region

    async def register_device(
        self, memory: DeviceMemory, *, name: str, writable: bool, on_poison: Callable[[Region], None] | None
    ) -> Region:
        """Raises NotReached where a device does not reach the memory, with the reasons; NoWay; and as `register`."""
        cards = [Card(one.name, one.domain.address, writable, _register, rdma_deregister, {}) for one in self.devices]
        found: list[tuple[Reached, Nearness]] = []

        def work() -> list[Registered]:
            near = self._nearby.of_device(bus_address(memory, self.cuda))
            told, made = reached(memory, cards, self.cuda)
            found.append((told, near))
            return made

        made = await self.registrar.taken(len(cards), work)
        ((told, near),) = found
        if told.way is Way.STAGED:
            raise NotReached(f"memory lies on device {memory.device}, and no NIC reaches it", why=told.why)
        try:
            region = self._regions.add_device(
                memory, name=name, writable=writable, way=told.way, why=told.why, on_poison=on_poison
            )
        except BaseException:
            await self.registrar.release(made)
            raise
        self._local[region.id] = Local(made, memory, near=near)
        return region

    async def deregister(self, region: Region) -> None:
        if region.state is RegionState.CLOSED:
            return
        # Its devices let it go before its memory may go.
        held = region.memory if region.device is None else region.device_memory
        await super().deregister(region)
        local = self._local.pop(region.id, None)
        if local is not None:
            await self.kept.release(local)
        del held

    # -- peers

    async def connect(self, address: str, *, deadline_s: float) -> RdmaEndpoint:
        """Raises ValueError for an address that is not `rdma://HOST:PORT`, or where trust does not reach."""
        check_deadline(deadline_s)
        host, port = parse_address(address)
        self.config.check_host("address", host)
        endpoint = RdmaEndpoint(self, lambda: self._link_to(host, port), closes_links=True)
        self._endpoints[endpoint] = None
        try:
            async with asyncio.timeout(deadline_s):
                await endpoint.open()
        except (OSError, TimeoutError, FrameInvalid) as error:
            await endpoint.close()
            raise PeerUnreachable(f"{address}: {error or 'no answer in time'}") from error
        except BaseException:
            await endpoint.close()
            raise
        return endpoint

    async def _link_to(self, host: str, port: int) -> Link:
        tls = self._sealing.connecting if self._sealing is not None else None
        control = await Control.connected(await connected(host, port), self.config.keepalive_s, tls, host)
        try:
            return self.linked(control, await control.greet(await self.hello()))
        except BaseException:
            control.lose("this side has closed")
            raise

    async def back(self, incarnation: bytes, *, deadline_s: float) -> RdmaEndpoint:
        """The endpoint of a peer that connects to us, over the connection it makes, with queue pairs that we ask it
        for; the same one until it is closed. Raises PeerUnreachable where no connection of that peer opens in time.
        """
        check_deadline(deadline_s)
        endpoint = await self._guests.back(incarnation, deadline_s)
        self._endpoints[endpoint] = None
        return endpoint

    async def close(self) -> None:
        """Raises RegionPoisoned where some memory could not be made quiet; all else is closed then, too."""
        if self._closed:
            return
        self._closed = True
        if self._accepting is not None and self._listener is not None:
            self._accepting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._accepting
            self._listener.close()
        for endpoint in list(self._endpoints):
            await endpoint.close()
        poisoned = await self.deregister_all()
        await self._guests.close()
        for link in list(self._links):
            await link.close()
        await self.kept.close()
        self._loop.remove_reader(self.engine.fd)
        if self.engine.close(_CLOSE_S if self._whole else 0.0):
            await self.landing.close()
            for device in self.devices:
                await self.in_thread(device.close)
        else:
            keep_forever(
                [self.engine, self.devices, self.landing, list(self._motions.values()), self._lanes, self._local]
            )
        self._threads.shutdown(wait=False)
        if poisoned:
            raise RegionPoisoned(f"not quiet at close: {', '.join(poisoned)}")


def _register(asked: Asked) -> Registered:
    return Registered(
        *rdma_register(
            asked.pd,
            asked.address,
            asked.bytes,
            asked.device_address,
            write_here=asked.write_here,
            peer_reads=asked.peer_reads,
            peer_writes=asked.peer_writes,
            dma_buf=asked.dma_buf,
        )
    )
