"""A node that is to be stopped hands on what only it holds, so that nothing is lost with it.

 slots of memory and files -> runs (handing.py) -> who else claims them? -- PEER_BRING --> has them, or reads them now
                                                   nobody: the family's place among those that have room

Rules
- Others read; nothing is written into them. What a node has is believed of its own word alone (PEER_BRING answers what
  is sealed there), never of the directory's.
- While it drains a node takes no new blocks: puts and copies are refused as `draining`. Gets go on, also by way of
  others.
- `DATA_DIR/draining` says so, and is on disk before the first block is handed on. A node that finds it at its start
  goes on. Only `cancel` removes it.
- The object tier counts as another place where it is everybody's: a bucket, not a directory.
- What was being put when it began is looked at when it is sealed: reservations are waited for until they lapse.
- It ends when a look at everything found nothing more to hand on, or after ROUNDS_MAX of them; what nobody took is
  told.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from kvstore.errors import KvStoreError, Unavailable
from kvstore.node.bridge import MEMORY_TIER
from kvstore.node.handing import Run, first_claimed, order, runs_of
from kvstore.node.home import write_durably
from kvstore.wire import admin, store

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kvstore.directory.locating import Holders
    from kvstore.native import NodeCore
    from kvstore.node.bringing import Bringer
    from kvstore.node.cluster import Cluster
    from kvstore.node.namespaces import Namespaces, Opened

__all__ = ["Drain", "Sources"]

log = logging.getLogger(__name__)

LISTED_MAX: Final = 65_536  # slots looked at, at one time
SCAN_SLOTS: Final = 4_096
CUT_RUNS: Final = 1_024  # cut into windows in one turn of the loop
WINDOW_BYTES: Final = 32 << 20
WINDOW_BLOCKS: Final = 4_096
AT_ONCE: Final = 4  # windows under way
TRIES: Final = 8  # nodes that are asked for a window
ROUNDS_MAX: Final = 6
PAUSE_S: Final = 0.25  # before what nobody took is tried again
ROOM_S: Final = 1.0  # how old an answer about room may be
RATE_S: Final = 5.0
HAND_S: Final = 60.0
FLUSH_S: Final = 600.0
MEET_S: Final = 10.0

InPacks = Callable[[int, int, "NDArray[np.uint8]"], "NDArray[np.bool_]"]


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the blocks lie. tiers: memory, and files where there are any. in_packs, flush: of an object tier that all
    nodes share; None without one.
    """

    core: NodeCore
    namespaces: Namespaces
    tiers: Sequence[int]
    in_packs: InPacks | None = None
    flush: Callable[[], Awaitable[None]] | None = None

    def slots(self) -> tuple[int, int]:
        """How many, and their bytes."""
        stats = [self.core.stats(tier) for tier in self.tiers]
        return sum(one["slots_sealed"] for one in stats), sum(one["payload_bytes_sealed"] for one in stats)

    def here(self, run: Run) -> NDArray[np.bool_]:
        """Which blocks are here still."""
        here = np.zeros(len(run.keys), np.bool_)
        for tier in self.tiers:
            here |= self.core.find(tier, run.ns, run.shard, run.keys)
        return here

    def packed(self, run: Run) -> NDArray[np.bool_]:
        if self.in_packs is None:
            return np.zeros(len(run.keys), np.bool_)
        return self.in_packs(run.ns, run.shard, run.keys)


@dataclass(slots=True)
class _Round:
    handed: int = 0
    kept: int = 0
    failed: int = 0
    slots: int = 0  # that are still to be looked at
    bytes: int = 0


