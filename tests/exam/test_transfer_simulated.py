"""The simulated transport passes the exam in every weather; its faulty twins do not."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import numpy as np
import pytest

from transfer.base import Batch, Landed, Rights
from transfer.errors import Reason, TransferError
from transfer.testing.exam import PeerFailureExam, TransportExam
from transfer.testing.exam_base import FOREVER_S, SENTINEL, examined, failed, read_fails
from transfer.testing.exam_readers import Stoppable, StoppedReaderExam
from transfer.testing.faulty import FAULTY_SIMULATED, EagerSimulatedTransport, ForgetfulSimulatedTransport
from transfer.testing.loop import run_virtual
from transfer.testing.network import Weather
from transfer.testing.parties import Bytes, OwnerHere, Pair, pairs, pattern
from transfer.testing.readers import ReaderHere
from transfer.testing.simulated import SimulatedConfig, SimulatedNetwork, SimulatedTransport


class SimulatedOwner(OwnerHere):
    """An owner here whose node can be killed and stopped."""

    def __init__(self, network: SimulatedNetwork, transport: SimulatedTransport) -> None:
        def memory_of(size: int) -> tuple[object, np.ndarray[tuple[int], np.dtype[np.uint8]]]:
            content = np.zeros(size, dtype=np.uint8)
            return content, content

        super().__init__(transport, memory_of)
        self._network = network

    async def kill(self) -> None:
        self._network.kill(self.address)

    async def stop(self) -> None:
        self._network.stop(self.address)

    async def resume(self) -> None:
        self._network.resume(self.address)


class SimulatedReader(ReaderHere):
    def __init__(self, network: SimulatedNetwork, transport: SimulatedTransport) -> None:
        super().__init__(transport)
        self._network = network

    async def stop(self) -> None:
        self._network.stop("reader")

    async def resume(self) -> None:
        self._network.resume("reader")


class Simulated(TransportExam, PeerFailureExam, StoppedReaderExam):
    long_extents = 24
    long_bytes = 100_000
    weather = Weather()
    transport: type[SimulatedTransport] = SimulatedTransport
    seed = 1

    def run(self, main: Callable[[], Awaitable[None]]) -> None:
        run_virtual(main)

    @asynccontextmanager
    async def pair(self) -> AsyncIterator[Pair]:
        self.network = network = SimulatedNetwork(self.seed, self.weather)
        owner = SimulatedOwner(network, self.transport(network, "owner"))
        reader = self.transport(network, "reader")
        self.chance = random.Random(self.seed)
        try:
            yield Pair(owner, reader, await reader.connect("owner", deadline_s=10.0))
        finally:
            await reader.close()
            await owner.close()

    @asynccontextmanager
    async def stoppable(self) -> AsyncIterator[Stoppable]:
        self.network = network = SimulatedNetwork(self.seed, self.weather)
        owner = SimulatedOwner(network, self.transport(network, "owner"))
        # As it stands still, it gives nothing up meanwhile.
        reader = self.transport(network, "reader", SimulatedConfig(resend_s=1.0, resends_max=30))
        self.chance = random.Random(self.seed)
        try:
            yield Stoppable(owner, SimulatedReader(network, reader))
        finally:
            await reader.close()
            await owner.close()

    async def pause(self, turn: int) -> None:
        await asyncio.sleep(self.chance.uniform(0.0, self.weather.latency_s[1]))

    async def settle(self) -> None:
        await asyncio.sleep(5.0)

    def expected(self) -> Bytes:
        """What a whole `long_batch` leaves in local memory."""
        source = pattern(4 * self.long_bytes, 11).reshape(4, -1)
        return source[[0, 3, 2, 1]].reshape(-1)

    @examined
    async def test_a_peer_that_comes_back_is_another(self, pair: Pair) -> None:
        """Same address, same region, slot and generation, other bytes: what was shown before opens none of them."""
        batch, _, memory, _ = await self.long_batch(pair)
        for turn in range(3):
            memory[:] = 0
            transfer = pair.endpoint.read(batch, deadline_s=FOREVER_S)
            await self.pause(turn)
            self.network.restart("owner")
            reborn = SimulatedOwner(self.network, self.transport(self.network, "owner"))
            await reborn.memory("long", len(memory), seed=99)
            descriptor = await reborn.grant("long", [(0, len(memory))], rights=Rights.READ, lifetime_s=60.0)
            answer = await self.answered(transfer)
            assert ((memory == self.expected()) | (memory == 0)).all(), "bytes of another life"
            if isinstance(answer, TransferError):
                assert set(failed(answer)) <= {Reason.REVOKED, Reason.PEER_GONE} and answer.elsewhere
            await self.stays_quiet(memory)
            await read_fails(pair, batch, Reason.REVOKED, range(len(batch)))
            assert (memory == SENTINEL).all()
            (presented,) = await pair.endpoint.present([descriptor], deadline_s=10.0)
            table = batch.table.copy()
            table[:, 2] = presented.handle
            await pair.endpoint.read(Batch(table), deadline_s=FOREVER_S)
            assert (memory[: self.long_bytes] == pattern(len(memory), 99)[: self.long_bytes]).all()
            await reborn.close()
            self.network.restart("owner")
            first = SimulatedOwner(self.network, self.transport(self.network, "owner"))
            await first.memory("long", len(memory), seed=11)
            again = await first.grant("long", [(0, len(memory))], rights=Rights.READ, lifetime_s=60.0)
            (presented,) = await pair.endpoint.present([again], deadline_s=10.0)
            table[:, 2] = presented.handle
            batch = Batch(table.copy())

    @examined
    async def test_a_cut_ends_in_time_or_with_an_answer(self, pair: Pair) -> None:
        """Cuts in both directions or one, short and long, in the middle of a batch that reads and one that writes."""
        reading, _, here, _ = await self.long_batch(pair)
        await pair.owner.memory("target", len(here), seed=1)
        source_region, source = await pair.memory(len(here))
        writable, _ = await pair.shown("target", [(0, len(here))], rights=Rights.WRITE)
        gone = 0
        for turn, (one_way, cut_s) in enumerate(itertools.product(("", "owner", "reader"), (0.02, 0.5))):
            source[:] = pattern(len(here), 30 + turn)
            writing = pairs(source_region, writable, [(0, 0, len(here))])
            read = pair.endpoint.read(reading, deadline_s=FOREVER_S)
            write = pair.endpoint.write(writing, deadline_s=FOREVER_S)
            await self.pause(turn)
            if one_way:
                self.network.cut_one_way(one_way, "reader" if one_way == "owner" else "owner")
            else:
                self.network.cut("owner", "reader")
            asyncio.get_running_loop().call_later(cut_s, self.network.heal, "owner", "reader")
            answers = [await self.answered(read), await self.answered(write)]
            for answer in answers:
                if isinstance(answer, TransferError):
                    assert set(failed(answer)) == {Reason.PEER_GONE} and answer.elsewhere
                    assert cut_s > 0.05 or self.weather != Weather(), "a short cut heals by itself"
                    gone += cut_s > 0.05
            if isinstance(answers[1], Landed):
                told = hashlib.sha256(source.tobytes()).hexdigest()
                assert await pair.owner.digest("target", 0, len(here)) == told
            await self.stays_quiet(here)
            assert isinstance(await self.answered(pair.endpoint.read(reading, deadline_s=FOREVER_S)), Landed)
            assert (here == self.expected()).all()
        assert gone, "no cut came in the middle of a batch"


class TestFairWeather(Simulated):
    pass


class TestFoulWeather(Simulated):
    """Long ways, packets that overtake each other by far, and every twentieth lost."""

    weather = Weather(latency_s=(50e-6, 5e-3), loss=0.05)
    seed = 2


class TestDoubledPackets(Simulated):
    """A third arrives twice, the second often long after the answer."""

    weather = Weather(latency_s=(50e-6, 5e-3), twice=0.33)
    seed = 3


class TestBurstsOfLoss(Simulated):
    weather = Weather(latency_s=(50e-6, 3e-3), burst=(0.02, 6))
    seed = 4


class TestOutages(Simulated):
    """Nothing arrives for 15 of every 60 ms: partitions that heal in the middle of a batch."""

    weather = Weather(outage_s=(0.06, 0.015), loss=0.01)
    seed = 5


class TestAnswersLost(Simulated):
    """What is asked arrives; for a third of the time the answers do not, so that much is done twice."""

    weather = Weather(outage_s=(0.03, 0.01), outage_from="owner")
    seed = 6


class TestSlowPeer(Simulated):
    """Farther away than the time after which slices are sent again."""

    weather = Weather(slow=(("owner", 0.012), ("reader", 0.002)))
    seed = 7


WEATHERS: tuple[type[Simulated], ...] = (
    TestFairWeather,
    TestFoulWeather,
    TestDoubledPackets,
    TestBurstsOfLoss,
    TestOutages,
    TestAnswersLost,
    TestSlowPeer,
)


def fails(transport: type[SimulatedTransport], weather: type[Simulated], name: str) -> bool:
    faulty = type("Faulty", (weather,), {"transport": transport, "__test__": False})
    try:
        getattr(faulty(), name)()
    except (AssertionError, pytest.fail.Exception):
        return True
    return False


@pytest.mark.parametrize("transport", FAULTY_SIMULATED, ids=lambda kind: kind.__name__)
def test_faulty_twins_fail(transport: type[SimulatedTransport]) -> None:
    weather, names = FAULTY_SIMULATED[transport]
    kind = next(kind for kind in WEATHERS if kind.__name__ == weather)
    assert [name for name in names if not fails(transport, kind, name)] == []


@pytest.mark.parametrize("weather", WEATHERS, ids=lambda kind: kind.__name__)
def test_every_weather_finds_out_the_eager_and_the_forgetful(weather: type[Simulated]) -> None:
    """Not by each of the tests: what a twin does wrong may have no consequence there."""
    for transport in (EagerSimulatedTransport, ForgetfulSimulatedTransport):
        found = [name for name in FAULTY_SIMULATED[transport][1] if fails(transport, weather, name)]
        assert len(found) >= 3, found


def test_the_weathers_are_what_they_say() -> None:
    """An exam in weather that never comes examines nothing."""

    def seen(weather: type[Simulated]) -> tuple[int, int]:
        exam = weather()
        exam.test_cancelled_batches_are_quiet()
        return exam.network.lost, exam.network.doubled

    assert seen(TestFairWeather) == (0, 0)
    assert seen(TestDoubledPackets)[1] > 50
    for weather in (TestFoulWeather, TestBurstsOfLoss, TestOutages, TestAnswersLost):
        assert seen(weather)[0] > 10, weather
