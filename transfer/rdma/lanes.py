"""The queue pairs to one peer: made, joined to the peer's, and made anew when they break.

Rules
- Rail i joins the i-th devices of both sides, the shorter list taken again from its start; each has `qps` lanes.
- A lane is up when a read over it has landed (trial.py): a path that loses everything in silence connects all the same.
- A lane that breaks is given back by the engine when nothing of it is out any more; only then is its queue pair closed.
- A lane that broke by its path's fault sets its rail aside at once (transfer.rails): its requests were repeated for as
  long as `timeout` and `retries` say. A rail's trial is a lane that is built anew; when it is up, the others follow.
- One that this side flushed, or that a grant's end broke, says nothing about its rail and is built anew at once.
- When no lane is up and none can be built, what waits for one fails: elsewhere is worth trying then.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from transfer.errors import PeerUnreachable
from transfer.native import rdma_connect
from transfer.rails import Rails, RailState
from transfer.rdma.control import Control
from transfer.rdma.frames import Hello, Join, Joined, RailOffer
from transfer.rdma.trial import ASKED, Trials, trials
from transfer.rdma.verbs import Device, QueuePair, RdmaUnavailable

if TYPE_CHECKING:
    from transfer.rdma.transport import RdmaTransport

__all__ = ["NO_ROOM", "Lanes", "connect_pair", "pairing"]

NO_ROOM = "queue_pairs_max"
BROKEN_BY_US = 0
BROKEN_BY_GRANT = 10  # IBV_WC_REM_ACCESS_ERR


def pairing(mine: int, theirs: int, rails_max: int) -> list[tuple[int, int]]:
    """(our device, theirs) of each rail."""
    if not mine or not theirs:
        return []
    return [(i % mine, i % theirs) for i in range(min(max(mine, theirs), rails_max))]


def connect_pair(
    pair: QueuePair,
    mine: RailOffer,
    gid_index: int,
    theirs: tuple[bytes, int],
    peer: tuple[int, int],
    psn: int,
    mtu: int,
    reads: int,
    *,
    timers: tuple[int, int],
    serving: bool,
) -> None:
    """`theirs`: gid and lid; `peer`: number and first packet of their queue pair. Blocks; raises OSError."""
    rdma_connect(
        pair.address,
        gid=theirs[0],
        gid_index=gid_index,
        is_global=mine.ethernet,
        lid=theirs[1],
        peer_qpn=peer[0],
        peer_psn=peer[1],
        psn=psn,
        mtu=mtu,
        reads=reads,
        timeout=timers[0],
        retries=timers[1],
        serving=serving,
    )


class _NoRoom(PeerUnreachable):
    """The owner makes no more queue pairs: no fault of the rail's."""


@dataclass(slots=True, eq=False)
class _Lane:
    index: int
    rail: int
    device: int
    peer_device: int
    number: int = 0  # the engine's, while it has the lane
    up: bool = False
    trial: asyncio.Future[str] | None = None  # why it did not come up; "": it is up
    pair: QueuePair | None = None
    building: asyncio.Task[None] | None = None
    failed: bool = False  # it could not be built, or its rail is set aside


