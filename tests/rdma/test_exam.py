"""The RDMA transport passes the exam between two processes, over real queue pairs: one rail, and two."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import numpy as np

from transfer.base import Endpoint
from transfer.rdma import RdmaConfig, RdmaTransport
from transfer.testing.exam import ExamBase, PeerFailureExam, TransportExam
from transfer.testing.exam_readers import Stoppable, StoppedReaderExam
from transfer.testing.parties import Bytes, OwnerHere, OwnerProcess, Pair
from transfer.testing.readers import ReaderProcess


class Rdma(ExamBase):
    """Software RDMA under emulation moves some 50 MB/s, so a batch that takes a while is small."""

    long_extents = 48
    long_bytes = 256 << 10
    config = RdmaConfig(devices=("rxe_a0",))
    owner_devices = "rxe_b0"

    async def pause(self, turn: int) -> None:
        await asyncio.sleep(0.01 * (turn % 4))

    async def settle(self) -> None:
        await asyncio.sleep(0.05)

    async def start_owner(self) -> OwnerProcess:
        return await OwnerProcess.start(f"rdma:{self.owner_devices}")

    @asynccontextmanager
    async def connected(self, owner: OwnerProcess) -> AsyncIterator[Pair]:
        reader = RdmaTransport(self.config)
        try:
            yield Pair(owner, reader, await reader.connect(owner.address, deadline_s=10.0))
        finally:
            await reader.close()


class Shared(Rdma):
    """One owner for all tests of a class: starting one takes seconds under emulation."""

    runner: asyncio.Runner
    owner: OwnerProcess

    @classmethod
    def setup_class(cls) -> None:
        cls.runner = asyncio.Runner()
        cls.owner = cls.runner.run(cls().start_owner())

    @classmethod
    def teardown_class(cls) -> None:
        cls.runner.run(cls.owner.close())
        cls.runner.close()

    def run(self, main: Callable[[], Awaitable[None]]) -> None:
        async def body() -> None:
            await main()

        self.runner.run(body())

    @asynccontextmanager
    async def pair(self) -> AsyncIterator[Pair]:
        async with self.connected(self.owner) as pair:
            yield pair


class TestOneRail(Shared, TransportExam):
    pass


class TestTwoRails(Shared, TransportExam):
    """Small slices over several queue pairs and a short window: more borders, more races."""

    config = RdmaConfig(devices=("rxe_a0", "rxe_a1"), slice_bytes=16_384, window=4, qps=3)
    owner_devices = "rxe_b0,rxe_b1"


class Back(Shared):
    """The owner connects and listens to nobody: the reader asks over the owner's connection."""

    config = RdmaConfig(devices=("rxe_a0",))

    @asynccontextmanager
    async def connected(self, owner: OwnerProcess) -> AsyncIterator[Pair]:
        reader = RdmaTransport(self.config)
        try:
            self.incarnation = await owner.connect(reader.address)
            yield Pair(owner, reader, await reader.back(self.incarnation, deadline_s=10.0))
        finally:
            await reader.close()

    async def start_owner(self) -> OwnerProcess:
        return await OwnerProcess.start(f"rdma-:{self.owner_devices}")

    async def again(self, pair: Pair) -> Endpoint:
        assert isinstance(pair.reader, RdmaTransport)
        await pair.endpoint.close()
        return await pair.reader.back(self.incarnation, deadline_s=1.0)


class TestBack(Back, TransportExam):
    pass


class TestBackOverTwoRails(Back, TransportExam):
    config = TestTwoRails.config
    owner_devices = TestTwoRails.owner_devices


class Apart(Rdma):
    """Processes of each test's own."""

    def run(self, main: Callable[[], Awaitable[None]]) -> None:
        async def body() -> None:
            await main()

        asyncio.run(body())


class TestPeerFailures(Apart, PeerFailureExam):
    @asynccontextmanager
    async def pair(self) -> AsyncIterator[Pair]:
        owner = await self.start_owner()
        try:
            async with self.connected(owner) as pair:
                yield pair
        finally:
            await owner.close()


class TestBackPeerFailures(Back, PeerFailureExam):
    """Who connected dies in the middle of a pull, or stands still. Processes of each test's own."""

    @classmethod
    def setup_class(cls) -> None:
        cls.runner = asyncio.Runner()

    @classmethod
    def teardown_class(cls) -> None:
        cls.runner.close()

    @asynccontextmanager
    async def pair(self) -> AsyncIterator[Pair]:
        owner = await self.start_owner()
        try:
            async with self.connected(owner) as pair:
                yield pair
        finally:
            await owner.close()


def memory_of(size: int) -> tuple[object, Bytes]:
    content = np.zeros(size, dtype=np.uint8)
    return content, content


class TestStoppedReader(Apart, StoppedReaderExam):
    """A reader's device goes on while its process is stopped: nothing but the owner's deregistering ends its reads."""

    @asynccontextmanager
    async def stoppable(self) -> AsyncIterator[Stoppable]:
        owner = OwnerHere(RdmaTransport(RdmaConfig(devices=("rxe_b0",))), memory_of)
        reader = await ReaderProcess.start("rdma:rxe_a0")
        try:
            yield Stoppable(owner, reader)
        finally:
            await reader.close()
            await owner.close()
