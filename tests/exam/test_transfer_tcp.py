"""The TCP transport passes the exam, in one process and between two, over one lane and several, IPv4 and IPv6."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import numpy as np

from transfer.base import Endpoint, Rights
from transfer.tcp import TcpConfig, TcpTransport
from transfer.testing.exam import ExamBase, PeerFailureExam, TransportExam, examined
from transfer.testing.exam_readers import Stoppable, StoppedReaderExam
from transfer.testing.parties import Bytes, OwnerHere, OwnerProcess, Pair, pairs, pattern
from transfer.testing.readers import ReaderProcess


class Tcp(ExamBase):
    config = TcpConfig()

    def run(self, main: Callable[[], Awaitable[None]]) -> None:
        async def body() -> None:
            await main()

        asyncio.run(body())

    async def pause(self, turn: int) -> None:
        await asyncio.sleep(0.002 * (turn % 4))

    async def settle(self) -> None:
        await asyncio.sleep(0.03)


def memory_of(size: int) -> tuple[object, Bytes]:
    content = np.zeros(size, dtype=np.uint8)
    return content, content


class TestOneProcess(Tcp, TransportExam):
    @asynccontextmanager
    async def pair(self) -> AsyncIterator[Pair]:
        owner = OwnerHere(TcpTransport(self.config), memory_of)
        reader = TcpTransport(self.config)
        try:
            yield Pair(owner, reader, await reader.connect(owner.address, deadline_s=10.0))
        finally:
            await reader.close()
            await owner.close()


class TestUnixSocket(Tcp, TransportExam):
    """Lanes of those of this machine who map nothing."""

    @asynccontextmanager
    async def pair(self) -> AsyncIterator[Pair]:
        with tempfile.TemporaryDirectory() as folder:
            listening = TcpTransport(TcpConfig(listens=False, path=f"{folder}/lanes"))
            owner, reader = OwnerHere(listening, memory_of), TcpTransport(TcpConfig(listens=False))
            try:
                yield Pair(owner, reader, await reader.connect(listening.unix_address, deadline_s=10.0))
            finally:
                await reader.close()
                await owner.close()


class TestManyLanes(TestOneProcess):
    """Small slices over several lanes and threads, IPv6: more borders, more races."""

    config = TcpConfig(host="::1", lanes=5, workers=3, slice_bytes=16_384, requests_max=3)


class TestBack(Tcp, TransportExam):
    """The owner connects, and listens to nobody; the reader asks over the owner's connections."""

    @asynccontextmanager
    async def pair(self) -> AsyncIterator[Pair]:
        reader = TcpTransport(self.config)
        owner = OwnerHere(TcpTransport(TcpConfig(listens=False)), memory_of)
        try:
            incarnation = await owner.connect(reader.address)
            yield Pair(owner, reader, await reader.back(incarnation, deadline_s=10.0))
        finally:
            await reader.close()
            await owner.close()


class TestTwoProcesses(Tcp, TransportExam, PeerFailureExam):
    @asynccontextmanager
    async def pair(self) -> AsyncIterator[Pair]:
        owner = await OwnerProcess.start("tcp")
        reader = TcpTransport(self.config)
        try:
            yield Pair(owner, reader, await reader.connect(owner.address, deadline_s=10.0))
        finally:
            await reader.close()
            await owner.close()

    @examined
    async def test_fresh_grants_are_not_asked_about(self, pair: Pair) -> None:
        """A peer that stands still is not waited for."""
        assert isinstance(pair.owner, OwnerProcess)
        await pair.owner.memory("m", 4096, seed=1)
        region, memory = await pair.memory(4096)
        descriptor = await pair.owner.grant("m", [(0, 4096)], rights=Rights.READ, lifetime_s=60.0)
        await pair.owner.stop()
        try:
            async with asyncio.timeout(10.0):
                (presented,) = await pair.endpoint.present([descriptor], deadline_s=60.0, fresh=True)
        finally:
            await pair.owner.resume()
        await pair.endpoint.read(pairs(region, presented, [(0, 0, 4096)]), deadline_s=10.0)
        assert (memory == pattern(4096, 1)).all()


class TestBackBetweenTwoProcesses(Tcp, PeerFailureExam):
    """Who connected dies, or stands still."""

    incarnation = b""

    @asynccontextmanager
    async def pair(self) -> AsyncIterator[Pair]:
        owner = await OwnerProcess.start("tcp-")
        reader = TcpTransport(self.config)
        try:
            self.incarnation = await owner.connect(reader.address)
            yield Pair(owner, reader, await reader.back(self.incarnation, deadline_s=10.0))
        finally:
            await reader.close()
            await owner.close()

    async def again(self, pair: Pair) -> Endpoint:
        assert isinstance(pair.reader, TcpTransport)
        await pair.endpoint.close()
        return await pair.reader.back(self.incarnation, deadline_s=1.0)


class TestStoppedReader(Tcp, StoppedReaderExam):
    @asynccontextmanager
    async def stoppable(self) -> AsyncIterator[Stoppable]:
        owner = OwnerHere(TcpTransport(self.config), memory_of)
        reader = await ReaderProcess.start("tcp")
        try:
            yield Stoppable(owner, reader)
        finally:
            await reader.close()
            await owner.close()
