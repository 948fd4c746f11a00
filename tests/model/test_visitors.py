"""Leases, pulls and fillings of a node against a cache that may forget: the real code and core, in virtual time.

After every step every byte that is there or was read is right, and exactly what is leased is held; at the end nothing
is left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from kvstore import native
from kvstore.node.leases import Allowance
from kvstore.node.pulls import Slots
from kvstore.node.streams import Prefix
from kvstore.tiers.base import Keys
from kvstore.wire import framed, store
from tests.model.visitor_parts import DEADLINE_S, Client, Filling, Lease
from tests.model.visitor_rig import BLOCK, CHAINS, HOLDS_MAX, LIMITS, PARTS, Rig
from tests.storage import MEMORY, chain_of
from transfer.errors import TransferFailed
from transfer.offers import Carrier
from transfer.testing.loop import VirtualLoop

runs = st.tuples(st.integers(0, len(CHAINS) - 1), st.integers(1, 5))
which = st.integers(0, 100)
failing = st.sampled_from(["", "", "", "", "short", "brief", "forged", "unknown", "gone"])
patience = st.sampled_from([DEADLINE_S, DEADLINE_S, 0.003, 0.01])
in_motion = st.sampled_from([0.005, 0.015, 0.035])
moments = st.sampled_from([0.0, 0.001, 0.004, 0.02])


ends = st.sampled_from(["clear", "jump", "hang up"])


def beside(run: Run, work: object, seconds: float) -> None:
    """Begins it, and looks so much later."""

    async def both() -> None:
        run.rig.begin(work)  # type: ignore[arg-type]
        await run.rig.elapse(seconds)

    run(both())


def at_once(run: Run, step: Callable[[], object]) -> None:
    async def one() -> None:
        step()

    run(one())


def others(run: Run, seed: object) -> None:
    """Take whatever room there is."""
    for number in range(4):
        keys = chain_of(("quick", seed, number), 4)
        beside(run, run.rig.pull(run.rig.clients[1], keys, "", DEADLINE_S, 1.0), 0.005)
    run(run.rig.elapse(0.3))


def pull_is_overtaken(run: Run, what: str, after: float, seed: int, again: Keys) -> None:
    """Of a client that is slow to read. Its slots are others' only when nothing can land there any more, and what ends
    for one connection goes on for the next.
    """
    rig, slow = run.rig, run.rig.clients[0]
    beside(run, rig.pull(slow, chain_of(("slow", seed), 4), "", DEADLINE_S, 1.0), after)
    at_once(run, {"clear": rig.open, "jump": lambda: rig.jump(2.0), "hang up": lambda: rig.hang_up(slow)}[what])
    if what == "hang up":
        beside(run, rig.pull(slow, again, "", DEADLINE_S, 1.0), 0.0)
    others(run, seed)


def fill_is_overtaken(run: Run, part: int, after: float, seed: int) -> None:
    rig, slow = run.rig, run.rig.clients[0]
    known = set(slow.fillings)
    run(rig.reserve(slow, chain_of(("slow", seed), 4)))
    for number in set(slow.fillings) - known:
        filling = slow.fillings[number]
        beside(run, rig.fill(slow, filling, part, "", DEADLINE_S), after)
        run(rig.end_filling(slow, filling, store.METHOD_ABORT))
    others(run, seed)


class Run:
    """Drives a rig from steps that are no coroutines."""

    def __init__(self, seed: int, clients: int) -> None:
        self.loop = VirtualLoop()
        self.faults: list[object] = []
        self.broken = False
        self.loop.set_exception_handler(lambda _, context: self.faults.append(context))

        async def made() -> Rig:
            rig = Rig(seed)
            await rig.start(clients)
            return rig

        self.rig = self.loop.run_until_complete(made())

    def __call__(self, work: Coroutine[Any, Any, Any]) -> Any:
        self.broken = True
        told = self.loop.run_until_complete(work)
        self.loop.run_until_complete(self.rig.check())
        assert not self.faults, self.faults
        self.broken = False
        return told

    def close(self) -> None:
        try:
            if not self.broken:
                self.loop.run_until_complete(self.rig.end())
                assert not self.faults, self.faults
        finally:
            for task in self.loop.tasks:
                task.cancel()
            self.loop.run_until_complete(asyncio.sleep(0))
            self.loop.close()


class VisitorMachine(RuleBasedStateMachine):
    @initialize(seed=st.integers(0, 2**32))
    def begin(self, seed: int) -> None:
        self.run = Run(seed, clients=3)
        self.rig = self.run.rig
        self.does(self.rig.pull(self.rig.clients[0], CHAINS[0], "", DEADLINE_S, 1.0), None)

    def client(self, index: int) -> Client:
        return self.rig.clients[index % len(self.rig.clients)]

    def a_lease(self, index: int) -> tuple[Client, Lease] | None:
        found = [(client, lease) for client in self.rig.clients for lease in client.leases.values()]
        return found[index % len(found)] if found else None

    def a_filling(self, index: int) -> tuple[Client, Filling] | None:
        found = [(client, filling) for client in self.rig.clients for filling in client.fillings.values()]
        return found[index % len(found)] if found else None

    def does(self, work: object, within_s: float | None) -> None:
        """Awaits it; or lets it go on, and looks again so much later."""

        if within_s is not None:
            beside(self.run, work, within_s)
            return

        async def whole() -> None:
            self.rig.begin(work)  # type: ignore[arg-type]
            await asyncio.wait(self.rig.tasks)

        self.run(whole())

    soon = st.one_of(st.none(), moments)

    # ---- get

    @rule(index=which, run=runs, soon=soon)
    def lease(self, index: int, run: tuple[int, int], soon: float | None) -> None:
        self.does(self.rig.lease(self.client(index), CHAINS[run[0]][: run[1]]), soon)

    @rule(index=which, run=runs, soon=soon)
    def hold(self, index: int, run: tuple[int, int], soon: float | None) -> None:
        self.does(self.rig.lease(self.client(index), CHAINS[run[0]][: run[1]], only_hold=True), soon)

    @rule(index=which, soon=soon)
    def read(self, index: int, soon: float | None) -> None:
        found = self.a_lease(index)
        if found is not None:
            self.does(self.rig.read_lease(*found), soon)

    @rule(index=which, run=runs)
    def get(self, index: int, run: tuple[int, int]) -> None:
        client = self.client(index)
        self.does(self.rig.lease(client, CHAINS[run[0]][: run[1]]), None)
        for lease in list(client.leases.values()):
            self.does(self.rig.read_lease(client, lease), None)
            self.run(self.rig.release(client, lease))

    @rule(index=which, corrupt=st.booleans())
    def release(self, index: int, corrupt: bool) -> None:
        """A client that is wrong, or lies, about what verifies costs nobody a block."""
        found = self.a_lease(index)
        if found is not None:
            self.run(self.rig.release(*found, corrupt=[0] if corrupt else []))

    @rule(index=which, run=runs)
    def lease_given_up(self, index: int, run: tuple[int, int]) -> None:
        self.run(self.rig.lease_given_up(self.client(index), CHAINS[run[0]][: run[1]]))

    @rule(index=which)
    def never_quiet(self, index: int) -> None:
        found = self.a_lease(index)
        if found is not None:
            self.rig.stick(*found)

    # ---- put

    @rule(index=which, run=runs, failing=failing, patience=patience, soon=soon)
    def pull(self, index: int, run: tuple[int, int], failing: str, patience: float, soon: float | None) -> None:
        keys = CHAINS[run[0]][: run[1]]
        self.does(self.rig.pull(self.client(index), keys, failing, patience, deadline_s=1.0), soon)

    @rule(index=which, seed=st.integers(0, 50))
    def pull_others(self, index: int, seed: int) -> None:
        """So that room runs short."""
        self.does(self.rig.pull(self.client(index), chain_of(("other", seed), 4), "", DEADLINE_S, 1.0), None)

    @rule(index=which, run=runs)
    def reserve(self, index: int, run: tuple[int, int]) -> None:
        self.run(self.rig.reserve(self.client(index), CHAINS[run[0]][: run[1]]))

    @rule(index=which, failing=failing, patience=patience, part=st.integers(0, len(PARTS) - 1), soon=soon)
    def fill(self, index: int, failing: str, patience: float, part: int, soon: float | None) -> None:
        found = self.a_filling(index)
        if found is not None:
            found[1].muddled |= soon is not None
            self.does(self.rig.fill(*found, part, failing, patience), soon)

    @rule(index=which)
    def fill_all(self, index: int) -> None:
        found = self.a_filling(index)
        for part in range(len(PARTS)):
            if found is not None:
                self.does(self.rig.fill(*found, part, "", DEADLINE_S), None)

    @rule(index=which, run=runs, failing=failing, part=st.integers(0, len(PARTS) - 1), published=st.integers(0, 3))
    def fill_anew(self, index: int, run: tuple[int, int], failing: str, part: int, published: int) -> None:
        """From the beginning to the end, one part twice."""
        client = self.client(index)
        known = set(client.fillings)
        self.run(self.rig.reserve(client, CHAINS[run[0]][: run[1]]))
        for number in set(client.fillings) - known:
            filling = client.fillings[number]
            for each in range(len(PARTS)):
                self.does(self.rig.fill(client, filling, each, "", DEADLINE_S), None)
            self.does(self.rig.fill(client, filling, part, failing, DEADLINE_S), None)
            for each in range(published):
                self.run(self.rig.end_filling(client, filling, store.METHOD_PUBLISH, each))
            if filling.published:
                assert not self.run(self.rig.garbled(client, filling, 0)), "a published part was filled anew"
            self.run(self.rig.end_filling(client, filling, store.METHOD_SEAL))

    @rule(index=which, part=st.integers(0, len(PARTS) - 1))
    def publish(self, index: int, part: int) -> None:
        found = self.a_filling(index)
        if found is not None:
            self.run(self.rig.end_filling(*found, store.METHOD_PUBLISH, part))

    @rule(index=which, seals=st.booleans())
    def seal_or_abort(self, index: int, seals: bool) -> None:
        found = self.a_filling(index)
        if found is not None:
            self.run(self.rig.end_filling(*found, store.METHOD_SEAL if seals else store.METHOD_ABORT))

    @rule(run=runs, what=ends, seed=st.integers(0, 50), after=in_motion)
    def pull_is_overtaken(self, run: tuple[int, int], what: str, seed: int, after: float) -> None:
        pull_is_overtaken(self.run, what, after, seed, CHAINS[run[0]][: run[1]])

    @rule(seed=st.integers(0, 50), part=st.integers(0, len(PARTS) - 1), after=in_motion)
    def fill_is_overtaken(self, seed: int, part: int, after: float) -> None:
        fill_is_overtaken(self.run, part, after, seed)

    # ---- what happens to all

    @rule(seconds=st.sampled_from([0.002, 0.05, 0.3, 0.71, 1.6]))
    def time_passes(self, seconds: float) -> None:
        self.run(self.rig.elapse(seconds))

    @rule(index=which)
    def hang_up(self, index: int) -> None:
        at_once(self.run, lambda: self.rig.hang_up(self.client(index)))

    @rule()
    def clear(self) -> None:
        at_once(self.run, self.rig.open)

    @rule(index=which, goes_on=st.booleans(), stops=st.booleans())
    def silence(self, index: int, goes_on: bool, stops: bool) -> None:
        address = self.client(index).address
        at_once(self.run, lambda: self.rig.silence(address, goes_on=goes_on, stops=stops))

    @rule(refuses=st.booleans())
    def grants_are_refused(self, refuses: bool) -> None:
        self.rig.node.refuses = refuses

    def teardown(self) -> None:
        if hasattr(self, "run"):
            self.run.close()


TestVisitors = VisitorMachine.TestCase


def test_as_many_holds_as_a_connection_may_have_are_no_miss() -> None:
    run = Run(seed=1, clients=1)
    rig, client = run.rig, run.rig.clients[0]
    run(rig.pull(client, CHAINS[0], "", DEADLINE_S, 1.0))
    for _ in range(HOLDS_MAX):
        run(rig.lease(client, CHAINS[0][:1]))
    assert len(client.leases) == HOLDS_MAX and rig.refused == 0
    run(rig.lease(client, CHAINS[0][:1]))
    assert rig.refused == 1
    run.close()


def test_a_lease_that_was_quiet_is_not_kept_for_who_touches_its_slot_next() -> None:
    run = Run(seed=0, clients=2)
    rig, (first, second) = run.rig, run.rig.clients
    run(rig.pull(first, CHAINS[0], "", DEADLINE_S, 1.0))
    run(rig.lease(first, CHAINS[0][:1]))
    at_once(run, lambda: rig.hang_up(first))
    run(rig.lease(second, CHAINS[0][:1]))
    (lease,) = second.leases.values()
    rig.stick(second, lease)
    run.close()


@pytest.mark.parametrize("what", ["clear", "jump", "hang up"])
def test_a_pull_that_is_overtaken(what: str) -> None:
    for seed in range(12):
        run = Run(seed, clients=2)
        if seed % 2:  # the way is known, and bytes move at once
            run(run.rig.pull(run.rig.clients[0], CHAINS[1][:1], "", DEADLINE_S, 1.0))
        pull_is_overtaken(run, what, (0.005, 0.015, 0.04)[seed % 3], seed, CHAINS[0])
        run.close()


def test_a_fill_that_is_overtaken() -> None:
    for seed in range(12):
        run = Run(seed, clients=2)
        run(run.rig.pull(run.rig.clients[0], CHAINS[1][:1], "", DEADLINE_S, 1.0))
        fill_is_overtaken(run, seed % len(PARTS), (0.005, 0.015)[seed % 2], seed)
        run.close()


def test_a_lease_that_nobody_releases_ends() -> None:
    run = Run(seed=1, clients=1)
    rig, client = run.rig, run.rig.clients[0]
    run(rig.pull(client, CHAINS[0], "", DEADLINE_S, 1.0))
    run(rig.lease(client, CHAINS[0]))
    (lease,) = client.leases.values()
    run(rig.read_lease(client, lease))
    read = rig.read
    assert read == len(lease.told.offsets) > 0
    run(rig.elapse(LIMITS.lease_ms_max / 1e3 + 0.1))
    run(rig.read_lease(client, lease))
    assert rig.read == read and not client.visitor.leases._leases
    run.close()


def test_a_grant_that_is_refused_costs_nothing() -> None:
    run = Run(seed=1, clients=1)
    rig, client = run.rig, run.rig.clients[0]
    run(rig.pull(client, CHAINS[0], "", DEADLINE_S, 1.0))
    rig.node.refuses = True
    run(rig.lease(client, CHAINS[0]))
    assert rig.refused == 1 and client.visitor.allowance.taken == 0
    run.close()


def test_what_is_released_is_no_room_before_it_is_quiet() -> None:
    """A visitor that releases what it still reads has no more under way for that; one that waits gets the room."""
    run = Run(seed=1, clients=1)
    rig, client = run.rig, run.rig.clients[0]
    run(rig.pull(client, CHAINS[0], "", DEADLINE_S, 1.0))
    for _ in range(4):
        run(rig.lease(client, CHAINS[0][:3]))
    first, second, *_ = client.leases.values()
    assert client.visitor.allowance.left == 0

    run(rig.release(client, first))
    run(rig.lease(client, CHAINS[0][:3]))
    assert rig.refused == 1 and client.visitor.allowance.left == 0

    run(rig.elapse(0.05))
    run(rig.release(client, second))
    run(rig.lease(client, CHAINS[0][:3]))
    assert len(client.leases[max(client.leases)].told.offsets) == 3, "room that had been there"
    run(rig.lease(client, CHAINS[0][:3], wait_s=0.1))
    assert len(client.leases[max(client.leases)].told.offsets) == 3, "room that came in time"
    assert rig.refused == 1
    run.close()


def test_what_did_not_become_quiet_is_held_for_good() -> None:
    """Also when its connection ends later."""
    run = Run(seed=1, clients=1)
    rig, client = run.rig, run.rig.clients[0]
    run(rig.pull(client, CHAINS[0], "", DEADLINE_S, 1.0))
    run(rig.lease(client, CHAINS[0]))
    (lease,) = client.leases.values()
    rig.stick(client, lease)
    run(rig.release(client, lease))
    run(rig.elapse(0.1))
    at_once(run, lambda: rig.hang_up(client))
    run(rig.elapse(0.1))
    assert rig.core.stats(MEMORY)["holds"] == 1
    run.close()


def test_a_way_back_that_was_closed_is_found_anew() -> None:
    """As a transport does that nobody came back to, while its visitor stays."""
    run = Run(seed=1, clients=1)
    rig, client = run.rig, run.rig.clients[0]
    run(rig.pull(client, CHAINS[0], "", DEADLINE_S, 1.0))
    run(rig.ways.backs[client.transport.incarnation].close())
    run(rig.pull(client, CHAINS[1], "", DEADLINE_S, 1.0))
    assert rig.stored == 10 and rig.ways.counts.endpoints == 1
    run.close()


class Poisoning:
    """A visitor whose memory does not become quiet."""

    async def way(self, *_: object) -> Poisoning:
        return self

    async def present(self, *_: object, **__: object) -> list[SimpleNamespace]:
        return [SimpleNamespace(handle=1)]

    async def read(self, *_: object, **__: object) -> None:
        nothing = np.zeros(0, np.uint64)
        raise TransferFailed("poisoned", failures=(), arrived=nothing > 0, checksums=nothing, poisoned=True)


def test_slots_that_did_not_become_quiet_count_as_being_put_for_good() -> None:
    run = Run(seed=1, clients=1)
    rig, allowance = run.rig, Allowance(LIMITS.moving_bytes_max)
    prefix = Prefix(CHAINS[0][:2], b"", lambda _: native.Hint())
    source = framed.Source(
        carrier=int(Carrier.TCP), descriptors=[b""], pieces=np.array([(0, 0, BLOCK)] * 2, "<i8").tobytes()
    )
    slots = Slots(rig.visitors.host, rig.opened, 0, allowance)
    slots.reserve(prefix, ())
    run(slots.read(Poisoning(), source, None, 1.0))  # type: ignore[arg-type]
    slots.close()
    assert allowance.taken == 2 * BLOCK and rig.core.stats(MEMORY)["slots_reserved"] == 2
    run.broken = True  # they stay
    run.close()


def test_a_part_that_is_filled_anew_was_not_filled_before() -> None:
    run = Run(seed=1, clients=1)
    rig, client = run.rig, run.rig.clients[0]
    run(rig.reserve(client, CHAINS[0]))
    (filling,) = client.fillings.values()
    for part in range(len(PARTS)):
        run(rig.fill(client, filling, part, "", DEADLINE_S))
    run(rig.fill(client, filling, 0, "short", DEADLINE_S))
    run(rig.end_filling(client, filling, store.METHOD_SEAL))
    assert (rig.refused, rig.stored) == (1, 0)
    run(rig.fill(client, filling, 0, "", DEADLINE_S))
    run(rig.end_filling(client, filling, store.METHOD_SEAL))
    assert rig.stored == len(CHAINS[0])
    run.close()
