"""What devices refuse, and what happens when paths and peers fail: real queue pairs, real error states.

A reader here lies on purpose: it asks for what this side's own checks would never let through, so that what answers is
the owner's device.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import numpy as np
import pytest

from tests.rdma.rails import Rail
from transfer.base import Presented, Rights
from transfer.errors import Reason, TransferFailed
from transfer.rails import RailConfig, RailState
from transfer.rdma import RdmaConfig, RdmaTransport
from transfer.rdma.endpoint import RdmaEndpoint
from transfer.testing.parties import OwnerProcess, Pair, pairs, pattern

MIB = 1 << 20
FOREVER_S = 60.0
CUTS_MAX = 5
SOON = RailConfig(pause_s=0.1, pause_s_max=1.0)
ONE = RdmaConfig(devices=("rxe_a0",), timeout=12, retries=3, rail=SOON)
TWO = RdmaConfig(devices=("rxe_a0", "rxe_a1"), timeout=12, retries=3, slice_bytes=64 << 10, window=8, rail=SOON)


@asynccontextmanager
async def connected(config: RdmaConfig, owner_devices: str) -> AsyncIterator[Pair]:
    owner = await OwnerProcess.start(f"rdma:{owner_devices}")
    reader = RdmaTransport(config)
    try:
        yield Pair(owner, reader, await reader.connect(owner.address, deadline_s=10.0))
    finally:
        await reader.close()
        await owner.close()


def on_one_rail(test: Callable[[Pair], Awaitable[None]]) -> None:
    async def main() -> None:
        async with connected(ONE, "rxe_b0") as pair:
            await test(pair)

    asyncio.run(main())


def endpoint_of(pair: Pair) -> RdmaEndpoint:
    assert isinstance(pair.endpoint, RdmaEndpoint)
    return pair.endpoint


def believes(endpoint: RdmaEndpoint, presented: Presented, wrong_key: int = 0) -> Presented:
    """Makes the reader believe that the whole region is granted for anything, by keys that differ by `wrong_key`."""
    grant = endpoint._shown[presented.handle]
    everything = replace(presented, ranges=((0, presented.region_bytes),), rights=Rights.READ | Rights.WRITE)
    keys = tuple(tuple(key ^ wrong_key for key in row) for row in grant.keys)
    endpoint._shown[presented.handle] = replace(grant, presented=everything, keys=keys, starts=grant.starts[:1] * 0)
    return everything


async def refused(pair: Pair, presented: Presented, place: tuple[int, int, int], *, writing: bool = False) -> None:
    region, memory = await pair.memory(MIB)
    batch = pairs(region, presented, [place])
    endpoint = pair.endpoint
    with pytest.raises(TransferFailed) as caught:
        await (endpoint.write if writing else endpoint.read)(batch, deadline_s=FOREVER_S)
    assert [failure.reason for failure in caught.value.failures] == [Reason.REVOKED]
    assert not memory.any(), "bytes came that nobody granted"


def test_a_wrong_key_opens_nothing_and_harms_nobody_else() -> None:
    async def body(pair: Pair) -> None:
        endpoint = endpoint_of(pair)
        await pair.owner.memory("m", 4 * MIB, seed=1)
        region, memory = await pair.memory(4 * MIB)
        good, _ = await pair.shown("m", [(0, 4 * MIB)])
        bad, _ = await pair.shown("m", [(0, 4 * MIB)])
        others = [endpoint.read(pairs(region, good, [(i * MIB, i * MIB, MIB)]), deadline_s=FOREVER_S) for i in range(4)]
        await refused(pair, believes(endpoint, bad, wrong_key=0x5A), (0, 0, 4096))
        for other in others:
            await other
        assert (memory == pattern(4 * MIB, 1)).all()
        again = await endpoint.read(pairs(region, good, [(0, 0, 4 * MIB)]), deadline_s=FOREVER_S)
        assert again.bytes == 4 * MIB and endpoint.rails == [RailState.OK]

    on_one_rail(body)


def test_a_device_keeps_ranges_and_rights_to_the_byte() -> None:
    async def body(pair: Pair) -> None:
        endpoint = endpoint_of(pair)
        await pair.owner.memory("m", MIB, seed=2)
        before = await pair.owner.digest("m", 0, MIB)
        for place in [(0, 4095, 2), (0, 12_287, 2), (0, 0, 1), (0, 12_288, 1)]:
            presented, _ = await pair.shown("m", [(4096, 8192)])
            await refused(pair, believes(endpoint, presented), place)
        readable, _ = await pair.shown("m", [(0, MIB)])
        await refused(pair, believes(endpoint, readable), (0, 0, 16), writing=True)
        writable, _ = await pair.shown("m", [(0, MIB)], rights=Rights.WRITE)
        await refused(pair, believes(endpoint, writable), (0, 0, 16))
        assert await pair.owner.digest("m", 0, MIB) == before

    on_one_rail(body)


@pytest.mark.parametrize("how", ["revoked", "expired", "deregistered"])
def test_keys_are_dead_when_a_grant_has_ended(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader does not listen to what it is told."""

    async def body(pair: Pair) -> None:
        monkeypatch.setattr(RdmaEndpoint, "grant_ended", lambda self, told: None)
        await pair.owner.memory("m", MIB, seed=3)
        presented, descriptor = await pair.shown("m", [(0, MIB)], lifetime_s=1.0 if how == "expired" else 60.0)
        if how == "revoked":
            await pair.owner.revoke(descriptor)
        elif how == "deregistered":
            await pair.owner.deregister("m")
        else:
            await asyncio.sleep(1.5)
        await refused(pair, presented, (0, 0, MIB))

    on_one_rail(body)


