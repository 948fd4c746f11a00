"""When a drain is over: not before all has been looked at that was there, or was being put."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kvstore.errors import Unavailable
from kvstore.node import drain
from kvstore.node.drain import Drain
from kvstore.node.handing import Run, runs_of
from kvstore.wire import admin


class World:
    """A node with one reservation open. looked: at each look, whether it was open still."""

    def __init__(self, mark: Path, lapse_s: float) -> None:
        self.reserved = 1
        self.looked: list[int] = []
        core = SimpleNamespace(stats=lambda _: {"slots_reserved": self.reserved, "slots_sealed": 0})
        me = SimpleNamespace(name="me")
        self.cluster: Any = SimpleNamespace(is_clustered=True, is_open=True, members=lambda: [object()], me=me)
        sources: Any = SimpleNamespace(core=core, flush=None, look=lambda: self.looked.append(self.reserved))
        bringer: Any = None
        self.drain = Drain(mark, sources, self.cluster, bringer, lambda _: None, lapse_s)

    async def drained(self) -> None:
        self.drain.resume()
        self.drain.begin("test")
        while self.drain.state != admin.DRAIN_DONE:
            await asyncio.sleep(0.001)


@pytest.fixture(autouse=True)
def nothing_to_hand_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async def look(self: Any) -> None:
        self.sources.look()

    monkeypatch.setattr(Drain, "_look_at_everything", look)
    monkeypatch.setattr(drain, "PAUSE_S", 0.001)


async def test_what_was_being_put_is_looked_at_when_it_is_sealed(tmp_path: Path) -> None:
    world = World(tmp_path / "draining", 60.0)

    def seal() -> None:
        world.reserved = 0

    asyncio.get_running_loop().call_later(0.1, seal)
    await world.drained()
    assert world.looked[-1] == 0, "it came after the last look, and would have gone with the node"


async def test_a_reservation_that_never_ends_is_waited_for_until_it_lapses(tmp_path: Path) -> None:
    world = World(tmp_path / "draining", 0.05)
    await world.drained()
    assert len(world.looked) == drain.ROUNDS_MAX


async def test_whoever_asks_while_a_node_starts_again_is_told_that_it_is_not_drained(tmp_path: Path) -> None:
    """An operator waits for the end in order to delete the node's data."""
    mark = tmp_path / "draining"
    world = World(mark, 60.0)
    assert world.drain.progress().done, "nobody drains it"
    mark.write_text("test")
    world = World(mark, 60.0)
    world.reserved = 0
    assert world.drain.draining and not world.drain.progress().done
    world.cluster.is_open = False
    with pytest.raises(Unavailable, match="still starting"):
        world.drain.begin("test")  # again
    await asyncio.sleep(0.02)
    assert not world.looked and not world.drain.progress().done, "nothing is open yet, so nothing would be found"
    world.cluster.is_open = True
    await world.drained()
    assert world.looked == [0]


async def test_slots_are_put_in_order_beside_the_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all slots that are listed at one time it takes seconds on a slow machine: others would think the node dead."""
    threads: list[int] = []

    def runs(*slots: object) -> list[Run]:
        threads.append(threading.get_ident())
        return runs_of(*slots)  # type: ignore[arg-type]

    monkeypatch.setattr(drain, "runs_of", runs)
    count = 3
    rows = SimpleNamespace(
        ns=np.zeros(count, np.uint32),
        shards=np.zeros(count, np.uint16),
        keys=np.random.default_rng(1).integers(0, 256, (count, 32), np.uint8),
        parents=np.zeros((count, 32), np.uint8),
        positions=np.zeros(count, np.uint32),
        tickets=np.zeros(count, np.uint64),
    )
    world = World(tmp_path / "draining", 0.0)
    opened = SimpleNamespace(digest=b"d", shards=[SimpleNamespace(part_bytes=[64])])
    sources: Any = world.drain.sources
    sources.core.scan = lambda *_: (rows, -1)
    sources.namespaces = SimpleNamespace(by_handle=lambda _: opened, find=lambda _: opened)
    after, found = await world.drain._listed(1, 0)
    assert (after, len(found)) == (-1, count) and threads != [threading.get_ident()]