class Lanes:
    """Of one endpoint, joined over one connection. `peer`: their number in the engine."""

    def __init__(self, host: RdmaTransport, control: Control, theirs: Hello) -> None:
        self._host = host
        self.peer = host.number()
        self._control = control
        self._theirs = theirs.rails
        config = host.config
        pairs = pairing(len(host.devices), len(self._theirs), config.rails)
        self._rails = Rails([1] * max(1, len(pairs)), config.rail)
        self._trials: set[int] = set()  # rails whose trial nobody has taken yet
        numbers = itertools.count()
        self._lanes = [
            _Lane(next(numbers), rail, here, there)
            for _ in range(config.qps)
            for rail, (here, there) in enumerate(pairs)
        ]
        self.a_device = max((sum(one.device == i for one in self._lanes) for i in range(len(host.devices))), default=0)
        self._tried_with: Trials | None = None
        self._stopped = False
        self._changed = asyncio.Event()
        self.why = "the two sides share no rail" if not pairs else ""

    @property
    def up(self) -> int:
        return sum(lane.up for lane in self._lanes)

    def states(self) -> list[RailState]:
        return [report.state for report in self._rails.reports()]

    async def open(self) -> None:
        """Returns when the first lane is up; the others follow. Raises PeerUnreachable where none can be built."""
        told = await self._control.ask(ASKED, self._host.config.greeting_s)
        self._tried_with = await trials(self._host, told, len(self._theirs))
        for lane in self._lanes:
            lane.building = self._task(lane)
        while not self.up:
            if all(lane.failed for lane in self._lanes):
                raise PeerUnreachable(f"no queue pair could be connected: {self.why}")
            if self._stopped:
                raise PeerUnreachable(self.why)
            self._changed.clear()
            await self._changed.wait()

    def _task(self, lane: _Lane) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(self._keep_building(lane))

    async def _keep_building(self, lane: _Lane) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._turn(lane)
            if self._stopped:
                return
            try:
                await self._build(lane)
            except _NoRoom as error:
                self._not_built(lane, error)
                await asyncio.sleep(self._host.config.port_look_s)
            except (OSError, PeerUnreachable, RdmaUnavailable) as error:
                if lane.rail in self._rails.usable():
                    self._rails.failed(lane.rail, loop.time(), severe=True)
                else:
                    self._rails.tried(lane.rail, False, loop.time())
                self._not_built(lane, error)
            else:
                return

    def _not_built(self, lane: _Lane, error: Exception) -> None:
        self.why, lane.failed = str(error), True
        self._changed.set()
        if all(one.failed for one in self._lanes):
            self._host.engine.give_up(self.peer, False)

    async def _turn(self, lane: _Lane) -> None:
        """Returns when the rail is OK, or this lane is its trial; or when no lane is to be built any more."""
        loop, look_s = asyncio.get_running_loop(), self._host.config.port_look_s
        while not self._stopped and (state := self.states()[lane.rail]) is not RailState.OK:
            self._trials.update(self._rails.due(loop.time()))
            if lane.rail in self._trials and state is RailState.PAUSED:
                self._trials.discard(lane.rail)
                return
            due = self._rails.next_due()
            await asyncio.sleep(look_s if due is None else min(look_s, max(0.001, due - loop.time())))
            if state is RailState.DOWN and await self._host.in_thread(self._port_active(lane)):
                self._rails.up(lane.rail, loop.time())

    def _port_active(self, lane: _Lane) -> Callable[[], bool]:
        device = self._host.devices[lane.device]

        def look() -> bool:
            with contextlib.suppress(OSError):
                return device.offer().active
            return False

        return look

    async def _build(self, lane: _Lane) -> None:
        device = self._host.devices[lane.device]
        theirs, config = self._theirs[lane.peer_device], self._host.config
        psn = secrets.randbits(24)
        mine, pair = await self._host.in_thread(lambda: (device.offer(), device.domain.queue_pair(config.window)))
        try:
            if not mine.active:
                self._rails.down(lane.rail)
                raise PeerUnreachable(f"{device.name}: its port is not active")
            mtu, reads = min(mine.mtu, theirs.mtu), min(mine.reads, theirs.reads)
            asked = Join(lane.index, lane.device, lane.peer_device, pair.number, psn, mtu, reads, mine.gid, mine.lid)
            told = await self._control.ask(asked, config.greeting_s)
            if isinstance(told, Joined) and told.why.startswith(NO_ROOM):
                raise _NoRoom(f"the peer: {told.why}")
            if not isinstance(told, Joined) or told.why:
                raise PeerUnreachable(f"the peer: {told.why if isinstance(told, Joined) else 'broke the protocol'}")
            await self._connect(pair, device, mine, theirs, told, psn)
        except BaseException:
            await self._host.in_thread(pair.close)
            raise
        await self._tried(lane, pair)

    async def _tried(self, lane: _Lane, pair: QueuePair) -> None:
        """Hands the lane to the engine. Raises PeerUnreachable where it does not come up."""
        loop, with_ = asyncio.get_running_loop(), self._tried_with
        lane.pair, lane.number, lane.trial = pair, self._host.number(), loop.create_future()
        self._host.lane_opened(lane.number, self, lane.index)
        trial = with_.of(lane.device, lane.peer_device) if with_ is not None else None
        self._host.engine.add_lane(lane.number, self.peer, pair.address, lane.device, lane.peer_device, trial)
        late = loop.call_later(self._host.config.greeting_s, self._host.engine.drop_lane, lane.number)
        why = await lane.trial
        late.cancel()
        if why:
            await self._host.in_thread(pair.close)
            raise PeerUnreachable(why)

    def lane_up(self, index: int) -> None:
        """The engine says so."""
        lane = self._lanes[index]
        assert lane.trial is not None
        lane.up, lane.failed = True, False
        self._rails.tried(lane.rail, True, asyncio.get_running_loop().time())
        self._changed.set()
        lane.trial.set_result("")

    async def _connect(
        self, pair: QueuePair, device: Device, mine: RailOffer, theirs: RailOffer, told: Joined, psn: int
    ) -> None:
        config = self._host.config
        await self._host.in_thread(
            lambda: connect_pair(
                pair,
                mine,
                device.gid_index,
                (theirs.gid, theirs.lid),
                (told.qpn, told.psn),
                psn,
                min(mine.mtu, told.mtu),
                min(mine.reads, told.reads),
                timers=(config.timeout, config.retries),
                serving=False,
            )
        )

    def lane_down(self, index: int, status: int) -> None:
        """The engine has let the lane go: nothing of it is out."""
        lane = self._lanes[index]
        assert lane.trial is not None
        pair, lane.pair, lane.number, lane.up = lane.pair, None, 0, False
        self._changed.set()
        if not lane.trial.done():
            # Whatever broke it: the peer's page is for everybody to read, while the connection lives.
            lane.trial.set_result(f"a read over a new queue pair did not land (completion status {status})")
            return
        if status not in (BROKEN_BY_US, BROKEN_BY_GRANT):
            self.why = f"completion status {status}"
            self._rails.failed(lane.rail, asyncio.get_running_loop().time(), severe=True)
            for other in self._lanes:  # what lies on them moves at once, too
                if other.rail == lane.rail and other.number:
                    self._host.engine.drop_lane(other.number)
        lane.failed = self.states()[lane.rail] is not RailState.OK
        lane.building = asyncio.get_running_loop().create_task(self._again(lane, pair))

    async def _again(self, lane: _Lane, pair: QueuePair | None) -> None:
        if pair is not None:
            await self._host.in_thread(pair.close)
        await self._keep_building(lane)

    def stop(self, why: str) -> None:
        """No lane is built any more; those that are up are the engine's to end."""
        self._stopped = True
        self.why = why
        self._changed.set()

    async def close(self, wait_s: float) -> bool:
        """False: some request is still out; its queue pair is left."""
        self.stop("this side has closed")
        for lane in self._lanes:
            if lane.building is not None and not lane.number:
                lane.building.cancel()
        await self._ended()
        for lane in self._lanes:
            if lane.number:
                self._host.engine.drop_lane(lane.number)
        try:
            async with asyncio.timeout(wait_s):
                while any(lane.number for lane in self._lanes):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return False
        await self._ended()
        return True

    async def _ended(self) -> None:
        """A cancellation of whoever waits here goes on: it is not the builders'."""
        building = [lane.building for lane in self._lanes if lane.building is not None and not lane.number]
        if building:
            await asyncio.wait(building)
