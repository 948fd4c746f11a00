"""One node, its clients and their faults, from one seed. What must hold is checked after every event:

- no wrong byte is ever given to a caller, by a get or in a view;
- every call ends by its deadline, and everything ends;
- nothing lands in a slot whose tenancy has ended: what is held or may be written is not reused;
- no peer reads by a grant what was not granted, and nothing lands where a caller has its memory back;
- what a node reads itself is sealed only if all of it arrived;
- slots add up, in every state, and at the end nothing is left reserved, retired or held;
- a restart brings back only what somebody sealed.

`run_seed` raises Broken, with the trace and how to replay it.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from kvstore.testing.faults import FaultPlan, Storm, plan_faults
from kvstore.testing.link import Link
from kvstore.testing.models.away import AwayClientModel
from kvstore.testing.models.client import Call, ClientLimits, ClientModel, Verb
from kvstore.testing.models.entries import Entries
from kvstore.testing.models.integrity import check
from kvstore.testing.models.keys import part_checksums
from kvstore.testing.models.lifecycle import Slot, SlotState, Ticket
from kvstore.testing.models.memory import Memory
from kvstore.testing.models.namespaces import Namespaces
from kvstore.testing.models.node import NodeLimits, NodeModel, Remains
from kvstore.testing.models.slabs import Geometry
from kvstore.testing.models.table import TableModel
from kvstore.testing.models.truth import Truth
from kvstore.testing.models.visitors import VisitorsModel
from kvstore.testing.world import Broken, World

GEOMETRIES: Final = tuple(Geometry(bytes=slabs * 96, slab_bytes=96, align=16) for slabs in (1, 2, 3))
SHARDS: Final = {"a": ((16, 12), (8, 16, 9)), "b": ((20, 12),)}
PROMPTS: Final = ((1, 2, 3, 4), (1, 2, 5), (6, 7))
EVENTS_MAX: Final = 20_000
# How often each verb is called, by mood: everyday, crowded, forgetful. The last number: longest pause between calls.
MOODS: Final = (
    (
        {Verb.PUT: 6, Verb.PUT_PARTS: 3, Verb.GET: 6, Verb.FOLLOW: 2, Verb.VIEW: 4, Verb.LOOKUP: 1, Verb.PREFETCH: 1},
        1_500,
    ),
    ({Verb.PUT: 5, Verb.PUT_PARTS: 1, Verb.GET: 1, Verb.VIEW: 5}, 400),
    (
        {Verb.PUT: 4, Verb.PUT_PARTS: 1, Verb.GET: 3, Verb.FOLLOW: 1, Verb.VIEW: 2, Verb.PREFETCH: 1, Verb.CLEAR: 2},
        1_000,
    ),
)


@dataclass(frozen=True, slots=True)
class Cast:
    """Who plays: the classes of a simulation, so that a faulty twin can take a part."""

    table: type[TableModel] = TableModel
    node: type[NodeModel] = NodeModel
    client: type[ClientModel] = ClientModel
    spaces: type[Namespaces] = Namespaces
    away: type[AwayClientModel] = AwayClientModel
    visitors: type[VisitorsModel] = VisitorsModel
    look_inside: bool = True  # or only at what callers see, and at the end


@dataclass(frozen=True, slots=True)
class Result:
    events: int
    got: int
    put: int
    restarts: int
    quarantined: int
    evicted: int
    leased: int  # blocks that arrived by leases
    pulled: int  # blocks sealed that the node has read itself
    unread: int  # those that it could not read whole
    refused: int  # slices whose grant had ended


class Simulation:
    def __init__(self, seed: int, cast: Cast, calls: int = 8) -> None:
        self.world = World(seed)
        rng = self.world.rng
        self.cast = cast
        self.truth = Truth()
        self.geometry = rng.choice(GEOMETRIES)
        self.mood = rng.choice(MOODS)
        self.remains = Remains(Memory(self.geometry.bytes), Entries(), cast.spaces(SHARDS))
        if cast.look_inside:
            self.remains.memory.landed = self._landed
            self.remains.memory.lent = self._lent
            self.remains.memory.sealed = self._sealed
        self.owners = self.restarts = self.quarantined = self.evicted = 0
        self.former: list[NodeModel] = []
        self.node: NodeModel | None = None
        self.start_node()
        self.plan: FaultPlan = plan_faults(rng)
        near = rng.choice((2, 3))
        self.clients = [self._client(f"c{i}", calls, cast.client if i < near else cast.away) for i in range(5)]
        for client in self.clients:
            client.process.start()
        Storm(self, self.plan).begin()

    def _client(self, name: str, calls: int, kind: type[ClientModel]) -> ClientModel:
        script = [_call(self.world.rng, *self.mood) for _ in range(calls)]
        return kind(self.world, name, self.remains.memory, self.truth, self._connect, script, limits=ClientLimits())

    def _connect(self, client: ClientModel) -> Link | None:
        if self.node is None or not self.node.alive:
            return None
        self.owners += 1
        return self.node.accept(
            self.owners,
            client.process,
            local=client.in_place,
            delay_max=self.plan.delay_max if client.in_place else 300,
        )

    # ---- the node's processes

    def start_node(self) -> None:
        """Unless one is running: the segment's lock keeps a second from starting."""
        if self.node is not None and self.node.alive:
            return
        if self.node is not None:
            self.restarts += 1
            self.quarantined += self.node.table.counts.quarantined
            self.evicted += self.node.table.counts.evicted_clean + self.node.table.counts.evicted_dirty
            self.former.append(self.node)
            self.world.note("node", "starts again")
        cast = self.cast
        self.node = cast.node(self.world, self.geometry, self.remains, NodeLimits(), cast.table, cast.visitors)
        self._check_recovered(self.node.table)

    def _check_recovered(self, table: TableModel) -> None:
        for slot in table.slots.values():
            if slot.state == SlotState.SEALED and tuple(slot.checksums) not in self.truth.taken.get(slot.name, ()):
                raise Broken(f"recovered what nobody sealed: slot {slot.ticket.slot} as {slot.name.key[:4].hex()}")

    # ---- what must hold

    def _landed(self, ticket: Ticket, offset: int, size: int) -> None:
        if self.node is None or not self.node.alive:
            return
        there = self._there(offset, size)
        if not there:
            raise Broken(f"landed in a slot that is free: {ticket}")
        for slot in there:
            if slot.ticket != ticket:
                raise Broken(f"landed in another's slot: {ticket} wrote into {slot.ticket}, {slot.state.name}")
            if slot.state == SlotState.SEALED:
                raise Broken(f"landed in a sealed slot: {ticket}")

    def _lent(self, tickets: frozenset[Ticket], offset: int, size: int) -> None:
        """What a peer reads is held until it has."""
        there = self._there(offset, size)
        if not there or not all(slot.ticket in tickets and slot.holds for slot in there):
            raise Broken(f"lent what is not held: at {offset}, by a lease of {sorted(tickets)}")

    def _sealed(self, slot: Slot) -> None:
        """By a node that has read the bytes itself."""
        data = self.remains.memory.read(slot.offset, slot.payload_bytes)
        shards = self.remains.spaces.by_digest[slot.name.digest]
        if part_checksums(data, shards[slot.name.shard]) != slot.checksums:
            raise Broken(f"sealed what had not arrived: {slot.ticket}")
        if tuple(slot.checksums) not in self.truth.taken.get(slot.name, ()):
            raise Broken(f"sealed what nobody put: {slot.ticket}")

    def _there(self, offset: int, size: int) -> list[Slot]:
        assert self.node is not None
        slots = self.node.table.slots.values()
        return [slot for slot in slots if slot.offset < offset + size and offset < slot.offset + slot.payload_bytes]

    def after_each(self) -> None:
        if self.node is None or not self.node.alive or not self.cast.look_inside:
            return
        try:
            check(self.node.table)
        except AssertionError as error:
            raise Broken(f"slots do not add up: {error}") from error

    def run(self) -> Result:
        self.world.run(EVENTS_MAX, self.after_each)
        waiting = [client.name for client in self.clients if client.process.running]
        if waiting:
            raise Broken(f"hang: {waiting} wait for what never comes")
        self._check_end()
        assert self.node is not None
        counts = self.node.table.counts
        visitors = [node.visitors for node in (*self.former, self.node)]
        return Result(
            self.world.events,
            sum(client.got for client in self.clients),
            sum(client.put for client in self.clients),
            self.restarts,
            self.quarantined + counts.quarantined,
            self.evicted + counts.evicted_clean + counts.evicted_dirty,
            sum(client.leased for client in self.clients if isinstance(client, AwayClientModel)),
            sum(one.sealed for one in visitors),
            sum(one.unread for one in visitors),
            sum(one.lender.refused for one in visitors),
        )

    def _check_end(self) -> None:
        assert self.node is not None
        assert self.node.alive, "the plan starts the node again"
        table = self.node.table
        left = [slot for slot in table.slots.values() if slot.state != SlotState.SEALED or slot.kept]
        if left or table.holds.by_id:
            raise Broken(f"slots do not add up: at the end {[(s.ticket, s.state.name) for s in left]} are left")
        visitors = self.node.visitors
        if visitors.leases or visitors.fillings or visitors.pulling:
            raise Broken("slots do not add up: at the end something is leased or being put")


def _call(rng: random.Random, weights: Mapping[Verb, int], pause: int) -> Call:
    name = "a" if rng.random() < 0.7 else "b"
    verb = rng.choices(list(weights), list(weights.values()))[0]
    prompt = rng.choice(PROMPTS)
    shard = rng.randrange(len(SHARDS[name]))
    return Call(verb, name, shard, prompt[: rng.randint(1, len(prompt))], rng.randint(1, pause))


def run_seed(seed: int, cast: Cast | None = None) -> Result:
    """Plays one seed out. Broken says what did not hold, the end of the trace, and how to see it again."""
    simulation = None
    try:
        simulation = Simulation(seed, cast or Cast())
        return simulation.run()
    except AssertionError as error:
        trace = "\n".join(simulation.world.trace()) if simulation is not None else ""
        replay = f"replay: python -m kvstore.testing.simulation {seed}"
        raise Broken(f"{error}\n{trace}\n{error}\n{replay}") from error


def main() -> None:
    """Replays the seeds given as arguments; the trace of one that breaks is printed."""
    for seed in map(int, sys.argv[1:]):
        print(seed, run_seed(seed))  # noqa: T201


if __name__ == "__main__":
    main()
