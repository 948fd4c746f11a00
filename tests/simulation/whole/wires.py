"""The network of a simulated cluster: datagrams of the simulated transport, and connections to framed doors.

A connection repeats what was lost, as TCP does; a port that nobody listens at refuses at once; a machine that is gone
says nothing. A process that ends closes its connections, a machine that is gone does not.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Final, Protocol

from kvstore.client.calls import body_of
from kvstore.client.steps import Status
from kvstore.errors import Unavailable
from kvstore.node.peer_session import NotListening
from tests.simulation.whole.world import Process, World
from transfer.testing.network import Weather
from transfer.testing.simulated import SimulatedNetwork

__all__ = ["Door", "Session", "Wires"]

AGAIN_S: Final = 0.05  # after which TCP sends again
CONNECT_TRIES: Final = 100


class Door(Protocol):
    """What listens: a life of a node."""

    process: Process

    def came(self) -> int: ...
    def gone(self, owner: int) -> None: ...
    async def answer(self, owner: int, method: int, body: bytes) -> SimpleNamespace: ...


class Wires(SimulatedNetwork):
    """`machines`: the process that lives at an address now. Addresses of machines that are gone are killed."""

    def __init__(self, world: World, weather: Weather) -> None:
        super().__init__(world.rng.getrandbits(64), weather)
        self.world = world
        self.machines: dict[str, Process] = {}
        self.doors: dict[str, Door] = {}

    def note(self, what: str) -> None:
        """The world keeps the trace."""

    def send(self, source: str, target: str, deliver: Callable[[], None]) -> None:
        self.packets += 1
        copies = 2 if self._random.random() < self.weather.twice else 1
        lost = self._lost(source)
        self.lost += lost
        for _ in range(copies):
            delay = self._random.uniform(*self.weather.latency_s) + dict(self.weather.slow).get(target, 0.0)
            if not lost and self._linked(source, target):
                self.world.after(delay, lambda: self._arrived(source, target, deliver))

    def _lost(self, source: str) -> bool:
        return self._random.random() < self.weather.loss

    def _arrived(self, source: str, target: str, deliver: Callable[[], None]) -> None:
        process = self.machines.get(target)
        if process is not None and self._linked(source, target):
            process.post(deliver)

    def reaches(self, source: str, target: str) -> bool:
        return self._linked(source, target) and self._linked(target, source)

    def leave(self, address: str, *, machine: bool) -> None:
        """The process there has ended; machine: and nothing at all answers there any more."""
        process = self.machines.pop(address, None)
        self.doors.pop(address, None)
        self.transports.pop(address, None)
        if machine:
            self.kill(address)
        if process is not None and not process.dead:
            process.kill()


class Session:
    """One connection, its client's end. As native.Session, as far as the client and the nodes use it."""

    def __init__(self, wires: Wires, source: str, target: str) -> None:
        self._wires, self._source, self._target = wires, source, target
        self._door: Door | None = None
        self._owner = 0
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[SimpleNamespace]] = {}
        self.closed = False

    @staticmethod
    async def open(wires: Wires, source: str, target: str, deadline_s: float) -> Session:
        """Raises NotListening, Unavailable."""
        session = Session(wires, source, target)
        answered: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        home = asyncio.get_running_loop()
        assert isinstance(home, Process)

        def tell(listens: bool) -> None:
            if not answered.done():
                answered.set_result(listens)

        def knock() -> None:
            if answered.done() or home.dead:
                return
            wires.world.after(AGAIN_S, knock)
            wires.world.after(wires._random.uniform(*wires.weather.latency_s), arrive)

        def arrive() -> None:
            if answered.done() or not wires.reaches(source, target) or wires.is_dead(target):
                return
            door = wires.doors.get(target)
            if door is None:
                home.post(lambda: tell(False))
            elif session._door is None:
                session._door = door
                door.process.post(lambda: accept(door))

        def accept(door: Door) -> None:
            session._owner = door.came()
            home.post(lambda: tell(True))

        knock()
        try:
            async with asyncio.timeout(deadline_s):
                listens = await answered
        except TimeoutError:
            session.closed = True
            session._hang_up()
            raise Unavailable(f"{target}: not reached within {deadline_s:.3g} s") from None
        if not listens:
            raise NotListening(f"{target}: Connection refused")
        home_dead = home  # its end closes the connection
        wires.world.after(AGAIN_S, lambda: session._watch(home_dead))
        return session

    def _watch(self, home: Process) -> None:
        """Whether both ends live: a process that ended has closed it, and the other end hears of it if it can."""
        if self.closed:
            return
        door = self._door
        assert door is not None
        if home.dead:
            if not self._wires.is_dead(self._source) and self._wires.reaches(self._source, self._target):
                self.closed = True
                self._hang_up()
                return
        elif door.process.dead and self._wires.reaches(self._source, self._target):
            home.post(self._broken)
            return
        self._wires.world.after(AGAIN_S, lambda: self._watch(home))

    def _broken(self) -> None:
        self.closed = True
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_result(failed("the connection was closed"))

    def _hang_up(self) -> None:
        door, owner = self._door, self._owner
        if door is not None and owner:
            self._wires.world.after(0.001, lambda: door.process.post(lambda: door.gone(owner)))

    async def call(self, method: int, body: bytes, deadline_s: float) -> bytes:
        """As kvstore.node.peer_session.PeerSession.call."""
        return body_of(await self.ask(method, body, deadline_s))  # type: ignore[arg-type]

    def begin(self, method: int, body: bytes, deadline_s: float) -> asyncio.Future[bytes]:
        """As kvstore.node.peer_session.PeerSession.begin."""
        return asyncio.ensure_future(self.call(method, body, deadline_s))

    async def ask(self, method: int, body: bytes, deadline_s: float) -> SimpleNamespace:
        """The Result. Late is unavailable."""
        if self.closed:
            return failed("the connection was closed")
        number = next(self._numbers)
        future = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        cancelled = self._send(number, method, body)
        try:
            async with asyncio.timeout(deadline_s):
                return await future
        except TimeoutError:
            cancelled()
            return failed(f"{self._target}: no answer in time")
        except asyncio.CancelledError:
            cancelled()
            raise
        finally:
            self._waiting.pop(number, None)

    def tell_call(self, method: int, body: bytes) -> None:
        """Nobody waits for it."""
        if not self.closed:
            self._send(0, method, body)

    def _send(self, number: int, method: int, body: bytes) -> Callable[[], None]:
        """Repeated until it has arrived, and its answer too. Returns what takes it back."""
        door, world, home = self._door, self._wires.world, asyncio.get_running_loop()
        assert door is not None and isinstance(home, Process)
        state: dict[str, Any] = {"arrived": False, "task": None, "gone": False}

        def go() -> None:
            if self.closed or state["arrived"] or home.dead:
                return
            world.after(AGAIN_S, go)
            if not self._wires._lost(self._source):
                world.after(self._wires._random.uniform(*self._wires.weather.latency_s), arrive)

        def arrive() -> None:
            if state["arrived"] or door.process.dead or not self._wires.reaches(self._source, self._target):
                return
            state["arrived"] = True
            door.process.post(begin)

        def begin() -> None:
            if state["gone"]:
                return
            task = asyncio.ensure_future(door.answer(self._owner, method, body))
            state["task"] = task
            task.add_done_callback(ended)

        def ended(task: asyncio.Task[SimpleNamespace]) -> None:
            if task.cancelled() or not number:
                return
            result = task.result()

            def back() -> None:
                if self.closed or door.process.dead or home.dead or number not in self._waiting:
                    return
                if self._wires.reaches(self._target, self._source) and not self._wires._lost(self._target):
                    home.post(lambda: self._settle(number, result))
                else:
                    world.after(AGAIN_S, back)

            world.after(self._wires._random.uniform(*self._wires.weather.latency_s), back)

        def take_back() -> None:
            state["gone"] = True
            task = state["task"]
            if task is not None:
                world.after(0.001, lambda: door.process.post(task.cancel))

        go()
        return take_back

    def _settle(self, number: int, result: SimpleNamespace) -> None:
        future = self._waiting.get(number)
        if future is not None and not future.done():
            future.set_result(result)

    def close(self, executor: object = None) -> None:
        if not self.closed:
            self._broken()
            self._hang_up()


def failed(why: str) -> SimpleNamespace:
    return SimpleNamespace(status=int(Status.UNAVAILABLE), field="", reason=why, limit=0, body=b"")
