"""The rails of the devices near the memory carry its bytes, others while these are down; registrations are kept for
the next region of the same memory. Which device is near is said by a made-up sysfs; the kernel says where memory lies.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tests.rdma.rails import Rail
from tests.unit.transfer.fake_sysfs import ROOT_A, ROOT_B, Sysfs
from transfer.base import Batch, Extent, Presented, Region
from transfer.rails import RailConfig, RailState
from transfer.rdma import RdmaConfig, RdmaTransport
from transfer.rdma.endpoint import RdmaEndpoint
from transfer.rdma.verbs import forks_safely
from transfer.testing.parties import Bytes, pairs, pattern

MIB = 1 << 20
SIZE = 8 * MIB
LITTLE = 256 << 10  # what a rail that carries no slices sees: trials, and what the kernel says
STEP = 16 << 10
LIMIT_S = 60.0
OWNER = RdmaConfig(devices=("rxe_b0", "rxe_b1"))
READER = RdmaConfig(
    devices=("rxe_a0", "rxe_a1"),
    timeout=12,
    retries=3,
    slice_bytes=64 << 10,
    window=8,
    rail=RailConfig(pause_s=0.1, pause_s_max=1.0),
    listens=False,
)


@dataclass(frozen=True, slots=True)
class Sides:
    owner: RdmaTransport
    reader: RdmaTransport
    endpoint: RdmaEndpoint
    content: Bytes
    presented: Presented

    async def read(self, batch: Batch) -> list[int]:
        """Bytes that came in at each of our ends meanwhile."""
        before = [came_in(number) for number in (0, 1)]
        await self.endpoint.read(batch, deadline_s=LIMIT_S)
        return [came_in(number) - then for number, then in enumerate(before)]


def came_in(number: int) -> int:
    return int(Path(f"/sys/class/net/a{number}/statistics/rx_bytes").read_text())


@asynccontextmanager
async def sides(folder: Path, config: RdmaConfig = READER) -> AsyncIterator[Sides]:
    """Where rxe_a0 is of node 0, and rxe_a1 of node 1."""
    sysfs = Sysfs(folder / "sys")
    sysfs.nic("rxe_a0", ROOT_A, "0000:01:00.0")
    sysfs.nic("rxe_a1", ROOT_B, "0000:81:00.0", numa=1)
    owner, reader = RdmaTransport(OWNER), RdmaTransport(config, sysfs=sysfs.root)
    try:
        content = pattern(SIZE, 1)
        endpoint = await reader.connect(owner.address, deadline_s=10.0)
        async with asyncio.timeout(LIMIT_S):
            while endpoint.lanes is None or endpoint.lanes.up < 2 * config.qps:
                await asyncio.sleep(0.02)
        grant = await owner.grant(await owner.register(content), [(0, SIZE)], lifetime_s=600.0)
        (presented,) = await endpoint.present([grant.descriptor], deadline_s=10.0)
        yield Sides(owner, reader, endpoint, content, presented)
    finally:
        await reader.close()
        await owner.close()


def whole(region: Region, presented: Presented) -> Batch:
    return pairs(region, presented, [(0, 0, SIZE)])


def test_the_near_rail_carries_and_the_far_one_when_it_is_down(tmp_path: Path, rail: Rail) -> None:
    async def main() -> None:
        async with sides(tmp_path) as made:
            memory = np.zeros(SIZE, dtype=np.uint8)
            region = await made.reader.register(memory)
            told = made.reader.nearness(region)
            assert (told.where, told.near, told.spare) == ("node 0", ("rxe_a0",), ("rxe_a1",))
            near, far = await made.read(whole(region, made.presented))
            assert near > SIZE and far < LITTLE and (memory == made.content).all()
            memory[:] = 0
            with rail.down("rxe_a0"):
                near, far = await made.read(whole(region, made.presented))
                assert far > SIZE and near < LITTLE and (memory == made.content).all()
            async with asyncio.timeout(LIMIT_S):
                while made.endpoint.rails[0] is not RailState.OK:
                    await asyncio.sleep(0.05)
            memory[:] = 0
            near, far = await made.read(whole(region, made.presented))
            assert near > SIZE and far < LITTLE and (memory == made.content).all()

    asyncio.run(main())


def test_all_rails_carry_where_all_are_wanted(tmp_path: Path) -> None:
    async def main() -> None:
        async with sides(tmp_path, replace(READER, all_rails=True)) as made:
            region = await made.reader.register(np.zeros(SIZE, dtype=np.uint8))
            carried = await made.read(whole(region, made.presented))
            assert min(carried) > MIB and (region.memory == made.content).all()

    asyncio.run(main())


def test_each_extent_goes_by_its_own_memory(tmp_path: Path) -> None:
    """Of one batch, even of one slice, every fourth extent lands in memory that is near the other device."""

    async def main() -> None:
        async with sides(tmp_path) as made:
            one, other = (np.zeros(SIZE // 4 * share, dtype=np.uint8) for share in (3, 1))
            address = int(one.ctypes.data)
            made.reader._nearby._ask = lambda at, _: int(at != address)
            regions = [await made.reader.register(memory) for memory in (one, other)]
            assert [made.reader.nearness(region).near for region in regions] == [("rxe_a0",), ("rxe_a1",)]
            places = [(0, i // 4 * 3 + i % 4) if i % 4 < 3 else (1, i // 4) for i in range(SIZE // STEP)]
            extents = [
                (Extent(regions[which].id, place * STEP, STEP), made.presented.extent(i * STEP, STEP))
                for i, (which, place) in enumerate(places)
            ]
            most, least = await made.read(Batch.of(extents))
            assert most > SIZE // 4 * 3 and SIZE // 4 < least < SIZE // 4 + MIB
            wanted = made.content.reshape(-1, 4, STEP)
            assert (one == wanted[:, :3].reshape(-1)).all() and (other == wanted[:, 3].reshape(-1)).all()

    asyncio.run(main())


def test_memory_that_comes_again_is_not_registered_again(tmp_path: Path) -> None:
    async def main() -> None:
        assert forks_safely()
        async with sides(tmp_path) as made:
            memory, registrar = np.zeros(SIZE, dtype=np.uint8), made.reader.registrar
            for turn in range(3):
                memory[:] = 0
                region = await made.reader.register(memory)
                await made.read(whole(region, made.presented))
                assert (memory == made.content).all() and registrar.held == 2
                await made.reader.deregister(region)
                assert made.reader.kept.report() == (turn, 1, 1, SIZE) and registrar.held == 2
                made.content[:] = made.content[::-1].copy()
            part = await made.reader.register(memory[MIB : 2 * MIB])
            await made.read(pairs(part, made.presented, [(0, 5, MIB)]))
            assert (memory[MIB : 2 * MIB] == made.content[5 : 5 + MIB]).all()
            assert made.reader.kept.report().hits == 3 and registrar.held == 2
            await made.reader.deregister(part)
        assert made.reader.registrar.held == 0

    asyncio.run(main())
