"""An engine asks nothing of a store that has just failed, and comes back to it."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

from engine_adapters.base.link import AGAIN_S, AGAIN_S_MAX, Breaker, Link
from engine_adapters.base.settings import AdapterSettings
from engine_adapters.base.workers import Workers
from kvstore import KVLayout
from kvstore.errors import Rejected, Unavailable


def test_a_breaker_waits_longer_each_time_and_forgets_when_it_works() -> None:
    breaker, now = Breaker(), 100.0
    assert breaker.allows(now)
    assert breaker.failed(now), "news"
    assert not breaker.failed(now + AGAIN_S / 2), "calls under way failed for the same reason"
    assert not breaker.allows(now + AGAIN_S / 2)
    waits = []
    for _ in range(12):
        begun = now
        while not breaker.allows(now):
            now += 0.01
        waits.append(now - begun)
        breaker.failed(now)
    assert waits[0] <= AGAIN_S + 0.02
    assert all(later >= earlier - 0.02 for earlier, later in itertools.pairwise(waits))
    assert waits[-1] <= AGAIN_S_MAX + 0.02
    assert breaker.worked(), "news"
    assert breaker.allows(now)
    assert not breaker.worked()


def layout() -> KVLayout:
    return KVLayout.uniform(
        engine="e", model="m", revision="r", dtype="float32", block_tokens=64, layers=2, kv_heads=2, head_dim=16
    )


def test_a_link_to_nobody_answers_at_once_and_is_left_alone(tmp_path: Path) -> None:
    now = 0.0
    link = Link(AdapterSettings.of({"address": f"unix:{tmp_path}/nobody.sock"}), layout(), lambda: now)
    assert link.up
    assert link.namespace() is None
    assert not link.up
    now += AGAIN_S + 0.01
    assert link.up
    link.failed(Rejected("a limit"))
    assert link.up, "a refusal says nothing of the next call"
    link.failed(Unavailable("gone"))
    assert not link.up
    link.close()


def test_workers_take_no_more_than_their_queue_holds_and_survive_what_fails() -> None:
    workers = Workers("test", 1, 2)
    gate, began, done = threading.Event(), threading.Event(), []

    def first() -> None:
        began.set()
        gate.wait(5)
        raise RuntimeError("a piece of work that fails")

    assert workers.submit(first)
    assert began.wait(5)
    assert workers.submit(lambda: done.append(1))
    assert workers.submit(lambda: done.append(2))
    assert not workers.submit(lambda: done.append(3)), "full"
    gate.set()
    assert workers.close(5)
    assert done == [1, 2]
    assert not workers.submit(lambda: done.append(4)), "closed"


def test_closing_workers_does_not_wait_for_ever() -> None:
    workers, gate = Workers("test", 1, 2), threading.Event()
    assert workers.submit(lambda: gate.wait(30) and None)
    assert not workers.close(0.05)
    gate.set()
    assert workers.close(5)
