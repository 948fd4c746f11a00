"""The simulated transport passes the exam in every weather; its faulty twins do not."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import numpy as np
import pytest

from transfer.testing.exam import PeerFailureExam, TransportExam
from transfer.testing.faulty import FAULTY_SIMULATED
from transfer.testing.loop import run_virtual
from transfer.testing.network import Weather
from transfer.testing.parties import OwnerHere, Pair
from transfer.testing.simulated import SimulatedNetwork, SimulatedTransport


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


class Simulated(TransportExam, PeerFailureExam):
    long_extents = 24
    long_bytes = 100_000
    weather = Weather()
    transport: type[SimulatedTransport] = SimulatedTransport
    seed = 1

    def run(self, main: Callable[[], Awaitable[None]]) -> None:
        run_virtual(main)

    @asynccontextmanager
    async def pair(self) -> AsyncIterator[Pair]:
        network = SimulatedNetwork(self.seed, self.weather)
        owner = SimulatedOwner(network, self.transport(network, "owner"))
        reader = self.transport(network, "reader")
        self.chance = random.Random(self.seed)
        try:
            yield Pair(owner, reader, await reader.connect("owner", deadline_s=10.0))
        finally:
            await reader.close()
            await owner.close()

    async def pause(self, turn: int) -> None:
        await asyncio.sleep(self.chance.uniform(0.0, self.weather.latency_s[1]))

    async def settle(self) -> None:
        await asyncio.sleep(5.0)


class TestFairWeather(Simulated):
    pass


class TestFoulWeather(Simulated):
    """Long ways, packets that overtake each other by far, and every twentieth lost."""

    weather = Weather(latency_s=(50e-6, 5e-3), loss=0.05)
    seed = 2


@pytest.mark.parametrize("transport", FAULTY_SIMULATED, ids=lambda kind: kind.__name__)
def test_faulty_twins_fail(transport: type[SimulatedTransport]) -> None:
    faulty = type("Faulty", (Simulated,), {"transport": transport, "weather": TestFoulWeather.weather})
    for name in FAULTY_SIMULATED[transport]:
        with pytest.raises((AssertionError, pytest.fail.Exception)):
            getattr(faulty(), name)()
