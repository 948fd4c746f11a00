"""A fetch and whoever waits for it: its hold is somebody's at every moment, whoever goes first."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest

from kvstore import native
from kvstore.node.bridge import CoreBridge
from kvstore.testing.clock import VirtualClock

KEYS = np.zeros((1, 32), np.uint8)
OWNER, HOLD = 5, 77


class Core:
    """Answers a fetch when told to."""

    def __init__(self) -> None:
        self.completion_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.watch_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.has_all = False  # in memory
        self.tokens: list[int] = []
        self.done: list[SimpleNamespace] = []
        self.released: list[tuple[int, int, int]] = []

    def fetch(self, token: int, *_: object) -> None:
        self.tokens.append(token)
        if self.has_all:
            self.settle()

    def settle(self, hold: int = HOLD) -> None:
        self.done.append(SimpleNamespace(token=self.tokens.pop(0), hold=hold))
        os.eventfd_write(self.completion_fd, 1)

    def take_completions(self) -> list[SimpleNamespace]:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.completion_fd)
        done, self.done = self.done, []
        return done

    def release(self, tier: int, owner: int, hold: int) -> None:
        self.released.append((tier, owner, hold))


@pytest.fixture
def core() -> Iterator[Core]:
    made = Core()
    yield made
    os.close(made.completion_fd)
    os.close(made.watch_fd)


def begin(core: Core) -> tuple[CoreBridge, asyncio.Task[native.FetchDone]]:
    bridge = CoreBridge(core, VirtualClock())  # type: ignore[arg-type]
    bridge.open()
    fetch = bridge.fetch(OWNER, 0, 0, KEYS, kind=0, hint=native.Hint(), wait_s=1.0, lease_s=1.0)
    return bridge, asyncio.ensure_future(fetch)


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_an_answer_is_its_waiters_to_release(core: Core) -> None:
    bridge, waiting = begin(core)
    await turns()
    core.settle()
    assert (await waiting).hold == HOLD
    bridge.close()
    assert core.released == []


async def test_what_is_in_memory_is_answered_in_the_same_turn(core: Core) -> None:
    core.has_all = True
    bridge, waiting = begin(core)
    await turns(1)
    assert waiting.done() and waiting.result().hold == HOLD
    bridge.close()


async def test_what_comes_for_a_waiter_that_has_gone_is_released(core: Core) -> None:
    bridge, waiting = begin(core)
    await turns()
    waiting.cancel()
    await turns()
    assert waiting.cancelled() and core.released == []
    core.settle()
    await turns()
    assert core.released == [(1, OWNER, HOLD)]
    bridge.close()


async def test_an_answer_and_a_cancellation_in_the_same_turn(core: Core) -> None:
    bridge, waiting = begin(core)
    await turns()
    core.settle()
    bridge._complete()  # the waiter has its answer and has not run yet
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert core.released == [(1, OWNER, HOLD)]
    bridge.close()


async def test_without_a_hold_there_is_nothing_to_release(core: Core) -> None:
    bridge, waiting = begin(core)
    await turns()
    waiting.cancel()
    await turns()
    core.settle(hold=0)
    await turns()
    assert core.released == []
    bridge.close()


async def test_a_bridge_that_closes_leaves_nobody_waiting(core: Core) -> None:
    bridge, waiting = begin(core)
    await turns()
    bridge.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting
