"""The bytes of a gRPC Put and Get. Decides and copies; awaits nothing but a fetch.

Put: the bytes of one block are gathered, then the block is reserved, copied, hashed and sealed in one turn of the
loop. So a slow or vanished caller never holds a slot, and no late byte can land in one. A stream's memory is one
block and one message.

Get: runs are held in windows, each block is copied out and verified by the node before it is sent, since a caller of
another language cannot report what does not verify. A lease that is about to lapse is taken anew from the next block
on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from kvstore import native
from kvstore.node.bridge import MEMORY_TIER
from kvstore.wire import convert, store

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kvstore.clock import Clock
    from kvstore.node.bridge import CoreBridge
    from kvstore.node.namespaces import Opened

GRANTED: Final = 0  # of ReserveStatus; the others are PutStatus too
MESSAGE_ROOM: Final = 4096  # of a message, for what is not payload
SMALL_BYTES: Final = 16_384  # pieces below are gathered in one buffer: a million tiny messages make no million objects


class Stale(Exception):
    """The namespace was cleared under the call."""


@dataclass(frozen=True, slots=True)
class StreamHost:
    """What streams need of their node.

    payload: the memory tier's mapping, writable. slab_bytes: of one slab of it, the largest block.
    window_bytes: held at once for one Get. data_bytes: of one message.
    lease_s: of a window, taken anew when it runs out.
    """

    bridge: CoreBridge
    payload: memoryview
    slab_bytes: int
    clock: Clock
    window_bytes: int
    data_bytes: int
    lease_s: float


@dataclass(frozen=True, slots=True)
class Prefix:
    """A chain as a call named it. `hint(i)`: what is known of a run that begins with its block i."""

    keys: NDArray[np.uint8]
    parent: bytes
    hint: Callable[[int], native.Hint]

    def part(self, first: int, end: int | None = None) -> Prefix:
        """Blocks [first, end) of it."""
        parent = self.keys[first - 1].tobytes() if first else self.parent
        return Prefix(self.keys[first:end], parent, lambda at: self.hint(first + at))


Bring = Callable[[int, int], Awaitable[int]]  # from which block on, and how many at most


class PutStream:
    """Takes the payload of keys[0..n) as it comes. Blocks are sealed one by one, in order. One that stored something
    counts itself once, when closed.
    """

    def __init__(self, host: StreamHost, opened: Opened, header: store.PutHeader, prefix: Prefix) -> None:
        """ValueError names a field of the header that does not fit the chain or the namespace."""
        if header.first_block > len(prefix.keys):
            raise ValueError(f"header.first_block: {header.first_block}, but the chain has {len(prefix.keys)} blocks")
        convert.check_shard("header.shard", header.shard, len(opened.shards))
        self._core, self._host, self._opened = host.bridge.core, host, opened
        self._shard, self._first, self._hint = header.shard, header.first_block, prefix.hint
        self._part_bytes = list(opened.shards[header.shard].part_bytes)
        self._block_bytes = sum(self._part_bytes)
        self._keys = prefix.keys[header.first_block :]
        self._parent = prefix.keys[header.first_block - 1].tobytes() if header.first_block else prefix.parent
        self._metas = list(header.meta)
        self._expected = self._checksums(header.checksums)
        convert.check_metas("header.meta", self._metas, len(self._keys))
        self._owner = self._core.new_owner()
        self._pieces: list[memoryview | bytearray] = []
        self._gathered = 0
        self._statuses = bytearray()
        self._taken: list[NDArray[np.uint64]] = []
        self._ended = False
        self._started = host.clock.now_ns()

    def _checksums(self, given: bytes) -> NDArray[np.uint64] | None:
        if not given:
            return None
        wanted = len(self._keys) * len(self._part_bytes)
        if len(given) != wanted * 8:
            raise ValueError(f"header.checksums: {len(given)} bytes, but {wanted} parts of 8 bytes are put")
        return np.frombuffer(given, dtype="<u8").reshape(len(self._keys), len(self._part_bytes))

    @property
    def ended(self) -> bool:
        """A block did not verify: nothing more is taken."""
        return self._ended

    def write(self, payload: bytes) -> None:
        """The next bytes. ValueError when there are more than the chain has room for; Stale."""
        rest = memoryview(payload)
        while rest and not self._ended:
            if len(self._statuses) == len(self._keys):
                raise ValueError(f"data.payload: more bytes than {len(self._keys)} blocks of {self._block_bytes}")
            piece = rest[: self._block_bytes - self._gathered]
            rest = rest[len(piece) :]
            self._gather(piece)
            if self._gathered == self._block_bytes:
                self._land()
                self._pieces.clear()
                self._gathered = 0

    def _gather(self, piece: memoryview) -> None:
        self._gathered += len(piece)
        if self._block_bytes > self._host.slab_bytes:
            return  # it will be refused: whoever describes blocks of a terabyte gets none of them remembered
        if len(piece) >= SMALL_BYTES:
            self._pieces.append(piece)
        elif self._pieces and isinstance(self._pieces[-1], bytearray):
            self._pieces[-1] += piece
        else:
            self._pieces.append(bytearray(piece))

    def _land(self) -> None:
        index = len(self._statuses)
        parent = self._keys[index - 1].tobytes() if index else self._parent
        status, statuses, tickets, offsets = self._core.reserve(
            MEMORY_TIER,
            self._owner,
            self._opened.handle,
            self._shard,
            self._keys[index : index + 1],
            parent,
            self._metas[index : index + 1],
            self._hint(self._first + index),
            False,  # nobody but this turn of the loop writes it
            self._host.clock.now_ns(),
        )
        if status == native.Status.STALE_NAMESPACE:
            raise Stale
        if status != native.Status.OK:
            self._statuses.append(store.PUT_REJECTED)
            return
        if statuses[0] != GRANTED:
            self._statuses.append(int(statuses[0]))
            return
        self._statuses.append(self._fill(index, tickets, int(offsets[0])))

    def _fill(self, index: int, tickets: NDArray[np.uint64], offset: int) -> int:
        slot = self._host.payload[offset : offset + self._block_bytes]
        sums = native.copy_parts([slot], self._pieces, self._part_bytes)
        if self._expected is not None and not np.array_equal(sums, self._expected[index]):
            self._core.abort(MEMORY_TIER, self._owner, tickets)
            self._ended = True
            return store.PUT_CORRUPTED
        (outcome,) = self._core.seal(MEMORY_TIER, self._owner, tickets, sums, self._host.clock.now_ns())
        if outcome != 0:
            return store.PUT_LAPSED
        self._taken.append(sums)
        return store.PUT_STORED

    def finish(self) -> store.PutResponse:
        """The answer. ValueError when bytes are missing."""
        if not self._ended and len(self._statuses) < len(self._keys):
            landed = len(self._statuses) * self._block_bytes + self._gathered
            raise ValueError(f"data.payload: ended after {landed} bytes of {len(self._keys) * self._block_bytes}")
        self._statuses.extend([store.PUT_REJECTED] * (len(self._keys) - len(self._statuses)))
        stored, held, pending = (
            self._statuses.count(status) for status in (store.PUT_STORED, store.PUT_HELD, store.PUT_PENDING)
        )
        return store.PutResponse(
            stored=stored,
            held=held,
            pending=pending,
            rejected=len(self._statuses) - stored - held - pending,
            statuses=bytes(self._statuses),
            checksums=b"".join(sums.astype("<u8").tobytes() for sums in self._taken),
        )

    def close(self) -> None:
        self._core.owner_gone(self._owner)
        if self._taken:
            stored = len(self._taken) * self._block_bytes
            self._core.put_took(native.MovePath.PUT_GRPC, stored, self._host.clock.now_ns() - self._started)


class GetStream:
    """Sends keys[first..n) as far as they are there. Counts itself once, when closed."""

    def __init__(self, host: StreamHost, opened: Opened, request: store.GetRequest, prefix: Prefix) -> None:
        """ValueError names a field of the request that does not fit the chain or the namespace."""
        if request.first_block > len(prefix.keys):
            raise ValueError(f"first_block: {request.first_block}, but the chain has {len(prefix.keys)} blocks")
        convert.check_shard("shard", request.shard, len(opened.shards))
        self._core, self._host, self._opened, self._hint = host.bridge.core, host, opened, prefix.hint
        self._shard, self._first, self._keys = request.shard, request.first_block, prefix.keys
        self._part_bytes = list(opened.shards[request.shard].part_bytes)
        self._block_bytes = sum(self._part_bytes)
        self._window = max(1, host.window_bytes // self._block_bytes)
        self._owner = self._core.new_owner()
        self._started = host.clock.now_ns()
        self._sent = 0
        self._failed = 0
        self._by_tier = [0, 0, 0, 0]

    async def messages(self, wait_s: float, bring: Bring | None = None) -> AsyncIterator[store.GetResponse]:
        """GetBlock and GetData of each block, then GetEnd. bring: of what this node has not, from a block on, so much
        as a window takes; how many blocks it has then. Raises Stale where nothing was sent because of it.
        """
        at, asked_at = self._first, -1
        while at < len(self._keys):
            asked, asked_for = self._host.clock.now_ns(), min(self._window, len(self._keys) - at)
            run = await self._fetch(at, wait_s)
            sent = 0
            for block in self._blocks(run, at, asked + run.lease):
                for message in block:
                    yield message
                sent += 1
                self._sent += 1
            self._core.release(MEMORY_TIER, self._owner, run.hold)
            at += sent
            ended = sent == len(run.offsets) < asked_for and not run.window_full
            if self._failed:
                break
            if sent == 0 or ended:
                if bring is None or asked_at == at or not await bring(at, self._window):
                    break
                asked_at = at  # what is here then and does not come up is asked for no third time
        yield store.GetResponse(end=store.GetEnd(blocks=self._sent, tokens=self._sent * self._opened.block_tokens))

    async def _fetch(self, at: int, wait_s: float) -> native.FetchDone:
        run = await self._host.bridge.fetch(
            self._owner,
            self._opened.handle,
            self._shard,
            self._keys[at : at + self._window],
            kind=native.HoldKind.LEASE,
            hint=self._hint(at),
            wait_s=wait_s,
            lease_s=self._host.lease_s,
        )
        if run.status == native.Status.STALE_NAMESPACE and not self._sent:
            raise Stale
        return run

    def _blocks(self, run: native.FetchDone, at: int, lapses: int) -> Iterator[list[store.GetResponse]]:
        """One list of messages a block that verifies. The clock is asked before each copy: the reader may be slow."""
        parts, step = len(self._part_bytes), self._host.data_bytes
        for i, offset in enumerate(run.offsets.tolist()):
            if run.parts_ready[i] < parts or (i > 0 and self._host.clock.now_ns() >= lapses):
                return
            data = bytes(self._host.payload[offset : offset + self._block_bytes])
            sums = run.checksums[i * parts : (i + 1) * parts]
            if not np.array_equal(native.part_checksums(data, self._part_bytes), sums):
                if self._host.clock.now_ns() < lapses:
                    self._failed += 1
                    self._core.report_corrupt(self._owner, int(run.tickets[i]))
                return
            tier = int(run.tiers[i])
            checksums = sums.astype("<u8").tobytes()
            block = store.GetBlock(index=at + i, tier=store.Tier.ValueType(tier), checksums=checksums)
            pieces = [data] if len(data) <= step else [data[j : j + step] for j in range(0, len(data), step)]
            self._by_tier[tier] += 1
            yield [
                store.GetResponse(block=block),
                *(store.GetResponse(data=store.GetData(payload=piece)) for piece in pieces),
            ]

    def close(self) -> None:
        self._core.owner_gone(self._owner)
        self._core.fetched(
            self._opened.handle,
            self._hint(self._first),
            len(self._keys) - self._first,
            (0, self._by_tier[1], self._by_tier[2], self._by_tier[3]),
            self._failed,
            native.MovePath.GET_GRPC,
            self._sent * self._block_bytes,
            self._host.clock.now_ns() - self._started,
        )
