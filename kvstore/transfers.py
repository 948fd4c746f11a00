"""The ways by which a process of the store reaches its peers and is reached: its transports, its offer, its connector.

A node has them from start to stop; `kvstore doctor --peer` has them for one look. Of one event loop.

Rules
- Nothing of this leaves loopback without TLS: the transports refuse, and the settings with them. What RDMA moves is
  never encrypted; TLS is of its control connection, which may go without where rdma_trusted_network says so.
- A way that this process lacks is told with its reason, so that a peer's operator can read it.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import mmap
import secrets
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from kvstore.allowed import human
from kvstore.errors import Misconfigured
from transfer.devices import Way as DeviceWay
from transfer.devices import WaySettings
from transfer.devices.process import Devices, DeviceSettings
from transfer.devices.staged import StagedTransport
from transfer.devices.windows import BUFFER_BYTES_MIN
from transfer.errors import LimitReached, PeerUnreachable, RegionPoisoned
from transfer.local import LocalConfig, LocalTransport
from transfer.native import MappedSegment
from transfer.offers import FABRICS_MAX, TRUSTED_MAX, WHY_BYTES_MAX, Carrier, Lack, Offer, Route, home_of
from transfer.paths import Chosen, Connection, Connector, fabrics
from transfer.paths import Path as Way
from transfer.rdma import RdmaConfig, RdmaTransport, RdmaUnavailable, unavailable
from transfer.tcp import TcpConfig, TcpTransport, TlsFiles
from transfer.tcp.config import path_of
from transfer.topology import Nic, nics

if TYPE_CHECKING:
    from kvstore.config import TransferConfig
    from transfer.base import Endpoint, Grant, Region, Transport

__all__ = ["PROBE_BYTES", "Probe", "Transfers", "device_settings", "devices_of", "own_offer"]

log = logging.getLogger(__name__)

PROBE_BYTES: Final = 64 << 10
PROBE_LIFE_S: Final = 120.0  # told anew from its half on, so that whoever is told has at least a minute
QUIESCE_MAX_S: Final = 10.0  # of a stop, as the tiers': well within the time that a node has for it
_PATHS: Final = {Carrier.LOCAL: Way.HOST, Carrier.RDMA: Way.RDMA, Carrier.TCP: Way.TCP}
_WILDCARDS: Final = frozenset({"0.0.0.0", "::", "*"})  # noqa: S104 - refused


@dataclass(frozen=True, slots=True)
class Probe:
    """Random bytes that whoever has the descriptor may read, for a while."""

    carrier: Carrier
    descriptor: bytes
    size: int
    sha256: bytes


class Transfers:
    """From `start` to `close`. `path`: the Unix socket of the local transport; "": one in a new private directory.
    `lanes_path`: another, for those of this machine who may not map memory; "": none.
    listens: whether peers may come by TCP and RDMA. Who only connects is asked back over its connections.
    takes_devices: whether device memory is handed over, and moves by every transport, staged where it must be.
    """

    connector: Connector
    devices: Devices  # what the process has of CUDA; nothing of it is loaded before it is needed

    def __init__(
        self,
        config: TransferConfig,
        *,
        trusted_uids: Collection[int],
        now_ns: Callable[[], int],
        path: str = "",
        lanes_path: str = "",
        listens: bool = True,
        takes_devices: bool = False,
        sysfs: Path = Path("/sys"),
    ) -> None:
        self._config, self._path, self._sysfs, self._now_ns = config, path, sysfs, now_ns
        self._lanes_path = lanes_path
        self._trusted = frozenset(trusted_uids)
        self._listens = listens
        self._takes_devices = takes_devices
        self._staged: dict[Carrier, StagedTransport] = {}
        self._transports: dict[Carrier, LocalTransport | TcpTransport | RdmaTransport] = {}
        self._pages: dict[Carrier, Region] = {}
        self._granted: dict[Carrier, Grant] = {}
        self._granted_ns = 0
        self._sha256 = b""

    async def start(self) -> None:
        """Raises Misconfigured, and has nothing open then but what `close` closes."""
        tcp = tcp_config(self._config, listens=self._listens, path=self._lanes_path)
        rdma = rdma_config(self._config, listens=self._listens)
        self.devices = devices_of(self._config)
        try:
            self._transports[Carrier.LOCAL] = LocalTransport(
                LocalConfig(
                    path=self._path,
                    trusted_uids=self._trusted,
                    workers=self._config.workers,
                    quiesce_max_s=QUIESCE_MAX_S,
                )
            )
        except PeerUnreachable as error:
            raise Misconfigured(f"{error} (if another node listens there: another node.socket)") from error
        except OSError as error:
            raise Misconfigured(f"{self._path}: the local transport cannot listen there: {error}") from error
        try:
            self._transports[Carrier.TCP] = made = TcpTransport(tcp)
        except (OSError, RuntimeError) as error:  # RuntimeError: what OpenSSL says of the files
            raise Misconfigured(f"[transfer]: {error}; mend it, or address = none") from error
        data = secrets.token_bytes(PROBE_BYTES)
        self._sha256 = hashlib.sha256(data).digest()
        for carrier, transport in self._transports.items():
            self._pages[carrier] = await _page(transport, data)
        self._offer(made.unix_address, await self._start_rdma(rdma, data))

    def _offer(self, unix_address: str, no_rdma: str) -> None:
        """Raises Misconfigured where there is no RDMA and the settings ask for it."""
        if no_rdma and self._config.rdma == "on":
            raise Misconfigured(f"transfer.rdma = 'on': {no_rdma}")
        routes = [Route(carrier, one.address) for carrier, one in self._transports.items() if one.address]
        if unix_address:  # before TCP proper: nearer
            routes.insert(1, Route(Carrier.TCP, unix_address))
        found = nics(self._sysfs)
        offer = own_offer(routes, found, self._trusted, self._config, no_rdma=no_rdma)
        if self._takes_devices:
            self._staged = {
                carrier: self._staged.get(carrier) or StagedTransport(one, self.devices)
                for carrier, one in self._transports.items()
            }
        self.connector = Connector(self._staged or self._transports, offer)

    async def _start_rdma(self, rdma: RdmaConfig, data: bytes) -> str:
        """Why there is none; "" where there is. Raises Misconfigured for what the settings ask for in vain."""
        if self._config.rdma == "none":
            return "transfer.rdma = none"
        missing = unavailable()
        if missing:
            return missing
        try:
            transport = RdmaTransport(rdma, self.devices, sysfs=self._sysfs)
        except RdmaUnavailable as error:
            return str(error)
        except OSError as error:
            raise Misconfigured(f"[transfer]: {error}; mend it, or rdma = none") from error
        try:
            self._pages[Carrier.RDMA] = await _page(transport, data)
        except (LimitReached, ValueError) as error:  # a device that takes no memory is as good as none
            await transport.close()
            return str(error)
        self._transports[Carrier.RDMA] = transport
        return ""

    async def _without_rdma(self, why: str) -> None:
        """Raises Misconfigured where the settings ask for it."""
        transport, tcp = self._transports.pop(Carrier.RDMA), self._transports[Carrier.TCP]
        for known in (self._pages, self._granted):
            known.pop(Carrier.RDMA, None)
        await _closed(transport)
        log.warning("transfers: no RDMA: %s", why)
        self._offer(tcp.unix_address if isinstance(tcp, TcpTransport) else "", why)

    @property
    def carriers(self) -> tuple[Carrier, ...]:
        """By which this process can move bytes, to peers that it reaches by them."""
        return tuple(self._transports)

    def transport(self, carrier: Carrier) -> Transport:
        """Where memory is registered for connections of this carrier."""
        return self._staged.get(carrier) or self._transports[carrier]

    async def lend(self, memory: mmap.mmap, fd: int, name: str) -> dict[Carrier, Region]:
        """Shared memory and its descriptor, registered with every transport: until `close`. Bytes land in the mapping
        given, whose pages are there already; only peers that map it themselves need the descriptor. RDMA's devices pin
        it; where they do not take it there is no RDMA any more, or Misconfigured is raised where settings ask for it.
        """
        lent: dict[Carrier, Region] = {}
        for carrier, transport in list(self._transports.items()):
            known = MappedSegment(fd, len(memory), writable=True) if carrier is Carrier.LOCAL else memory
            try:
                lent[carrier] = await transport.register(known, name=name, on_poison=_poisoned)
            except (LimitReached, ValueError) as error:
                if carrier is not Carrier.RDMA:
                    raise
                await self._without_rdma(f"{name}: {error}")
        return lent

    async def back(self, carrier: Carrier, incarnation: bytes, *, deadline_s: float) -> Endpoint:
        """The way to a peer's memory over the connections that it made. Raises PeerUnreachable, and ValueError for a
        carrier that has no way back.
        """
        transport = self._transports.get(carrier)
        if not isinstance(transport, TcpTransport | RdmaTransport):
            raise ValueError(f"carrier: {carrier.name.lower()} has no way back to a peer")
        return await transport.back(incarnation, deadline_s=deadline_s)

    def counted(self, carrier: Carrier, endpoint: Endpoint) -> Connection:
        """One that `back` gave, among those of its path."""
        path = _PATHS[carrier]
        return Connection(endpoint, self._transports[carrier], Chosen(path, "", ()), self.connector.counts[path])

    def incarnation(self, carrier: Carrier) -> bytes:
        """Of our transport, as peers know it."""
        return self._transports[carrier].incarnation

    def served(self, carrier: Carrier, moved: int) -> None:
        """Bytes of ours that a peer says it has read."""
        self.connector.counts[_PATHS[carrier]].bytes_served += moved

    async def probes(self) -> list[Probe]:
        """One for each kind of route. The bytes are the same for all, and as long as this process lives."""
        now = self._now_ns()
        if not self._granted or now - self._granted_ns > PROBE_LIFE_S / 2 * 1e9:
            self._granted_ns = now
            for carrier, page in self._pages.items():
                granted = await self._transports[carrier].grant(page, [(0, PROBE_BYTES)], lifetime_s=PROBE_LIFE_S)
                self._granted[carrier] = granted
        routes = {route.carrier for route in self.connector.offer.routes}
        return [
            Probe(carrier, grant.descriptor, PROBE_BYTES, self._sha256)
            for carrier, grant in self._granted.items()
            if carrier in routes
        ]

    async def close(self) -> None:
        """Idempotent. Memory that a peer may still touch is kept until the process ends, and the log says so."""
        async with contextlib.AsyncExitStack() as closing:
            for carrier in self._transports:
                closing.push_async_callback(_closed, self.transport(carrier))


async def _closed(transport: Transport) -> None:
    try:
        await transport.close()
    except RegionPoisoned as error:
        log.error("transfers: %s", error)


def _poisoned(region: Region) -> None:
    log.error(
        "transfers: %s may still be written to by a transfer: it is granted no more until this process ends", region
    )


async def _page(transport: Transport, data: bytes) -> Region:
    page = MappedSegment.create(len(data), name="probe")
    page.writable_array(0, len(data))[:] = np.frombuffer(data, dtype=np.uint8)
    return await transport.register(page, name="probe", writable=False)


def devices_of(config: TransferConfig) -> Devices:
    """Raises Misconfigured naming the setting."""
    return Devices(device_settings(config))


def device_settings(config: TransferConfig) -> DeviceSettings:
    """Raises Misconfigured naming the setting."""
    least = config.staging_buffer_bytes
    if least < BUFFER_BYTES_MIN:
        raise Misconfigured(f"transfer.staging_buffer_bytes = {human(least)}: at least {human(BUFFER_BYTES_MIN)}")
    if config.staging_bytes_max < least:
        raise Misconfigured(
            f"transfer.staging_bytes_max = {human(config.staging_bytes_max)}: must hold a buffer of {human(least)} "
            "(transfer.staging_buffer_bytes)"
        )
    try:
        ways = WaySettings(frozenset(map(DeviceWay, config.device_ways)), config.device_caller_synchronizes)
    except ValueError as error:
        raise Misconfigured(f"transfer.device_ways = {', '.join(config.device_ways) or 'none'}: {error}") from None
    return DeviceSettings(
        ways=ways,
        staging_bytes_max=config.staging_bytes_max,
        buffer_bytes=least,
        ahead_max=config.staging_ahead_max,
        lent_bytes_max=config.lent_bytes_max,
        quiesce_max_s=QUIESCE_MAX_S,
    )


def tcp_config(config: TransferConfig, *, listens: bool, path: str = "") -> TcpConfig:
    """Raises Misconfigured naming the setting."""
    listens = listens and config.address != "none"
    tls = _tls_files(config, listens=listens)
    host, port = _where("address", config.address) if listens else ("127.0.0.1", 0)
    try:
        return TcpConfig(
            host=host,
            port=port,
            listens=listens,
            path=path,
            tls=tls,
            lanes=config.lanes,
            workers=config.workers,
            quiesce_max_s=QUIESCE_MAX_S,
        )
    except ValueError as error:
        raise Misconfigured(f"transfer.address = {config.address!r}: {error}") from None


def rdma_config(config: TransferConfig, *, listens: bool) -> RdmaConfig:
    """Raises Misconfigured naming the setting."""
    listens = listens and config.rdma_address != "none"
    tls = _tls_files(config, listens=listens)
    host, port = _where("rdma_address", config.rdma_address) if listens else ("127.0.0.1", 0)
    try:
        return RdmaConfig(
            host=host,
            port=port,
            listens=listens,
            tls=tls,
            trusted_network=config.rdma_trusted_network,
            devices=config.rdma_devices,
            all_rails=config.rdma_rails == "all",
            cached_bytes_max=config.rdma_cached_bytes_max,
            quiesce_max_s=QUIESCE_MAX_S,
        )
    except ValueError as error:
        why = str(error).replace("trusted_network", "transfer.rdma_trusted_network")
        raise Misconfigured(f"transfer.rdma_address = {config.rdma_address!r}: {why}") from None


def _tls_files(config: TransferConfig, *, listens: bool) -> TlsFiles | None:
    files = (config.certificate, config.private_key, config.peer_ca)
    if (config.certificate is None) != (config.private_key is None):
        raise Misconfigured("transfer.certificate and transfer.private_key: both or neither")
    if listens and config.peer_ca is not None and config.certificate is None:
        raise Misconfigured("transfer.peer_ca: needs transfer.certificate, who listens shows one")
    return TlsFiles(*(str(path or "") for path in files)) if any(files) else None


def _where(name: str, value: str) -> tuple[str, int]:
    """Where to listen, and what peers are told."""
    host, _, port = value.rpartition(":")
    host = host.strip("[]")
    if host in _WILDCARDS:
        raise Misconfigured(f"transfer.{name} = {value!r}: must be one that peers can connect to, not all")
    return host, int(port)


def own_offer(
    routes: Collection[Route],
    found: Collection[Nic],
    trusted: Collection[int],
    config: TransferConfig,
    *,
    no_rdma: str = "",
) -> Offer:
    """What this process tells its peers. `no_rdma`: why it has none, where it has not."""
    told = {route.carrier for route in routes if not path_of(route.address) or route.carrier is not Carrier.TCP}
    lacks: list[Lack] = []
    if Carrier.RDMA not in told:
        lacks.append(Lack(Carrier.RDMA, _short(no_rdma) or _no_listener("rdma_address", config.rdma_address)))
    if Carrier.TCP not in told:
        lacks.append(Lack(Carrier.TCP, _no_listener("address", config.address)))
    return Offer(
        home_of(),
        tuple(routes),
        lacks=tuple(lacks),
        fabrics=fabrics(found)[:FABRICS_MAX],
        trusted_uids=tuple(sorted(trusted)[:TRUSTED_MAX]),
    )


def _no_listener(name: str, value: str) -> str:
    return f"transfer.{name} = none" if value == "none" else "only connects"


def _short(why: str) -> str:
    """As an offer may hold it."""
    printable = "".join(one if one.isprintable() else " " for one in why)
    return printable.encode()[:WHY_BYTES_MAX].decode(errors="ignore")
