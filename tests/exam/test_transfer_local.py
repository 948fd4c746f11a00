"""The local transport passes the exam, in one process and between two; an eager twin of it does not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from transfer.local import LocalConfig, LocalTransport
from transfer.native import MappedSegment
from transfer.testing.exam import ExamBase, PeerFailureExam, TransportExam
from transfer.testing.exam_readers import Stoppable, StoppedReaderExam
from transfer.testing.faulty import EagerLocalTransport
from transfer.testing.parties import Bytes, OwnerHere, OwnerProcess, Pair
from transfer.testing.readers import ReaderProcess


class Local(ExamBase):
    config = LocalConfig()
    transport: type[LocalTransport] = LocalTransport

    def run(self, main: Callable[[], Awaitable[None]]) -> None:
        async def body() -> None:
            await main()

        asyncio.run(body())

    async def pause(self, turn: int) -> None:
        await asyncio.sleep(0.001 * (turn % 4))

    async def settle(self) -> None:
        await asyncio.sleep(0.03)


class TestOneProcess(Local, TransportExam):
    @asynccontextmanager
    async def pair(self) -> AsyncIterator[Pair]:
        segments: list[MappedSegment] = []

        def memory_of(size: int) -> tuple[object, Bytes]:
            segments.append(MappedSegment.create(size, name="exam"))
            return segments[-1], segments[-1].writable_array(0, size)

        owner = OwnerHere(LocalTransport(), memory_of)
        reader = self.transport(self.config)
        try:
            yield Pair(owner, reader, await reader.connect(owner.address, deadline_s=10.0))
        finally:
            await reader.close()
            await owner.close()


class TestTwoThreads(TestOneProcess):
    """Small slices on two threads, taking turns: more borders, more races."""

    config = LocalConfig(workers=2, slice_bytes=16_384, turn_slices=2)


class TestTwoProcesses(Local, TransportExam, PeerFailureExam):
    @asynccontextmanager
    async def pair(self) -> AsyncIterator[Pair]:
        owner = await OwnerProcess.start("local")
        reader = self.transport(self.config)
        try:
            yield Pair(owner, reader, await reader.connect(owner.address, deadline_s=10.0))
        finally:
            await reader.close()
            await owner.close()


class TestStoppedReader(Local, StoppedReaderExam):
    readers_touch = True

    @asynccontextmanager
    async def stoppable(self) -> AsyncIterator[Stoppable]:
        def memory_of(size: int) -> tuple[object, Bytes]:
            segment = MappedSegment.create(size, name="exam")
            return segment, segment.writable_array(0, size)

        owner = OwnerHere(LocalTransport(LocalConfig(quiesce_max_s=1.5)), memory_of)
        reader = await ReaderProcess.start("local")
        try:
            yield Stoppable(owner, reader)
        finally:
            await reader.close()
            await owner.close()


class Eager(TestOneProcess):
    __test__ = False
    transport = EagerLocalTransport


@pytest.mark.parametrize(
    "name",
    [
        "test_cancelled_batches_are_quiet",
        "test_our_region_deregistered_in_flight",
        "test_cancelled_writes_are_quiet",
        "test_writes_are_quiet_when_our_region_is_deregistered",
    ],
)
def test_an_eager_twin_fails(name: str) -> None:
    with pytest.raises((AssertionError, KeyError)):
        getattr(Eager(), name)()