@dataclass(slots=True)
class Drain:
    """Of a node, on its event loop, until `close`, which ends nothing for good. refuse: told whether new blocks are.
    lapse_s: how long a reservation lives.
    """

    mark: Path
    sources: Sources
    cluster: Cluster
    bringer: Bringer
    refuse: Callable[[bool], None]
    lapse_s: float
    _task: asyncio.Task[None] | None = None
    _state: admin.DrainState.ValueType = admin.DRAIN_NONE
    _handed: int = 0
    _round: _Round = field(default_factory=_Round)
    _problem: str = ""
    _lately: deque[tuple[float, int]] = field(default_factory=deque)
    _rooms: dict[bytes, int] = field(default_factory=dict)
    _rooms_at: float = 0.0

    def __post_init__(self) -> None:
        if self.mark.exists():  # whoever asks before it goes on is told that it is not done
            self._state = admin.DRAIN_WORKING

    @property
    def draining(self) -> bool:
        return self._state != admin.DRAIN_NONE

    @property
    def state(self) -> admin.DrainState.ValueType:
        return self._state

    def resume(self) -> None:
        """At a start, once the namespaces are open that were."""
        if self.mark.exists():
            log.warning("this node was draining, and goes on: %s", self.mark)
            self._start()

    def begin(self, who: str) -> None:
        """Idempotent; one that has ended looks at everything again. Raises Unavailable where it cannot be kept."""
        if not self.cluster.is_clustered:
            raise Unavailable("drain: this node stands alone, there is nobody to hand its blocks on to")
        if not self.cluster.is_open:  # nothing of what it holds would be seen, and that told as drained
            raise Unavailable("drain: this node is still starting")
        if self._task is not None and not self._task.done():
            return
        try:
            write_durably(self.mark, f"{who}\n")
        except OSError as error:
            raise Unavailable(f"drain: {self.mark} cannot be written: {error.strerror}") from error
        log.warning("%s drains this node: it takes no new blocks", who)
        self._start()

    def cancel(self, who: str) -> None:
        """It takes blocks again. What was handed on stays where it is."""
        try:
            self.mark.unlink(missing_ok=True)
        except OSError as error:
            raise Unavailable(f"drain: {self.mark} cannot be removed: {error.strerror}") from error
        if self._task is not None:
            self._task.cancel()
            self._task = None
        if self.draining:
            log.warning("%s cancelled the drain of this node", who)
        self._state = admin.DRAIN_NONE
        self.refuse(False)

    def progress(self) -> admin.DrainProgress:
        this = self._round
        now = time.monotonic()
        while self._lately and now - self._lately[0][0] > RATE_S:
            self._lately.popleft()
        span_s = now - self._lately[0][0] if self._lately else 0.0
        return admin.DrainProgress(
            state=self._state,
            handed_blocks=self._handed,
            # In the last round, what was handed on before is found at others, too.
            kept_blocks=max(0, this.kept - (self._handed - this.handed)),
            failed_blocks=this.failed,
            left_blocks=max(0, this.slots),
            left_bytes=max(0, this.bytes),
            bytes_per_s=sum(size for _, size in self._lately) / span_s if span_s > 0 else 0.0,
            problem=self._problem,
            done=self._state != admin.DRAIN_WORKING,
            node=self.cluster.me.name,
        )

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _start(self) -> None:
        self._state, self._handed, self._round, self._problem = admin.DRAIN_WORKING, 0, _Round(), ""
        self._lately.clear()
        self.refuse(True)
        self._task = asyncio.ensure_future(self._run())

    # ---- working ----------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        lapsed_at = loop.time() + self.lapse_s
        try:
            await self._meet()
            for number in range(ROUNDS_MAX):
                reserved = self._reserved()
                await self._look_at_everything()
                this = self._round
                if not (this.handed or this.failed or reserved):
                    break
                if this.failed and number == ROUNDS_MAX - 2:
                    await self._flush()
                if number < ROUNDS_MAX - 1:
                    await asyncio.sleep(PAUSE_S)
                    while self._reserved() and loop.time() < lapsed_at:  # noqa: ASYNC110 - clients seal them
                        await asyncio.sleep(PAUSE_S)
        except Exception as error:  # ours: it must not look as if it were done
            log.exception("draining failed")
            self._problem = f"the node failed; its log says how: {error}"
            self._round.failed = max(1, self._round.failed)
        self._state = admin.DRAIN_DONE
        told = self.progress()
        log.warning(
            "drained: %d blocks handed on, %d kept by others, %d could not be%s",
            told.handed_blocks,
            told.kept_blocks,
            told.failed_blocks,
            f": {told.problem}" if told.failed_blocks else "",
        )

    def _reserved(self) -> int:
        """Blocks that are being put: RESERVE is refused, what it granted before is not taken back."""
        return int(self.sources.core.stats(MEMORY_TIER)["slots_reserved"])

    async def _meet(self) -> None:
        """A node that has just been started has not met the others yet."""
        until = time.monotonic() + MEET_S
        while not self.cluster.members() and time.monotonic() < until:  # noqa: ASYNC110 - once a start
            await asyncio.sleep(PAUSE_S)

    async def _flush(self) -> None:
        """What nobody takes goes to where everybody finds it."""
        if self.sources.flush is None:
            return
        try:
            async with asyncio.timeout(FLUSH_S):
                await self.sources.flush()
        except TimeoutError:
            self._problem = f"object tier: not everything was written within {FLUSH_S:.0f} s"

    async def _look_at_everything(self) -> None:
        slots, size = self.sources.slots()
        self._round = this = _Round(slots=slots, bytes=size)
        for tier in self.sources.tiers:
            after = 0
            while after >= 0:
                after, runs = await self._listed(tier, after)
                waiting: set[asyncio.Task[None]] = set()
                try:
                    for run in runs:
                        if len(waiting) >= AT_ONCE:
                            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                            for task in done:
                                task.result()
                        waiting.add(asyncio.ensure_future(self._hand(run)))
                    await asyncio.gather(*waiting)
                finally:
                    for task in waiting:
                        task.cancel()
        this.slots = this.bytes = 0

    async def _listed(self, tier: int, after: int) -> tuple[int, list[Run]]:
        """Where to go on, and the runs of as many slots as are looked at, at one time, in windows."""
        told: list[tuple[NDArray[np.uint32], ...]] = []
        count = 0
        while after >= 0 and count < LISTED_MAX:
            rows, after = self.sources.core.scan(tier, after, SCAN_SLOTS)
            told.append((rows.ns, rows.shards, rows.keys, rows.parents, rows.positions))  # type: ignore[arg-type]
            count += len(rows.tickets)
            await asyncio.sleep(0)
        ns, shards, keys, parents, positions = (np.concatenate(column) for column in zip(*told, strict=True))
        out: list[Run] = []
        # Of so many slots this takes as long as it takes others to think that the node stands still: beside the loop.
        runs = await asyncio.to_thread(runs_of, ns, shards, keys.astype(np.uint8), parents.astype(np.uint8), positions)
        for number, run in enumerate(runs):
            if number % CUT_RUNS == 0:
                await asyncio.sleep(0)
            size = self._block_bytes(run)
            if not size:  # cleared: it is nobody's any more
                continue
            out += run.cut(max(1, min(WINDOW_BLOCKS, WINDOW_BYTES // size)))
        return after, out

    def _opened(self, run: Run) -> Opened | None:
        opened = self.sources.namespaces.by_handle(run.ns)
        return opened if opened is not None and self.sources.namespaces.find(opened.digest) is opened else None

    def _block_bytes(self, run: Run) -> int:
        opened = self._opened(run)
        return sum(opened.shards[run.shard].part_bytes) if opened is not None else 0

    async def _hand(self, run: Run) -> None:
        """One window: what others have, and what they are to have."""
        opened = self._opened(run)
        locator = self.cluster.locator
        if opened is None or locator is None:
            return
        this, size = self._round, self._block_bytes(run)
        this.slots -= len(run.keys)
        this.bytes -= len(run.keys) * size
        here, packed = self.sources.here(run), self.sources.packed(run)
        this.kept += int((here & packed).sum())
        wanted = here & ~packed
        holders = await locator.locate(opened.digest, run.keys)
        edges = np.flatnonzero(np.diff(np.concatenate(([False], wanted, [False])).astype(np.int8)))
        for first, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            at = first
            while at < end:
                at += await self._stretch(opened, run.rest(at, end), holders, at, size)

    async def _stretch(self, opened: Opened, run: Run, holders: Holders, at: int, size: int) -> int:
        """Some blocks from the run's first on: how many are settled, as handed on, kept or failed. at: of its first
        block among the holders' keys.
        """
        has = (holders.shards[:, at : at + len(run.keys)] >> np.uint64(run.shard) & np.uint64(1)).astype(np.bool_)
        claimed = holders.runs(run.shard, at, at + len(run.keys))
        count = claimed[0].count if claimed else first_claimed(np.logical_or.reduce(has)) if len(has) else len(run.keys)
        rooms = await self._room()
        turns = order(run.family, count * size, rooms)
        if claimed and claimed[0].node in rooms:
            turns = [claimed[0].node, *(node for node in turns if node != claimed[0].node)]
        part, done = run.rest(0, count), 0
        for node in turns[:TRIES]:
            done += await self._asked(opened, part.rest(done), node, size)
            if done == count:
                return count
        failed = int(self.sources.here(part.rest(done)).sum())  # what has gone meanwhile nobody misses
        self._round.failed += failed
        if failed and not turns:
            self._problem = "no other node takes blocks: they are dead, or drain as well"
        return count

    async def _asked(self, opened: Opened, run: Run, node: bytes, size: int) -> int:
        member = self.cluster.living(node)
        if member is None:
            return 0
        try:
            brought = await self.bringer.bring(
                member,
                opened,
                run.shard,
                run.keys,
                parent=run.parent,
                position=run.position,
                hints=store.Hints(family_id=int.from_bytes(run.family[:8], "little")),
                deadline_s=HAND_S,
            )
        except KvStoreError as error:
            self._problem = f"{member.name}: {error}"
            return 0
        new = brought.blocks - brought.held
        self._round.kept += brought.held
        self._round.handed += new
        self._handed += new
        if new:
            self._lately.append((time.monotonic(), new * size))
            self._rooms[node] = max(0, self._rooms.get(node, 0) - new * size)
        if brought.blocks < len(run.keys):
            self._problem = f"{member.name}: took {brought.blocks} of {len(run.keys)} blocks"
        return brought.blocks

    async def _room(self) -> dict[bytes, int]:
        """Free bytes of each node that takes blocks."""
        now = time.monotonic()
        if not self._rooms or now - self._rooms_at > ROOM_S:
            self._rooms_at = now
            told = await self.bringer.rooms(self.cluster.members())
            self._rooms = {node: room.free_bytes for node, room in told.items() if not room.draining}
        return self._rooms
