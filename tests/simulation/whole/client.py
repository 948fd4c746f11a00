"""A client process of a simulated cluster: the real async face, journeys and transfers over a simulated channel."""

from __future__ import annotations

import asyncio
import contextlib
from types import SimpleNamespace
from typing import Any, Final

from kvstore.client.aio import AsyncNamespace
from kvstore.client.away import _awaited
from kvstore.client.buffers import Registry
from kvstore.client.calls import Times, body_of
from kvstore.client.calls import told as told_of
from kvstore.client.conducts import Mover, drive_async
from kvstore.client.moving import conduct_of
from kvstore.client.socket import DONE, GONE, NOT_OPEN, as_told
from kvstore.client.space import Known, Space
from kvstore.client.steps import (
    Answer,
    FoundFar,
    Limits,
    Lookup,
    LookupFar,
    Reopen,
    Reopened,
    Replicate,
    Report,
    Step,
    Told,
)
from kvstore.client.ways import Ways
from kvstore.config import TransferConfig
from kvstore.errors import KvStoreError
from kvstore.layout import KVLayout
from kvstore.wire import store
from tests.simulation.whole.node import LIMITS, METHOD_LOOKUP, Transfers
from tests.simulation.whole.wires import Session, Wires
from tests.simulation.whole.world import Process, World
from transfer.offers import Home
from transfer.testing.simulated import SimulatedConfig, SimulatedTransport

__all__ = ["Client", "client_address"]

DEADLINE_S: Final = 2.0
TOLD: Final = Limits(4096, 256 << 10, 1024, LIMITS.hold_wait_ms_max / 1e3)


class _Line:
    """As kvstore.client.calls.Line."""

    maps = False

    def __init__(self, session: Session) -> None:
        self.session = session
        self.limits = TOLD
        self.numbers = iter(range(1, 1 << 62))
        self.reach = SimpleNamespace(take=self._take, release=self._release)
        self._out: dict[int, Any] = {}

    def _take(self, let_go: Any) -> int:
        number = len(self._out)
        self._out[number] = let_go
        return number

    def _release(self, number: int) -> None:
        let_go = self._out.pop(number, None)
        if let_go is not None:
            let_go(self.session)


class _Ways(Ways):
    """Over the simulated transport."""

    def __init__(self, transport: SimulatedTransport, home: Home) -> None:
        super().__init__(None, TransferConfig())
        self._made = Transfers(transport, home)

    async def _started(self) -> Any:
        self._pulling = self._made.connector
        made: Any = self._made
        self._transfers = made
        return made


class _Channel:
    """As kvstore.client.async_socket.AsyncSocketChannel, to one node."""

    def __init__(self, wires: Wires, source: str, target: str, ways: _Ways) -> None:
        self._wires, self._source, self._target, self._ways = wires, source, target, ways
        self._line: _Line | None = None

    async def _to(self, deadline: float) -> _Line:
        if self._line is None or self._line.session.closed:
            left = max(0.001, deadline - asyncio.get_running_loop().time())
            self._line = _Line(await Session.open(self._wires, self._source, self._target, left))
        return self._line

    async def limits(self, deadline: float) -> Limits:
        return (await self._to(deadline)).limits

    async def call(self, method: int, body: bytes, times: Times) -> bytes:
        line = await self._to(times.deadline)
        result: Any = await line.session.ask(method, body, times.left())
        return body_of(result)

    async def open(self, space: Space, times: Times) -> bool:
        line: Any = await self._to(times.deadline)
        body = await self.call(store.METHOD_OPEN_NAMESPACE, space.request, times)
        response = store.OpenNamespaceResponse.FromString(body)
        same = space.adopt(Known.of(response))
        space.placed = (line, response.handle)
        return same

    async def perform(self, space: Space, step: Step, times: Times) -> Answer:
        if isinstance(step, Reopen):
            try:
                return Reopened(same=await self.open(space, times))
            except KvStoreError as error:
                return as_told(error)
        line: Any = self._line
        if line is None or line.session.closed:
            return GONE
        handle = space.handle_on(line)
        if handle is None:
            return NOT_OPEN
        if isinstance(step, Report):
            return DONE
        if isinstance(step, Lookup):
            return await self._looked_up(line, handle, step, times)
        if isinstance(step, LookupFar | Replicate):
            method = store.METHOD_LOOKUP_FAR if isinstance(step, LookupFar) else store.METHOD_REPLICATE
            return told_of(line, step, await line.session.ask(method, step.request, times.left()), [])
        movable: Any = step
        mover = Mover(self._ways, line, verify=True)
        run: Any = None  # for mapped slots alone
        conduct = conduct_of(mover, space, movable, times, run)
        return await drive_async(
            conduct, lambda asked: line.session.ask(asked.method, asked.body, times.left()), _awaited
        )

    async def _looked_up(self, line: Any, handle: int, step: Lookup, times: Times) -> Answer:
        told = await line.session.ask(METHOD_LOOKUP, handle.to_bytes(4, "little") + step.keys.tobytes(), times.left())
        if told.status:
            return Told(told.status, told.field, told.reason)
        count = told.body[0]
        return FoundFar(blocks=int.from_bytes(told.body[1 + count :], "little"), tiers=told.body[1 : 1 + count])


class Client:
    """One process, of one node."""

    def __init__(self, world: World, wires: Wires, number: int, target: str) -> None:
        self.world, self.name, self.target = world, f"c{number}", target
        self.address = client_address(number)
        self.process: Process = world.process(self.name)
        wires.machines[self.address] = self.process
        transport = SimulatedTransport(wires, self.address, SimulatedConfig(slice_bytes=8192))
        home = Home(boot=self.name.encode().ljust(16, b"."))
        self.ways = _Ways(transport, home)
        self._channel: Any = _Channel(wires, self.address, target, self.ways)
        self.space: Space | None = None

    async def namespace(self, layout: KVLayout) -> AsyncNamespace:
        """Opened, if its node answers. Raises Unavailable."""
        loop = asyncio.get_running_loop()
        if self.space is None:
            space = Space(layout, "t", Registry())
            await self._channel.open(space, Times(loop.time(), loop.time() + DEADLINE_S, DEADLINE_S))
            self.space = space
        return AsyncNamespace(self._channel, self.space, DEADLINE_S)

    async def reopen(self) -> None:
        """After a clear: the chains to come are those of the next generation."""
        assert self.space is not None
        now = asyncio.get_running_loop().time()
        with contextlib.suppress(KvStoreError):
            await self._channel.open(self.space, Times(now, now + DEADLINE_S, DEADLINE_S))


def client_address(number: int) -> str:
    return f"10.0.1.{number + 1}:9000"
