"""Copies of other nodes' blocks in this node's own memory, for who wants them to stay: holds, prefetches, promises.

Leased at the holders as for a client (far.py), read into reserved slots, compared with the holder's checksums, sealed.

Rules
- Window after window, in chain order: behind a hole nothing is of use.
- One brings a stretch, others that want it wait for it: what is reserved already cannot be reserved again. So does who
  comes to blocks that somebody else writes just now: a client, or who brings a stretch that began before.
- What does not verify is not sealed, and the holder is told. Every wait has its end.
- A replica has the metas of what it is a copy of: whoever asks this node for events is told the same.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from kvstore import native
from kvstore.client.holders import Holders, read_within
from kvstore.client.landed import leading
from kvstore.errors import KvStoreError, Rejected, Unavailable
from kvstore.node.held_here import held_here
from kvstore.node.leases import Allowance
from kvstore.node.pulls import PENDING, Slots
from kvstore.node.streams import Prefix
from kvstore.wire import convert, framed, store
from transfer.errors import TransferFault

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kvstore.node.far import Lender, Lent
    from kvstore.node.leases import MovingHost
    from kvstore.node.namespaces import Opened
    from transfer.offers import Offer
    from transfer.paths import Connection

__all__ = ["Replicas"]

log = logging.getLogger(__name__)

TRIES: Final = 4  # holders of a stretch that lead nowhere
BRINGING_BYTES_MAX: Final = 1 << 30  # of all that is being brought at one time
PAUSE_S: Final = 0.01  # before what somebody else writes is looked for again, and twice as long each time
PAUSE_S_MAX: Final = 0.1


class _BeingWritten(Rejected):
    """Somebody else writes the next block."""


@dataclass(slots=True)
class Replicas:
    """Of a node, until `close`."""

    host: MovingHost
    lender: Lender
    has_files: bool
    draining: bool = False  # it brings nothing more
    _holders: Holders = field(init=False)
    _allowance: Allowance = field(default_factory=lambda: Allowance(BRINGING_BYTES_MAX))
    _turns: dict[tuple[int, int, bytes], asyncio.Lock] = field(default_factory=dict)
    _closing: set[asyncio.Task[None]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._holders = Holders(self._connected)

    async def bring(
        self,
        opened: Opened,
        prefix: Prefix,
        request: framed.LeaseRequest,
        wait_s: float,
        *,
        source: bytes | None = None,
        loud: bool = False,
    ) -> int:
        """How many blocks of the chain from its start this node has now, in memory or in files: those that others have
        are copied into memory, for `wait_s` at most. request: shard, hints and position. source: a node that is asked
        first, whatever the directory knows. loud: where room for not one block can be had that is Rejected. Raises
        NotOpen.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + wait_s
        at, pause_s = self.here(opened, request.shard, prefix.keys), PAUSE_S
        while at < len(prefix.keys) and loop.time() < until and not self.draining:
            key = opened.handle, request.shard, prefix.keys[at].tobytes()
            turn = self._turns.setdefault(key, asyncio.Lock())
            try:
                async with asyncio.timeout_at(until), turn:
                    came = self.here(opened, request.shard, prefix.keys[at:])
                    came = came or await self._window(opened, prefix.part(at), request, at, until, source)
                    came = came or self.here(opened, request.shard, prefix.keys[at:])  # put here meanwhile
            except TimeoutError:
                at += self.here(opened, request.shard, prefix.keys[at:])  # sections that came before
                break
            except _BeingWritten:
                await asyncio.sleep(min(pause_s, max(0.0, until - loop.time())))
                pause_s = min(PAUSE_S_MAX, 2 * pause_s)
                continue
            except Rejected as error:
                log.debug("no replica: %s", error)
                if loud and not at:
                    raise
                break
            finally:
                if not turn.locked():
                    self._turns.pop(key, None)
            if not came:
                break
            at += came
            at += self.here(opened, request.shard, prefix.keys[at:])
        return at

    def here(self, opened: Opened, shard: int, keys: NDArray[np.uint8]) -> int:
        """How many blocks from the first on memory or files have."""
        return leading(held_here(self.host.bridge.core, opened.handle, shard, keys, has_files=self.has_files))

    async def _window(
        self,
        opened: Opened,
        prefix: Prefix,
        request: framed.LeaseRequest,
        at: int,
        until: float,
        source: bytes | None,
    ) -> int:
        """How many blocks from the start came; holder after holder, where they lead nowhere. Raises NotOpen, Rejected:
        there is no room.
        """
        loop = asyncio.get_running_loop()
        for attempt in range(TRIES):
            left_s = until - loop.time()
            if left_s <= 0:
                return 0
            asked = framed.LeaseRequest(
                shard=request.shard,
                chain=store.Chain(position=request.chain.position + at),
                hints=request.hints,
                wait_ms=round(left_s * 500),
                carriers=[int(carrier) for carrier in self.host.regions],
                deadline_ms=max(1, round(left_s * 1e3)),
                avoid=self._holders.avoided(prefix.keys[0].tobytes()),
                metas=True,
            )
            first = source if attempt == 0 else None
            lent, _ = await self.lender.lend(opened, prefix, asked, first)
            if not lent:
                if first is not None:
                    continue
                return 0
            came = await self._read(opened, prefix, request.shard, lent, until)
            if came:
                self.lender.counts.replicas += came
                return came
        return 0

    async def _read(self, opened: Opened, prefix: Prefix, shard: int, lent: list[Lent], until: float) -> int:
        """Section after section: each is reserved when it is its turn, so that no slot waits for another's bytes."""
        came, whole = 0, True
        full: Rejected | None = None
        left = list(lent)
        try:
            while left and whole:
                one, release = left[0], framed.ReleaseRequest()
                part = prefix.part(came, came + one.blocks)
                try:
                    blocks = await self._section(opened, part, shard, one, release, until)
                    came += blocks
                    whole = release.kept = blocks == one.blocks
                except Rejected as error:
                    whole, full = False, error
                except (KvStoreError, TransferFault, ValueError) as error:
                    log.debug("%s: no replica: %s", one.node.address, error)
                    whole = False
                    self._holders.avoid(one.node.incarnation)
                self.lender.give_back(left.pop(0), release)
        finally:
            for one in left:
                self.lender.give_back(one, framed.ReleaseRequest())
        if full is not None and not came:
            raise full
        return came

    async def _section(
        self,
        opened: Opened,
        prefix: Prefix,
        shard: int,
        lent: Lent,
        release: framed.ReleaseRequest,
        until: float,
    ) -> int:
        """Raises NotOpen, Rejected, Unavailable, TransferFault, ValueError. Fills the release."""
        loop, told = asyncio.get_running_loop(), lent.told
        parts = len(opened.shards[shard].part_bytes)
        incarnation = lent.node.incarnation
        if len(told.checksums) != 8 * parts * lent.blocks or any(at >= 2**62 for at in told.offsets):
            raise Unavailable("the holder's answer does not fit the request")
        convert.check_metas("metas", told.metas, lent.blocks)
        section = told.sections[0]
        way, carrier, descriptor = await self._holders.granted(
            incarnation, section.offer, section.grants, until - loop.time()
        )
        slots = Slots(self.host, opened, shard, self._allowance)
        try:
            slots.reserve(prefix, told.metas)
            granted = slots.granted
            if not len(granted):
                here = self.here(opened, shard, prefix.keys)
                if not here and slots.statuses[0] == PENDING:
                    raise _BeingWritten("somebody else writes these blocks just now")
                if not here:
                    raise Rejected("no room: only holds are left, or the chain's own beginning")
                return here
            starts = np.array(told.offsets, np.uint64).astype(np.int64)[granted]
            deadline_s = read_within(len(granted) * slots.block_bytes, until - loop.time())
            began = loop.time()
            with self._holders.reading(incarnation):
                arrived, sums, failure, gone = await slots.read_from(way, descriptor, starts, deadline_s)
            if gone:
                self._lost(way)
            expected = np.frombuffer(told.checksums, "<u8").reshape(lent.blocks, parts)[granted]
            good = arrived & (sums == expected).all(axis=1)
            self._tell(lent, granted, arrived & ~good, failure, prefix, release)
            slots.seal(good, sums, native.MovePath.HOLD_MEMORY)
            moved = int(good.sum()) * slots.block_bytes
            self.lender.speeds.read(lent.node.id, moved, loop.time() - began)
            release.reads.add(bytes=moved, carrier=carrier)
        finally:
            slots.close()
        return self.here(opened, shard, prefix.keys)

    def _tell(
        self,
        lent: Lent,
        granted: NDArray[np.int64],
        corrupt: NDArray[np.bool_],
        failure: str,
        prefix: Prefix,
        release: framed.ReleaseRequest,
    ) -> None:
        """What came of it is told to the holder, and remembered of it."""
        for index in granted[corrupt].tolist():
            release.corrupt.append(lent.told.tickets[index])
            self._holders.avoid(lent.node.incarnation, prefix.keys[index].tobytes())
        self.lender.counts.corrupt += int(corrupt.sum())
        if failure and not corrupt.any():
            self._holders.avoid(lent.node.incarnation)

    def _lost(self, way: Connection) -> None:
        """It led nowhere, and may for ever: whoever reads from there next looks for a way anew."""
        if self._holders.lost(way):
            task = asyncio.ensure_future(way.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def _connected(self, offer: Offer, deadline_s: float) -> Connection:
        try:
            return await self.host.transfers.connector.connect(offer, deadline_s=deadline_s)
        except TransferFault as error:
            raise Unavailable(str(error)) from error

    async def close(self) -> None:
        for way in self._holders.close():
            await way.close()
        await asyncio.gather(*self._closing)
