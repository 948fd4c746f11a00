"""How bytes go between two processes: the fastest way that both sides have, and why no faster one is used.

  process -> host -> rdma -> tcp         fastest first
     |         |       |       |
     +-- local +      rdma    tcp        the transport that carries it

Rules
- Decided once a pair, when it is connected, from what both sides offer; then tried in order, each failure recorded.
- Every path faster than the one in use has a reason. A slow path that nobody sees is the one fault of this module.
- An offer is a hint: each way is proven by connecting. A way that hangs gets half of the time that is left, so that a
  slower one still gets its turn.

Both sides in one process is a path of its own to the operator, but not a transport of its own: the local one maps the
granted segment a second time and copies with the same threads, so the bytes move as fast as between two regions of one
mapping, and grants, revocation and quiet memory stay one implementation. What a transport of its own would save is one
frame over a Unix socket for each grant presented.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from transfer.base import Batch, Endpoint, Landed, Presented, Transfer, Transport
from transfer.batch import Table
from transfer.devices.staged_endpoint import StagedEndpoint
from transfer.errors import PeerUnreachable, TransferError
from transfer.offers import Carrier, Offer
from transfer.pending import check_deadline
from transfer.sockets import is_loopback, parse_address
from transfer.tcp.config import path_of
from transfer.tcp.endpoint import TcpEndpoint
from transfer.topology import Nic

__all__ = ["Chosen", "Connection", "Connector", "Path", "PathCounts", "Way", "fabrics", "ways"]

ROCE = "roce"


class Path(Enum):
    """Fastest first."""

    PROCESS = "process"
    HOST = "host"
    RDMA = "rdma"
    TCP = "tcp"

    @property
    def carrier(self) -> Carrier:
        return _CARRIERS[self]


_CARRIERS = {
    Path.PROCESS: Carrier.LOCAL,
    Path.HOST: Carrier.LOCAL,
    Path.RDMA: Carrier.RDMA,
    Path.TCP: Carrier.TCP,
}


@dataclass(frozen=True, slots=True)
class Way:
    """One thing to try."""

    path: Path
    address: str


@dataclass(frozen=True, slots=True)
class Chosen:
    """The path in use. `reasons`: for each faster path why it is not, fastest first."""

    path: Path
    address: str
    reasons: tuple[tuple[Path, str], ...]

    def __str__(self) -> str:
        told = "".join(f"; not {path.value}: {reason}" for path, reason in self.reasons)
        return f"{self.path.value}{told}"


@dataclass(slots=True)
class PathCounts:
    """Of one path since the beginning, but `endpoints`: those open now. Bytes are those that landed."""

    endpoints: int = 0
    connects: int = 0
    refusals: int = 0  # a way that should have worked and did not
    bytes_read: int = 0
    bytes_written: int = 0
    bytes_served: int = 0  # of ours, as whoever read them says


def fabrics(nics: Iterable[Nic]) -> tuple[str, ...]:
    """The RDMA networks that active ports are on: an InfiniBand subnet each, and RoCE v2, which routes."""
    found: set[str] = set()
    for nic in nics:
        if nic.active and nic.link_layer == "InfiniBand" and nic.gids:
            found.add("ib:" + ":".join(nic.gids[0].gid.split(":")[:4]))
        elif nic.active and any(gid.kind == "RoCE v2" for gid in nic.gids):
            found.add(ROCE)
    return tuple(sorted(found))


def ways(here: Offer, has: Collection[Carrier], there: Offer) -> tuple[list[Way], dict[Path, str]]:
    """What to try, fastest first, and why not for each path without a way. has: the transports that this side can use.
    Pure.
    """
    found: list[Way] = []
    reasons: dict[Path, str] = {}
    for path in Path:
        refused = _mismatch(path, here, there) or _lacking(path.carrier, here, has, there)
        addresses = [route.address for route in there.routes if route.carrier is path.carrier]
        if not refused and path in (Path.RDMA, Path.TCP):
            addresses, refused = _reachable(path.carrier, addresses, here, there)
        if refused:
            reasons[path] = refused
        else:
            found += [Way(path, address) for address in addresses]
    return found, reasons


def _mismatch(path: Path, here: Offer, there: Offer) -> str:
    """Why two processes are not so placed that this path could join them; "" where they are."""
    match path:
        case Path.PROCESS:
            return "" if here.home.same_process(there.home) else "another process"
        case Path.HOST:
            return _not_same_host(here, there)
        case Path.RDMA:
            return _no_common_fabric(here, there)
        case Path.TCP:
            return ""


def _not_same_host(here: Offer, there: Offer) -> str:
    if here.home.same_process(there.home):
        return "the same process, which is a faster path"
    if not here.home.same_kernel(there.home):
        return "other host"
    if not here.home.same_files(there.home):
        return "another container of this host: its socket's path means something else here"
    if there.home.uid not in here.trusted_uids or here.home.uid not in there.trusted_uids:
        return f"not the same user: {here.home.uid} here, {there.home.uid} there, and they do not trust each other"
    return ""


def _no_common_fabric(here: Offer, there: Offer) -> str:
    if not here.fabrics or not there.fabrics or set(here.fabrics) & set(there.fabrics):
        return ""  # a side without any says so in its lacks
    return f"no common RDMA network: {', '.join(here.fabrics)} here, {', '.join(there.fabrics)} there"


def _lacking(carrier: Carrier, here: Offer, has: Collection[Carrier], there: Offer) -> str:
    word = carrier.name.lower()
    if carrier not in has:
        why = here.why_not(carrier)
        return f"no {word} here" + (f": {why}" if why else "")
    if not any(route.carrier is carrier for route in there.routes):
        why = there.why_not(carrier)
        return f"peer offers no {word}" + (f": {why}" if why else "")
    return ""


def _reachable(carrier: Carrier, addresses: Sequence[str], here: Offer, there: Offer) -> tuple[list[str], str]:
    """Without those that are of the peer's own host alone: here they would lead to somebody else."""
    files, network = here.home.same_files(there.home), here.home.same_network(there.home)
    kept = [one for one in addresses if (files if path_of(one) else network or not _of_its_host(one))]
    return kept, "" if kept else there.why_not(carrier) or "peer listens on its own loopback alone"


