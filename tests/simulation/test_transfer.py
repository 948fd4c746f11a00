"""A thousand small batches in foul weather: never a wrong byte, never a hang, and one seed is one run."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from transfer.base import Batch, Extent, Landed
from transfer.errors import GrantInvalid, PeerUnreachable, Reason, RegionPoisoned, TransferError, TransferLate
from transfer.regions import Region
from transfer.testing.loop import run_virtual
from transfer.testing.network import Weather
from transfer.testing.parties import pattern
from transfer.testing.simulated import SimulatedConfig, SimulatedNetwork, SimulatedTransport

ROOT = Path(__file__).resolve().parents[2]
SIZE = 100_000
READERS = 3
ROUNDS = 12


class Reader:
    """Reads a little at random, cancels some, and checks all that it is told has landed."""

    def __init__(self, network: SimulatedNetwork, index: int) -> None:
        self.transport = SimulatedTransport(network, f"reader{index}")
        self.chance = network.child()
        self.landed = self.failed = 0

    async def run(self, descriptor: bytes, source: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> None:
        memory = np.zeros(SIZE, dtype=np.uint8)
        region = await self.transport.register(memory)
        endpoint = await self.transport.connect("owner", deadline_s=60.0)
        (presented,) = await endpoint.present([descriptor], deadline_s=60.0)
        for _ in range(ROUNDS):
            length = self.chance.randrange(1, 5_000)
            places = [(i * length, self.chance.randrange(SIZE - length)) for i in range(self.chance.randrange(1, 8))]
            batch = Batch.of(
                (Extent(region.id, here, length), presented.extent(there, length)) for here, there in places
            )
            transfer = endpoint.read(batch, deadline_s=self.chance.choice((0.001, 0.01, 1.0)), parts=[batch.bytes])
            if self.chance.random() < 0.3:
                asyncio.get_running_loop().call_later(self.chance.uniform(0, 0.01), transfer.cancel)
            arrived = np.ones(len(places), dtype=np.bool_)
            try:
                assert isinstance(await transfer, Landed)
                self.landed += 1
            except TransferError as error:
                arrived = error.arrived
                self.failed += 1
            for whole, (here, there) in zip(arrived, places, strict=True):
                if whole:
                    assert (memory[here : here + length] == source[there : there + length]).all()
            memory[:] = 0xA5
            await asyncio.sleep(self.chance.uniform(0, 0.05))
            assert (memory == 0xA5).all(), "bytes landed after the answer"
        await self.transport.close()


async def storm(seed: int) -> tuple[str, int, int]:
    """One run: its trace, and how many batches landed and failed."""
    network = SimulatedNetwork(seed, Weather(latency_s=(50e-6, 4e-3), loss=0.06, twice=0.1, burst=(0.002, 8)))
    owner = SimulatedTransport(network, "owner")
    source = pattern(SIZE, seed)
    region = await owner.register(source.copy())
    grant = await owner.grant(region, [(0, SIZE)], lifetime_s=3600.0)
    readers = [Reader(network, i) for i in range(READERS)]
    toss = random.Random(seed)
    tasks = [asyncio.ensure_future(reader.run(grant.descriptor, source)) for reader in readers]
    for _ in range(6):
        await asyncio.sleep(toss.uniform(0, 0.1))
        victim = f"reader{toss.randrange(READERS)}"
        network.cut("owner", victim)
        await asyncio.sleep(toss.uniform(0, 0.1))
        network.heal("owner", victim)
    for task in tasks:
        await task
    await owner.close()
    return network.trace(), sum(r.landed for r in readers), sum(r.failed for r in readers)


def test_no_wrong_byte_and_no_hang(pytestconfig: pytest.Config) -> None:
    seeds = min(40, int(pytestconfig.getoption("--seeds")))
    landed = failed = 0
    for seed in range(seeds):
        _, more_landed, more_failed = run_virtual(lambda seed=seed: storm(seed))  # type: ignore[misc]
        landed, failed = landed + more_landed, failed + more_failed
    assert landed > seeds and failed > seeds, "the weather was too fair, or too foul, to tell"


def test_one_seed_is_one_run_in_every_process() -> None:
    program = (
        "from tests.simulation.test_transfer import *\n"
        "kept = [object() for _ in range(int(sys.argv[1]))]\n"
        "print(run_virtual(lambda: storm(7)), run_virtual(lambda: storm(8)))"
    )
    told = []
    for number, hash_seed in enumerate(("0", "1", "12345")):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", program, str(number * 17)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        told.append(done.stdout)
    assert told[0] == told[1] == told[2]
    first, second = run_virtual(lambda: storm(7)), run_virtual(lambda: storm(8))
    assert f"{first} {second}\n" == told[0] and first[0] != second[0]


def test_a_wire_that_does_not_come_back_poisons_the_region() -> None:
    async def main() -> None:
        network = SimulatedNetwork(1)
        patient = SimulatedConfig(resends_max=1_000_000)
        owner, reader = SimulatedTransport(network, "owner"), SimulatedTransport(network, "reader", patient)
        region = await owner.register(pattern(SIZE, 1))
        grant = await owner.grant(region, [(0, SIZE)], lifetime_s=60.0)
        told: list[Region] = []
        target = await reader.register(bytearray(SIZE), on_poison=told.append)
        endpoint = await reader.connect("owner", deadline_s=1.0)
        (presented,) = await endpoint.present([grant.descriptor], deadline_s=1.0)
        network.cut("owner", "reader")
        reader.flush_hangs = True
        batch = Batch.of([(Extent(target.id, 0, SIZE), presented.extent(0, SIZE))])
        with pytest.raises(TransferLate) as caught:
            await endpoint.read(batch, deadline_s=0.01)
        assert caught.value.poisoned and told == [target]
        with pytest.raises(RegionPoisoned):
            await reader.deregister(target)

    run_virtual(main)


def test_a_peer_beyond_a_cut_is_gone_and_may_come_back() -> None:
    async def main() -> None:
        network = SimulatedNetwork(1)
        owner, reader = SimulatedTransport(network, "owner"), SimulatedTransport(network, "reader")
        region = await owner.register(pattern(SIZE, 1))
        grant = await owner.grant(region, [(0, SIZE)], lifetime_s=60.0)
        target = await reader.register(bytearray(SIZE))
        endpoint = await reader.connect("owner", deadline_s=1.0)
        (presented,) = await endpoint.present([grant.descriptor], deadline_s=1.0)
        batch = Batch.of([(Extent(target.id, 0, SIZE), presented.extent(0, SIZE))])
        network.cut("owner", "reader")
        with pytest.raises(TransferError) as caught:
            await endpoint.read(batch, deadline_s=10.0)
        assert caught.value.failures[0].reason is Reason.PEER_GONE and caught.value.elsewhere
        with pytest.raises(PeerUnreachable):
            await endpoint.present([grant.descriptor], deadline_s=0.1)
        network.heal("owner", "reader")
        assert (await endpoint.read(batch, deadline_s=10.0)).bytes == SIZE
        await owner.revoke([grant])
        with pytest.raises(GrantInvalid):
            await endpoint.present([grant.descriptor], deadline_s=10.0)

    run_virtual(main)
