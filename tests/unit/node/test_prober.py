"""What a probe finds, what it makes of packs that are not what they should be, and how many there may be."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import cast

import obstore
import pytest
from obstore.store import MemoryStore

from kvstore import native
from kvstore.node.prober import FAILED_AGAIN_S, PROBES_MAX, WAITING_MAX, Prober
from kvstore.tiers.base import Keys
from tests.unit.node.packs_rig import PER_PACK, PacksRig, Requests, chain_of, eventually, joined, name, requests

__all__ = ["requests"]


@dataclass
class Work:
    """native.Work of kind PROBE, which only a core makes."""

    ns: int
    keys: Keys
    shard: int = 0
    position: int = 0
    wanted_now: bool = False


@dataclass
class Rig:
    requests: Requests
    bucket: MemoryStore = field(default_factory=MemoryStore)
    again_s: float = 60.0
    cleared: bool = False

    def __post_init__(self) -> None:
        self.packs = PacksRig(self.bucket)
        self.ns = self.packs.ns
        self.brought: list[bytes] = []
        self.prober = Prober(self.packs.core, self.packs.tier, self.again_s, self._bring_up, self._in_force)

    def _bring_up(self, _ns: int, _shard: int, keys: Keys) -> None:
        self.brought.append(keys.tobytes())

    async def _in_force(self, _ns: int) -> bool:
        return not self.cleared

    async def write(self, keys: Keys) -> None:
        """As another node did before."""
        other = PacksRig(self.bucket)
        await other.put(keys)
        await other.writer.flush()
        self.requests.seen.clear()

    async def find(self, keys: Keys, position: int = 0) -> int:
        return await self.prober.find(self.ns, 0, keys, position, 10.0)

    def ask(self, keys: Keys, *, wanted: bool) -> None:
        self.prober.ask(cast("native.Work", Work(self.ns, keys, wanted_now=wanted)))

    @property
    def asked(self) -> int:
        return self.requests.seen["get_range_async"]


@pytest.fixture
async def rig(requests: Requests) -> Rig:
    return Rig(requests)


@pytest.mark.parametrize("count", [1, 3, 4, 9, 40])
async def test_full_packs_and_then_the_longest_tail_are_found(rig: Rig, count: int) -> None:
    keys = chain_of("a", count)
    await rig.write(keys)
    longer = joined(keys, chain_of("beyond", 6))
    assert await rig.find(longer) == count
    assert rig.packs.known(longer) == [True] * count + [False] * 6
    assert rig.packs.core.object_blocks >= count
    assert await rig.packs.read(longer) == count


async def test_a_hole_within_a_group_is_looked_for_from_there(rig: Rig) -> None:
    keys = chain_of("a", 8)
    await rig.write(keys)
    assert await rig.find(keys[2:], position=2) == 6
    assert rig.packs.known(keys[2:]) == [True] * 6


async def test_for_a_fetch_what_is_found_is_brought_up_and_for_a_lookup_nothing(rig: Rig) -> None:
    keys = chain_of("a", 5)
    await rig.write(keys)
    longer = joined(keys, chain_of("beyond", 2))
    rig.ask(longer, wanted=False)
    await eventually(lambda: not rig.prober._under_way)
    assert rig.packs.known(keys) == [True] * 5
    assert rig.brought == []
    rig.ask(longer, wanted=True)
    await eventually(lambda: bool(rig.brought))
    assert rig.brought == [keys.tobytes()]


async def test_where_nothing_was_found_is_not_asked_again_for_a_while(rig: Rig) -> None:
    keys = chain_of("a", 4)
    assert await rig.find(keys) == 0
    asked = rig.asked
    assert asked > 0
    await rig.write(keys)
    assert await rig.find(keys) == 0
    assert rig.asked == 0, "not again"
    soon = Rig(rig.requests, rig.bucket, again_s=0.0)
    assert await soon.find(chain_of("b", 4)) == 0
    assert await soon.find(keys) == 4


@pytest.mark.parametrize("count", [1, 4, 11])
async def test_a_request_that_fails_says_nothing_of_the_hole(rig: Rig, count: int) -> None:
    """Not even before the circuit opens; and one that is answered "no such object" is remembered all the same."""
    keys = chain_of("a", count)
    await rig.write(keys)
    failing = name(keys, min(count, PER_PACK) - 1)  # of the first pack
    rig.requests.fails = lambda _verb, asked_for: asked_for == failing
    assert await rig.find(keys) == 0
    assert not rig.packs.store.circuit.is_open
    rig.requests.fails = lambda _verb, _name: False
    rig.requests.seen.clear()
    assert await rig.find(keys) == 0
    assert rig.asked == 0, "not by every lookup either"
    rig.prober._not_before = OrderedDict((hole, due - FAILED_AGAIN_S) for hole, due in rig.prober._not_before.items())
    assert await rig.find(keys) == count
    # What is behind a pack that did not answer is not taken for missing either.
    assert rig.packs.known(keys) == [True] * count


async def test_after_a_failure_the_core_tells_of_the_hole_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvstore.node.prober.FAILED_AGAIN_S", 0.01)
    keys, core, ns = chain_of("a", 4), rig.packs.core, rig.ns
    await rig.write(keys)

    def told() -> int:
        """Probes that a lookup makes the core ask for."""
        core.lookup(ns, keys, [(0, 0, 0)])
        works = [work for work in core.take_work(16) if work.kind == native.WorkKind.PROBE]
        for work in works:
            rig.prober.ask(work)
        return len(works)

    rig.requests.fails = lambda _verb, _name: True
    assert told() == 1
    await eventually(lambda: not rig.prober._under_way)
    assert rig.packs.known(keys) == [False] * 4 and told() == 0
    rig.requests.fails = lambda _verb, _name: False
    await eventually(lambda: told() == 1)
    await eventually(lambda: not rig.prober._under_way)
    assert rig.packs.known(keys) == [True] * 4


async def test_a_hole_is_looked_for_once_at_a_time(rig: Rig) -> None:
    keys = chain_of("a", 4)
    await rig.write(keys)
    rig.requests.hold_back("get_range_async")
    both = [asyncio.ensure_future(rig.find(keys)) for _ in range(2)]
    await eventually(lambda: rig.asked == 1)
    rig.requests.open.set()
    assert await asyncio.gather(*both) == [4, 4]
    assert rig.asked == 1


async def test_probes_are_bounded_and_what_is_too_much_is_dropped_and_counted(rig: Rig) -> None:
    """One key each, so a probe is one request. What was dropped is found when it is asked for again."""
    chains = [chain_of(seed, 1) for seed in range(PROBES_MAX + WAITING_MAX + 5)]
    for keys in chains[-2:]:
        await rig.write(keys)
    rig.requests.hold_back("get_range_async")
    for keys in chains:
        rig.ask(keys, wanted=False)
    assert rig.prober.dropped == 5
    await eventually(lambda: rig.asked == PROBES_MAX)
    for _ in range(20):
        await asyncio.sleep(0.001)
    assert rig.asked == PROBES_MAX, "the others wait their turn"
    rig.requests.open.set()
    await eventually(lambda: not rig.prober._under_way, 20_000)
    assert rig.asked == PROBES_MAX + WAITING_MAX
    assert rig.packs.known(chains[-1]) == [False]
    assert await rig.find(chains[-1]) == 1
    assert rig.prober.dropped == 5


async def test_an_open_circuit_is_not_asked_and_says_nothing_of_the_hole(rig: Rig) -> None:
    keys = chain_of("a", 4)
    await rig.write(keys)
    rig.requests.fails = lambda _verb, _name: True
    for chain in (chain_of(0, 1), chain_of(1, 1), keys[:1]):
        await rig.find(chain)
    assert rig.packs.store.circuit.is_open
    asked, not_asked = rig.asked, rig.packs.store.counts.not_asked
    assert await rig.find(keys) == 0
    assert (rig.asked, rig.packs.store.counts.not_asked) == (asked, not_asked), "no probe is begun"
    rig.requests.fails = lambda _verb, _name: False
    rig.packs.clock.advance_ns(2 * 10**9)
    assert await rig.packs.store.answers()
    assert await rig.find(keys) == 4, "it was not taken for empty"


async def test_a_circuit_that_opens_in_the_middle_keeps_what_was_found(rig: Rig) -> None:
    keys = chain_of("a", 60)
    await rig.write(keys)
    heads = {name(keys, end) for end in range(PER_PACK - 1, 32, PER_PACK)}  # of the first eight groups
    rig.requests.fails = lambda _verb, asked_for: asked_for not in heads
    assert await rig.find(keys) == 32
    assert rig.packs.store.circuit.is_open
    assert rig.packs.known(keys) == [True] * 32 + [False] * 28
    rig.requests.fails = lambda _verb, _name: False
    rig.packs.clock.advance_ns(2 * 10**9)
    assert await rig.packs.store.answers()
    assert await rig.find(keys) == 60


async def test_what_was_cleared_is_not_taken(rig: Rig) -> None:
    keys = chain_of("a", 4)
    await rig.write(keys)
    rig.cleared = True
    assert await rig.find(keys) == 0
    assert rig.packs.known(keys) == [False] * 4


@pytest.mark.parametrize("how", ["cut", "altered", "another chain's", "emptied"])
async def test_a_pack_that_is_not_what_it_is_named_is_deleted(rig: Rig, how: str) -> None:
    keys, others = chain_of("a", 8), chain_of("b", 4)
    await rig.write(keys)
    await rig.write(others)
    at = name(keys, 7)
    data = bytearray((await obstore.get_async(rig.bucket, at)).bytes())
    if how == "cut":
        data = data[:2_000]
    elif how == "altered":
        data[100] ^= 1
    elif how == "emptied":
        data = bytearray(len(data))
    else:
        data = bytearray((await obstore.get_async(rig.bucket, name(others, 3))).bytes())
    await obstore.put_async(rig.bucket, at, bytes(data))
    assert await rig.find(keys) == 4
    assert rig.packs.known(keys) == [True] * 4 + [False] * 4
    assert rig.packs.store.counts.packs_damaged == 1
    assert at not in await rig.packs.stored()
    assert name(keys, 3) in await rig.packs.stored()


async def test_a_whole_pack_of_a_chain_that_only_ends_alike_is_not_listed(rig: Rig) -> None:
    """No honest chain has such: a key names all before it. An engine's own hashes may be less careful."""
    keys = joined(chain_of("other start", 3), chain_of("a", 1))
    await rig.write(keys)
    asked_for = joined(chain_of("my start", 3), keys[3:])
    assert await rig.find(asked_for) == 0
    assert rig.packs.known(asked_for) == [False] * 4


