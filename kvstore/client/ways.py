"""A client's side of transfers: the ways to its node, and its callers' memory as their transports know it.

Rules
- Everything here runs on one event loop: the caller's own, or that of a thread (loop_thread.py) for the sync face.
- Nothing answers while a peer or a transport may still touch a caller's memory: what is lent is revoked before a put
  answers.
- Device memory is registered as it lies: the transports stage what no NIC reaches (transfer.devices.staged). Streams
  that arrays name are waited for before anything else.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from kvstore.client import crossing
from kvstore.client.buffers import Memory, Places
from kvstore.client.holders import Holders
from kvstore.client.landed import Read, leading, remote_starts, verified
from kvstore.client.spans import At, Span, array_of, device_of, spans_of
from kvstore.config import TransferConfig
from kvstore.errors import Misconfigured, Poisoned, Rejected, Unavailable
from kvstore.transfers import Transfers
from kvstore.wire import framed
from transfer.batch import EXTENTS_MAX, Batch
from transfer.devices import CudaUnavailable, NoWay
from transfer.devices import Way as DeviceWay
from transfer.errors import LimitReached, Reason, RegionPoisoned, StillTouched, TransferError, TransferFault
from transfer.native import keep_forever
from transfer.offers import Carrier, Offer
from transfer.paths import Connection, Connector

if TYPE_CHECKING:
    import numpy.typing as npt

    from kvstore.client.tls import Tls
    from transfer.base import Grant, Region
    from transfer.devices import Stager

__all__ = ["Loan", "NotTaken", "Reached", "TooLate", "Ways"]

CONNECT_S_MAX: Final = 5.0
LIFE_MARGIN_S: Final = 1.0  # a grant outlives its call by this; it is revoked at the call's end anyway


class NotTaken(Exception):
    """This process cannot move the device memory that its caller handed over, and why. Nothing was touched."""


class TooLate(Unavailable):
    """The call's time was over before anything moved."""


@dataclass(frozen=True, slots=True)
class Reached:
    """How bytes go between this client and its node. fetching: what we read by. pulling: what the node reads us by."""

    fetching: Connection
    pulling: Connection


class Loan(NamedTuple):
    """A caller's memory, granted to the node."""

    source: framed.Source
    grants: Sequence[Grant]
    regions: Sequence[Region]  # of this call only
    way: Connection


