"""Letting memory go: by several at one time, and while a transfer is under way."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

import numpy as np

from transfer.errors import Reason
from transfer.lending import Lender
from transfer.regions import RegionState


class Quiet:
    """Nobody touches anything by a grant."""

    def quiet(self, slot: int) -> bool:
        return True

    async def wait_quiet(self, slots: Collection[int], wait_s: float) -> bool:
        return True

    def region_gone(self, region: object) -> None: ...


class Moving:
    def stop(self, reason: Reason) -> None: ...


async def test_two_who_let_go_of_a_region_wait_for_the_same_transfer() -> None:
    """A caller who registers his memory no more, and his client's close: each is told when it is quiet."""
    lender = Lender(key=bytes(16), incarnation=bytes(16), quiesce_max_s=5.0)
    ground: Any = Quiet()
    lender.ground = ground
    region = await lender.register(np.zeros(64, np.uint8))
    moving = Moving()
    region.enter(moving)
    letting_go = [asyncio.ensure_future(lender.deregister(region)) for _ in range(2)]
    await asyncio.sleep(0)
    assert not any(one.done() for one in letting_go)
    region.leave(moving)
    async with asyncio.timeout(1.0):
        await asyncio.gather(*letting_go)
    assert region.state is RegionState.CLOSED
