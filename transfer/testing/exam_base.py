"""What every exam shares: how a subclass says to make a pair and to pass time, and what the tests are written with."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

import pytest

from transfer.base import Batch, Endpoint, Landed, Region
from transfer.errors import Reason, TransferError, TransferFailed
from transfer.testing.parties import Bytes, Pair, pairs

__all__ = ["DYING", "FOREVER_S", "MIB", "OFFSETS", "SENTINEL", "SIZES", "ExamBase", "examined", "failed", "read_fails"]

SIZES = (0, 1, 4095, 4096, 4097, (2 << 20) + 1)
OFFSETS = (0, 1, 63, 4095)
SENTINEL = 0xA5
FOREVER_S = 60.0
# What may come of a batch whose peer dies: a device can find the memory of a process taken back before its queue pairs.
DYING = frozenset({Reason.PEER_GONE, Reason.LATE, Reason.REVOKED})
MIB = 1 << 20

Self = TypeVar("Self", bound="ExamBase")


class ExamBase:
    """What a subclass gives."""

    long_extents = 192  # a batch that takes a while: so many reads of long_bytes
    long_bytes = 2 << 20

    def run(self, main: Callable[[], Awaitable[None]]) -> None:
        """Runs a test on a loop of its own."""
        raise NotImplementedError

    def pair(self) -> AbstractAsyncContextManager[Pair]:
        """A connected pair; everything ends with it."""
        raise NotImplementedError

    async def pause(self, turn: int) -> None:
        """A moment in the middle of a long batch; another for every turn."""
        raise NotImplementedError

    async def settle(self) -> None:
        """Long enough for whatever is still under way to land."""
        raise NotImplementedError

    async def again(self, pair: Pair) -> Endpoint:
        """Another endpoint to the pair's owner. Raises PeerUnreachable where it is gone."""
        return await pair.reader.connect(pair.owner.address, deadline_s=1.0)

    # -- helpers of the tests

    async def stays_quiet(self, memory: Bytes) -> None:
        memory[:] = SENTINEL
        await self.settle()
        assert (memory == SENTINEL).all(), "bytes landed after the answer"

    async def long_batch(self, pair: Pair) -> tuple[Batch, Region, Bytes, bytes]:
        """A batch that takes a while, its local region and memory, and the descriptor it reads by."""
        size = 4 * self.long_bytes
        await pair.owner.memory("long", size, seed=11)
        region, memory = await pair.memory(size)
        presented, descriptor = await pair.shown("long", [(0, size)])
        places = [((i * 3) % 4 * self.long_bytes, i % 4 * self.long_bytes) for i in range(self.long_extents)]
        return pairs(region, presented, [(a, b, self.long_bytes) for a, b in places]), region, memory, descriptor

    async def answered(self, transfer: Awaitable[Landed]) -> Landed | TransferError:
        try:
            return await asyncio.wait_for(asyncio.ensure_future(transfer), FOREVER_S)
        except TransferError as error:
            assert not error.poisoned
            return error


def examined(test: Callable[[Self, Pair], Awaitable[None]]) -> Callable[[Self], None]:
    """Makes a test of a method that takes a pair."""

    def body(self: Self) -> None:
        async def main() -> None:
            async with self.pair() as pair:
                await test(self, pair)

        self.run(main)

    body.__name__ = test.__name__
    body.__doc__ = test.__doc__
    return body


def failed(error: TransferError) -> dict[Reason, tuple[int, ...]]:
    return {failure.reason: failure.extents for failure in error.failures}


async def read_fails(pair: Pair, batch: Batch, reason: Reason, extents: Sequence[int]) -> TransferFailed:
    with pytest.raises(TransferFailed) as caught:
        await pair.endpoint.read(batch, deadline_s=FOREVER_S)
    assert failed(caught.value).get(reason) == tuple(extents), caught.value
    assert not caught.value.arrived[list(extents)].any()
    assert caught.value.elsewhere == reason.elsewhere
    return caught.value