def test_keys_of_one_connection_open_nothing_to_another() -> None:
    async def body(pair: Pair) -> None:
        await pair.owner.memory("m", MIB, seed=4)
        mine, _ = await pair.shown("m", [(0, MIB)])
        other = RdmaTransport(ONE)
        try:
            thief = await other.connect(pair.owner.address, deadline_s=10.0)
            stranger = Pair(pair.owner, other, thief)
            theirs, _ = await stranger.shown("m", [(0, 4096)])
            stolen = endpoint_of(pair)._shown[mine.handle]
            kept = thief._shown[theirs.handle]
            thief._shown[theirs.handle] = replace(kept, presented=mine, base=stolen.base, keys=stolen.keys)
            await refused(stranger, replace(mine, handle=theirs.handle), (0, 0, 4096))
        finally:
            await other.close()

    on_one_rail(body)


def test_peers_get_no_more_queue_pairs_than_they_may() -> None:
    async def main() -> None:
        owner = RdmaTransport(RdmaConfig(devices=("rxe_b0",), queue_pairs_max=1))
        readers = [RdmaTransport(ONE), RdmaTransport(ONE)]
        try:
            content = pattern(MIB, 7)
            region = await owner.register(content)
            grant = await owner.grant(region, [(0, MIB)], lifetime_s=60.0)
            for reader in readers:  # the second finds what the first has given back
                endpoint = await reader.connect(owner.address, deadline_s=10.0)
                (presented,) = await endpoint.present([grant.descriptor], deadline_s=10.0)
                memory = np.zeros(MIB, dtype=np.uint8)
                local = await reader.register(memory)
                await endpoint.read(pairs(local, presented, [(0, 0, MIB)]), deadline_s=FOREVER_S)
                assert (memory == content).all()
                lanes = endpoint._lanes
                await until(lambda lanes=lanes: "queue_pairs_max" in lanes.why)  # type: ignore[misc]
                assert lanes.up == owner.lent.pairs == 1
                await endpoint.close()
                await until(lambda: owner.lent.pairs == 0)
        finally:
            for reader in readers:
                await reader.close()
            await owner.close()

    asyncio.run(main())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(FOREVER_S):
        while not condition():
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("timeout", [12, 24])
def test_a_lost_link_moves_its_slices_to_the_other_rail_and_is_taken_up_again(rail: Rail, timeout: int) -> None:
    """24: a queue pair would try for minutes, but the port tells that its link is lost."""

    async def main() -> None:
        async with connected(replace(TWO, timeout=timeout), "rxe_b0,rxe_b1") as pair:
            endpoint = endpoint_of(pair)
            await pair.owner.memory("m", 16 * MIB, seed=5)
            region, memory = await pair.memory(16 * MIB)
            presented, _ = await pair.shown("m", [(0, 16 * MIB)])
            batch = pairs(region, presented, [(0, 0, 16 * MIB)] * 8)
            await until(lambda: endpoint._lanes.up == 4)
            again = 0
            for _ in range(CUTS_MAX):
                memory[:] = 0
                transfer = endpoint.read(batch, deadline_s=FOREVER_S)
                await asyncio.sleep(0.02)
                with rail.down(rail.far):
                    landed = await transfer
                    assert landed.bytes == batch.bytes and (memory == pattern(16 * MIB, 5)).all()
                    _, _, again, _ = pair.reader.engine.stats()  # type: ignore[attr-defined]
                    await until(lambda: endpoint.rails[0] is not RailState.OK)
                    assert endpoint.rails[1] is RailState.OK
                    memory[:] = 0
                    await endpoint.read(batch, deadline_s=FOREVER_S)
                    assert (memory == pattern(16 * MIB, 5)).all()
                await until(lambda: endpoint.rails == [RailState.OK, RailState.OK])
                if again:  # else nothing was out over that link in the moment of the cut
                    break
            assert again > 0, "each cut came too late to matter"

    asyncio.run(main())


