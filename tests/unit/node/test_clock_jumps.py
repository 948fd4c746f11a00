"""The wall clock may jump by a day either way: nothing that lapses, waits or is leased depends on it.

What has times of the wall is only what a store says of its packs, and those are compared with one another alone.
"""

from __future__ import annotations

import ast
import time
from dataclasses import replace
from pathlib import Path

import obstore
import pytest
from obstore.store import MemoryStore

import kvstore
import transfer
from kvstore.node.sweeper import Sweeper
from kvstore.testing.clock import VirtualClock
from kvstore.tiers.circuit import NANOS
from kvstore.tiers.object import Listed, ObjectTier, doomed
from kvstore.tiers.packs import pack_name
from tests.storage import MEMORY, Storage, chain_of, content

DAY_S = 86_400.0
SOURCES = Path(kvstore.__file__).parent, Path(transfer.__file__).parent
NATIVE = SOURCES[0].parent / "native"
WALL = {("time", "time"), ("time", "time_ns"), ("datetime", "now"), ("datetime", "utcnow"), ("datetime", "today")}


def test_no_module_reads_the_wall_clock() -> None:
    found = []
    for path in (path for root in SOURCES for path in root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "time":
                found += [f"{path}:{node.lineno}: {one.name}" for one in node.names if (node.module, one.name) in WALL]
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute):
                owner = node.value.id if isinstance(node.value, ast.Name) else node.value.attr
                if (owner, node.attr) in WALL:
                    found.append(f"{path}:{node.lineno}: {owner}.{node.attr}")
    told = [one for one in found if "/kv_publisher.py:" not in one]
    assert told == [] and len(found) == 1, found  # what routers are told has vLLM's time stamp, which nobody here reads


@pytest.mark.skipif(not NATIVE.is_dir(), reason="no native sources beside the package")
def test_native_code_waits_by_the_monotonic_clock() -> None:
    wall = ("CLOCK_REALTIME", "system_clock", "gettimeofday", "std::time(", " time(nullptr)", "TFD_TIMER_CANCEL")
    folders = ("base", "core", "door", "io", "transfer", "bind")
    sources = [path for folder in folders for path in (NATIVE / folder).glob("*.[ch]pp")]
    assert sources
    found = [f"{path}: {word}" for path in sources for word in wall if word in path.read_text()]
    assert found == []


class Wall:
    """The wall clock of this process, as Python reads it, off by so much."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.off_s = 0.0
        real, real_ns = time.time, time.time_ns
        monkeypatch.setattr(time, "time", lambda: real() + self.off_s)
        monkeypatch.setattr(time, "time_ns", lambda: real_ns() + int(self.off_s * 1e9))


@pytest.mark.parametrize("jump_s", [DAY_S, -DAY_S], ids=["forward", "back"])
async def test_leases_and_lapses_go_by_the_clock_they_are_given(monkeypatch: pytest.MonkeyPatch, jump_s: float) -> None:
    wall = Wall(monkeypatch)
    storage = Storage(None)
    ns, core, clock = storage.open_namespace(), storage.core, VirtualClock(5 * NANOS)
    storage.memory._clock = clock
    core.tick(clock.now_ns())
    reservation = storage.memory.reserve(storage.run(chain_of("a", 2)))
    assert core.stats(MEMORY)["slots_reserved"] == 2
    wall.off_s = jump_s
    core.tick(clock.now_ns())
    assert core.stats(MEMORY)["slots_reserved"] == 2, "no time has passed"
    for place, key in zip(reservation.places, chain_of("a", 2), strict=True):
        place[:] = content(key.tobytes(), storage.block_bytes)
    assert reservation.seal() == 2
    storage.memory.reserve(storage.run(chain_of("b", 2)))
    clock.advance_ns(3_600 * NANOS)
    core.tick(clock.now_ns())
    assert core.stats(MEMORY)["slots_reserved"] == 0, "and now it has"
    assert core.stats(MEMORY)["lapsed_reservations"] == 2
    assert core.find(MEMORY, ns, 0, chain_of("a", 2)).all()


@pytest.mark.parametrize("jump_s", [DAY_S, -DAY_S], ids=["forward", "back"])
async def test_a_circuits_pauses_do_not_follow_the_wall(monkeypatch: pytest.MonkeyPatch, jump_s: float) -> None:
    wall, clock = Wall(monkeypatch), VirtualClock()
    store = ObjectTier(MemoryStore(), clock=clock)
    for _ in range(3):
        store.circuit.failed(clock.now_ns())
    wall.off_s = jump_s
    assert not await store.answers()
    assert store.counts.not_asked == 1, "the pause is not over"
    clock.advance_ns(2 * NANOS)
    assert await store.answers()


def pack_at(written_s: float, number: int, size: int = 1_000) -> Listed:
    return Listed(1.7e9 + written_s, f"pack{number}", size)


@pytest.mark.parametrize("jump_s", [DAY_S, -DAY_S], ids=["forward", "back"])
def test_a_jump_of_the_stores_clock_costs_an_order_and_no_more_room_than_must_be(jump_s: float) -> None:
    """Packs 0-4 are older than the jump, 5-9 younger. The limit holds; those read lately stay, whatever their age."""
    packs = [pack_at(10.0 * i + (jump_s if i >= 5 else 0.0), i) for i in range(10)]
    chosen = doomed(packs, 7_000, {"pack0", "pack5"})
    assert len(chosen) == 3
    assert not {"pack0", "pack5"} & {pack.name for pack in chosen}
    first = range(1, 4) if jump_s > 0 else range(6, 9)  # oldest by what the store says
    assert [pack.name for pack in chosen] == [f"pack{i}" for i in first]


@pytest.mark.parametrize("jump_s", [DAY_S, -DAY_S], ids=["forward", "back"])
async def test_sweeps_keep_the_limit_across_a_jump(monkeypatch: pytest.MonkeyPatch, jump_s: float) -> None:
    names = [pack_name(b"d" * 32, 0, bytes([number]) * 32) for number in range(20)]
    bucket = MemoryStore()
    for name in names:
        await obstore.put_async(bucket, name, bytes(1_000))
    after = set(names[10:])  # of the jump
    tier = ObjectTier(bucket)
    listing = tier.listing

    async def as_the_store_has_it(digest: bytes) -> list[Listed] | None:
        found = await listing(digest)
        assert found is not None
        return [replace(one, modified=one.modified + jump_s * (one.name in after)) for one in found]

    monkeypatch.setattr(tier, "listing", as_the_store_has_it)
    lately = {names[0], names[10]}
    sweeper = Sweeper(tier, 10_000, 60.0, lambda: lately)
    await sweeper.sweep()
    listed = await listing(b"d" * 32)
    assert listed is not None
    left = {pack.name for pack in listed}
    assert len(left) == 9, "a tenth of the limit is free, and nothing more went"
    assert lately <= left
    assert sweeper.admit(1_000)
    younger = after if jump_s > 0 else set(names) - after
    assert left - lately <= younger
    await sweeper.sweep()
    assert tier.counts.packs_deleted == 11, "the next sweep has nothing to do, whatever time it is"