class Ways:
    """Of one client, from its first use to `close`. config: whose files `tls` replaces, where it is given: what the
    client shows and believes.
    """

    def __init__(self, tls: Tls | None, config: TransferConfig) -> None:
        if tls is not None:
            config = replace(config, certificate=tls.certificate, private_key=tls.private_key, peer_ca=tls.authority)
        self._config = config
        self._transfers: Transfers | None = None
        self._pulling: Connector
        self._lock = asyncio.Lock()
        self._reached: tuple[object, Reached] | None = None
        self.holders = Holders(self._connected)
        self._kept: dict[tuple[int, Carrier], tuple[Memory, Region]] = {}
        self._keeping = asyncio.Lock()
        self._closing: set[asyncio.Task[None]] = set()

    def known(self, line: object) -> Reached | None:
        """The ways to the node of this connection, if they are known. Of any thread."""
        reached = self._reached
        return reached[1] if reached is not None and reached[0] is line else None

    async def reach(self, line: object, offer: Offer, deadline_s: float) -> Reached:
        """Raises Unavailable, saying of each way why not."""
        until = time.monotonic() + deadline_s
        try:
            async with asyncio.timeout(deadline_s):
                await self._lock.acquire()
        except TimeoutError:
            raise Unavailable("the node is still being connected to by another call") from None
        try:
            known = self.known(line)
            if known is not None:
                return known
            transfers = await self._started()
            try:
                fetching = await transfers.connector.connect(offer, deadline_s=_connecting(until))
                pulling = fetching
                if fetching.chosen.path.carrier is Carrier.LOCAL:  # which reads no private memory
                    pulling = await self._pulling.connect(offer, deadline_s=_connecting(until))
            except TransferFault as error:
                raise Unavailable(str(error)) from error
            former, reached = self._reached, Reached(fetching, pulling)
            self._reached = line, reached
        finally:
            self._lock.release()
        if former is not None:
            await _closed(former[1])
        return reached

    @property
    def carriers(self) -> tuple[Carrier, ...]:
        """By which this client can read at all; none before it is known. Of any thread."""
        transfers = self._transfers
        return transfers.carriers if transfers is not None else ()

    async def start(self) -> tuple[Carrier, ...]:
        """The carriers. Raises Unavailable."""
        if self._transfers is None:
            async with self._lock:
                await self._started()
        return self.carriers

    async def _connected(self, offer: Offer, deadline_s: float) -> Connection:
        """To another node than ours, which never reads our memory. Raises Unavailable."""
        await self.start()
        assert self._transfers is not None
        try:
            return await self._transfers.connector.connect(offer, deadline_s=min(deadline_s, CONNECT_S_MAX))
        except TransferFault as error:
            raise Unavailable(str(error)) from error

    async def _started(self) -> Transfers:
        if self._transfers is None:
            made = Transfers(
                self._config, trusted_uids=_trusted_uids(), now_ns=time.monotonic_ns, listens=False, takes_devices=True
            )
            try:
                await made.start()
            except Misconfigured as error:
                await made.close()
                raise Unavailable(str(error)) from error
            self._pulling = made.connector.without(Carrier.LOCAL)
            self._transfers = made
        return self._transfers

    def lost(self, reached: Reached) -> None:
        """It led nowhere: the next call looks for ways anew."""
        own = self._reached is not None and self._reached[1] is reached
        if own:
            self._reached = None
        if own or self.holders.lost(reached.fetching):
            task = asyncio.get_running_loop().create_task(_closed(reached))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    # ---- get ----------------------------------------------------------------------------------------------------

    async def read(
        self,
        reached: Reached,
        lease: framed.LeaseResponse,
        places: Places,
        part_bytes: Sequence[int],
        wanted: range,
        kept: frozenset[int],
        *,
        verify: bool,
        deadline_s: float,
    ) -> Read:
        """Leased blocks into the caller's memory. wanted: which parts of each. `places`: where those lie.
        kept: Registry.kept.
        """
        way, until = reached.fetching, time.monotonic() + deadline_s
        blocks, skipped = len(lease.offsets), sum(part_bytes[: wanted.start])
        parts = list(part_bytes[wanted.start : wanted.stop]) * blocks
        local = _Local(self, way, kept, writable=True)
        try:
            table = await local.table(places, deadline_s)
            (shown,) = await way.present([lease.descriptor], deadline_s=deadline_s, fresh=True)
            table[:, 2] = shown.handle
            table[:, 3] = remote_starts(lease, table[:, 4], skipped)
            left_s = max(0.0, until - time.monotonic())
            landed = await way.read(Batch(table), deadline_s=left_s, parts=parts if verify else None)
        except TransferError as error:
            if error.poisoned:
                raise Poisoned(str(error)) from error
            if error.elsewhere:
                self.lost(reached)
            whole = leading(np.asarray(error.arrived.reshape(blocks, -1).all(axis=1)))
            late = any(failure.reason is Reason.LATE for failure in error.failures)
            return verified(whole, error.checksums, lease, wanted, verify=verify, late=late, failure=str(error))
        except asyncio.CancelledError as error:
            if isinstance(error.__cause__, TransferError):  # as Pending tells that memory is not quiet
                raise Poisoned(str(error.__cause__)) from error
            raise
        except TooLate as error:
            return Read(0, late=True, failure=str(error))
        except (CudaUnavailable, NoWay) as error:
            raise NotTaken(str(error)) from error
        except RegionPoisoned as error:
            raise Poisoned(str(error)) from error
        except TransferFault as error:
            self.lost(reached)
            return Read(0, failure=str(error))
        finally:
            await local.close()
        return verified(blocks, landed.checksums, lease, wanted, verify=verify)

    # ---- put ----------------------------------------------------------------------------------------------------

    async def lend(self, reached: Reached, places: Places, kept: frozenset[int], deadline_s: float) -> Loan:
        """Grants the caller's blocks to the node. Raises Unavailable, Rejected, NotTaken, TooLate, Poisoned."""
        way = reached.pulling
        local = _Local(self, way, kept, writable=False)
        grants: list[Grant] = []
        try:
            until = time.monotonic() + deadline_s
            table = await local.table(places, deadline_s)
            regions = {region.id: region for region in local.regions}
            of = np.zeros(len(table), dtype=np.int64)
            for number, region_id in enumerate(np.unique(table[:, 0]).tolist()):
                rows = table[:, 0] == region_id
                of[rows] = number
                ranges = list(map(tuple, table[rows][:, (1, 4)].tolist()))
                async with asyncio.timeout(until - time.monotonic()):  # granting copies what no NIC reaches
                    grants.append(
                        await way.transport.grant(regions[region_id], ranges, lifetime_s=deadline_s + LIFE_MARGIN_S)
                    )
        except BaseException as error:
            await way.transport.revoke(grants)
            await local.close()
            raise _as_told(error) from error
        pieces = np.stack((of, table[:, 1], table[:, 4]), axis=1)
        carrier = way.chosen.path.carrier
        assert self._transfers is not None
        source = framed.Source(
            carrier=int(carrier),
            incarnation=self._transfers.incarnation(carrier),
            descriptors=[grant.descriptor for grant in grants],
            pieces=pieces.astype("<i8").tobytes(),
        )
        return Loan(source, grants, local.temporary, way)

    async def take_back(self, loan: Loan) -> None:
        """The node reads no more of it. Raises Poisoned where that cannot be made sure of."""
        try:
            await loan.way.transport.revoke(loan.grants)
            for region in loan.regions:
                await loan.way.transport.deregister(region)
        except (StillTouched, RegionPoisoned) as error:
            raise Poisoned(f"{error}; its bytes must stay as they are") from error

    # ---- slots that this process maps -----------------------------------------------------------------------------

    async def fill(self, places: Places, targets: Sequence[npt.NDArray[np.uint8]], deadline_s: float) -> None:
        """The caller's blocks, some of them of a device, into mapped slots: one target a block. Raises NotTaken,
        TooLate, Unavailable, Rejected, Poisoned; some of the targets may be written then.
        """
        until = time.monotonic() + deadline_s
        try:
            await self.streams_over(places, deadline_s)
            stager = await self._stager()
            if DeviceWay.STAGED not in (await self._started()).devices.settings.ways.ways:
                raise NoWay("staged: not allowed by the settings, and no NIC reaches a mapped slot")
            async with asyncio.timeout(until - time.monotonic()):
                await crossing.fill(stager, places, targets)
        except RegionPoisoned as error:
            keep_forever(places.memories)  # as a transport keeps the memory of a region
            raise Poisoned(str(error)) from error
        except (TransferFault, TimeoutError) as error:
            raise _as_told(error) from error

    async def _stager(self) -> Stager:
        return await (await self._started()).devices.stager()

    # ---- memory -------------------------------------------------------------------------------------------------

    async def streams_over(self, places: Places, deadline_s: float) -> None:
        """Waits for what is queued on the streams that the caller's arrays name. Raises TooLate, TransferFault."""
        if not places.streams:
            return
        streams: dict[int, list[int]] = {}
        for device, stream in places.streams:
            streams.setdefault(device, []).append(stream)
        stager = await self._stager()
        try:
            async with asyncio.timeout(deadline_s):
                await stager.wait_for(streams)
        except TimeoutError as error:
            raise TooLate("the stream that the array names did not come to its end in time") from error

    async def kept_region(self, way: Connection, memory: Memory) -> Region:
        """Of memory that the caller has registered: made once."""
        key = id(memory), way.chosen.path.carrier
        async with self._keeping:  # several holders are read from at once, into the same memory
            found = self._kept.get(key)
            if found is None:
                span = Span(memory.address, memory.address + memory.length, [memory], memory.device)
                held = np.asarray(At(span, memory.writable)) if memory.device is None else device_of(span)
                region = await way.transport.register(held, name="registered", writable=memory.writable)
                found = self._kept[key] = memory, region
            return found[1]

    async def forget_others(self, kept: frozenset[int]) -> None:
        """Lets go of what the caller has registered no more."""
        assert self._transfers is not None
        for key in [key for key in self._kept if key[0] not in kept]:
            found = self._kept.pop(key, None)
            if found is None:  # another read of this call was first
                continue
            with contextlib.suppress(RegionPoisoned):  # which was told when it came about
                await self._transfers.transport(key[1]).deregister(found[1])

    async def close(self) -> None:
        former, self._reached = self._reached, None
        if former is not None:
            await _closed(former[1])
        for way in self.holders.close():
            await way.close()
        await asyncio.gather(*self._closing)
        if self._transfers is not None:
            await self._transfers.close()


def _connecting(until: float) -> float:
    """Seconds that connecting may take. until: time.monotonic()."""
    return min(CONNECT_S_MAX, max(0.0, until - time.monotonic()))


def _trusted_uids() -> set[int]:
    """Whose shared memory we read: our own user's nodes'."""
    return {os.getuid()}


class _Local:
    """The local side of one call. writable: bytes land there; else they are lent."""

    def __init__(self, ways: Ways, way: Connection, kept: frozenset[int], *, writable: bool) -> None:
        self._ways, self._way, self._keeps, self._writable = ways, way, kept, writable
        self.regions: list[Region] = []
        self.temporary: list[Region] = []

    async def table(self, places: Places, deadline_s: float) -> npt.NDArray[np.int64]:
        """(pieces, 5) with the local columns and lengths filled in. Raises Unavailable, TransferFault."""
        if len(places.addresses) > EXTENTS_MAX:
            raise Unavailable(f"{len(places.addresses)} pieces in one transfer, at most {EXTENTS_MAX}")
        await self._ways.streams_over(places, deadline_s)
        await self._ways.forget_others(self._keeps)
        spans = spans_of(places.memories)
        for span in spans:
            if len(span.memories) == 1 and id(span.memories[0]) in self._keeps:
                self.regions.append(await self._ways.kept_region(self._way, span.memories[0]))
                continue
            region = await self._registered(span)
            self.regions.append(region)
            self.temporary.append(region)
        addresses = places.addresses.astype(np.int64)
        which = np.searchsorted(np.array([span.start for span in spans], np.int64), addresses, side="right") - 1
        table = np.zeros((len(addresses), 5), dtype=np.int64)
        table[:, 0] = np.array([region.id for region in self.regions], np.int64)[which]
        table[:, 1] = addresses - np.array([region.address for region in self.regions], np.int64)[which]
        lengths = places.lengths.astype(np.int64)
        table[:, 4] = np.resize(lengths, len(addresses)) if len(lengths) != len(addresses) else lengths
        return table

    async def _registered(self, span: Span) -> Region:
        """What is only lent is made ready for no transfer of our own, which costs a NIC's pinning of all of it."""
        transport = self._way.transport
        if span.device is not None:
            return await transport.register(device_of(span), name="caller's", writable=self._writable)
        held = array_of(span, self._writable)
        if not self._writable:
            return await transport.register_lent(held, name="caller's")
        return await transport.register(held, name="caller's")

    async def close(self) -> None:
        """Raises Poisoned where memory is not quiet."""
        try:
            for region in self.temporary:
                await self._way.transport.deregister(region)
        except RegionPoisoned as error:
            raise Poisoned(f"{error}; it must be neither reused nor freed") from error


def _as_told(error: BaseException) -> BaseException:
    """What a step says of it; what is none of ours goes through."""
    if isinstance(error, CudaUnavailable | NoWay):
        return NotTaken(str(error))
    if isinstance(error, RegionPoisoned):
        return Poisoned(str(error))
    if isinstance(error, LimitReached):
        return Rejected(str(error), limit=error.limit)
    if isinstance(error, TransferFault):
        return Unavailable(str(error))
    if isinstance(error, TimeoutError):
        return TooLate("the deadline passed before the device's bytes were there")
    return error


async def _closed(reached: Reached) -> None:
    for way in {id(way): way for way in (reached.fetching, reached.pulling)}.values():
        await way.close()