def _of_its_host(address: str) -> bool:
    try:
        scheme, mark, _ = address.partition("://")
        return is_loopback(parse_address(scheme + mark, address)[0])
    except ValueError:
        return False  # connecting will say what is wrong with it


class Connector:
    """Connects to peers by the best way there is. `transports`: those this process has; `offer`: what it tells peers,
    whose lacks also say here why a transport is not among them.
    """

    def __init__(self, transports: Mapping[Carrier, Transport], offer: Offer) -> None:
        self._transports = dict(transports)
        self.offer = offer
        self.counts: dict[Path, PathCounts] = {path: PathCounts() for path in Path}

    def without(self, carrier: Carrier) -> Connector:
        """The same, its counts too, but for this carrier."""
        fewer = Connector({one: kept for one, kept in self._transports.items() if one is not carrier}, self.offer)
        fewer.counts = self.counts
        return fewer

    async def connect(self, there: Offer, *, deadline_s: float) -> Connection:
        """Raises PeerUnreachable, naming every path and its reason, where none leads there."""
        check_deadline(deadline_s)
        loop = asyncio.get_running_loop()
        until = loop.time() + deadline_s
        found, reasons = ways(self.offer, self._transports, there)
        for number, way in enumerate(found):
            left = max(0.0, until - loop.time())
            last = number == len(found) - 1
            transport = self._transports[way.path.carrier]
            try:
                endpoint = await transport.connect(way.address, deadline_s=left if last else left / 2)
            except (PeerUnreachable, ValueError) as error:  # ValueError: an address that this transport refuses
                self.counts[way.path].refusals += 1
                told = str(error) or type(error).__name__
                reasons[way.path] = f"{reasons[way.path]}; {told}" if way.path in reasons else told
                continue
            faster = list(Path)[: list(Path).index(way.path)]
            chosen = Chosen(way.path, way.address, tuple((path, reasons[path]) for path in faster))
            return Connection(endpoint, transport, chosen, self.counts[way.path])
        told = "; ".join(f"{path.value}: {reasons[path]}" for path in Path)
        raise PeerUnreachable(f"no path to the peer: {told}")


class Connection:
    """See transfer.base.Endpoint: one that counts. `transport` is where local memory is registered for it, `endpoint`
    the transport's own, for what only that one can.
    """

    def __init__(self, endpoint: Endpoint, transport: Transport, chosen: Chosen, counts: PathCounts) -> None:
        self.endpoint = endpoint
        self.transport = transport
        self.chosen = chosen
        self._counts = counts
        self._open = True
        counts.endpoints += 1
        counts.connects += 1

    @property
    def incarnation(self) -> bytes:
        return self.endpoint.incarnation

    async def present(
        self, descriptors: Sequence[bytes], *, deadline_s: float, fresh: bool = False
    ) -> Sequence[Presented]:
        return await self.endpoint.present(descriptors, deadline_s=deadline_s, fresh=fresh)

    def read(self, batch: Batch, *, deadline_s: float, parts: Sequence[int] | None = None) -> Transfer:
        return _Counted(self.endpoint.read(batch, deadline_s=deadline_s, parts=parts), batch, self._counts, False)

    def write(self, batch: Batch, *, deadline_s: float) -> Transfer:
        return _Counted(self.endpoint.write(batch, deadline_s=deadline_s), batch, self._counts, True)

    def read_at_once(
        self,
        descriptor: bytes,
        memory: Sequence[tuple[int, int]],
        table: Table,
        *,
        deadline_s: float,
        parts: Sequence[int] | None = None,
    ) -> Landed | None:
        """See TcpEndpoint.read_at_once; of host memory. None: not over this path. Of any thread."""
        endpoint = self.endpoint.inner if isinstance(self.endpoint, StagedEndpoint) else self.endpoint
        if not isinstance(endpoint, TcpEndpoint):
            return None
        landed = endpoint.read_at_once(descriptor, memory, table, deadline_s=deadline_s, parts=parts)
        self._counts.bytes_read += landed.bytes
        return landed

    async def close(self) -> None:
        if self._open:
            self._open = False
            self._counts.endpoints -= 1
        await self.endpoint.close()


class _Counted:
    """A transfer whose bytes are counted at its first answer."""

    __slots__ = ("_batch", "_counts", "_told", "_transfer", "_writing")

    def __init__(self, transfer: Transfer, batch: Batch, counts: PathCounts, writing: bool) -> None:
        self._transfer = transfer
        self._batch = batch
        self._counts = counts
        self._writing = writing
        self._told = False

    @property
    def done(self) -> bool:
        return self._transfer.done

    def cancel(self) -> None:
        self._transfer.cancel()

    def __await__(self) -> Generator[object, None, Landed]:
        try:
            landed = yield from self._transfer.__await__()
        except TransferError as error:
            arrived = error.arrived
            self._count(int(self._batch.table[arrived, 4].sum()) if len(arrived) == len(self._batch) else 0)
            raise
        self._count(landed.bytes)
        return landed

    def _count(self, moved: int) -> None:
        if self._told:
            return
        self._told = True
        if self._writing:
            self._counts.bytes_written += moved
        else:
            self._counts.bytes_read += moved
