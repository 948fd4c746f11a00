"""The messages of one lookup: who is asked, what is taken of the answers, and what becomes of those that come late."""

from __future__ import annotations

import asyncio
import gc
import hashlib
from typing import Any

import numpy as np
import pytest

from kvstore.clock import SystemClock
from kvstore.directory.homes import Places
from kvstore.directory.locating import Locating
from kvstore.directory.messages import Locate, LocateAnswer, Status
from kvstore.errors import Unavailable
from kvstore.node.locate_calls import LocateCalls
from kvstore.wire import claims as wire

NS = hashlib.sha256(b"ns").digest()
IDS = [hashlib.sha256(f"node {n}".encode()).digest()[:16] for n in range(4)]
KEYS = np.frombuffer(b"".join(hashlib.sha256(f"{n}".encode()).digest() for n in range(100)), np.uint8).reshape(-1, 32)
MS = 1_000_000


def held(message: Locate, node: bytes = IDS[3]) -> LocateAnswer:
    count = len(message.keys)
    ones = np.ones(count, np.uint8)
    return LocateAnswer(
        Status.TAKEN, (node,), ones, np.zeros(count, np.uint16), ones.astype(np.uint64), ones.astype(np.uint8)
    )


class Homes:
    """Whom a lookup asks: the first is the asking node itself. What they answer is for the test to say."""

    def __init__(self, *, hedge_ms: int = 5_000, ends_ms: int = 5_000) -> None:
        now = SystemClock().now_ns()
        places = Places(IDS, 16).of(NS)
        self.locating = Locating(
            NS, KEYS, places, lambda node: 2, spread=1, hedge_at=now + hedge_ms * MS, ends_at=now + ends_ms * MS
        )
        self.calls = LocateCalls(self.locating, IDS[0], self.begin, SystemClock())
        self.asked: list[tuple[bytes, Locate]] = []
        self.answers: list[asyncio.Future[bytes]] = []
        self.gone: set[bytes] = set()

    def begin(self, to: bytes, message: Locate, deadline_s: float) -> asyncio.Future[bytes] | LocateAnswer | None:
        assert 0 < deadline_s <= 5
        self.asked.append((to, message))
        if to == IDS[0]:
            return held(message)
        if to in self.gone:
            return None
        self.answers.append(asyncio.get_running_loop().create_future())
        return self.answers[-1]

    def under_way(self) -> list[tuple[Locate, asyncio.Future[bytes]]]:
        waiting = [message for to, message in self.asked if to not in self.gone | {IDS[0]}]
        return list(zip(waiting, self.answers, strict=True))

    def answer(self) -> None:
        for message, future in self.under_way():
            if not future.done():
                future.set_result(wire.answer_bytes(held(message)))


@pytest.fixture
async def logged() -> list[dict[str, Any]]:
    """What asyncio would log as an error."""
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    return told


async def test_this_node_is_asked_last_and_all_answers_are_taken() -> None:
    homes = Homes()
    over = asyncio.ensure_future(homes.calls.over())
    await asyncio.sleep(0)
    assert [to == IDS[0] for to, _ in homes.asked] == [False, False, False, True]
    assert not over.done()
    homes.answer()
    await over
    assert homes.locating.holders().together().all() and homes.calls.unanswered == 0


async def test_where_nobody_is_the_second_home_is_asked_at_once() -> None:
    homes = Homes()
    homes.gone.add(IDS[1])
    over = asyncio.ensure_future(homes.calls.over())
    await asyncio.sleep(0)
    assert len(homes.asked) > len(IDS) and homes.calls.unanswered == 1
    homes.answer()
    await over
    assert homes.locating.holders().together().all()


async def test_for_a_message_that_fails_the_second_home_is_asked_at_once() -> None:
    homes = Homes()
    over = asyncio.ensure_future(homes.calls.over())
    await asyncio.sleep(0)
    assert len(homes.asked) == len(IDS)
    homes.answers[0].set_exception(Unavailable("peer: the connection was closed"))
    await asyncio.sleep(0)
    assert homes.calls.unanswered == 1 and len(homes.asked) > len(IDS)
    homes.answer()
    await over
    assert homes.locating.holders().together().all()


async def test_garbage_is_no_answer() -> None:
    homes = Homes()
    over = asyncio.ensure_future(homes.calls.over())
    await asyncio.sleep(0)
    for _, future in homes.under_way():
        future.set_result(b"\xff\xff")
    await asyncio.sleep(0)
    assert homes.calls.unanswered == 3
    for _, future in homes.under_way():
        if not future.done():
            future.set_result(b"")
    await over
    assert homes.locating.holders().nodes == (IDS[3],), "what this node knows itself"


async def test_slow_homes_are_hedged_and_what_has_not_come_by_the_end_is_given_up() -> None:
    homes = Homes(hedge_ms=20, ends_ms=60)
    await homes.calls.over()
    assert homes.locating.hedges > 0
    assert homes.answers and all(future.cancelled() for future in homes.answers)
    assert homes.locating.holders().nodes == (IDS[3],)


async def test_a_lookup_that_is_cancelled_gives_its_messages_up() -> None:
    homes = Homes()
    over = asyncio.ensure_future(homes.calls.over())
    await asyncio.sleep(0)
    over.cancel()
    with pytest.raises(asyncio.CancelledError):
        await over
    assert homes.answers and all(future.cancelled() for future in homes.answers)


async def test_an_error_that_comes_when_nobody_waits_any_more_is_not_logged(logged: list[dict[str, Any]]) -> None:
    homes = Homes()
    over = asyncio.ensure_future(homes.calls.over())
    await asyncio.sleep(0)
    ours, *late = homes.answers
    ours.set_exception(ArithmeticError("ours"))  # ends the lookup before the others are looked at
    for future in late:
        future.set_exception(Unavailable("peer: the connection was closed"))
    with pytest.raises(ArithmeticError):
        await over
    del ours, late, over, future
    homes.answers.clear()
    gc.collect()
    await asyncio.sleep(0)
    assert logged == []
