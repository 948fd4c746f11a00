"""How long a node may wait for a call, and that a call in a thread ends when the thread does."""

from __future__ import annotations

import asyncio
import threading

import pytest

from kvstore.client.aio import _beside
from kvstore.client.calls import WAIT_MARGIN_S, Times, times_of
from kvstore.client.steps import Limits

LIMITS = Limits(1000, 1000, 1024, hold_wait_s_max=10.0)


@pytest.mark.parametrize(
    ("wait_s", "left", "waits"),
    [
        (float("inf"), 100.0, 10.0),  # what the node gives
        (0.0, 100.0, 0.0),  # what is up
        (3.0, 100.0, 3.0),
        (float("inf"), 5.0, 5.0 - WAIT_MARGIN_S),  # so that the answer is in time
        (float("inf"), 0.1, 0.05),
    ],
)
def test_a_node_waits_no_longer_than_anybody_allows(wait_s: float, left: float, waits: float) -> None:
    assert Times(0.0, 0.0, wait_s).wait(left, LIMITS) == waits


def test_times_of_a_journey() -> None:
    times = times_of(5.0, None)
    assert times.deadline == times.began + 5.0 and times.wait_s == float("inf")
    assert 0 < times.left() <= 5.0
    assert Times(0.0, 0.0, 0.0).left() == 0.0, "never less than nothing"


async def test_a_cancelled_thread_is_waited_for_however_often() -> None:
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go_on.wait(20)
        ended.set()

    task = asyncio.ensure_future(_beside(work))
    await asyncio.to_thread(begun.wait, 20)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0.01)
        assert not task.done(), "the thread may still touch the caller's memory"
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()