@pytest.mark.parametrize("how", ["gone", "cut", "altered"])
async def test_a_known_pack_that_turns_out_so_is_forgotten(rig: Rig, how: str) -> None:
    keys = chain_of("a", 8)
    await rig.write(keys)
    assert await rig.find(keys) == 8
    at = name(keys, 7)
    data = bytearray((await obstore.get_async(rig.bucket, at)).bytes())
    if how == "gone":
        await obstore.delete_async(rig.bucket, at)
    else:
        data[-5_000] ^= 1
        await obstore.put_async(rig.bucket, at, bytes(data[:-20_000] if how == "cut" else data))
    came = await rig.packs.read(keys)
    assert 4 <= came < 8
    assert rig.packs.known(keys) == [True] * 4 + [False] * 4
    assert at not in await rig.packs.stored()
    assert rig.packs.store.counts.packs_damaged == (how != "gone")


async def test_behind_a_pack_that_is_gone_nothing_is_of_use(rig: Rig) -> None:
    keys = chain_of("a", 12)
    await rig.write(keys)
    assert await rig.find(keys) == 12
    await obstore.delete_async(rig.bucket, name(keys, 7))
    assert await rig.packs.read(keys) == 4
    assert rig.packs.known(keys) == [True] * 4 + [False] * 4 + [True] * 4


async def test_a_stopped_prober_leaves_no_probe_behind(rig: Rig) -> None:
    rig.prober.start()
    rig.requests.hold_back("get_range_async")
    rig.ask(chain_of("a", 4), wanted=True)
    await eventually(lambda: rig.asked == 1)
    await rig.prober.stop()
    assert rig.prober._under_way == {}
    assert rig.brought == []