def test_a_rail_that_loses_all_in_silence_carries_nothing_until_a_trial_lands(rail: Rail) -> None:
    """Queue pairs connect over it, time and again; batches notice once."""

    async def main() -> None:
        async with connected(TWO, "rxe_b0,rxe_b1") as pair:
            endpoint, size = endpoint_of(pair), 4 * MIB
            await pair.owner.memory("m", size, seed=7)
            region, memory = await pair.memory(size)
            presented, _ = await pair.shown("m", [(0, size)])
            batch = pairs(region, presented, [(0, 0, size)])
            lanes = endpoint.lanes
            assert lanes is not None
            await until(lambda: lanes.up == 4)
            with rail.silent(rail.far):
                await endpoint.read(batch, deadline_s=FOREVER_S)
                await until(lambda: endpoint.rails == [RailState.PAUSED, RailState.OK] and lanes.up == 2)
                before = pair.reader.engine.stats()  # type: ignore[attr-defined]
                pauses = lanes._rails.reports()[0].pauses
                while lanes._rails.reports()[0].pauses < pauses + 3:
                    memory[:] = 0
                    await endpoint.read(batch, deadline_s=FOREVER_S)
                    assert (memory == pattern(size, 7)).all()
                assert pair.reader.engine.stats()[2] == before[2], "a batch was in a trial"  # type: ignore[attr-defined]
                assert "did not land" in lanes.why
            await until(lambda: endpoint.rails == [RailState.OK, RailState.OK] and lanes.up == 4)

    asyncio.run(main())


def test_no_rail_left_is_an_answer_long_before_the_deadline(rail: Rail) -> None:
    async def main() -> None:
        async with connected(ONE, "rxe_b0") as pair:
            await pair.owner.memory("m", 4 * MIB, seed=6)
            region, _ = await pair.memory(4 * MIB)
            presented, _ = await pair.shown("m", [(0, 4 * MIB)])
            with rail.down(rail.far):
                with pytest.raises(TransferFailed) as caught:
                    await pair.endpoint.read(pairs(region, presented, [(0, 0, 4 * MIB)]), deadline_s=3600.0)
                assert {failure.reason for failure in caught.value.failures} == {Reason.PEER_GONE}
                assert caught.value.elsewhere
            endpoint = endpoint_of(pair)
            await until(lambda: endpoint.rails == [RailState.OK])
            await endpoint.read(pairs(region, presented, [(0, 0, 4 * MIB)]), deadline_s=FOREVER_S)

    asyncio.run(main())
