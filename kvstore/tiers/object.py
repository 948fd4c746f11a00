"""The object tier's I/O: packs in S3, GCS, Azure or a directory, through obstore.

Rules
- Nothing here is authoritative: a pack that is refused, slow, gone or damaged is a miss. Only bytes that verify are
  handed on.
- Every request has `timeout_s`, its retries and their pauses included. At most `concurrency` are under way; whoever
  comes after waits its turn. A store that does not answer is left alone for a while (circuit.py).
- An upload reads memory that nobody writes to any more, and keeps it alive until the library has let go of it: a
  cancelled one need not be waited for. A download lands in the library's memory and is checked as it is copied from
  there, in a thread that a cancelled reader waits for (law 4).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar, cast

import numpy as np
import numpy.typing as npt
import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, from_url

from kvstore import native
from kvstore.clock import Clock, SystemClock
from kvstore.errors import Misconfigured
from kvstore.quiet import quietly
from kvstore.tiers.base import Keys
from kvstore.tiers.circuit import Circuit
from kvstore.tiers.packs import (
    VERSION,
    DamagedPackError,
    PackHead,
    cleared_name,
    decode_head,
    encode_head,
    group_ends,
    head_size,
    namespace_prefix,
    pack_name,
)

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig, S3Config

T = TypeVar("T")
log = logging.getLogger(__name__)

TOLD_AGAIN_NS: Final = 10_000_000_000  # of failures of one kind

FIRST_READ_BYTES: Final = 16 << 10  # holds the head of most packs
PROBES_AT_ONCE: Final = 8  # full packs looked for in parallel; a chain's packs are there from its start or not at all
INLINE_BYTES: Final = 256 << 10  # less is copied sooner than a thread is woken
DELETES_AT_ONCE: Final = 1000  # what one request of S3 takes
PING: Final = f"v{VERSION}/ping"


class NotAnsweredError(Exception):
    """The store did not answer, or is left alone for now: whether an object is there is not known."""


@dataclass(frozen=True, slots=True)
class Probed:
    """packs: found, in order; sure: whether the store said that there are no more, and did not just fail to answer."""

    packs: list[PackHead]
    sure: bool


@dataclass(slots=True)
class ObjectCounts:
    """Ever, for the metrics. They move on one event loop."""

    packs_written: int = 0
    packs_there_already: int = 0
    packs_read: int = 0
    packs_deleted: int = 0
    packs_damaged: int = 0
    probes: int = 0
    errors: int = 0
    not_asked: int = 0  # requests not made, as the store does not answer
    bytes_written: int = 0
    bytes_read: int = 0


@dataclass(frozen=True, slots=True, order=True)
class Listed:
    """A pack as its store lists it. Ordered oldest first."""

    modified: float
    name: str
    bytes: int


def doomed(packs: Sequence[Listed], bytes_max: int, keep: set[str]) -> list[Listed]:
    """Which to delete so that at most `bytes_max` are left: the oldest, those named in `keep` last. Decides only."""
    total, chosen = sum(pack.bytes for pack in packs), []
    for pack in sorted(packs, key=lambda pack: (pack.name in keep, pack)):
        if total <= bytes_max:
            break
        chosen.append(pack)
        total -= pack.bytes
    return chosen


class ObjectTier:
    """Packs by name. Knows no node and no namespace handle; who asks brings digests, keys and memory.

    on_gone: told the name of each pack that turned out not to be there or not to be right, or was deleted; and whether
    that was for room.
    """

    def __init__(
        self, store: ObjectStore, *, concurrency: int = 16, timeout_s: float = 10.0, clock: Clock | None = None
    ) -> None:
        self._store = store
        self._turn = asyncio.Semaphore(concurrency)
        self._timeout_s = timeout_s
        self._clock = clock or SystemClock()
        self.circuit = Circuit()
        self.counts = ObjectCounts()
        self._told_until: dict[str, int] = {}  # by verb
        self.on_gone: Callable[[str, bool], object] = lambda _name, _swept: None

    @classmethod
    def open(cls, url: str, *, timeout_s: float, retries: int, concurrency: int, options: dict[str, str]) -> ObjectTier:
        """`url`: s3://bucket/prefix, gs://, az://, file:///directory. Raises Misconfigured naming the URL."""
        try:
            if url.startswith("file://"):
                store: ObjectStore = LocalStore(Path(url.removeprefix("file://")), mkdir=True, automatic_cleanup=True)
            else:
                limit = timedelta(seconds=timeout_s)
                client: ClientConfig = {"timeout": limit, "connect_timeout": limit / 2, "allow_http": True}
                again: RetryConfig = {"max_retries": retries, "retry_timeout": limit}
                # The options are the provider's own words, checked by the library; S3's stand for all of them.
                store = from_url(url, config=cast("S3Config", options), client_options=client, retry_config=again)
        except (BaseError, OSError, ValueError) as error:
            raise Misconfigured(f"object.url = {url!r}: {_first_line(error)}") from error
        return cls(store, concurrency=concurrency, timeout_s=timeout_s)

    # ---- packs ------------------------------------------------------------------------------------------------------

    async def write(self, head: PackHead, blocks: Sequence[memoryview]) -> bool:
        """One pack. `blocks`: head.blocks buffers of head.block_bytes, which nobody writes to any more.

        False: it is not there (the store refused, or was too slow). True: it is, written now or by somebody before.
        """
        name = pack_name(head.digest, head.shard, head.keys[-1].tobytes())
        body = [memoryview(encode_head(head)), *blocks]
        try:
            done = await self._ask(
                "write", name, lambda: obstore.put_async(self._store, name, body, mode="create", use_multipart=False)
            )
        except AlreadyExistsError:
            self.counts.packs_there_already += 1
            return True
        except FileNotFoundError as error:  # no such bucket, or the directory went while we wrote
            self._failed("write", name, error)
            return False
        if done is None:
            return False
        self.counts.packs_written += 1
        self.counts.bytes_written += head.head_bytes + head.blocks * head.block_bytes
        return True

    async def find(self, digest: bytes, shard: int, keys: Keys, per_pack: int, position: int = 0) -> Probed:
        """The packs that hold a prefix of `keys`, which begin at `position` of their chain, in order.

        Full packs are probed a few at a time until one is missing; after the last, the longest partial one.
        """
        found: list[PackHead] = []
        ends = group_ends(position, len(keys), per_pack)
        for at in range(0, len(ends), PROBES_AT_ONCE):
            window = ends[at : at + PROBES_AT_ONCE]
            heads, sure = await self._heads(digest, shard, keys[window])
            found += heads
            if not sure:
                return Probed(found, False)
            if len(heads) < len(window):
                break
        first = ends[len(found) - 1] + 1 if found else 0
        whole = ends[len(found)] if len(found) < len(ends) else len(keys)  # known not to be there
        tail, sure = keys[first:whole], True
        if len(tail):
            partial, sure = await self._heads(digest, shard, tail[::-1], some=True)
            found += partial[:1]
        return Probed(found, sure)

    async def _heads(self, digest: bytes, shard: int, keys: Keys, *, some: bool = False) -> tuple[list[PackHead], bool]:
        """Of packs named by these last keys: those before the first that is missing (some: all that are there), and
        whether the store has told of all that was needed for it.
        """
        asked = [self.head(digest, shard, key.tobytes()) for key in keys]
        heads: list[PackHead] = []
        sure = True
        for head in await asyncio.gather(*asked, return_exceptions=True):
            if isinstance(head, NotAnsweredError):
                sure = False
            elif isinstance(head, BaseException):
                raise head
            elif head is not None:
                heads.append(head)
                continue
            if not some:
                break
        return heads, sure

    async def head(self, digest: bytes, shard: int, last_key: bytes) -> PackHead | None:
        """The head of one pack; None where there is none, or none that is right. Raises NotAnsweredError."""
        name = pack_name(digest, shard, last_key)
        self.counts.probes += 1
        start = await self._range(name, 0, FIRST_READ_BYTES)
        if start is None:
            return None
        try:
            size = head_size(start)
            if size > len(start):
                start = await self._range(name, 0, size)
            return decode_head(start, digest, shard, last_key) if start is not None else None
        except DamagedPackError as error:
            await self._damaged(name, str(error))
            return None

    async def read(
        self, head: PackHead, first: int, into: Sequence[memoryview], part_bytes: npt.NDArray[np.uint64]
    ) -> int:
        """Blocks [first, first + len(into)) into buffers of block_bytes each, in one request.

        `part_bytes`: sizes of a block's parts, from its namespace. How many blocks from the start arrived and verify. A
        pack with a damaged block is deleted, because it can only mislead.
        """
        assert len(part_bytes) == head.checksums.shape[1] and int(part_bytes.sum()) == head.block_bytes
        name = pack_name(head.digest, head.shard, head.keys[-1].tobytes())
        start, length = head.range_of(first, len(into))
        try:
            data = await self._range(name, start, length)
        except NotAnsweredError:
            return 0
        if data is None:
            return 0
        self.counts.packs_read += 1
        self.counts.bytes_read += len(data)
        whole = min(len(into), len(data) // head.block_bytes)
        parts = part_bytes.tolist() * whole

        def copy() -> npt.NDArray[np.uint64]:
            return native.copy_parts(list(into[:whole]), [data[: whole * head.block_bytes]], parts)

        if len(data) <= INLINE_BYTES:
            landed = copy() if whole else np.empty(0, np.uint64)
        else:
            landed = await quietly(asyncio.get_running_loop().run_in_executor(None, copy))
        right = (landed.reshape(whole, -1) == head.checksums[first : first + whole]).all(axis=1) if whole else []
        good = next((i for i, one in enumerate(right) if not one), whole)
        if good < len(into):
            await self._damaged(name, f"block {first + good} does not verify")
        return good

    # ---- what is there ----------------------------------------------------------------------------------------------

    async def answers(self) -> bool:
        """Asks for something small, to see whether the store answers."""
        with contextlib.suppress(NotAnsweredError):
            await self._range(PING, 0, 1)
        return not self.circuit.is_open

    async def refusal(self) -> str | None:
        """Why a small object can not be written here; None: it can. For people."""
        name = f"{PING}-{os.getpid()}"
        try:
            async with asyncio.timeout(self._timeout_s):
                await obstore.put_async(self._store, name, b"kvstore doctor")
                await obstore.delete_async(self._store, name)
        except (BaseError, OSError) as error:
            return _first_line(error)
        return None

    async def namespaces(self) -> list[bytes] | None:
        """Digests of all that have packs here; None where the store does not tell."""
        prefix = f"v{VERSION}"
        found = await self._ask("list", prefix, lambda: obstore.list_with_delimiter_async(self._store, prefix=prefix))
        if found is None:
            return None
        names = [path.rstrip("/").rpartition("/")[2] for path in found["common_prefixes"]]
        return [bytes.fromhex(name) for name in names if len(name) == 64 and not set(name) - set("0123456789abcdef")]

    async def listing(self, digest: bytes) -> list[Listed] | None:
        """All packs of a namespace digest; None where the store does not tell."""
        packs: list[Listed] = []
        batches = obstore.list(self._store, prefix=namespace_prefix(digest), chunk_size=1000).__aiter__()
        while True:
            try:
                batch = await self._ask("list", namespace_prefix(digest), batches.__anext__)
            except StopAsyncIteration:
                return packs
            except FileNotFoundError:  # the directory went while we looked
                return packs
            if batch is None:
                return None
            packs += [
                Listed(entry["last_modified"].timestamp(), entry["path"], entry["size"])
                for entry in batch
                if entry["path"] != cleared_name(digest)
            ]

    async def delete(self, names: Sequence[str], *, swept: bool = False) -> set[str]:
        """Returns those that are surely not there any more. swept: there was no room for them."""
        gone: set[str] = set()
        for at in range(0, len(names), DELETES_AT_ONCE):
            gone |= await self._gone(names[at : at + DELETES_AT_ONCE])
        for name in gone:
            self.on_gone(name, swept)
        self.counts.packs_deleted += len(gone)
        return gone

    async def _gone(self, names: Sequence[str]) -> set[str]:
        """One request. A directory stops at one that is not there and leaves those behind it: one by one then."""
        try:
            answered = await self._ask("delete", names[0], partial(_deleted, self._store, list(names)))
        except FileNotFoundError:  # somebody else was faster
            if len(names) > 1:
                return set().union(*await asyncio.gather(*(self._gone([name]) for name in names)))
            return set(names)
        return set(names) if answered is not None else set()

    async def mark_cleared(self, digest: bytes) -> bool:
        """So that every node of this store hears of it, and one with an empty disk too. False: try again."""
        name = cleared_name(digest)
        try:
            return (
                await self._ask("write", name, lambda: obstore.put_async(self._store, name, b"", mode="create"))
                is not None
            )
        except AlreadyExistsError:
            return True
        except FileNotFoundError:
            return False

    async def is_cleared(self, digest: bytes) -> bool | None:
        """None: the store does not answer."""
        name = cleared_name(digest)
        try:
            return True if await self._ask("read", name, lambda: obstore.head_async(self._store, name)) else None
        except FileNotFoundError:
            return False

    # ---- requests ---------------------------------------------------------------------------------------------------

    async def _range(self, name: str, start: int, length: int) -> memoryview | None:
        """None: no such object. Raises NotAnsweredError: nothing is known."""
        try:
            data = await self._ask(
                "read", name, lambda: obstore.get_range_async(self._store, name, start=start, length=length)
            )
        except FileNotFoundError:
            self.on_gone(name, False)
            return None
        if data is None:
            raise NotAnsweredError(name)
        return memoryview(data)

    async def _damaged(self, name: str, why: str) -> None:
        self.counts.packs_damaged += 1
        log.warning("pack %s is dropped: %s", name, why)
        self.on_gone(name, False)  # whether it can be deleted or not: nobody is to count on it
        await self.delete([name])

    async def _ask(self, verb: str, name: str, start: Callable[[], Awaitable[T]]) -> T | None:
        """One request. None: the store did not answer, or is not asked for now. What it answers other than with a
        result (there is none, it is there already, the list is over) is raised.
        """
        async with self._turn:
            if not self.circuit.may_ask(self._clock.now_ns()):
                self.counts.not_asked += 1
                return None
            try:
                async with asyncio.timeout(self._timeout_s):
                    answer = await start()
            except (FileNotFoundError, AlreadyExistsError, StopAsyncIteration):
                self.circuit.answered()
                raise
            except (BaseError, OSError) as error:  # TimeoutError is one
                was_open = self.circuit.is_open
                self.circuit.failed(self._clock.now_ns())
                self._failed(verb, name, error, quietly=was_open)
                return None
        self.circuit.answered()
        return answer

    def _failed(self, verb: str, name: str, error: Exception, *, quietly: bool = False) -> None:
        """All are counted. The log has one of a kind in ten seconds: a full disk fails hundreds of writes a second."""
        self.counts.errors += 1
        now = self._clock.now_ns()
        if not quietly and now >= self._told_until.get(verb, 0):
            self._told_until[verb] = now + TOLD_AGAIN_NS
            log.warning("object tier: %s %s: %s", verb, name, _first_line(error))


async def _deleted(store: ObjectStore, names: list[str]) -> bool:
    await obstore.delete_async(store, names)
    return True


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
